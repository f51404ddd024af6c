"""A network's weights as one safetensors file: to share, to commit, to read elsewhere.

The entries are named as in checkpoints, for example `blocks.0.mlp.kernel`. Smaller types halve the file; reading
casts back to the types of the network.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from flowjax.training.checkpoint import flatten, unflatten


def write(path: str | Path, network: Any, dtype: Any = None) -> None:
    """Writes all arrays of `network`.

    Args:
        path: File to write, usually .safetensors.
        network: Pytree of arrays.
        dtype: Type of floating-point arrays in the file, for example "float16"; None keeps their own.

    Raises:
        FileExistsError: `path` exists.
        ValueError: `dtype` cannot hold a value of the network.
    """
    if Path(path).exists():
        raise FileExistsError(f"{path} exists; move it away or choose another name")
    flat = {name: jnp.asarray(leaf) for name, leaf in flatten(network).items()}
    if dtype is not None:
        kept = {name: leaf.astype(dtype) for name, leaf in flat.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
        for name, leaf in kept.items():
            if not bool(jnp.isfinite(leaf).all()):
                raise ValueError(f"{name} has values that {dtype} cannot hold; use a wider dtype")
        flat |= kept
    save_file(flat, path)


def read(path: str | Path, like: Any) -> Any:
    """The network in a file, with the structure, the types and the shardings of `like`.

    Args:
        path: File made by `write`.
        like: Network of arrays or of shapes with shardings.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or its arrays have other names or shapes.
    """
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    wanted = flatten(like)
    for name in sorted(found.keys() | wanted.keys()):
        old = found[name].shape if name in found else "absent"
        new = wanted[name].shape if name in wanted else "absent"
        if old != new:
            raise ValueError(f"{path} does not fit: {name} is {old} there and {new} here")
    placed = {name: jax.device_put(found[name].astype(leaf.dtype), leaf.sharding) for name, leaf in wanted.items()}
    return unflatten(placed, like)
