"""MeanFlow distillation and bootstrapping: average velocities by their identity, for latents of many numbers.

As in `flowjax.objectives.mean_flow`, U = v + (e - t) dU/dt with the right side as a constant. In place of the velocity
of an example, which has a variance, v is the teacher's (MFD), until at last the student leaves the teacher
behind with the velocity of the example again (MFT):

    dU/dt = [U(x + d v, t + d; e) - U(x - d v, t - d; e)] / (2 d),
    S = sum |U(x_t, t; e) - stop_gradient(v + (e - t) dU/dt)|^2,   loss = S^2 / stop_gradient((S^2 + c)^p).

(In times that count from data to noise, as the authors have them, the term with the derivative has a minus.)

References:
    Hu et al. (2025), MeanFlow Transformers with Representation Autoencoders, arXiv:2511.13019.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._checks import choose, real
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Field
from flowjax.objectives.flow_matching import with_null
from flowjax.objectives.mean_flow import identity
from flowjax.objectives.spans import DERIVATIVES, DIFFERENCE, SpanDraws, Spans, adaptive, make_spans
from flowjax.objectives.teacher import check_teacher
from flowjax.objectives.times import Shifted, TimeLaw, Uniform
from flowjax.paths import GaussianPath
from flowjax.times import dimension_shift

VELOCITIES = ("teacher", "conditional")


@fact(
    "objective",
    "mean_flow_distillation",
    "average velocities of a teacher by their identity, in many dimensions",
    cite="hu2025meanflow",
    tasks=("generation", "distillation"),
)
@pytree
class MeanFlowDistillation(Spans):
    """Distils a flow into average velocities, or bootstraps them without it.

    Further attributes are those of `Spans`, but for three differences: a row has e = t with the probability
    `frac_flow_matching`, conditions are dropped in rows of both kinds, for teacher and student alike, and the weight is
    that of S^2, so that with p = 1 small errors pull less and large ones as strongly as those of MeanFlow. Times are
    drawn, sorted, and shifted towards the noise; the authors draw them from 0.001 on (`times=uniform(start=0.001)`).

    A student that is to bootstrap starts from the distilled one (task `distillation` with `velocity="conditional"`);
    from random weights (task `generation`) the same is plain MeanFlow.

    Attributes:
        teacher: A field without memory between evaluations: a `Flow`, or one inside guidance and other fields. Its path
            is the student's unless `path` says so too.
        velocity: "teacher", or "conditional", that of the example, with which no teacher is asked or kept.
        shift: Of the drawn times, positive; 1 leaves them as they are, None is that of the dimension of the examples
            (`flowjax.times.dimension_shift`).
        derivative: "central", one more call of the student at two states, which has no backward pass; or "forward".
        difference: Of the times of these two and t, positive. They may lie a little outside [0, 1], and behind e.

    Raises:
        ValueError: A number outside its range, no teacher for its velocity, one with a memory, on another path or
            without velocities at an end.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> teacher = fj.Flow(target.network("velocity"), path=target.path)
        >>> objective = fj.objectives.MeanFlowDistillation(teacher=teacher)
        >>> draws = objective.draw(jax.random.key(0), {"x1": target.sample(jax.random.key(1), 8)[:, None]})
        >>> bool(objective.loss(target.network("mean_velocity"), draws)[0].max() < 1e-6)  # the exact answer
        True
    """

    drops_in_spans = True

    path: GaussianPath = part("path", None)
    times: TimeLaw = part("time_law", Uniform())
    offset: float = 1e-3
    teacher: Field | None = part("field", None)
    velocity: str = static("teacher")
    shift: float | None = static(None)
    derivative: str = static("central")
    difference: float = DIFFERENCE

    def __post_init__(self) -> None:
        """Checks the options."""
        choose("velocity", self.velocity, VELOCITIES)
        choose("derivative", self.derivative, DERIVATIVES)
        real("(0, inf)", difference=self.difference)
        if self.shift is not None:
            real("(0, inf)", shift=self.shift)
        if self.teacher is not None:
            check_teacher(self.teacher)
            path = self.teacher.path if self.path is None else self.path
            if self.teacher.path != path:
                raise ValueError(f"the teacher's path is {self.teacher.path!r}, that of the objective {path!r}")
            object.__setattr__(self, "path", path)
        if self.velocity == "conditional":
            object.__setattr__(self, "teacher", None)
        elif self.teacher is None:
            raise ValueError("velocity='teacher' needs teacher=, a trained flow; without one take 'conditional'")
        else:
            self.teacher.check([0.0, 1.0], "velocity")
        if self.path is None:
            raise ValueError("without a teacher path= is needed, for example flowjax.paths.Linear()")
        super().__post_init__()

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> SpanDraws:
        """Draws noise, spans and dropped conditions; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Unused likewise.
        """
        shift = dimension_shift(batch["x1"].shape[1:]) if self.shift is None else self.shift
        draws = make_spans(key, batch, Shifted(self.times, shift=shift), 0.0, 0.0, None)

        def more(i: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(jax.random.clone(key), 2), i)
            return jax.random.uniform(own, (2,), jnp.float32)

        chance, other = jax.vmap(more)(jnp.arange(len(draws.t))).T
        dropped = other < self.label_dropout
        return dataclasses.replace(
            draws,
            end=jnp.where(chance < self.frac_flow_matching, draws.t, draws.end),
            cond=with_null(draws.cond, self.null, dropped),
            dropped=dropped,
        )

    def weighted(self, squares: Float[Array, " B"]) -> Float[Array, " B"]:
        """S^2 / (S^2 + c)^p, the denominator as a constant."""
        return adaptive(squares**2, self.power, self.offset)

    def goal(self, network: Callable[..., Any], draws: SpanDraws, x: Array, velocity: Array) -> Array:
        """The teacher's velocity, or that of the example."""
        if self.teacher is None:
            return velocity
        found, _ = self.teacher.evaluate(draws.t, x, draws.cond, self.teacher.init(x), to="velocity")
        # The teacher is followed, not trained; neither is it where the student shares its weights.
        return jax.lax.stop_gradient(found)

    def compare(
        self, network: Callable[..., Any], target: Callable[..., Any], draws: SpanDraws, x: Array, goal: Array
    ) -> tuple[Array, Array]:
        """U, and its distance to v + (e - t) dU/dt."""
        return identity(network, draws, x, goal, self.derivative, difference=self.difference)
