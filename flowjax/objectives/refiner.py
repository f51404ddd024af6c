"""The velocity refiner of FlowTurbo: a small network lifts a teacher's velocity by a short time.

References:
    Zhao et al. (2024), FlowTurbo: Towards Real-time Flow-Based Image Generation with Velocity Refiner, section 3.2,
    arXiv:2409.18128.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._checks import pair, real
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Field
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import Draws, check_answer, make_draws, with_null
from flowjax.objectives.teacher import check_teacher
from flowjax.objectives.times import TimeLaw, Uniform, check_law
from flowjax.paths import GaussianPath
from flowjax.paths.base import check_time_and_state, expand


@pytree
class RefinerDraws(Draws):
    """Everything random of one training step of `Refiner`.

    Attributes:
        gap: How far velocities are lifted, one number for the batch.
        later: Conditions at the end of the gap, after label dropout.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> teacher = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> draws = fj.objectives.Refiner(teacher=teacher).draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))})
        >>> 0 < float(draws.gap) <= 0.12
        True
    """

    gap: Float[Array, ""] | float = 0.0
    later: Any = None


@fact(
    "objective",
    "refiner",
    "a small network that lifts a teacher's velocity by a short time",
    cite="zhao2024flowturbo",
    tasks=("distillation",),
)
@pytree
class Refiner:
    """Trains the refiner of `flowjax.solvers.FlowTurbo`.

    With v the teacher's conditional velocity, x' = x_t + d v(t, x_t) an Euler step over a gap d, the same for the whole
    batch, and conditions that are dropped at its end alone,

        loss = mean |v(t, x_t) + network(x', t + d, cond', velocity=v(t, x_t)) - v(t + d, x')|^2.

    A network that starts as zero begins with the teacher's change of velocity. Times are scaled to [0, 1 - d]; as
    released (`past_end=True`) the teacher is asked up to t = 1 + d, where there is no path.

    Attributes:
        teacher: A field without memory and without guidance: what FlowTurbo lifts is guided when it samples.
        gap: Smallest and largest d; the smallest is never drawn. (0.06, 0.12) suits few steps, (0, 0.1) many.
        times: Distribution of training times.
        label_dropout: Probability in [0, 1] that an example's condition is replaced by `null` at the end of the gap.
        null: The null condition: a pytree of scalars like one example's condition.
        drop_both: Whether a dropped condition is dropped at t too, as the paper's formula has it.
        past_end: Whether times go on beyond the end of the path.

    Raises:
        ValueError: No field, one with a memory or of a two-sided path, a number outside its range, dropout without a
            null condition or with a teacher that is guided already.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> teacher = fj.Flow(lambda x, t, cond: x, path=fj.paths.Linear())
        >>> objective = fj.objectives.Refiner(teacher=teacher)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.ones((4, 2))})
        >>> objective.loss(lambda x, t, cond, velocity: x - velocity, draws)[0].tolist()  # x = v: what there is to lift
        [0.0, 0.0, 0.0, 0.0]
    """

    labels = ("refiner",)
    prediction = "velocity"
    refines = True

    teacher: Field = part("field")
    gap: tuple[float, float] = static((0.0, 0.12))
    times: TimeLaw = part("time_law", Uniform())
    label_dropout: float = 0.0
    null: Any = None
    drop_both: bool = static(False)
    past_end: bool = static(False)

    def __post_init__(self) -> None:
        """Checks the options."""
        check_teacher(self.teacher)
        object.__setattr__(self, "gap", tuple(self.gap))
        pair("[0, 1]", gap=self.gap)
        real("[0, 1]", label_dropout=self.label_dropout)
        object.__setattr__(self, "times", check_law(self.times))
        if self.label_dropout and self.null is None:
            raise ValueError("label_dropout needs null=, the condition that stands for none (num_classes for labels)")
        if self.label_dropout and self.teacher.null is None:
            raise ValueError(
                "a refiner of conditional velocities is guided when it samples, and this teacher is guided already or "
                "has no null condition: set config.task.options.guidance=1, or label_dropout=0"
            )

    @property
    def path(self) -> GaussianPath:
        """The teacher's."""
        return self.teacher.path

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> RefinerDraws:
        """Draws noise, times, dropped conditions and the gap; example i depends on (key, i) only, the gap on the key.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Unused likewise.
        """
        plain = make_draws(key, batch, self.times, 0.0, None)
        own = jax.random.fold_in(jax.random.clone(key), 2)
        for_gap, for_labels = jax.random.split(own)
        low, high = self.gap
        gap = high - (high - low) * jax.random.uniform(for_gap, (), plain.t.dtype)
        one = lambda i: jax.random.uniform(jax.random.fold_in(for_labels, i))  # noqa: E731
        chance = jax.vmap(one)(jnp.arange(len(plain.t)))
        later = with_null(plain.cond, self.null, chance < self.label_dropout)
        t = plain.t if self.past_end else plain.t * (1 - gap)
        first = later if self.drop_both else plain.cond
        values = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
        return RefinerDraws(**(values | {"t": t, "cond": first}), gap=gap, later=later)

    def loss(self, networks: Any, draws: RefinerDraws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Squared error of the lifted velocity, averaged over the dimensions of an example.

        Args:
            networks: The refiner, called as `networks(x, t, cond, velocity=v)`, or {"refiner": it}.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            The loss of each example, (B,), and {"mse": the same, "unrefined": that of no refiner, (B,)}.

        Raises:
            ValueError: The network's answer has another shape than the data.
        """
        network: Callable[..., Array] = networks["refiner"] if isinstance(networks, Mapping) else networks
        t = check_time_and_state(draws.t, draws.x1)
        x, after = self.path.interpolate(t, draws.x0, draws.x1), t + jnp.asarray(draws.gap, t.dtype)
        velocity = self._teach(t, x, draws.cond)
        moved = x + expand(after - t, x) * velocity
        change = self._teach(after, moved, draws.later) - velocity
        value = with_keys(network, draws.seeds)(moved, after, draws.later, velocity=velocity)
        check_answer(value, change)
        mse, unrefined = (jnp.mean(error**2, axis=tuple(range(1, error.ndim))) for error in (value - change, change))
        return mse, {"mse": mse, "unrefined": unrefined}

    def _teach(self, t: Array, x: Array, cond: Any) -> Array:
        """The teacher's velocity, a constant: what a refiner learns is no way to move its teacher."""
        return jax.lax.stop_gradient(self.teacher.evaluate(t, x, cond, self.teacher.init(x), to="velocity")[0])
