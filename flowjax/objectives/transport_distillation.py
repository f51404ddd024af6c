"""Marginal-data transport distillation: a student with one time learns to jump from any state to the data.

On straight lines x_t = t x1 + (1 - t) x0 a teacher's flow through x at t ends at X(x, t). The student answers with the
average velocity up to there,

    G(x, t) = (X(x, t) - x) / (1 - t),   G = v + (1 - t) dG/dt along the flow,

which is `flowjax.objectives.MeanFlow` with every span ending at 1, so that the network needs no second time.
`flowjax.solvers.Consistency` samples it in n steps, one from t to s to s X + (1 - s) z with fresh noise z, which keeps
the law where G is exact. The authors' programs use Euler, whose z is the noise that leads from X through x: one step is
the same, but as X follows from that noise the samples of more steps are too wide (two steps of an exact G make 0.67 of
a standard deviation of 0.5).

References:
    Zhou et al. (2025), Few-step Flow for 3D Generation via Marginal-Data Transport Distillation, arXiv:2509.04406.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

from flowjax._checks import COUNT, choose, real, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.fields import guide
from flowjax.flow import Field
from flowjax.guidance import CFG
from flowjax.keys import entries_noise
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import average, check_answer, make_draws
from flowjax.objectives.spans import along
from flowjax.objectives.teacher import check_teacher
from flowjax.objectives.times import LogitNormal, TimeLaw, check_law
from flowjax.paths import GaussianPath, Linear
from flowjax.paths.base import check_time_and_state, expand

MODES = ("discrete", "continuous", "consistency")
CONVENTIONS = ("scale", "one_more")


@pytree
class TransportDraws:
    """Everything random of one training step, for the global batch.

    Attributes:
        x0: Noise, (B, ...).
        x1: Data, (B, ...).
        t: Times, (B,).
        cond: Condition with a leading axis B, or None.
        seeds: Seeds of the network's dropout, (B, 2).
        fresh: Noise of the student's own samples, (B, ...), of `VelocityDistillation`.
        mask: Of padded sets, which entries (B, N) of the first axis of an example are there.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> objective = fj.objectives.VelocityMatching(path=fj.paths.Linear(), gap=0.1)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((64, 2))})
        >>> bool(draws.t.max() <= 0.9), draws.fresh
        (True, None)
    """

    x0: Float[Array, "B ..."]
    x1: Float[Array, "B ..."]
    t: Float[Array, " B"]
    cond: Any = None
    seeds: UInt32[Array, "B 2"] | None = None
    fresh: Float[Array, "B ..."] | None = None
    mask: Bool[Array, "B N"] | None = None


@fact(
    "objective",
    "velocity_matching",
    "average velocities from any state to the data, by their identity",
    cite="zhou2025fewstep",
    tasks=("generation", "distillation"),
)
@pytree
class VelocityMatching:
    """Velocity matching (VM): the identity of G as a regression, its right side a constant.

    With x = t x1 + (1 - t) x0 of an example and v the teacher's velocity there, or without a teacher x1 - x0,

        loss = mean |G(x, t) - (v + (1 - t) d)|^2,

    where d stands for dG/dt along the flow:

        discrete     (G(x + D v, t + D) - G(x, t)) / D, with the gap D; times are at most 1 - D
        continuous   the derivative of the network along (v, 1)

    and, `normalized`, is d / (|d| + 0.1) with the norm of a whole example, so that |(1 - t) d| < 1 - t. Then the
    minimiser is not G but a biased one, with a smaller variance of the gradient. The third mode has no d:

        consistency  mean |x + (e - t) G(x, t) - (x' + (e - t') G(x', t'))|^2,   x' = x + D v, t' = t + D,

    where the second end point is a constant and e = 1, or with phases the next k/m above t'.

    Padded sets bring a `mask` in their batch: means and norms are those of the entries that are there.

    The teacher is a part of this pytree: its weights are arguments of a training step, in their own precision.

    Attributes:
        path: The path from noise to data, Linear.
        teacher: A field without memory on this path; None learns from the examples alone.
        guidance: Scale by which the teacher, which has a null condition, is guided; None leaves it as it is.
        convention: What a guidance of w means: "scale", v_null + w (v_c - v_null); or as in the authors' program
            "one_more", which is the scale 1 + w, and no guidance where w is 0 or less.
        mode: "discrete", "continuous" or "consistency".
        gap: D, in (0, 1).
        normalized: Whether d is scaled, see above.
        phases: m of the mode "consistency".
        times: Distribution of training times, then times 1 - D where there is a gap.

    Raises:
        ValueError: A number outside its range, an unknown name, another path than Linear, a teacher of another path or
            that cannot be guided, phases of another mode.

    References:
        Zhou et al. (2025), Few-step Flow for 3D Generation via Marginal-Data Transport Distillation,
        arXiv:2509.04406.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> teacher = fj.Flow(target.network("velocity"), path=target.path)
        >>> exact = lambda x, t, cond: target.network("mean_velocity")(x, t, cond, end=jnp.ones_like(t))
        >>> objective = VelocityMatching(path=target.path, teacher=teacher, mode="continuous", normalized=False)
        >>> draws = objective.draw(jax.random.key(0), {"x1": 2 + jnp.zeros((8, 1))})
        >>> bool(objective.loss(exact, draws)[0].max() < 1e-9)
        True
    """

    prediction = "velocity"
    masked = True

    path: GaussianPath = part("path")
    teacher: Field | None = part("field", None)
    guidance: float | None = None
    convention: str = static("scale")
    mode: str = static("discrete")
    gap: float = static(0.01)
    normalized: bool = static(True)
    phases: int = static(1)
    times: TimeLaw = part("time_law", LogitNormal(mean=-1.0, std=1.0))

    def __post_init__(self) -> None:
        """Checks the options."""
        choose("mode", self.mode, MODES)
        choose("convention", self.convention, CONVENTIONS)
        real("(0, 1)", gap=self.gap)
        whole(COUNT, phases=self.phases)
        if self.phases > 1 and self.mode != "consistency":
            raise ValueError(f"phases={self.phases} is of mode='consistency', and the mode is {self.mode!r}")
        object.__setattr__(self, "times", check_law(self.times))
        if type(self.path) is not Linear:
            raise ValueError(f"transport to the data is learned on straight lines: take Linear, not {self.path!r}")
        if self.teacher is not None:
            check_teacher(self.teacher)
            if self.teacher.path != self.path:
                raise ValueError(f"the teacher's path is {self.teacher.path!r}, that of the objective {self.path!r}")
        self._check_guidance(guidance=self.guidance)

    def _check_guidance(self, **named: float | None) -> None:
        for name, scale in named.items():
            if scale is None:
                continue
            real("(-inf, inf)" if self.convention == "one_more" else "[0, inf)", **{name: scale})
            if self.teacher is None or self.teacher.null is None:
                raise ValueError(
                    f"{name}={scale} guides a teacher with a null condition that is not guided yet: leave it out, or "
                    "give config.task.options.guidance=1"
                )

    def draw(
        self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0
    ) -> TransportDraws:
        """Draws noise and times; example i depends on (key, i) only, entry n of a padded set on (key, i, n).

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...); optionally "cond", a pytree with leading axis B, and "mask" (B, N).
            memory: Unused; part of the objective protocol.
            step: Unused likewise.
        """
        drawn = make_draws(key, batch, self.times, 0.0, None)
        t = drawn.t if self.mode == "continuous" else (1 - self.gap) * drawn.t
        return TransportDraws(x0=drawn.x0, x1=drawn.x1, t=t, cond=drawn.cond, seeds=drawn.seeds, mask=drawn.mask)

    def loss(self, networks: Callable[..., Array], draws: TransportDraws) -> tuple[Float[Array, " B"], dict[str, Any]]:
        """Squared distance to the right side of the identity, averaged over the numbers of an example.

        Args:
            networks: The student, called as `networks(x, t, cond)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            The loss of each example, (B,), and {"mse": the mean square of G - (v + (1 - t) d), (B,)}.

        Raises:
            ValueError: The student's answer has another shape than the data.
        """
        draws = dataclasses.replace(draws, t=check_time_and_state(draws.t, draws.x1))
        x = self.path.interpolate(draws.t, draws.x0, draws.x1)
        goal = draws.x1 - draws.x0 if self.teacher is None else None
        value, target, reach = self.identity(networks, draws, x, goal, self.guidance)
        mse = average((value - target) ** 2, draws.mask)
        return (mse if reach is None else reach**2 * mse), {"mse": mse}

    def identity(
        self,
        network: Callable[..., Array],
        draws: TransportDraws,
        x: Float[Array, "B ..."],
        goal: Float[Array, "B ..."] | None,
        guidance: float | None,
    ) -> tuple[Array, Array, Array | None]:
        """G at x, the constant that it is to become, and in the mode "consistency" e - t (B,).

        Args:
            network: The student.
            draws: Of this step.
            x: States at `draws.t`.
            goal: Velocities there; None asks the teacher.
            guidance: By what it is guided.
        """
        t = draws.t
        goal = self._asked(draws, x, guidance) if goal is None else goal
        check_answer(goal, x)
        call = with_keys(network, draws.seeds)
        if self.mode == "continuous":
            value, slope = along(network, draws, x, goal, "forward")
            check_answer(value, x)
        else:
            value, ahead = call(x, t, draws.cond), x + self.gap * goal
            check_answer(value, x)
            # Knowledge comes from the data end: what the network says nearer to it is a constant.
            later = jax.lax.stop_gradient(call(ahead, t + self.gap, draws.cond))
            if self.mode == "consistency":
                # The last phase ends at 1; t' on a boundary belongs to the phase that it begins.
                end = jnp.minimum(jnp.floor((t + self.gap) * self.phases) + 1, self.phases) / self.phases
                there = ahead + expand(end - t - self.gap, x) * later
                return value, jax.lax.stop_gradient((there - x) / expand(end - t, x)), end - t
            slope = (later - jax.lax.stop_gradient(value)) / self.gap
        if self.normalized:
            kept = slope if draws.mask is None else jnp.where(expand_mask(draws.mask, slope), slope, 0)
            length = jnp.sqrt(jnp.sum(kept**2, axis=tuple(range(1, x.ndim))))
            slope = slope / expand(length + 0.1, x)
        # The identity holds for G; a gradient of its right side would train another one.
        return value, jax.lax.stop_gradient(goal + expand(1 - t, x) * slope), None

    def _asked(self, draws: TransportDraws, x: Array, guidance: float | None) -> Array:
        """The teacher's velocity."""
        teacher: Any = self.teacher
        if guidance is not None:
            scale = guidance if self.convention == "scale" else jnp.where(guidance > 0, 1 + guidance, 1.0)
            teacher = guide(teacher, CFG(scale=scale))
        return teacher.velocity(draws.t, x, draws.cond)


def expand_mask(mask: Bool[Array, "B N"], like: Float[Array, "B N ..."]) -> Bool[Array, "B N ..."]:
    """The mask with an axis of length 1 for each further one."""
    return mask.reshape(*mask.shape, *(1,) * (like.ndim - 2))


@fact(
    "objective",
    "velocity_distillation",
    "velocity matching, and the student's samples moved towards the teacher's law",
    cite="zhou2025fewstep",
    tasks=("distillation",),
)
@pytree
class VelocityDistillation(VelocityMatching):
    """Velocity matching with velocity distillation (VD): the student itself estimates the velocity of its samples.

    From fresh noise e the student jumps to f = e + G(e, 0). With the noise x0 and time t of velocity matching,
    x = t f + (1 - t) x0, and without gradients G and its target T = v + (1 - t) d there as in `VelocityMatching`,

        loss = matching VM + weight mean |G(x, t) - T + G(e, 0) - stop_gradient(G(e, 0))|^2.

    The value of the second is |G - T|^2; its gradient moves f against G - T, from where the student sends its own
    samples towards where the teacher would: distribution matching without a second network. Where the laws of both
    agree it is zero in the mean.

    Attributes:
        distillation_guidance: Scale of the teacher in VD, as `guidance` is in VM.
        weight: Of VD, not negative.
        matching: Of VM, not negative; 0 is VD alone, which needs no data.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> target = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
        >>> teacher = fj.Flow(target.network("velocity"), path=target.path)
        >>> objective = VelocityDistillation(path=target.path, teacher=teacher)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 1))})
        >>> sorted(objective.loss(lambda x, t, cond: -x, draws)[1])
        ['distillation', 'matching']
    """

    distillation_guidance: float | None = None
    weight: float = 1.0
    matching: float = static(1.0)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        if self.teacher is None:
            raise ValueError("velocity distillation needs a teacher; without one there is velocity_matching")
        real("[0, inf)", weight=self.weight, matching=self.matching)
        self._check_guidance(distillation_guidance=self.distillation_guidance)

    @property
    def data_free(self) -> bool:
        """Whether shape and conditions are all that is read of the data."""
        return self.matching == 0

    def draw(
        self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0
    ) -> TransportDraws:
        """Draws what velocity matching does, and the noise of the student's samples.

        Args:
            key: Key of the training step.
            batch: See `VelocityMatching`.
            memory: Unused; part of the objective protocol.
            step: Unused likewise.
        """
        draws, x1 = super().draw(key, batch), batch["x1"]
        key = jax.random.fold_in(jax.random.clone(key), 1)
        one = functools.partial(entries_noise, shape=x1.shape[1:], dtype=x1.dtype, entries=draws.mask is not None)
        fresh = jax.vmap(lambda i: one(jax.random.fold_in(key, i)))(jnp.arange(len(x1)))
        return dataclasses.replace(draws, fresh=fresh)

    def loss(self, networks: Callable[..., Array], draws: TransportDraws) -> tuple[Float[Array, " B"], dict[str, Any]]:
        """Both losses of each example, summed by their weights.

        Args:
            networks: The student, called as `networks(x, t, cond)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            (B,), and {"matching": VM (B,), "distillation": |G - T|^2 (B,)}.

        Raises:
            ValueError: The student's answer has another shape than the data.
        """
        if self.matching:
            matching, _ = super().loss(networks, draws)
        else:
            matching = jnp.zeros(draws.t.shape, draws.x1.dtype)
        draws = dataclasses.replace(draws, t=check_time_and_state(draws.t, draws.x1))
        start: Any = draws.fresh
        jump = with_keys(networks, draws.seeds)(start, jnp.zeros_like(draws.t), draws.cond)
        check_answer(jump, start)
        # The loss moves what the student samples, not what it says of it: that is the part of velocity matching.
        fixed = jax.lax.stop_gradient(jump)
        x = self.path.interpolate(draws.t, draws.x0, start + fixed)
        value, target, _ = self.identity(networks, draws, x, None, self.distillation_guidance)
        apart = jax.lax.stop_gradient(value - target)
        distillation = average((apart + jump - fixed) ** 2, draws.mask)
        return self.matching * matching + self.weight * distillation, {
            "matching": matching,
            "distillation": distillation,
        }
