"""Consistency mid-training: average velocities from the trajectories of a teacher, before they are learned by identity.

The teacher leads noise to data on n + 1 times t_0 < ... < t_n. Between any two of its states the average velocity of
its trajectory is known, whatever the student answers:

    loss = mean |U(x_i, t_i; t_j) - (x_j - x_i) / (t_j - t_i)|^2,   i < j.

With j = i + 1 under Euler's method the target is the teacher's velocity, with j = n it leads to the sample.

References:
    Hu et al. (2025), CMT: Mid-Training for Efficient Learning of Consistency, Mean Flow, and Flow Map Models,
    arXiv:2509.24526.
    Hu et al. (2025), MeanFlow Transformers with Representation Autoencoders, arXiv:2511.13019.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from flowjax._checks import COUNT, real, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Field
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import check_answer, make_draws
from flowjax.objectives.teacher import check_teacher
from flowjax.objectives.times import Uniform
from flowjax.paths import GaussianPath
from flowjax.paths.base import expand, precision
from flowjax.solvers import Euler
from flowjax.solvers.solver import Solver
from flowjax.solving import solve
from flowjax.times import check_times, dimension_shift, shifted, uniform


@pytree
class TrajectoryDraws:
    """Everything random of one training step of `ConsistencyMidTraining`.

    Attributes:
        x0: Noise, (B, ...).
        pairs: Which pairs (i, j) of states of each trajectory are compared, indices into the list of all, (B, P).
        cond: Condition with a leading axis B after label dropout, or None.
        seeds: Seeds of the network's dropout, (B, 2); None is without dropout.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> teacher = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> objective = fj.objectives.ConsistencyMidTraining(teacher=teacher, pairs=3)
        >>> objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))}).pairs.shape
        (4, 3)
    """

    x0: Float[Array, "B ..."]
    pairs: Int[Array, "B P"]
    cond: Any = None
    seeds: UInt32[Array, "B 2"] | None = None


@fact(
    "objective",
    "consistency_mid_training",
    "average velocities between states of a teacher's trajectories",
    cite="hu2025cmt",
    tasks=("distillation",),
)
@pytree
class ConsistencyMidTraining:
    """Trains `network(x, t, cond, end=e)` on the average velocities of a teacher's trajectories.

    Of the data only shape and conditions are read. One trajectory serves many pairs, so batches are small: published
    are 8 trajectories of 15 steps with 8 pairs each at 256 pixels, and with one at 512. A step costs the steps of the
    teacher for each example and one call of the student for each pair; states of pairs that are not drawn are never
    gathered. The minimiser is the teacher's discretised flow map; `MeanFlowDistillation` goes on from it.

    The grid of the teacher is shifted towards the noise for latents of many numbers, see
    `flowjax.times.dimension_shift`. The authors' program stops it just before the data, and tells the student not the
    times of the states but equal ones: `grid=uniform(n=15, end=0.999)` with `told=uniform(n=15)` does that too.

    Attributes:
        teacher: A field without memory between evaluations: a `Flow`, or one inside guidance and other fields.
        grid: n + 1 rising times or the spec of a grid, `uniform(n=15)`.
        shift: Of this grid, positive; 1 leaves it as it is, None is that of the dimension of the examples.
        told: The times that the student is told, as many as there are in the grid, rising; None is the grid, shifted.
        solver: How the teacher is followed, without noise of its own.
        pairs: Pairs drawn of each trajectory, all equally likely, with replacement; at least 1.
        label_dropout: Probability in [0, 1] that a condition is replaced by `null`, for teacher and student.
        null: The null condition: a pytree of scalars like one example's condition.

    Raises:
        ValueError: No field, one with a memory, of a two-sided path or without velocities on the grid, a solver that
            draws noise, a grid that does not rise, another number of times to tell, a number outside its range.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> teacher = fj.Flow(target.network("velocity"), path=target.path)
        >>> objective = fj.objectives.ConsistencyMidTraining(teacher=teacher, solver=fj.solvers.Heun())
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 1))})
        >>> bool(objective.loss(target.network("mean_velocity"), draws)[0].max() < 1e-4)
        True
    """

    prediction = "velocity"
    data_free = True

    teacher: Field = part("field")
    grid: Any = part("times", tuple(uniform(15).tolist()), static=True)
    shift: float | None = static(None)
    told: Any = part("times", None, static=True)
    solver: Solver = part("solver", Euler(), static=True)
    pairs: int = static(8)
    label_dropout: float = 0.0
    null: Any = None

    def __post_init__(self) -> None:
        """Checks the options."""
        check_teacher(self.teacher)
        whole(COUNT, pairs=self.pairs)
        real("[0, 1]", label_dropout=self.label_dropout)
        if self.label_dropout and self.null is None:
            raise ValueError("label_dropout needs null=, the condition that stands for none (num_classes for labels)")
        if self.shift is not None:
            real("(0, inf)", shift=self.shift)
        for name in ("grid", "told"):
            if (given := getattr(self, name)) is not None:
                times = check_times(given)
                if not np.all(np.diff(times) > 0):
                    raise ValueError(f"the times of {name} must rise, got {times.tolist()}")
                object.__setattr__(self, name, tuple(times.tolist()))
        if self.told is not None and len(self.told) != len(self.grid):
            raise ValueError(f"told has {len(self.told)} times, and grid {len(self.grid)}: one for each state")
        if not isinstance(self.solver, Solver):
            raise ValueError(f"solver must be one on a fixed grid, such as flowjax.solvers.Euler(), got {self.solver}")
        bound = self.solver.bind(self.path, self.grid)
        bound.check(self.teacher)
        if bound.pattern.noises:
            raise ValueError(
                f"{type(self.solver).__name__} draws noise, and trajectories without are compared: take Euler or Heun"
            )

    @property
    def path(self) -> GaussianPath:
        """The teacher's, and so the student's."""
        return self.teacher.path

    def grid_for(self, shape: tuple[int, ...]) -> Float[np.ndarray, " n"]:
        """The times of the teacher's states, for examples of this shape."""
        return shifted(self.grid, dimension_shift(shape) if self.shift is None else self.shift)

    def draw(
        self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0
    ) -> TrajectoryDraws:
        """Draws noise, pairs and dropped conditions; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), of which the shape alone counts, and optionally "cond", a pytree with leading
                axis B.
            memory: Unused; part of the objective protocol.
            step: Unused likewise.
        """
        drawn = make_draws(key, batch, Uniform(), self.label_dropout, self.null)
        number = len(self.grid) * (len(self.grid) - 1) // 2

        def pairs(i: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(jax.random.clone(key), 1), i)
            return jax.random.randint(own, (self.pairs,), 0, number, jnp.int32)

        found = jax.vmap(pairs)(jnp.arange(len(drawn.t)))
        return TrajectoryDraws(x0=drawn.x0, pairs=found, cond=drawn.cond, seeds=drawn.seeds)

    def trajectory(self, draws: TrajectoryDraws) -> Float[Array, "n B ..."]:
        """The teacher's states at all times, from noise to data."""
        times = self.grid_for(draws.x0.shape[1:])
        x = self.path.start(draws.x0, times[0])
        bound = jax.tree.map(jnp.asarray, self.solver.bind(self.path, times))
        found = solve(self.teacher, bound, x, cond=draws.cond, trajectory=True)
        # Only the student moves towards the other, also where they share weights.
        return jnp.asarray(jax.lax.stop_gradient(found.trajectory))

    def loss(
        self, networks: Callable[..., Array], draws: TrajectoryDraws
    ) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Squared distance to the average velocities, averaged over the pairs and numbers of an example.

        Args:
            networks: The student, called as `networks(x, t, cond, end=e)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`. An example with a pair that is none
                has the loss NaN.

        Returns:
            The loss of each example, (B,), and {"mse": the same}.

        Raises:
            ValueError: The student's answer has another shape than the examples.
        """
        states = self.trajectory(draws)
        labels = self.grid_for(draws.x0.shape[1:]) if self.told is None else np.asarray(self.told)
        first, last = np.triu_indices(len(labels), 1)
        count, kind = draws.pairs.shape[1], precision(draws.x0)

        def drawn(table: np.ndarray, kind: Any) -> Array:
            return jnp.asarray(table, kind)[draws.pairs]

        def rows(values: Array) -> Array:
            """(B, P, ...) as a batch; pairs of an example stay together, on its device."""
            return values.reshape(-1, *values.shape[2:])

        visit = jax.vmap(lambda own, places: own[places], in_axes=(1, 0))
        x, later = (rows(visit(states, drawn(places, jnp.int32))) for places in (first, last))
        t, end, span = (rows(drawn(a, kind)) for a in (labels[first], labels[last], labels[last] - labels[first]))
        seeds, cond = jax.tree.map(lambda a: jnp.repeat(a, count, axis=0), (draws.seeds, draws.cond))
        target = (later - x) / expand(span, x)
        value = with_keys(networks, seeds)(x, t, cond, end=end)
        check_answer(value, target)
        errors = jnp.mean((value - target) ** 2, axis=tuple(range(1, x.ndim)))
        known = (draws.pairs >= 0) & (draws.pairs < len(first))
        mse = jnp.mean(jnp.where(known, errors.reshape(-1, count), jnp.nan), axis=1)
        return mse, {"mse": mse}
