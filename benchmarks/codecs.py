"""Claim: a small representation autoencoder and a KL autoencoder of Fashion-MNIST, what they lose and what they cost.

    python benchmarks/codecs.py --runs=runs/codecs

Trains `configs/rae.py` (a classifier as the encoder, then the decoder), and `configs/autoencoder.py` for as many steps
on the same images with latents (7, 7, 4). Signal-to-noise ratio and Frechet distance of 2,000 reconstructions. Then,
in batches of 64 and in alternation: decoding over a call of the flow of `configs/mf_rae.py` on these latents, and a
batch of latents from the cache over one that is encoded anew. Runs that are complete are taken as they are.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from measure import RESULTS, alternate, ratio, store
from one_evaluation import main_of, train

import flowjax as fj
from flowjax import _cli
from flowjax.data import Batches, load
from flowjax.recipe import load_run
from flowjax.recipe.autoencoder import decode, encode
from flowjax.recipe.codec import latents
from flowjax.recipe.runs import Run
from flowjax.training import make_mesh

BATCH = 64
KL = [
    "--config=autoencoder",
    "--config.data=fashion",
    "--config.network.options.image_shape=28,28,1",
    "--config.discriminator.options.image_shape=28,28,1",
    "--config.train.steps=2000",
    "--config.objective.options.start=1000",
]


def quality(workdir):
    """What reconstructions lose."""
    main_of("evaluate", workdir, "--num=2000", "--seed=1", "--data=recipe")
    row = json.loads((workdir / "evaluation.json").read_text())["runs"][-1]["rows"][0]
    found = {"psnr": row["psnr"], "mean absolute error of 255": row["error"]}
    return found | {"FD": next(value for name, value in row.items() if name.startswith("FD["))}


def speed(workdir):
    """Ratios of decoding to a call of the flow, and of the cache to encoding."""
    networks, recipe = load_run(workdir)
    codec, source = networks["autoencoder"], load("fashion")
    spec, shape = _cli.load_config("mf_rae:teacher").network.to_dict(), recipe.latent_shape(codec)
    spec["options"]["image_shape"] = shape
    flow = fj.build("network", spec, rngs=nnx.Rngs(0))
    z, cond = jnp.zeros((BATCH, *shape)), jnp.arange(BATCH) % 10
    call = jax.jit(lambda network, z: network(z, jnp.full(BATCH, 0.5), cond))
    calls = {"call": lambda: call(flow, z), "decode": lambda: decode(codec, z)}
    cached = latents(Run(workdir=str(workdir)).load(), source.take(4096), make_mesh())
    batches, images = Batches(cached, BATCH, 0), source.take(BATCH)
    reads = {
        "cache": lambda: jnp.asarray(batches.batch(0)["x1"]),
        "anew": lambda: encode(codec, jnp.asarray(source.normalize(np.asarray(images.x, np.float32))))[0],
    }
    return {
        "decoding / a call of the flow": ratio(alternate(calls), "decode", "call"),
        "a batch from the cache / encoded anew": ratio(alternate(reads), "cache", "anew"),
    }


def picture(folders):
    """Images, and what each autoencoder makes of them."""
    x = np.asarray(load("fashion").take(16, 3).x)
    rows = [x]
    for folder in folders:
        networks, recipe = load_run(folder)
        rows += [next(iter(recipe.reconstruct(networks["autoencoder"], x, batch=16)))[1]]
    figure = Figure(figsize=(9, 2), layout="constrained")
    axis = figure.subplots()
    axis.imshow(np.concatenate([np.concatenate(list(row[..., 0]), 1) for row in rows]), cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[14 + 28 * i for i in range(len(rows))])
    axis.set_yticklabels(["images", *(folder.name for folder in folders)])
    figure.savefig(RESULTS.parent.parent / "docs" / "figures" / "codecs.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    runs = parser.parse_args().runs.resolve()
    numbers = {
        "encoder: seconds": train(runs / "encoder", "--config=rae:encoder"),
        "encoder: accuracy": json.loads((runs / "encoder" / "report.json").read_text())["accuracy"],
        "representation: seconds": train(
            runs / "representation", "--config=rae:decoder", f"--config.encoder.options.workdir={runs / 'encoder'}"
        ),
        "KL: seconds": train(runs / "KL", *KL),
    }
    for name in ("representation", "KL"):
        found = quality(runs / name) | speed(runs / name)
        numbers |= {f"{name}: {what}": value for what, value in found.items()}
        store("codecs", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)
    picture([runs / "representation", runs / "KL"])


if __name__ == "__main__":
    main()
