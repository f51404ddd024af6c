"""Guidance by the gradient of a log density, such as a classifier's (Dhariwal and Nichol, 2105.05233, section 4)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.flow import Counts, Field, check_determined, network_times
from flowjax.guidance.base import check_strength, strength
from flowjax.paths.base import GaussianPath, check_time_and_state, expand


@fact("field", "gradient", "classifier guidance: the gradient of a log density", cite="dhariwal2021diffusion")
@pytree
class Gradient(Field):
    """What the gradient of a log density adds to each prediction, as a field for `flowjax.solvers.Splitting`.

    With s = scale * d log p(y | x_t)/dx added to the score, every prediction changes by the linear part of its
    conversion from the score: the noise by -sigma s, the data by sigma^2/alpha s, the velocity by
    sigma (alpha' sigma/alpha - sigma') s.

    Args:
        log_density: called as `log_density(x, t, cond)` with x (B, ...), t (B,) in [0, 1] and the condition of the run;
            returns log p(cond | x_t = x), (B,), up to a constant. Each entry depends on its own sample only.
        path: the path of the field that is guided.
        scale: strength, a number, one per sample (B,), or a function of t that returns either, as for `CFG`.

    Raises:
        ValueError: a scale that is not finite, or a path that is not Gaussian.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> pull = fj.fields.Gradient(lambda x, t, cond: -jnp.sum((x - 1) ** 2, -1) / 2, path=fj.paths.Linear())
        >>> pull.score(0.5, jnp.zeros((1, 2))).tolist()
        [[1.0, 1.0]]
    """

    positional = ("log_density",)

    log_density: Callable[..., Float[Array, " batch"]]
    path: GaussianPath = part("path")
    scale: Any = part("scale", 1.0)

    def __post_init__(self) -> None:
        """Checks the path and the scale."""
        if not isinstance(self.path, GaussianPath):
            raise ValueError(f"path must be one of flowjax.paths, such as flowjax.paths.Linear(), got {self.path!r}")
        check_strength(self.scale)

    def init(self, x: Array, times: Any = None) -> Counts:
        """Counters at zero."""
        return Counts.zero(x.shape[0])

    def check(self, times: Any, to: str) -> None:
        """A score does not determine the velocity or the data where alpha = 0.

        Raises:
            ValueError: such a time.
        """
        for t in times:
            check_determined(self.path, "score", to, float(t))

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Counts, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Counts]:
        """One evaluation of the gradient, as the change of the prediction `to`."""
        t = check_time_and_state(t, x)
        times = network_times(t, x)
        gradient = jax.grad(lambda x: jnp.sum(self.log_density(x, times, cond)))(x)
        score = expand(strength(self.scale, t), x) * gradient.astype(x.dtype)
        return self.path.convert(score, given="score", to=to, t=t, x=jnp.zeros_like(x)), memory.plus(x.shape[0])
