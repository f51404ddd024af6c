"""Flow matching as SiT and SD3 train it: paths, predictions, weights and times in one call.

With lamv = (alpha'/alpha) sigma^2 - sigma sigma' the errors of one network are v = (lamv / sigma) e: the losses of all
predictions are one loss under different weights.

References: Ma et al., SiT (2401.08740); Esser et al., Scaling Rectified Flow Transformers (2403.03206).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._pytree import part, pytree, static
from flowjax.objectives.flow_matching import FlowMatching
from flowjax.objectives.times import LogitNormal, TimeLaw, Uniform
from flowjax.paths import GaussianPath, Linear

WEIGHTINGS = ("none", "velocity", "likelihood")


@pytree
class SiTWeight:
    """Weight of SiT's losses: |e' - x0|^2 for noise and |sigma s' + x0|^2 for the score, times w.

    Args:
        path: the path.
        weighting: w = 1 ("none"), (lamv / sigma)^2 ("velocity": the velocity loss) or lamv / sigma^2 ("likelihood").
        prediction: "noise" or "score"; the score's weight has the factor sigma^2 that makes its loss one of sigma s.

    Raises:
        ValueError: unknown weighting or prediction.
    """

    path: GaussianPath = part("path")
    weighting: str = static("none")
    prediction: str = static("noise")

    def __post_init__(self) -> None:
        """Checks the names."""
        if self.weighting not in WEIGHTINGS or self.prediction not in ("noise", "score"):
            raise ValueError(
                f"weighting must be one of {', '.join(WEIGHTINGS)} and prediction noise or score, got "
                f"{self.weighting!r} and {self.prediction!r}"
            )

    def __call__(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """Weights at times t."""
        p = self.path
        sigma = p.sigma(t)
        weight = jnp.ones_like(t)
        if self.weighting != "none":
            lamv = p.dalpha(t) / p.alpha(t) * sigma**2 - p.sigma_dsigma(t)
            weight = (lamv / sigma) ** 2 if self.weighting == "velocity" else lamv / sigma**2
        return sigma**2 * weight if self.prediction == "score" else weight


def sit(
    path: GaussianPath | None = None, prediction: str = "velocity", weighting: str = "none", **options: Any
) -> FlowMatching:
    """SiT's training objective.

    Times are uniform on [0, 1] for the velocity where it is bounded, and on [1e-3, 1 - 1e-3] otherwise. (SiT trains the
    velocity of VP up to 1 - 1e-5; here it stops at 1 - 1e-3.)

    Args:
        path: Linear (default), Trig or VP.
        prediction: "velocity", "noise" or "score".
        weighting: for noise and score "none", "velocity" or "likelihood".
        **options: of `FlowMatching`; SiT has label_dropout=0.1.

    Raises:
        ValueError: another prediction, or a weighting of the velocity.
    """
    path = Linear() if path is None else path
    if prediction == "velocity":
        if weighting != "none":
            raise ValueError("the velocity loss has no weighting; give noise or score predictions one")
        times = Uniform() if path.has_velocity(1.0) else Uniform(end=1 - 1e-3)
        return FlowMatching(path=path, times=times, **options)
    weight = SiTWeight(path=path, weighting=weighting, prediction=prediction)
    times = Uniform(start=1e-3, end=1 - 1e-3)
    return FlowMatching(path=path, prediction=prediction, times=times, weight=weight, **options)


def sd3(times: TimeLaw | None = None, *, path: GaussianPath | None = None, **options: Any) -> FlowMatching:
    """SD3's: the velocity on straight lines, at logit-normal times.

    Args:
        times: `LogitNormal()` by default; SD3 also tried `Mode()` and `CosMap()`. For large images wrap it in
            `Shifted(times, shift=flowjax.times.resolution_shift(...))`.
        path: Linear; there is no other in SD3.
        **options: of `FlowMatching`.

    Raises:
        ValueError: another path.
    """
    if not isinstance(path, Linear | None):
        raise ValueError(f"SD3 trains on the linear path, got {path!r}: use FlowMatching for others")
    return FlowMatching(path=Linear(), times=LogitNormal() if times is None else times, **options)
