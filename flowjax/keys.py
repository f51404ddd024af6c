"""Random numbers that belong to a sample, whatever batch or device it is computed in."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def check_key(key: Any) -> None:
    """Raises ValueError unless `key` is one: jax.random.key(seed), or one of the older kind."""
    if not hasattr(key, "dtype") or not (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape == (2,)):
        raise ValueError(f"key must be a random key, jax.random.key(seed), got {key!r}")


def entries_noise(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any, entries: bool) -> Float[Array, "..."]:
    """Standard normal noise of one sample.

    Args:
        key: of this sample.
        shape: of one sample.
        dtype: floating type of the result.
        entries: whether the sample is a padded set: entry n of its first axis then depends on (key, n) only, and not on
            how many there are.
    """
    if not entries:
        return jax.random.normal(key, shape, dtype)
    return jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), shape[1:], dtype))(jnp.arange(shape[0]))


def noise(
    key: Key[Array, ""], shape: tuple[int, ...], index: Any = 0, dtype: Any = jnp.float32, *, entries: bool = False
) -> Float[Array, "..."]:
    """Standard normal noise keyed by the global sample index.

    Sample i of the result depends on (key, index + i) only, so that a batch drawn whole, in parts or sharded holds the
    same samples.

    Args:
        key: a typed key, `jax.random.key(seed)`.
        shape: (B, ...).
        index: global index of the first sample, an integer.
        dtype: floating type of the result.
        entries: whether samples are padded sets, see `entries_noise`.

    Returns:
        Noise of the given shape.

    Raises:
        ValueError: something else than a key.
    """
    check_key(key)
    indices = jnp.asarray(index, jnp.uint32) + jnp.arange(shape[0], dtype=jnp.uint32)
    return jax.vmap(lambda i: entries_noise(jax.random.fold_in(key, i), shape[1:], dtype, entries))(indices)
