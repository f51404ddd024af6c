"""The loop over blocks of samples: where they start, and what all processes get of them."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Key

from flowjax._pytree import pytree
from flowjax.conditions import resized
from flowjax.keys import noise
from flowjax.training.mesh import batch_sharding, fill, put_batch


@pytree
class AsDrawn:
    """A start that is the noise itself.

    Example:
        >>> import jax.numpy as jnp
        >>> from flowjax.recipe.sampling import AsDrawn
        >>> AsDrawn().start(jnp.ones((1, 1)), 0.5, None).tolist()
        [[1.0]]
    """

    def start(self, noise: Array, time: float, cond: Any) -> Array:
        """The noise."""
        return noise


@functools.lru_cache(maxsize=64)
def _beginning(shape: tuple[int, ...], time: float, entries: bool, sharding: Any) -> Callable[..., Array]:
    """The compiled function that makes start states (B, ...), kept so that another request does not compile it anew."""

    def begin(path: Any, key: Key[Array, ""], index: Array, start: Any, cond: Any) -> Array:
        if isinstance(start, jax.Array):
            return start
        x0 = noise(key, shape, index, entries=entries)
        return path.start(x0, time) if start is None else start.start(x0, time, cond)

    return jax.jit(begin, out_shardings=sharding)


def starts(
    path: Any, shape: tuple[int, ...], key: Key[Array, ""], at: float, start: Any, mesh: Mesh, entries: bool = False
) -> Callable[[int, Any, Any], Array]:
    """A function of the first row of a block, its conditions and its rows that gives the states to start from.

    Args:
        path: Whose start at the time `at` it is.
        shape: Of a block, (B, ...).
        key: Of the noise.
        at: First time of the grid.
        start: A map of noise to start states, or arrays (num, ...) to start from in place of noise; or None.
        mesh: Splits the block over its devices.
        entries: Whether each entry of an example has noise of its own.
    """
    begin = _beginning(shape, at, entries, batch_sharding(mesh, shape))

    def at_block(index: int, cond: Any, first: int) -> Array:
        given = put_batch(resized(start, first, shape[0]), mesh) if isinstance(start, np.ndarray) else start
        return begin(path, jax.random.clone(key), jnp.asarray(index), given, cond)

    return at_block


def blocks(rows: range, cond: Any, batch: int, mesh: Mesh) -> Iterator[tuple[int, Any, int]]:
    """First row, conditions, and how many rows came before, of each block.

    The last block is as large as the others, so that nothing compiles twice; the surplus is to be cut.

    Args:
        rows: Numbers of the samples.
        cond: Conditions of all of them.
        batch: Samples of a block, which is filled up to a multiple of the devices.
        mesh: Splits each block over its devices.
    """
    batch = fill(batch, mesh)
    for first in range(0, len(rows), batch):
        yield rows.start + first, put_batch(resized(cond, first, batch), mesh), first


def gather(value: Any) -> np.ndarray:
    """Rows of all devices, in every process."""
    return multihost_utils.process_allgather(value, tiled=True)


def mean_costs(costs: Sequence[Sequence[Any]]) -> list[int]:
    """Evaluations and network calls per sample of all blocks: rounded means, where each block decides how many.

    Example:
        >>> mean_costs([(20, 40), (21, 42), (21, 42)])
        [21, 41]
    """
    return [round(float(np.mean([int(count) for count in column]))) for column in zip(*costs, strict=True)]
