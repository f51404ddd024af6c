"""Regression: a network learns to answer its input with a target of its own shape."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num, UInt32

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.objectives.base import seed, with_keys
from flowjax.objectives.flow_matching import check_answer
from flowjax.paths.base import check_time_and_state


@pytree
class RegressionDraws:
    """One batch; nothing in it is random but the seeds.

    Attributes:
        x1: Inputs, (B, ...).
        target: What the network should answer, (B, ...).
        cond: Condition with leading axis B, or None.
        seeds: Seeds of the network's dropout, (B, 2); None is without dropout.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> batch = {"x1": jnp.zeros((4, 2)), "target": jnp.ones((4, 3))}
        >>> fj.objectives.Regression().draw(jax.random.key(0), batch).target.shape
        (4, 3)
    """

    x1: Num[Array, "B ..."]
    target: Num[Array, "B ..."]
    cond: Any = None
    seeds: UInt32[Array, "B 2"] | None = None


@fact(
    "objective",
    "regression",
    "squared or absolute distance to a target of each input",
    cite="hastie2009elements",
    tasks=("regression",),
)
@pytree
class Regression:
    """Trains `networks(x1, t, cond) -> (B, ...)` with t = 1 on targets of the same shape as its answer.

        mse: mean (network(x1, 1, cond) - target)^2         minimiser: the conditional mean of the target
        mae: mean |network(x1, 1, cond) - target|           minimiser: the conditional median of each entry

    with means over the entries of one example. The input is data, so it enters at t = 1, where a network of a flow sees
    data too.

    Attributes:
        form: "mse" (squares) or "mae" (absolute values).

    Raises:
        ValueError: An unknown form.

    References:
        Hastie, Tibshirani and Friedman (2009), The Elements of Statistical Learning, section 2.4,
        doi:10.1007/978-0-387-84858-7.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> objective = Regression(form="mae")
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2)), "target": jnp.ones((4, 3))})
        >>> objective.loss(lambda x, t, cond: jnp.zeros((4, 3)), draws)[0].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    form: str = static("mse")

    def __post_init__(self) -> None:
        """Checks the name."""
        _checks.choose("form of a regression", self.form, ("mse", "mae"))

    def draw(
        self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0
    ) -> RegressionDraws:
        """The batch: "x1", inputs (B, ...), "target" (B, ...), and optionally "cond".

        Raises:
            ValueError: The data has no targets.
        """
        if "target" not in batch:
            raise ValueError(f"a regression needs data with a field 'target'; this has {', '.join(batch)}")
        seeds = jax.vmap(seed)(jax.random.split(key, len(batch["x1"])))
        return RegressionDraws(x1=batch["x1"], target=batch["target"], cond=batch.get("cond"), seeds=seeds)

    def loss(
        self, networks: Callable[..., Array], draws: RegressionDraws
    ) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """The error of each example, (B,), and both errors, {"mse": (B,), "mae": (B,)}.

        Raises:
            ValueError: The network's answer has another shape than the target.
        """
        t = check_time_and_state(jnp.ones(draws.x1.shape[:1], jnp.float32), draws.x1)
        value = with_keys(networks, draws.seeds)(draws.x1, t, draws.cond)
        check_answer(value, draws.target)
        error, axes = value - draws.target.astype(value.dtype), tuple(range(1, value.ndim))
        metrics = {"mse": jnp.mean(error**2, axes), "mae": jnp.mean(jnp.abs(error), axes)}
        return metrics[self.form], metrics
