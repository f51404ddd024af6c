"""What objectives of consistency functions share: two neighbouring times of a grid, and one function at both.

f(x, t), the data prediction of the network, is to be the same at all states of a trajectory of the flow, and x where
the trajectory ends. With (x_t, t) and (x_e, e) two states of one trajectory, e the next time of a grid,

    loss = w distance(f(x_t, t) - stop_gradient(f(x_e, e))),

where the f of the second state may be an average of the trained one. Whatever the network predicts, f is what its flow
predicts of the data, `Flow.data`, with `boundary` inside `flowjax.fields.Bounded`.

References:
    Song et al. (2023), Consistency Models, section 3, arXiv:2303.01469.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flowjax import _checks
from flowjax._pytree import part, pytree, static
from flowjax.fields import Bounded
from flowjax.flow import Counts, Field, Flow, check_determined
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import make_draws
from flowjax.objectives.spans import SpanDraws, in_precision, total
from flowjax.objectives.teacher import check_teacher
from flowjax.objectives.times import TimeLaw, Uniform, check_law
from flowjax.paths import GaussianPath
from flowjax.paths.base import check_prediction, precision
from flowjax.times import check_times


def ddim(
    teacher: Field, t: Float[Array, " B"], end: Float[Array, " B"], x: Float[Array, "B ..."], cond: Any
) -> Float[Array, "B ..."]:
    """One step of DDIM from t to `end` with the teacher's data prediction at t."""
    data, _ = teacher.evaluate(t, x, cond, teacher.init(x), to="data")
    return teacher.path.ddim_step(t, end, x, data)


@pytree
class SelfConsistency(abc.ABC):
    """Base of objectives that train a consistency function on the intervals of a grid.

    Sampled by `flowjax.solvers.Consistency`.

    Attributes:
        path: The path from noise to data.
        prediction: What the network outputs: "velocity", "noise", "data", "score" or "v".
        grid: N + 1 times or the spec of a grid, `uniform(n=50)`. Times behind the `end` of `boundary` are moved there.
        times: Law of times: an interval is as likely as a time in it. None takes all intervals equally often.
        boundary: Options of `flowjax.fields.Bounded`; {} are its defaults. None is the data prediction itself, which
            must end at x: that of velocities, noises and "v" does where the path ends without noise.
        target_average: The law of an average that gives the targets, `flowjax.training.ema.Constant(decay=0.95)` for
            example; None is the network itself.

    Raises:
        ValueError: A number outside its range, or a function that is not x at the last time.

    Example:
        >>> import flowjax as fj
        >>> issubclass(fj.objectives.LatentConsistency, fj.objectives.SelfConsistency)
        True
    """

    path: GaussianPath = part("path")
    prediction: str = static("velocity")
    grid: Any = part("times", static=True)
    times: TimeLaw | None = part("time_law", None)
    boundary: Mapping[str, float] | None = None
    target_average: Any = part("average", None, static=True)

    def __post_init__(self) -> None:
        """Checks the options."""
        check_prediction("prediction", self.prediction)
        grid = check_times(self.grid)
        if self.times is not None:
            object.__setattr__(self, "times", check_law(self.times))
        field = self.function(lambda x, t, cond: x)
        if isinstance(field, Bounded):
            object.__setattr__(self, "boundary", dict(self.boundary or {}))
            grid = np.minimum(grid, float(field.end))
        if not np.all(np.diff(grid) > 0):
            raise ValueError(f"the times of grid must rise, up to the end of the boundary, got {grid.tolist()}")
        object.__setattr__(self, "grid", tuple(grid.tolist()))
        check_determined(self.path, self.prediction, "data", self.grid[0])
        own, network = self.path.weights(self.prediction, "data", self.grid[-1])
        ends = isinstance(field, Bounded) and self.grid[-1] == float(field.end)
        if not ends and max(abs(own - 1), abs(network)) > 1e-6:
            raise ValueError(
                f"a consistency function must be x at its last time, and the data prediction of a {self.prediction} is "
                f"not at t = {self.grid[-1]:g} of {type(self.path).__name__}: give boundary={{'end': ...}}, options of "
                "flowjax.fields.Bounded"
            )

    def check_path(self, teacher: Field) -> None:
        """Refuses what is no teacher, and one of another path.

        Raises:
            ValueError: It is.
        """
        check_teacher(teacher)
        if teacher.path != self.path:
            raise ValueError(f"the teacher's path is {teacher.path!r}, that of the objective {self.path!r}")

    def function(self, network: Callable[..., Array]) -> Field:
        """The field whose data prediction is f."""
        flow = Flow(network, path=self.path, prediction=self.prediction)
        return flow if self.boundary is None else _checks.call("boundary", Bounded, self.boundary, field=flow)

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> SpanDraws:
        """Draws noise and intervals (t, end) of the grid; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Of training, for a curriculum.
        """
        drawn = make_draws(key, batch, Uniform() if self.times is None else self.times, 0.0, None)
        intervals, grid = len(self.grid) - 1, jnp.asarray(self.grid, precision(drawn.x1))
        if self.times is None:
            number = jnp.floor(drawn.t * intervals).astype(jnp.int32)
        else:
            number = jnp.searchsorted(grid, drawn.t.astype(grid.dtype), side="right").astype(jnp.int32) - 1
        stride = self.stride(step)
        number = jnp.clip(number, 0, intervals - 1) // stride * stride
        t, end = grid[number], grid[number + stride]
        return SpanDraws(x0=drawn.x0, x1=drawn.x1, t=t, end=end, cond=drawn.cond, seeds=drawn.seeds)

    def stride(self, step: Any) -> Int[Array, ""] | int:
        """How many intervals of the grid are one at a step of training."""
        return 1

    def loss(self, networks: Any, draws: SpanDraws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Weighted distance of the function at both states of each example.

        Args:
            networks: The network, called as `networks(x, t, cond)`, with `key=` if it has dropout; or
                {"network": ..., "target": its average}.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            The loss of each example, (B,), and {"mse": the mean square of the difference, (B,)}.

        Raises:
            ValueError: The network's answer has another shape than the data.
        """
        draws = in_precision(draws)
        network, target = (networks[k] if isinstance(networks, Mapping) else networks for k in ("network", "target"))
        x = self.path.interpolate(draws.t, draws.x0, draws.x1)
        there, asked = self.neighbour(draws, x)

        def ask(network: Callable[..., Array], t: Array, x: Array) -> Array:
            field = self.function(with_keys(network, draws.seeds))
            return field.evaluate(t, x, draws.cond, Counts.zero(len(x)), to="data", **asked)[0]

        # Knowledge comes from the data end: a gradient of the second value would pull it towards the noise.
        error = ask(network, draws.t, x) - jax.lax.stop_gradient(ask(target, draws.end, there))
        return self.measure(error, draws), {"mse": total(error) / error[0].size}

    @abc.abstractmethod
    def neighbour(self, draws: SpanDraws, x: Array) -> tuple[Array, dict[str, Array]]:
        """The state at `draws.end` on the trajectory through x, and what the network is asked at both."""

    @abc.abstractmethod
    def measure(self, error: Array, draws: SpanDraws) -> Float[Array, " B"]:
        """The weighted distance of each example."""
