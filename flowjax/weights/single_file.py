"""A network's weights as one safetensors file: to share, to commit, to read elsewhere.

The entries are named as in checkpoints, for example `blocks.0.mlp.kernel`. Smaller types halve the file; reading
casts back to the types of the network. The metadata of the file hold a checksum, `flowjax.sha256`: SHA-256 over name,
type, shape and bytes of every entry in the order of their names, so that values that have changed or changed places
are noticed. Files without it, those of other programs, are read as well; names, shapes and kinds of numbers must fit.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from flowjax._files import replacing
from flowjax._trees import flatten, unflatten

CHECKSUM = "flowjax.sha256"
"""Name of the checksum in the metadata."""


def _finite(leaf: Any) -> bool:
    """Whether an array has neither NaN nor infinite values; one of integers has none."""
    return not jnp.issubdtype(leaf.dtype, jnp.inexact) or bool(jnp.isfinite(leaf).all())


def _checksums(path: Path) -> tuple[str, str | None]:
    """The checksum that the content of a whole file has, and the one that its metadata name."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        told = header.pop("__metadata__", {}).get(CHECKSUM)
        for name in sorted(header):
            begin, end = header[name]["data_offsets"]
            digest.update(json.dumps([name, header[name]["dtype"], header[name]["shape"]]).encode())
            file.seek(8 + length + begin)
            digest.update(file.read(end - begin))
    return digest.hexdigest(), told


def write(path: str | Path, network: Any, dtype: Any = None) -> None:
    """Writes all arrays of `network`.

    Args:
        path: File to write, usually .safetensors.
        network: Pytree of arrays.
        dtype: Type of floating-point arrays in the file, for example "float16"; None keeps their own.

    Raises:
        FileExistsError: `path` exists.
        ValueError: The network has NaN or infinite values, or values that `dtype` cannot hold.
    """
    if Path(path).exists():
        raise FileExistsError(f"{path} exists; move it away or choose another name")
    flat = {name: jnp.asarray(leaf) for name, leaf in flatten(network).items()}
    for name, leaf in flat.items():
        if not _finite(leaf):
            raise ValueError(f"{name} has NaN or infinite values; such weights are not written")
        if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating):
            flat[name] = leaf.astype(dtype)
            if not _finite(flat[name]):
                raise ValueError(f"{name} has values that {dtype} cannot hold; use a wider dtype")
    with replacing(path) as part:
        save_file(flat, part)
        save_file(flat, part, metadata={CHECKSUM: _checksums(part)[0]})


def read(path: str | Path, like: Any) -> Any:
    """The network in a file, with the structure, the types and the shardings of `like`.

    Args:
        path: File made by `write`, or by another program with the same names.
        like: Network of arrays or of shapes with shardings.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read or does not have its checksum; its arrays have other names, shapes or kinds
            (floating, integer, boolean); or a value is NaN or infinite in the type of `like`.
    """
    try:
        found = load_file(path)
        checksum, told = _checksums(Path(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if told not in (None, checksum):
        raise ValueError(f"{path} has changed since it was written (its checksum differs); get it again")

    wanted = flatten(like)
    for name in sorted(found.keys() | wanted.keys()):
        old, new = (tree[name].shape if name in tree else "absent" for tree in (found, wanted))
        if old != new:
            raise ValueError(f"{path} does not fit: {name} is {old} there and {new} here")
        kinds = [tree[name].dtype for tree in (found, wanted)]
        if not any(all(jnp.issubdtype(kind, of) for kind in kinds) for of in (jnp.floating, jnp.integer, np.bool_)):
            raise ValueError(f"{path} does not fit: {name} is {kinds[0]} there and {kinds[1]} here")
    placed = {}
    for name, leaf in wanted.items():
        value = found[name].astype(leaf.dtype)
        if not _finite(value):
            raise ValueError(f"{path} is refused: {name} has values that are NaN or infinite in {leaf.dtype}")
        placed[name] = jax.device_put(value, leaf.sharding)
    return unflatten(placed, like)
