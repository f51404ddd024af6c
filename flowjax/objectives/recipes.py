"""Flow matching as SiT and SD3 train it: paths, predictions, weights and times in one call.

With lamv = (alpha'/alpha) sigma^2 - sigma sigma' the errors of one network are v = (lamv / sigma) e: the losses of all
predictions are one loss under different weights.

References: Ma et al., SiT (2401.08740); Esser et al., Scaling Rectified Flow Transformers (2403.03206).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.objectives.flow_matching import FlowMatching
from flowjax.objectives.times import LogitNormal, TimeLaw, Uniform
from flowjax.paths import GaussianPath, Linear
from flowjax.paths.sde import as_diffusion

WEIGHTINGS = ("none", "velocity", "likelihood")


@fact("weight", "sit", "weights of SiT's losses of noise and score", cite="ma2024sit")
@pytree
class SiTWeight:
    """Weight of SiT's losses: |e' - x0|^2 for noise and |sigma s' + x0|^2 for the score, times w.

    With lamv = (alpha'/alpha) sigma^2 - sigma sigma' the errors of one network are v = (lamv / sigma) e.

    Args:
        path: the path.
        weighting: w = 1 ("none"), (lamv / sigma)^2 ("velocity": the velocity loss) or lamv / sigma^2 ("likelihood").
        prediction: "noise" or "score"; the score's weight has the factor sigma^2 that makes its loss one of sigma s.

    Raises:
        ValueError: unknown weighting or prediction.

    Reference: Ma et al., SiT (2401.08740).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> weight = fj.objectives.SiTWeight(path=fj.paths.Linear(), weighting="velocity")
        >>> weight(jnp.array([0.25, 0.5])).tolist()  # 1 / t^2: a velocity is (x - e) / t
        [16.0, 4.0]
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


@fact(
    "objective",
    "sit",
    "flow matching as SiT trains it",
    cite="ma2024sit",
    parts={"path": "path"},
    more=(FlowMatching,),
    tasks=("generation", "adapters"),
)
def sit(
    path: GaussianPath | None = None,
    prediction: str = "velocity",
    weighting: str = "none",
    *,
    times: TimeLaw | None = None,
    **options: Any,
) -> FlowMatching:
    """SiT's training objective, at its training times.

    These are uniform on [0, 1] for the velocity of Linear and Trig, on [1e-3, 1 - 1e-3] for their other predictions,
    and on [0, 1 - 1e-5] for all of VP.

    Args:
        path: Linear (default), Trig or VP.
        prediction: "velocity", "noise" or "score".
        weighting: for noise and score "none", "velocity" or "likelihood".
        times: other training times. The weights but "none" are infinite at t = 0 of Linear and Trig, and the one for
            the likelihood at t = 1: keep away from these.
        **options: of `FlowMatching`; SiT has label_dropout=0.1.

    Raises:
        ValueError: another prediction, or a weighting of the velocity.
    """
    path = Linear() if path is None else path
    if times is None:
        start, end = _interval(path, prediction, 1e-5)
        times = Uniform(start=start, end=end)
    if prediction == "velocity":
        if weighting != "none":
            raise ValueError("the velocity loss has no weighting; give noise or score predictions one")
        return FlowMatching(path=path, times=times, **options)
    weight = SiTWeight(path=path, weighting=weighting, prediction=prediction)
    return FlowMatching(path=path, prediction=prediction, times=times, weight=weight, **options)


def sit_interval(
    path: GaussianPath | None = None, prediction: str = "velocity", *, diffusion: Any = None, last_step: float = 0.0
) -> tuple[float, float]:
    """The first and last time of SiT's sampling; those of training are in `sit`.

    For the ODE [0, 1] with the velocity of Linear and Trig, [1e-3, 1 - 1e-3] with their other predictions, and
    [0, 1 - 1e-3] on VP. The SDE of Linear and Trig starts at 1e-3 for the diffusion "sbdm", too, which is infinite at
    0 (there SiT itself starts the velocity at 0 and gets NaN). A last step takes the place of what is cut off.

    Args:
        path: Linear (default), Trig or VP.
        prediction: "velocity", "noise" or "score".
        diffusion: that of `flowjax.solvers.EulerMaruyama`; None for the ODE.
        last_step: length of the SDE's last step, 0.04 in SiT; 0 for none.

    Raises:
        ValueError: an unknown prediction, or a last step outside [0, 1) or without a diffusion.

    Example:
        >>> import flowjax as fj
        >>> times = fj.times.uniform(50, *sit_interval(fj.paths.VP(), "noise"))
        >>> start, end = sit_interval(diffusion="sbdm", last_step=0.04)
        >>> for_sde = fj.times.with_last_step(250, 0.04, start, end)
        >>> float(times[-1]), start, end
        (0.999, 0.001, 1.0)
    """
    path = Linear() if path is None else path
    if not 0 <= last_step < 1 or (last_step and diffusion is None):
        raise ValueError(f"{last_step=} must be in [0, 1), and is of SDEs: it needs a diffusion")
    start, end = _interval(path, prediction, 1e-3)
    if diffusion is not None and getattr(as_diffusion(diffusion), "form", None) == "sbdm" and path.alpha(0.0) == 0:
        start = 1e-3
    return start, 1.0 if last_step else end


def _interval(path: GaussianPath, prediction: str, cut: float) -> tuple[float, float]:
    """Where a prediction and what is made of it are bounded; paths that arrive infinitely fast stop `cut` before 1."""
    if prediction not in ("velocity", "noise", "score"):
        raise ValueError(f"prediction must be velocity, noise or score, got {prediction!r}")
    if not path.has_velocity(1.0):
        return (0.0 if path.alpha(0.0) > 0 or prediction == "velocity" else 1e-3), 1 - cut
    return (0.0, 1.0) if prediction == "velocity" else (1e-3, 1 - 1e-3)


@fact(
    "objective",
    "sd3",
    "flow matching as SD3 trains it",
    cite="esser2024scaling",
    parts={"times": "time_law"},
    more=(FlowMatching,),
    tasks=("generation", "adapters"),
)
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
