"""A flow whose transformer computes some of its tokens and answers the others from what its blocks said before."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax._pytree import pytree
from flowjax.fields.wrapper import FieldWrapper
from flowjax.flow import Flow, check_answer


@pytree
class Pruned(FieldWrapper):
    """A flow that keeps what each block of its network answered, and can be asked for some tokens only.

    Asked with `tokens=` (B, n) and `refresh=` False, the network computes these tokens, the same in all blocks, and
    takes the others from the last answers; otherwise all, and keeps them. Its memory is depth x B x N x width numbers.
    While nothing was kept yet, all are computed whatever is asked.
    `flowjax.fields.SADA(tokens=...)` puts it around the flows inside and asks; by itself it is the flow.

    Args:
        field: a flow whose network has `block_cache`, and takes `tokens=` and `cache=` (`flowjax.models.DiT`).

    Raises:
        ValueError: another field, or a network without.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = fj.models.DiT((4, 4, 1), patch=2, width=8, depth=2, heads=2, rngs=nnx.Rngs(0))
        >>> field = Pruned(fj.Flow(network, path=fj.paths.Linear()))
        >>> counts, cache, known = field.init(jnp.ones((3, 4, 4, 1)))
        >>> cache.shape  # depth, batch, tokens, width
        (2, 3, 4, 8)
    """

    positional = ("field",)

    field: Flow

    def __post_init__(self) -> None:
        """Checks the flow."""
        super().__post_init__()
        if not isinstance(self.field, Flow) or not hasattr(self.field.network, "block_cache"):
            what = self.field.network if isinstance(self.field, Flow) else self.field
            raise ValueError(
                f"tokens are pruned in a Flow whose network keeps what its blocks answer (block_cache, as "
                f"flowjax.models.DiT), got {type(what).__name__}"
            )

    def init(self, x: Array, times: Any = None) -> Any:
        """The flow's counters, and no answers yet."""
        return self.field.init(x, times), self.field.network.block_cache(x.shape[0]), jnp.array(False)

    def evaluate(
        self,
        t: Any,
        x: Array,
        cond: Any,
        memory: Any,
        *,
        to: str = "velocity",
        tokens: Any = None,
        refresh: Any = True,
        **extra: Any,
    ) -> tuple[Array, Any]:
        """The prediction of all tokens, or of some and what is known of the others.

        Raises:
            ValueError: "raw" is asked for.
        """
        if to == "raw":
            raise ValueError("the raw answer of a network with cached tokens is not one of predictions")
        counts, cache, known = memory
        flow = self.field

        def ask(**some: Any) -> Any:
            (value, new), after = flow.evaluate(t, x, cond, counts, to="raw", cache=cache, **some, **extra)
            return value if flow.head is None else value[flow.head], new, after

        if tokens is None:
            value, cache, counts = ask()
        else:
            value, cache, counts = jax.lax.cond(refresh | ~known, ask, lambda: ask(tokens=tokens))
        value = check_answer(value, x).astype(x.dtype)
        return self.path.convert(value, given=flow.prediction, to=to, t=t, x=x), (counts, cache, jnp.array(True))


def token_scores(m: Float[Array, "B H W C"], grid: tuple[int, int]) -> Float[Array, "B N"]:
    """Means of the patches of a grid, row by row."""
    rows, columns = grid
    parts = m.reshape(m.shape[0], rows, m.shape[1] // rows, columns, m.shape[2] // columns, -1)
    return jnp.mean(parts, axis=(2, 4, 5)).reshape(m.shape[0], rows * columns)


def kept_tokens(
    scores: Float[Array, "B N"], grid: tuple[int, int], cells: int, most: int, key: Any
) -> Int[Array, "B kept"]:
    """One token of each cell at random, the same for all examples, then those with the largest scores.

    Args:
        scores: of the tokens of a grid.
        grid: rows and columns.
        cells: side of a cell in tokens.
        most: how many more.
        key: typed key.
    """
    shape = tuple(-(-side // cells) for side in grid)
    keys = jax.random.split(key)
    row, column = (
        jnp.minimum(start * cells + jax.random.randint(k, shape, 0, cells), side - 1)
        for k, start, side in zip(keys, jnp.meshgrid(*map(jnp.arange, shape), indexing="ij"), grid, strict=True)
    )
    first = jnp.zeros(scores.shape[1], bool).at[(row * grid[1] + column).ravel()].set(True)
    count = min(shape[0] * shape[1] + most, scores.shape[1])
    return jax.lax.top_k(jnp.where(first[None], jnp.inf, scores), count)[1]
