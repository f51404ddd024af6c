"""Policies learn a teacher's velocities along their own trajectories: ArcFlow and pi-Flow.

The student's network is asked once at the beginning of a segment of the path. States inside are reached by the policy
of its answer, early in training by the teacher in place of it, and at each of them the policy is told the teacher's
velocity. No data are needed, no solver inside, no derivative of a network in its time.

References:
    Chen et al. (2025), pi-Flow: Policy-Based Few-Step Generation via Imitation Distillation, arXiv:2510.14974.
    Yang et al. (2026), ArcFlow: Unleashing 2-Step Text-to-Image Generation via High-Precision Non-Linear Flow
    Distillation, arXiv:2602.09014.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from flowjax._checks import COUNT, real, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Field
from flowjax.objectives.base import keys, seed, with_keys
from flowjax.objectives.teacher import check_teacher
from flowjax.paths import GaussianPath
from flowjax.paths.base import expand, precision
from flowjax.policies import Head, Momentum, Policy
from flowjax.times import shift_times


@pytree
class PolicyDraws:
    """Everything random of one training step of `PolicyDistillation`.

    Attributes:
        x0: Noise, (B, ...).
        x1: Data, (B, ...); read by training that starts from data alone.
        own: Where in [0, 1] the student's jumps end, rising, (B, segments, M).
        taught: Where the teacher's do, (B, segments, M - 1).
        out: Seeds of the components that are left out, (B, segments, 2).
        share: Of a segment that the teacher leads, a scalar.
        segment: Which segment an example is for, (B,); None is each of them in turn.
        cond: Conditions with leading axis B, or None.
        seeds: Seeds of the network's dropout, (B, 2); None is without dropout.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> teacher = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> objective = fj.objectives.PolicyDistillation(teacher=teacher, decay=100)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((8, 2))}, step=25)
        >>> draws.own.shape, draws.taught.shape, float(draws.share)
        ((8, 2, 4), (8, 2, 3), 0.75)
    """

    x0: Float[Array, "B ..."]
    x1: Float[Array, "B ..."]
    own: Float[Array, "B segments M"]
    taught: Float[Array, "B segments M-1"]
    out: UInt32[Array, "B segments 2"]
    share: Float[Array, ""] | float
    segment: Int[Array, " B"] | None = None
    cond: Any = None
    seeds: UInt32[Array, "B 2"] | None = None


@fact(
    "objective",
    "policy_distillation",
    "a policy learns a teacher's velocities along its own trajectory (ArcFlow, pi-Flow)",
    cite="yang2026arcflow",
    tasks=("distillation", "adapters"),
)
@pytree
class PolicyDistillation:
    """Trains a network whose answer is a policy, sampled by `flowjax.solvers.Policy` in `segments` evaluations.

    Times t = 1 - shift u / (1 + (shift - 1) u), with u = 1 - r, warp a clock r on which segments are equally long. In
    each of them, in M turns, the student's policy, of which some components are left out, leads the state by a random
    part of its share to a, the teacher's velocity v*(a) leads it on by one Euler step over a part of the teacher's
    share to b, and the loss compares v* with the policy's mean velocity from a to b + W:

        loss = sum over segments of their length times the mean over M of mean |v_mean(a, b + W) - v*(a)|^2.

    The teacher's share falls from 1 to 0 within the first `decay` steps, so that the states become the student's own,
    and the comparison one of velocities, over a window W of `window / substeps` of the clock alone. Gradients reach the
    network through the compared velocity only. A step costs one evaluation of the student and M of the teacher in each
    segment.

    Attributes:
        teacher: A field without memory between evaluations: a `Flow`, or one inside guidance and other fields.
        policy: How the network's answer becomes a policy.
        segments: Their number, at least 1; published students have 2.
        shift: Of the clock, positive; the more, the shorter are segments near the noise; 1 leaves them equal.
        states: M, at least 1.
        window: W in substeps.
        substeps: Of the whole clock; each segment has a whole number of them.
        dropout: Probability in [0, 1) that a component is left out of the policy that leads.
        decay: Steps until the teacher leads no longer, at least 0.
        from_data: Whether an example is for one segment, from data noised to its beginning, in place of all of them one
            after the other from noise.

    Raises:
        ValueError: No field, one with a memory, of a two-sided path, of another path than the policy or without
            velocities at the noise, or a number outside its range.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> teacher = fj.Flow(lambda x, t, cond: x, path=fj.paths.Linear())
        >>> objective = fj.objectives.PolicyDistillation(teacher=teacher, policy=fj.policies.Momentum(components=2))
        >>> student = lambda x, t, cond: jnp.concatenate([x, 2 * x, 0 * x, 0 * x, x], axis=1)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 1))}, step=10_000)
        >>> objective.loss(student, draws)[0].shape
        (4,)
    """

    prediction = "velocity"

    teacher: Field = part("field")
    policy: Head = part("policy", Momentum())
    segments: int = static(2)
    shift: float = static(1.0)
    states: int = static(4)
    window: int = static(3)
    substeps: int = static(128)
    dropout: float = static(0.1)
    decay: int = static(1000)
    from_data: bool = static(False)

    def __post_init__(self) -> None:
        """Checks the options."""
        check_teacher(self.teacher)
        whole(COUNT, segments=self.segments, states=self.states, substeps=self.substeps)
        whole("[0, inf)", window=self.window, decay=self.decay)
        real("(0, inf)", shift=self.shift)
        real("[0, 1)", dropout=self.dropout)
        self.teacher.check([0.0], "velocity")
        own = getattr(self.policy, "path", self.teacher.path)
        if own != self.teacher.path:
            raise ValueError(f"the policy's path is {own!r}, that of the teacher {self.teacher.path!r}")

    @property
    def path(self) -> GaussianPath:
        """The teacher's, and so the student's."""
        return self.teacher.path

    @property
    def data_free(self) -> bool:
        """Whether shape and conditions are all that is read of the data."""
        return not self.from_data

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> PolicyDraws:
        """Draws noise, jumps and components left out; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), whose shape alone counts unless training starts from data, and optionally
                "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Of training, which the teacher's share depends on.
        """
        x1 = batch["x1"]
        kind, segments = precision(x1), 1 if self.from_data else self.segments

        def one(index: Array) -> dict[str, Array]:
            names = ("x0", "own", "taught", "out", "segment", "seeds")
            own = dict(zip(names, jax.random.split(jax.random.fold_in(key, index), len(names)), strict=True))
            rising = lambda name, count: jnp.sort(jax.random.uniform(own[name], (segments, count), kind))  # noqa: E731
            return {
                "x0": jax.random.normal(own["x0"], x1.shape[1:], x1.dtype),
                "own": rising("own", self.states),
                "taught": rising("taught", self.states - 1),
                "out": jax.vmap(seed)(jax.random.split(own["out"], segments)),
                "segment": jax.random.randint(own["segment"], (), 0, self.segments),
                "seeds": seed(own["seeds"]),
            }

        drawn = jax.vmap(one)(jnp.arange(x1.shape[0]))
        if not self.from_data:
            del drawn["segment"]
        share = jnp.asarray(1 - jnp.minimum(step / self.decay, 1) if self.decay else 0.0, kind)
        return PolicyDraws(x1=x1, cond=batch.get("cond"), share=share, **drawn)

    def loss(self, networks: Callable[..., Array], draws: PolicyDraws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Squared distance of the policy's velocities to the teacher's, along the trajectory.

        Args:
            networks: The student, called as `networks(x, t, cond)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            The loss of each example, (B,), and {"mse": the mean over all states, (B,), "teacher_share": a scalar}.

        Raises:
            ValueError: The network's answer has not the channels of the policy.
        """
        network = with_keys(networks, draws.seeds)
        length, total = 1 / self.segments, jnp.zeros(len(draws.x0), draws.own.dtype)
        x = draws.x0
        for number in range(draws.own.shape[1]):
            if draws.segment is None:
                begin = jnp.full_like(total, number * length)
            else:
                begin = draws.segment.astype(total.dtype) * length
                x = self.path.interpolate(self._time(begin), draws.x0, draws.x1)
            t = self._time(begin)
            policy = self.policy.policy(network(x, t, draws.cond), t, x)
            error, x = self._segment(policy, x, begin, number, draws)
            total += error
        mse = total / draws.own.shape[1]
        return mse, {"mse": mse, "teacher_share": jnp.asarray(draws.share)}

    def _time(self, clock: Float[Array, " B"]) -> Float[Array, " B"]:
        return shift_times(jnp.minimum(clock, 1), self.shift)

    def _segment(
        self, policy: Policy, x: Array, begin: Float[Array, " B"], number: int, draws: PolicyDraws
    ) -> tuple[Float[Array, " B"], Array]:
        """The mean over the states of a segment of the squared error, and the student's state at its end."""
        # What leads must not be moved by where it leads to: only compared velocities have gradients.
        leader = jax.lax.stop_gradient(policy).dropout(keys(draws.out[:, number]), self.dropout)
        length = 1 / self.segments
        window = min(self.window * length / max(math.floor(length * self.substeps + 0.5), 1), length)
        free = length - window
        zero, one = jnp.zeros_like(begin)[:, None], jnp.ones_like(begin)[:, None]
        own = jnp.diff(draws.own[:, number], axis=1, prepend=zero) * (1 - draws.share) * free
        taught = jnp.diff(draws.taught[:, number], axis=1, prepend=zero, append=one) * draws.share * free

        def turn(carry: tuple[Array, Array], jumps: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            x, clock = carry
            a = clock + jumps[0]
            b = a + jumps[1]
            at, to = self._time(a), self._time(b)
            x = leader.rollout(x, self._time(clock), at)
            target, _ = self.teacher.evaluate(at, x, draws.cond, self.teacher.init(x), to="velocity")
            target = jax.lax.stop_gradient(target)  # a teacher may share weights with the student (adapters on it)
            error = policy.average_velocity(x, at, self._time(b + window)) - target
            x = x + expand(to - at, x) * target
            return (x, b), jnp.mean(error**2, axis=tuple(range(1, error.ndim)))

        (x, clock), errors = jax.lax.scan(turn, (jax.lax.stop_gradient(x), begin), (own.T, taught.T))
        return jnp.mean(errors, axis=0), leader.rollout(x, self._time(clock), self._time(begin + length))
