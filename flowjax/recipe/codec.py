"""Latents of an autoencoder as the data of a flow: encoded once, kept on disk, normalised by what they measure.

A latent is the mean of the posterior, or drawn from it. The cache lies with the autoencoder,
`WORKDIR/latents/MODEL-DATA`, where MODEL is the hash of its weights and DATA that of the examples: another autoencoder,
or other examples, are another folder; `MODEL-DATA-posterior` holds means and deviations.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Num

from flowjax.data import Records, Source, cache_latents
from flowjax.data.latents import measure, overall, read_latents, statistics
from flowjax.recipe.autoencoder import encode, gathered
from flowjax.recipe.base import from_values
from flowjax.recipe.codecs import Codec
from flowjax.recipe.decoding import Elements
from flowjax.recipe.runs import Loaded, behind
from flowjax.training.mesh import fill
from flowjax.training.store import everywhere

_SAMPLE = 256  # examples of a set on disk that its hash reads
_BLOCK = 64


_EPS = 1e-5  # of the variance of an entry, as published with representation autoencoders


def check_codec(codec: Loaded, source: Source, how: Codec | None = None) -> None:
    """Refuses what cannot be the codec of a flow on this data.

    A codec is a run whose recipe has `latent_shape(network)` and whose network has `decode(z)` and `encode(x)`, which
    answers with latents, or with mean and log variance of their posterior.

    Raises:
        ValueError: A run that is no autoencoder, or one of examples of another shape or range; data with a field x0; a
            posterior or tiles that it does not have.
    """
    recipe, how = codec.recipe, Codec() if how is None else how
    if not hasattr(recipe, "latent_shape"):
        raise ValueError(f"the codec {codec.place} is a run of the kind {recipe.kind}, and an autoencoder is needed")
    for name, own, there in (
        ("shape of the examples", tuple(source.x.shape[1:]), tuple(recipe.shape)),
        ("range of the values", (source.low, source.high), (recipe.low, recipe.high)),
    ):
        if own != there:
            raise ValueError(f"the codec {codec.place} does not fit: its {name} is {there}, that of the data {own}")
    if "x0" in source.fields:
        raise ValueError("the data has the field x0, points of its own scale: a flow on latents starts from noise")
    network = codec.networks[recipe.label]
    if how.sample and not _has_posterior(codec):
        raise ValueError(f"sample=True draws from a posterior, and the codec {codec.place} has none: leave it out")
    if how.tile is not None and not (len(recipe.shape) == 3 and callable(getattr(network, "decode_part", None))):
        raise ValueError(f"tile={how.tile}: the codec {codec.place} decodes whole examples only, leave it out")


def _has_posterior(codec: Loaded) -> bool:
    network, x = codec.networks[codec.recipe.label], jax.ShapeDtypeStruct((1, *codec.recipe.shape), np.float32)
    return isinstance(jax.eval_shape(lambda network, x: network.encode(x), network, x), tuple)


def codec_of(loaded: Loaded) -> Loaded | None:
    """The codec of a trained flow; None for a flow on the data itself."""
    if loaded.recipe.codec is None:
        return None
    run, network = loaded.recipe.runs["codec"], loaded.networks["codec"]
    recipe = from_values(run["recipe"])
    network = network.network if isinstance(network, Elements) else network
    workdir = None if run["workdir"] is None or loaded.workdir is None else loaded.workdir / run["workdir"]
    return Loaded(workdir=workdir, networks={recipe.label: network}, recipe=recipe, model=run["model"])


def rescaled(source: Source, loaded: Loaded) -> Source:
    """Latents in the scale of a flow that has been trained on such; other data as they are."""
    codec = loaded.recipe.codec
    if codec is None:
        return source
    known = loaded.networks["codec"]
    shift, scale = (known.shift, known.scale) if "elements" in codec else (codec["shift"], codec["scale"])
    return dataclasses.replace(source, shift=shift, scale=scale)


def scale_in_recipe(source: Source) -> dict[str, Any]:
    """What the recipe of a flow says of the scale of its latents."""
    if not np.ndim(source.shift):
        return {"shift": source.shift, "scale": source.scale}
    return {"shift": 0.0, "scale": 1.0, "elements": elements_of(source, None).hash}


def elements_of(source: Source, network: Any) -> Any:
    """The codec with the scale of every entry of its latents, where there is one; else the codec."""
    return Elements(network=network, shift=source.shift, scale=source.scale) if np.ndim(source.shift) else network


def hash_of(x: Num[np.ndarray, "N ..."] | Records) -> str:
    """Twelve hexadecimal digits of SHA-256 over examples; of a set on disk over 256 of them, evenly spread."""
    rows = x if isinstance(x, np.ndarray) else x[np.linspace(0, len(x) - 1, min(len(x), _SAMPLE)).astype(int)]
    digest = hashlib.sha256(f"{x.dtype}{x.shape}".encode())
    digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()[:12]


def latents(codec: Loaded, source: Source, mesh: Mesh, how: Codec | None = None) -> Source:
    """What a codec makes of a source, with the labels and fields of the source; encoded where it is not known yet.

    Args:
        codec: The autoencoder's run; `check_codec` accepts it.
        source: The data, in any scale: the codec sees it in its own.
        mesh: Where examples are encoded.
        how: What latents are, how they are normalised, where they are kept; by default the means of the posterior,
            with the shift and scale that they measure.

    Returns:
        Latents, with deviations if they are to be drawn, and their shift and scale: numbers, or one for each entry.

    Raises:
        ValueError: A folder of this name that holds something else.
        OSError: The latents cannot be written.
    """
    how = Codec() if how is None else how
    plain = dataclasses.replace(
        source,
        cond=None,
        num_classes=None,
        names=(),
        fields={},
        conditions=(),
        shift=codec.recipe.shift,
        scale=codec.recipe.scale,
    )
    network = codec.networks[codec.recipe.label]
    place = codec.workdir / "latents" if how.cache is None and codec.workdir is not None else how.cache
    folder = None if place is None else _cached(codec, plain, mesh, Path(place), how.sample)
    found = _made(network, plain) if folder is None else read_latents(folder, posterior=how.sample)
    shift, scale = found.shift, found.scale
    if how.statistics == "own":
        shift, scale = 0.0, 1 / float(getattr(network, "latent_scale", 1.0))
    elif how.statistics == "elements" or folder is None:
        mean, variance = measure(found.x) if folder is None else statistics(folder, found)
        if how.statistics == "elements":
            shift, scale = mean.astype(np.float32), np.sqrt(variance + _EPS).astype(np.float32)
        else:
            shift, scale = overall(mean, variance)
    return dataclasses.replace(
        source, x=found.x, deviation=found.deviation, shift=shift, scale=scale, low=None, high=None
    )


def _made(network: Any, source: Source) -> Source:
    """The latents of a codec without weights, in memory where they are small, else made when they are asked for."""

    def read(row: int) -> np.ndarray:
        return network.encode(source.normalize(source.x[row : row + 1].astype(np.float32)).astype(np.float32))[0]

    shape = read(0).shape
    return Source(x=Records((len(source.x), *shape), np.dtype(np.float32), read).settle(None))


def _cached(codec: Loaded, source: Source, mesh: Mesh, place: Path, sample: bool) -> Path:
    """The folder of the latents, made if it is not there."""
    network = codec.networks[codec.recipe.label]
    how = [codec.recipe.network, codec.recipe.shift, codec.recipe.scale]
    record = {"codec": codec.model, "examples": hash_of(source.x), "size": len(source.x), "network": _hash(how)}
    if codec.recipe.runs:  # of an encoder the weights are in the codec's hash, and its options only here
        record["runs"] = _hash(behind(codec.recipe))
    name = f"{record['codec']}-{record['examples']}"
    if sample:
        record, name = record | {"posterior": True}, f"{name}-posterior"
    folder = place / name
    if not everywhere(known := _known(folder, record)):
        if known:
            raise ValueError(f"{folder} lies on this host and not on all: use a folder that all hosts share")

        def made(x: np.ndarray) -> np.ndarray:
            answer = gathered(encode, network, x, mesh)
            if not sample:
                return answer[0] if isinstance(answer, tuple) else answer
            mean, log_variance = answer
            return np.concatenate([mean, np.exp(log_variance / 2)], axis=-1)

        try:
            cache_latents(made, source, folder, block=fill(_BLOCK, mesh), record=record, posterior=sample)
        except (OSError, ValueError):
            if not _known(folder, record):  # else another process was faster
                raise
    return folder


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _known(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the latents are there.

    Raises:
        ValueError: The folder holds something else.
    """
    if not folder.exists():
        return False
    try:
        # Those of older versions do not say how the networks were built.
        built = {name: record[name] for name in ("network", "runs") if name in record}
        found = built | json.loads((folder / "metadata.json").read_text())
        if all(found[name] == value for name, value in record.items()):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{folder} does not hold the latents that its name says; remove it, and they are made again")
