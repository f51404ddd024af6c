"""Latent consistency distillation: a teacher's guided flow in long steps, learned as one function of any state.

On N times, of the teacher's data prediction m and noise prediction e at (x_t, t), both guided by w where there is a
scale, a step of DDIM leads to the next time,

    x_e = alpha(e) m_w + sigma(e) e_w,   loss = mean distance(f(x_t, t, w) - stop_gradient(f(x_e, e, w))).

The published table has 1,000 steps k = 0, ..., 999 and N = 50 times k = 999, 979, ..., 19 and 0. Here these times are
`uniform(n=50)` with the last at 0.999, where `boundary={"scale": 1e4, "end": 0.999}` puts it.

References:
    Luo et al. (2023), Latent Consistency Models, section 4, arXiv:2310.04378.
    Luo et al. (2023), LCM-LoRA: A Universal Stable-Diffusion Acceleration Module, arXiv:2311.05556.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Key

from flowjax._checks import choose, real
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import Field
from flowjax.objectives.distances import METRICS, distance
from flowjax.objectives.self_consistency import SelfConsistency, ddim
from flowjax.objectives.spans import SpanDraws
from flowjax.objectives.teacher import check_scales, guided, with_scales
from flowjax.times import uniform


@fact(
    "objective",
    "latent_consistency",
    "a consistency function from the long steps of a guided teacher",
    cite="luo2023latent",
    tasks=("distillation", "adapters"),
)
@pytree
class LatentConsistency(SelfConsistency):
    """The objective of latent consistency models, in latents or in the data themselves.

    Further attributes are those of `SelfConsistency`. With a range of scales of guidance each example gets one, the
    teacher is guided by it, and the student is called with `guidance=`: samples are then guided in one call. (The w of
    the authors is our scale minus 1, from 5 to 15 for Stable Diffusion.) Without, the teacher's own guidance is learned
    as it is, as adapters do (LCM-LoRA), whose samples take guidance 1. The authors train whole networks with
    `target_average=constant(decay=0.95)`, adapters without. The teacher is a part of this pytree, as in
    `TeacherRegression`.

    Attributes:
        teacher: A field without memory between evaluations: a `Flow`, or one inside guidance and other fields.
        guidance: Smallest and largest scale by which the teacher, which has a null condition, is guided, uniformly
            drawn for each example; None leaves it as it is.
        metric: "pseudo_huber", sqrt(d^2 + c^2) - c of each element, or "l2", its square.
        c: Error from which "pseudo_huber" is no longer quadratic, at least 0.

    Raises:
        ValueError: No field, one with a memory or of another path, or one that does not know the data at a time of the
            grid; a number outside its range.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> teacher = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> objective = LatentConsistency(path=teacher.path, teacher=teacher)
        >>> draws = objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))})
        >>> objective.loss(lambda x, t, cond: -x, draws)[0].shape
        (4,)
    """

    grid: Any = part("times", tuple(uniform(50).tolist()), static=True)
    teacher: Field = part("field")
    guidance: tuple[float, float] | None = static(None)
    metric: str = static("pseudo_huber")
    c: float = 1e-3

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        self.check_path(self.teacher)
        self.teacher.check(self.grid[:-1], "data")
        choose("metric", self.metric, METRICS)
        real("[0, inf)", c=self.c)
        if self.guidance is not None:
            object.__setattr__(self, "guidance", check_scales(self.guidance, self.teacher))

    def draw(self, key: Key[Array, ""], batch: Mapping[str, Any], memory: Any = None, *, step: Any = 0) -> SpanDraws:
        """Draws as `SelfConsistency.draw`, with scales of guidance."""
        draws = super().draw(key, batch, memory, step=step)
        return draws if self.guidance is None else with_scales(draws, key, self.guidance)

    def neighbour(self, draws: SpanDraws, x: Array) -> tuple[Array, dict[str, Array]]:
        """The teacher's step, and the scales."""
        teacher, asked = guided(self.teacher, draws)
        return ddim(teacher, draws.t, draws.end, x, draws.cond), asked

    def measure(self, error: Array, draws: SpanDraws) -> Float[Array, " B"]:
        """The distance, averaged over the elements."""
        return distance(self.metric, error, self.c)
