"""Latents of an autoencoder as the data of a flow: encoded once, kept on disk, normalised by what they measure.

A latent is the mean of the posterior. The cache lies with the autoencoder, `WORKDIR/latents/MODEL-DATA`, where MODEL is
the hash of its weights and DATA that of the examples: another autoencoder, or other examples, are another folder.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Num

from flowjax.data import Records, Source, cache_latents, tfds
from flowjax.recipe.autoencoder import Autoencoder, encode, gathered
from flowjax.recipe.base import from_values
from flowjax.recipe.runs import Loaded
from flowjax.training.mesh import fill
from flowjax.training.store import everywhere

_SAMPLE = 256  # examples of a set on disk that its hash reads
_BLOCK = 64


def check_codec(codec: Loaded, source: Source) -> None:
    """Refuses what cannot be the codec of a flow on this data.

    Raises:
        ValueError: A run that is no autoencoder, or one of examples of another shape or range; data with a field x0.
    """
    recipe = codec.recipe
    if not isinstance(recipe, Autoencoder):
        raise ValueError(f"the codec {codec.workdir} is a run of the kind {recipe.kind}, and an autoencoder is needed")
    for name, own, there in (
        ("shape of the examples", tuple(source.x.shape[1:]), tuple(recipe.shape)),
        ("range of the values", (source.low, source.high), (recipe.low, recipe.high)),
    ):
        if own != there:
            raise ValueError(f"the codec {codec.workdir} does not fit: its {name} is {there}, that of the data {own}")
    if "x0" in source.fields:
        raise ValueError("the data has the field x0, points of its own scale: a flow on latents starts from noise")


def codec_of(loaded: Loaded) -> Loaded | None:
    """The codec of a trained flow; None for a flow on the data itself."""
    if loaded.recipe.codec is None:
        return None
    run = loaded.recipe.runs["codec"]
    recipe, network = from_values(run["recipe"]), loaded.networks["codec"]
    return Loaded(
        workdir=loaded.workdir / run["workdir"], networks={recipe.label: network}, recipe=recipe, model=run["model"]
    )


def rescaled(source: Source, recipe: Any) -> Source:
    """Latents in the scale of a flow that has been trained on such; other data as they are."""
    codec = recipe.codec
    return source if codec is None else dataclasses.replace(source, shift=codec["shift"], scale=codec["scale"])


def hash_of(x: Num[np.ndarray, "N ..."] | Records) -> str:
    """Twelve hexadecimal digits of SHA-256 over examples; of a set on disk over 256 of them, evenly spread."""
    rows = x if isinstance(x, np.ndarray) else x[np.linspace(0, len(x) - 1, min(len(x), _SAMPLE)).astype(int)]
    digest = hashlib.sha256(f"{x.dtype}{x.shape}".encode())
    digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()[:12]


def latents(codec: Loaded, source: Source, mesh: Mesh) -> Source:
    """What a codec makes of a source, with the labels and fields of the source; encoded where it is not known yet.

    Args:
        codec: The autoencoder's run; `check_codec` accepts it.
        source: The data, in any scale: the codec sees it in its own.
        mesh: Where examples are encoded.

    Returns:
        Latents with the shift and scale that they measure.

    Raises:
        ValueError: A folder of this name that holds something else.
        OSError: The latents cannot be written.
    """
    recipe, network = codec.recipe, codec.networks["autoencoder"]
    record = {"codec": codec.model, "examples": hash_of(source.x), "size": len(source.x)}
    folder = codec.workdir / "latents" / f"{record['codec']}-{record['examples']}"
    if not everywhere(known := _known(folder, record)):
        if known:
            raise ValueError(f"{folder} lies on this host and not on all: use a folder that all hosts share")
        plain = dataclasses.replace(
            source,
            cond=None,
            num_classes=None,
            names=(),
            fields={},
            conditions=(),
            shift=recipe.shift,
            scale=recipe.scale,
        )
        block = fill(_BLOCK, mesh)
        try:
            cache_latents(lambda x: gathered(encode, network, x, mesh)[0], plain, folder, block=block, record=record)
        except (OSError, ValueError):
            if not _known(folder, record):  # else another process was faster
                raise
    found = tfds(str(folder), label=None)
    return dataclasses.replace(source, x=found.x, shift=found.shift, scale=found.scale, low=None, high=None)


def _known(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the latents are there.

    Raises:
        ValueError: The folder holds something else.
    """
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "metadata.json").read_text())
        if all(found[name] == value for name, value in record.items()):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{folder} does not hold the latents that its name says; remove it, and they are made again")
