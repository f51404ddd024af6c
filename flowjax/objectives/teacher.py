"""Regression on a teacher: the student learns what another field predicts at the states of its path."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax._checks import pair
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.fields import guide
from flowjax.flow import Field, check_field
from flowjax.guidance import CFG
from flowjax.objectives.base import with_keys
from flowjax.objectives.flow_matching import Draws, check_answer, make_draws, off_ends
from flowjax.objectives.times import TimeLaw, Uniform, check_law
from flowjax.paths import GaussianPath
from flowjax.paths.base import check_prediction, check_time_and_state


def check_scales(guidance: Any, teacher: Field) -> tuple[float, float]:
    """The smallest and largest scale by which a teacher is guided.

    Raises:
        ValueError: They are none, or the teacher cannot be guided.
    """
    pair("[0, inf)", guidance=guidance)
    if teacher.null is None:
        raise ValueError("a teacher without a null condition, or one that is guided already, gets no scales")
    return tuple(guidance)


def with_scales(draws: Any, key: Key[Array, ""], guidance: tuple[float, float]) -> Any:
    """The draws with a scale of guidance for each example, uniform between two; example i depends on (key, i) only."""
    one = lambda i: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.clone(key), 1), i))  # noqa: E731
    unit = jax.vmap(one)(jnp.arange(len(draws.t))).astype(draws.t.dtype)
    return dataclasses.replace(draws, guidance=guidance[0] + (guidance[1] - guidance[0]) * unit)


def guided(teacher: Field, draws: Any) -> tuple[Field, dict[str, Array]]:
    """The teacher, guided by the scales of the draws if there are, and what a student is asked beside the condition."""
    if draws.guidance is None:
        return teacher, {}
    return guide(teacher, CFG(scale=draws.guidance)), {"guidance": draws.guidance}


@fact(
    "objective",
    "teacher_regression",
    "regression on the predictions of a teacher, guided or not",
    cite="meng2022distillation",
    tasks=("distillation", "adapters"),
)
@pytree
class TeacherRegression:
    """Trains a student to predict what a teacher field predicts.

    With x_t = alpha(t) x1 + sigma(t) x0, x0 ~ N(0, I), on the teacher's path, the loss of one example is

        w(t) mean |network(x_t, t, cond) - teacher(t, x_t, cond)|^2,

    where the teacher answers with its velocity, noise, data, score or v. The minimiser, for every positive w, is the
    teacher's field itself. Of a guided teacher that is the guided field, which then costs one network call. With a
    range of scales of guidance the student learns all of them: each example gets a scale, the teacher is guided by it,
    and the student is called with `guidance=`. The x1 may be data or the teacher's own samples.

    The teacher is a part of this pytree: its weights are arguments of a training step, in their own precision. For a
    student on another path give the teacher as `flowjax.fields.Converted(teacher, path=...)`. Where the teacher does
    not determine the prediction at an end of the path, `draw` moves times away from that end by 0.001.

    Attributes:
        teacher: A field without memory between evaluations: a `Flow`, or one inside guidance and other fields.
        prediction: What the student outputs: "velocity", "noise", "data", "score" or "v".
        times: Distribution of training times.
        weight: Function of t (B,) that returns the weights w(t) (B,); None is 1.
        label_dropout: Probability in [0, 1] that an example's condition is replaced by `null`, for student and teacher.
        null: The null condition: a pytree of scalars like one example's condition.
        guidance: Smallest and largest scale by which the teacher, which has a null condition, is guided, uniformly
            drawn for each example; None leaves it as it is.

    Raises:
        ValueError: No field, one with a memory or of a two-sided path, an unknown prediction, dropout outside [0, 1] or
            without a null condition.

    References:
        Meng et al. (2022), On Distillation of Guided Diffusion Models, section 3.1, arXiv:2210.03142.

    Example:
        >>> import jax, jax.numpy as jnp, flowjax as fj
        >>> teacher = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> objective = TeacherRegression(teacher=teacher)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))})
        >>> objective.loss(lambda x, t, cond: -x, draws)[0].tolist()
        [0.0, 0.0, 0.0, 0.0]
    """

    teacher: Field = part("field")
    prediction: str = static("velocity")
    times: TimeLaw = part("time_law", Uniform())
    weight: Callable[[Float[Array, " B"]], Float[Array, " B"]] | None = part("weight", None)
    label_dropout: float = 0.0
    null: Any = None
    guidance: tuple[float, float] | None = static(None)

    def __post_init__(self) -> None:
        """Checks the options."""
        check_teacher(self.teacher)
        check_prediction("prediction", self.prediction)
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout={self.label_dropout} must be in [0, 1]")
        if self.label_dropout and self.null is None:
            raise ValueError("label_dropout needs null=, the condition that stands for none (num_classes for labels)")
        object.__setattr__(self, "times", check_law(self.times))
        if self.guidance is not None:
            object.__setattr__(self, "guidance", check_scales(self.guidance, self.teacher))

    @property
    def path(self) -> GaussianPath:
        """The teacher's, and so the student's."""
        return self.teacher.path

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> Draws:
        """Draws noise, times and dropped conditions; example i depends on (key, i) only.

        Args:
            key: Key of the training step.
            batch: "x1", data (B, ...), and optionally "cond", a pytree with leading axis B.
            memory: Unused; part of the objective protocol.
            step: Unused; part of the objective protocol.
        """
        draws = make_draws(key, batch, self.times, self.label_dropout, self.null)
        draws = off_ends(draws, *map(self._determined, (0.0, 1.0)))
        return draws if self.guidance is None else with_scales(draws, key, self.guidance)

    def loss(self, networks: Callable[..., Array], draws: Draws) -> tuple[Float[Array, " B"], dict[str, Array]]:
        """Weighted squared distance to the teacher, averaged over the dimensions of an example.

        Args:
            networks: The student, called as `networks(x, t, cond)`, with `key=` if it has dropout.
            draws: From `draw`, or with arrays replaced by `dataclasses.replace`.

        Returns:
            The loss of each example, (B,), and {"mse": the same without the weight, (B,)}.

        Raises:
            ValueError: The student's answer has another shape than the teacher's.
        """
        draws = dataclasses.replace(draws, t=check_time_and_state(draws.t, draws.x1))
        x = self.path.interpolate(draws.t, draws.x0, draws.x1)
        teacher, more = guided(self.teacher, draws)
        target, _ = teacher.evaluate(draws.t, x, draws.cond, teacher.init(x), to=self.prediction)
        value = with_keys(networks, draws.seeds)(x, draws.t, draws.cond, **more)
        check_answer(value, target)
        # A teacher may share weights with the student (adapters on it): only the student moves towards the other.
        error = (value - jax.lax.stop_gradient(target)) ** 2
        mse = jnp.mean(error, axis=tuple(range(1, error.ndim)))
        return mse if self.weight is None else self.weight(draws.t) * mse, {"mse": mse}

    def _determined(self, t: float) -> bool:
        try:
            self.teacher.check([t], self.prediction)
        except ValueError:
            return False
        return True


def check_teacher(field: Any) -> None:
    """Refuses what cannot be asked at single times of a path.

    Raises:
        ValueError: No field, one of a path between two laws, or one with a memory.
    """
    check_field(field)
    if not isinstance(field.path, GaussianPath):
        raise ValueError(f"a teacher needs a path from noise to data, got {type(field.path).__name__}")
    if not field.stateless:
        raise ValueError(f"a teacher is asked at single times, and {type(field).__name__} has a memory")
