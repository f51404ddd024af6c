"""A student whose samples are distributed as a teacher's: distribution matching distillation, DMD2 and f-distill.

Two networks play: the student makes samples in a few evaluations, and the fake network, a flow that is trained on these
samples all the time, knows their scores. Where it and the teacher disagree on noised samples, their difference says how
the samples have to move.

References:
    Yin et al. (2023), One-step Diffusion with Distribution Matching Distillation, arXiv:2311.18828.
    Yin et al. (2024), Improved Distribution Matching Distillation for Fast Image Synthesis, arXiv:2405.14867.
    Xu et al. (2025), One-step Diffusion Models with f-Divergence Distribution Matching, arXiv:2502.15681.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from flowjax._checks import COUNT, choose, real, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Counts, Field, Flow
from flowjax.objectives.base import frozen, seed, with_keys
from flowjax.objectives.flow_matching import LATEST, check_answer
from flowjax.objectives.teacher import check_teacher
from flowjax.objectives.times import TimeLaw, Uniform, check_law
from flowjax.paths import GaussianPath
from flowjax.paths.base import check_time_and_state, expand, precision
from flowjax.times import check_times, uniform

WEIGHTS: dict[str, Callable[[Array], Array]] = {
    "reverse_kl": jnp.ones_like,
    "forward_kl": jnp.exp,
    "jensen_shannon": jax.nn.sigmoid,
    "hellinger": lambda logit: jnp.exp(logit / 2) / 4,
}
"""r^2 f''(r) of the divergences E_fake[f(r)], as functions of log r, with r the density of the data over the fake's."""


class Judged:
    """The fake network that is an adversary too: it answers with one more channel, whose mean is a logit.

    Example:
        >>> Judged.channels(3), Judged.grown(jnp.ones(6), 3, jax.random.key(0)).tolist()  # two pixels of three channels
        (4, [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    """

    @staticmethod
    def channels(channels: int) -> int:
        """Of its answer, for states with `channels` channels."""
        return channels + 1

    @staticmethod
    def grown(leaf: Float[Array, "*axes width"], channels: int, key: Key[Array, ""]) -> Float[Array, "*axes out"]:
        """A kernel or bias of a velocity network's last layer, with a channel of zeros."""
        parts = leaf.reshape(*leaf.shape[:-1], -1, channels)
        return jnp.concatenate([parts, jnp.zeros_like(parts[..., :1])], axis=-1).reshape(*leaf.shape[:-1], -1)


def direction(
    fake: Float[Array, "B ..."], teacher: Float[Array, "B ..."], x: Float[Array, "B ..."]
) -> Float[Array, "B ..."]:
    """(fake - teacher) / mean |x - teacher|: against it the samples x move, each by a normaliser of its own.

    Args:
        fake: Data prediction of the fake network at noised samples.
        teacher: That of the teacher.
        x: The samples. One that the teacher gives back to rounding has nothing to learn, and zeros.

    Example:
        >>> direction(jnp.array([[2.0], [2.0]]), jnp.array([[1.0], [1.0]]), jnp.array([[5.0], [1.0]])).tolist()
        [[0.25], [0.0]]
    """
    axes = tuple(range(1, x.ndim))
    mean = lambda values: jnp.mean(jnp.abs(values), axis=axes, keepdims=True)  # noqa: E731
    scale = mean(x - teacher)
    known = scale <= jnp.finfo(x.dtype).eps * mean(teacher)
    return jnp.where(known, 0, (fake - teacher) / jnp.where(known, 1, scale))


@pytree
class MatchingDraws:
    """Everything random of one training step of `DistributionMatching`.

    Attributes:
        x1: Data, (B, ...); read by the adversary alone.
        x0: Noise that samples begin with, (B, ...).
        last: The number of the step whose answer is the sample, a scalar.
        z: Noise of the fake network's lesson, (B, ...).
        t: Its times, (B,).
        compared_z: Noise at which fake network and teacher are compared, (B, ...).
        compared_t: Its times, (B,).
        moves: Whether the student learns, a scalar.
        renewed: Noise of the student's later steps, (B, steps - 1, ...); None with a single step.
        cond: Conditions with leading axis B, or None.
        seeds: Seeds of the networks' dropout, (B, 2); None is without dropout.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> teacher = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> objective = fj.objectives.DistributionMatching(teacher=teacher, grid=fj.times.uniform(4))
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((8, 2))}, step=4)
        >>> draws.renewed.shape, 0 <= int(draws.last) < 4, bool(draws.moves)
        ((8, 3, 2), True, True)
    """

    x1: Float[Array, "B ..."]
    x0: Float[Array, "B ..."]
    last: Int[Array, ""]
    z: Float[Array, "B ..."]
    t: Float[Array, " B"]
    compared_z: Float[Array, "B ..."]
    compared_t: Float[Array, " B"]
    moves: Bool[Array, ""]
    renewed: Float[Array, "B later ..."] | None = None
    cond: Any = None
    seeds: UInt32[Array, "B 2"] | None = None


@fact(
    "objective",
    "distribution_matching",
    "samples distributed as a teacher's, by a network that knows their scores (DMD2)",
    cite="yin2024improved",
    couples_batch=True,
    tasks=("distillation",),
)
@pytree
class DistributionMatching:
    """Trains a student by the scores of its own samples.

    The student G makes a sample x in one of the steps of `grid`, by consistency sampling as
    `flowjax.solvers.Consistency` does it: the states before that step are its own (backward simulation) and have no
    gradient. With y = alpha(t) x + sigma(t) z and the data predictions D of the fake network and of the teacher at y,

        g = h (D_fake(y) - D_teacher(y)) / mean |x - D_teacher(y)|,   loss_G = mean |x - stop_gradient(x - g)|^2 / 2,

    so that x moves against g: down the gradient of a divergence between the laws of the noised samples and of the
    teacher's. Normaliser and mean are those of an example. The fake network learns x by flow matching in every step,
    the student moves in every `every`-th only, for which alone its gradient and the comparison are computed.

    With `adversary` the fake network answers with one channel more, whose mean over the example is the logit l of an
    adversary on its features; on noised data y' it learns w_judge (softplus(l(y)) + softplus(-l(y'))) too, and the
    student w_adversary softplus(-l(y)). exp(l) estimates the ratio r of densities, by which h weighs examples for
    other divergences: 1 (reverse_kl), r (forward_kl), r / (1 + r) (jensen_shannon) or sqrt(r) / 4 (hellinger), over
    its mean in the batch. Without an adversary nothing is read of the data but shape and conditions.

    `networks` is {"student": ..., "fake": ...}; both predict what the teacher's network predicts and start from its
    weights. What is sampled is the student, by the solver `consistency` on `grid`.

    Attributes:
        teacher: A field without memory between evaluations: a `Flow`, or one inside guidance and other fields.
        prediction: What both networks output: "velocity", "noise", "data", "score" or "v".
        grid: Times of the student's steps from noise to the data, or the spec of a grid, `uniform(n=4)`.
        times: Distribution of the times t of fake network, teacher and adversary, moved into [0.001, 0.999].
        every: The student moves in each `every`-th step, the last of so many.
        adversary: Whether the fake network is an adversary too.
        adversary_weight: w_adversary, not negative.
        judge_weight: w_judge, not negative.
        divergence: See above; all but "reverse_kl" need the adversary.

    Raises:
        ValueError: No field, one with a memory or that does not know the data at a time of the grid, an unknown name,
            or a number outside its range.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> teacher = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> objective = fj.objectives.DistributionMatching(teacher=teacher)
        >>> [bool(objective.updates(step)["student"]) for step in range(5)]
        [False, False, False, False, True]
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.ones((4, 2))}, step=4)
        >>> same = {"student": lambda x, t, cond: x, "fake": lambda x, t, cond: -x}
        >>> objective.loss(same, draws)[1]["matching"].tolist()  # fake and teacher agree
        [0.0, 0.0, 0.0, 0.0]
    """

    labels = ("student", "fake")

    teacher: Field = part("field")
    prediction: str = static("velocity")
    grid: Any = part("times", tuple(uniform(1).tolist()), static=True)
    times: TimeLaw = part("time_law", Uniform(start=0.02, end=0.98))
    every: int = static(5)
    adversary: bool = static(False)
    adversary_weight: float = 3e-3
    judge_weight: float = 1e-2
    divergence: str = static("reverse_kl")

    def __post_init__(self) -> None:
        """Checks the options."""
        check_teacher(self.teacher)
        choose("divergence", self.divergence, tuple(WEIGHTS))
        whole(COUNT, every=self.every)
        real("[0, inf)", adversary_weight=self.adversary_weight, judge_weight=self.judge_weight)
        object.__setattr__(self, "times", check_law(self.times))
        object.__setattr__(self, "grid", tuple(check_times(self.grid).tolist()))
        self.teacher.check([1 - LATEST, LATEST], "data")
        self._flow(lambda x, t, cond: x).check(self.grid[:-1], "data")
        if self.divergence != "reverse_kl" and not self.adversary:
            raise ValueError(
                f"divergence={self.divergence!r} weighs by the ratio of densities, which an adversary estimates: set "
                "adversary=True"
            )

    @property
    def path(self) -> GaussianPath:
        """The teacher's, and so that of both networks."""
        return self.teacher.path

    @property
    def partner(self) -> Any:
        """How the answer of the fake network differs from the teacher's, see `Judged`; None is not at all."""
        return Judged if self.adversary else None

    def updates(self, step: Int[Array, ""] | int) -> dict[str, Any]:
        """The student moves at the last of each `every` steps, the fake network always."""
        return {"student": jnp.asarray(step) % self.every == self.every - 1}

    @property
    def data_free(self) -> bool:
        """Whether shape and conditions are all that is read of the data."""
        return not self.adversary

    def draw(
        self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0
    ) -> MatchingDraws:
        """Draws noise and times; example i depends on (key, i) only, the number of the last step on the key alone.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), whose shape alone counts without an adversary, and optionally "cond", a pytree
                with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Of training: whether the student moves.
        """
        x1, later = batch["x1"], len(self.grid) - 2

        def one(index: Array) -> dict[str, Array]:
            names = ("x0", "renewed", "z", "compared_z", "t", "compared_t", "seeds")
            own = dict(zip(names, jax.random.split(jax.random.fold_in(key, index), len(names)), strict=True))
            noise = {name: jax.random.normal(own[name], x1.shape[1:], x1.dtype) for name in ("x0", "z", "compared_z")}
            if later:
                noise["renewed"] = jax.random.normal(own["renewed"], (later, *x1.shape[1:]), x1.dtype)
            times = {name: self.times.sample(own[name]) for name in ("t", "compared_t")}
            drawn = {name: jnp.clip(time, 1 - LATEST, LATEST) for name, time in times.items()}
            return noise | drawn | {"seeds": seed(own["seeds"])}

        drawn = jax.vmap(one)(jnp.arange(len(x1)))
        beside = jax.random.fold_in(jax.random.clone(key), 2**32 - 1)  # the number of no example
        last = jax.random.randint(beside, (), 0, later + 1, jnp.int32)
        return MatchingDraws(x1=x1, cond=batch.get("cond"), last=last, moves=self.updates(step)["student"], **drawn)

    def loss(self, networks: Any, draws: MatchingDraws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """The losses of both networks for each example, summed; their gradients are disjoint.

        Args:
            networks: See the class.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            (B,), and {"fake": the error of the fake network (B,), "matching": mean g^2 / 2 (B,), zero where the student
            rests}; with an adversary also "judge", its loss, and "adversary", the student's term, (B,).

        Raises:
            ValueError: A network is missing, or an answer has not the shape of the data.
        """
        if not isinstance(networks, Mapping) or set(networks) != set(self.labels):
            found = ", ".join(networks) if isinstance(networks, Mapping) else "one"
            raise ValueError(f"distribution matching trains the networks {' and '.join(self.labels)}, got {found}")
        times = {name: check_time_and_state(getattr(draws, name), draws.x0) for name in ("t", "compared_t")}
        draws = dataclasses.replace(draws, **times)
        keyed = lambda network: with_keys(network, draws.seeds)  # noqa: E731
        # Each network learns from what the other answers, and must not move it.
        student, fake = (networks[label] for label in self.labels)
        x = self._sample(keyed(student), keyed(frozen(student)), draws)
        fixed = jax.lax.stop_gradient(x)
        lesson, metrics = self._lesson(keyed(fake), fixed, draws)
        zeros = jnp.zeros_like(lesson)
        pull, found = jax.lax.cond(
            draws.moves,
            lambda: self._compare(keyed(frozen(fake)), fixed, draws),
            lambda: (jnp.zeros_like(fixed), {name: zeros for name in self._metrics}),
        )
        own = found["matching"] + self.adversary_weight * found.get("adversary", 0)
        own += _sum(pull * (x - fixed))  # zero, with the gradient `pull`
        return lesson + own, metrics | found

    @property
    def _metrics(self) -> tuple[str, ...]:
        return ("matching", "adversary") if self.adversary else ("matching",)

    def _flow(self, network: Callable[..., Array]) -> Flow:
        return Flow(network, path=self.path, prediction=self.prediction)

    def _data(self, network: Callable[..., Array], t: Array, x: Array, cond: Any) -> Array:
        return self._flow(network).evaluate(t, x, cond, Counts.zero(len(x)), to="data")[0]

    def _sample(
        self, student: Callable[..., Array], resting: Callable[..., Array], draws: MatchingDraws
    ) -> Float[Array, "B ..."]:
        """The student's samples, with gradients where it moves."""
        grid, count, renewed = jnp.asarray(self.grid, precision(draws.x0)), len(draws.x0), draws.renewed
        answer = lambda network, number, x: self._data(  # noqa: E731
            network, jnp.full((count,), grid[number]), x, draws.cond
        )

        def simulate(number: Array, x: Array) -> Array:
            assert renewed is not None
            data = answer(resting, number, x)
            return self.path.interpolate(jnp.full((count,), grid[number + 1]), renewed[:, number], data)

        x = self.path.start(draws.x0, self.grid[0])
        if renewed is not None:
            x = jax.lax.fori_loop(0, draws.last, simulate, x)
        # Without the checkpoint its backward pass would be filled with zeros at rest.
        learn = jax.checkpoint(lambda: answer(student, draws.last, x))
        return jax.lax.cond(draws.moves, learn, lambda: answer(resting, draws.last, x))

    def _answer(
        self, fake: Callable[..., Array], t: Array, x: Array, cond: Any
    ) -> tuple[Float[Array, "B ..."], Float[Array, " B"] | None]:
        """The fake network's prediction, and its logit."""
        answer = fake(x, t, cond)
        if not self.adversary:
            check_answer(answer, x)
            return answer, None
        channels = x.shape[-1]
        if answer.shape != (*x.shape[:-1], channels + 1):
            raise ValueError(f"a fake network that judges answers {x.shape} with a channel more, got {answer.shape}")
        return answer[..., :channels], _mean(answer[..., channels:])

    def _lesson(self, fake: Callable[..., Array], x: Array, draws: MatchingDraws) -> tuple[Array, dict[str, Array]]:
        """The loss of the fake network on samples x."""
        prediction, logit = self._answer(fake, draws.t, self.path.interpolate(draws.t, draws.z, x), draws.cond)
        error = _mean((prediction - self.path.target(self.prediction, draws.t, draws.z, x)) ** 2)
        if logit is None:
            return error, {"fake": error}
        noised = self.path.interpolate(draws.t, draws.z, draws.x1)
        real = self._answer(fake, draws.t, noised, draws.cond)[1]
        assert real is not None
        judge = jax.nn.softplus(logit) + jax.nn.softplus(-real)
        return error + self.judge_weight * judge, {"fake": error, "judge": judge}

    def _compare(self, fake: Callable[..., Array], x: Array, draws: MatchingDraws) -> tuple[Array, dict[str, Array]]:
        """The gradient of the student's loss with respect to its samples x, and the terms of the loss."""
        t = draws.compared_t

        def ask(x: Array) -> tuple[Array, tuple[Array, Array | None, Array]]:
            noised = self.path.interpolate(t, draws.compared_z, x)
            prediction, logit = self._answer(fake, t, noised, draws.cond)
            term = jnp.zeros_like(t) if logit is None else jax.nn.softplus(-logit)
            return term.sum(), (prediction, logit, noised)

        if self.adversary:
            slope, (prediction, logit, noised) = jax.grad(ask, has_aux=True)(x)
        else:
            slope, (prediction, logit, noised) = jnp.zeros_like(x), ask(x)[1]
        mine = self.path.convert(prediction, given=self.prediction, to="data", t=t, x=noised)
        theirs, _ = self.teacher.evaluate(t, noised, draws.cond, self.teacher.init(noised), to="data")
        g = direction(mine, theirs, x)
        found = {}
        if logit is not None:
            weight = WEIGHTS[self.divergence](logit)
            g *= expand(weight / weight.mean(), g)
            found["adversary"] = jax.nn.softplus(-logit)
        found["matching"] = _mean(g**2) / 2
        return g / g[0].size + self.adversary_weight * slope, found


def _sum(values: Array) -> Float[Array, " B"]:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def _mean(values: Array) -> Float[Array, " B"]:
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))
