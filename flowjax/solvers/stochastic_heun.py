"""Stochastic Heun methods on the SDE of a flow: the noise of the step first, then two slopes at the noisy state."""

from typing import Any

import numpy as np

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.solvers.euler_maruyama import SDESolver
from flowjax.solvers.options import check_choice
from flowjax.solvers.requests import Updates, direction, evaluate, noise, pairs, step


@fact("solver", "stochastic_heun", "stochastic Heun, diffusion chosen at sampling time", cite="ma2024sit")
@pytree
class StochasticHeun(SDESolver):
    """Stochastic Heun with a diffusion chosen at sampling time.

    With h = t - s, y = x + sqrt(2 eps(s) |h|) z and F the drift (v + eps s, backwards v - eps s):

        "interpolants" (2303.08797, code)     k1 = F(t, y),   k2 = F(t, y + h k1)
        "sit" (2401.08740, code)              k1 = F(s, y),   k2 = F(t, y + h k1)

        x' = y + h (k1 + k2) / 2

    Weak order 1; without noise "sit" is Heun's method (order 2). Two evaluations per step. Where the drift is infinite
    at t (sigma = 0 with noise left) both are one step y + h F(s, y). Options of the last step are those of
    Euler-Maruyama, with one evaluation.

    Args:
        variant: "sit" or "interpolants".
        diffusion: as for `EulerMaruyama`.
        last: as for `EulerMaruyama`.
        backward: as for `EulerMaruyama`.
        drift: as for `EulerMaruyama`.

    Raises:
        ValueError: as for `EulerMaruyama`, or an unknown variant.

    Reference: Albergo, Boffi and Vanden-Eijnden (2303.08797); SiT (2401.08740).

    Example:
        >>> import flowjax as fj
        >>> solver = fj.solvers.StochasticHeun(diffusion="sigma")
        >>> bound = solver.bind(fj.paths.Linear(), fj.times.uniform(8, end=0.96))
        >>> bound.pattern.rows  # two in each step, one in the last
        15
    """

    variant: str = static("sit")
    diffusion: Any = part("diffusion", "sigma", static=True)
    last: str | None = static(None)
    backward: bool = static(False)
    drift: str = static("path")

    def __post_init__(self) -> None:
        """Checks the options."""
        check_choice("variant", self.variant, ("sit", "interpolants"))
        self._check()

    def updates(self, path: Any, times: list[float], x: Any) -> Updates:
        """Noise, predictor, trapezoid."""
        for s, t in pairs(times[::-1] if self.backward else times):
            h = t - s
            if t == times[-1] and self._last != "none":
                v = yield direction((yield evaluate(s, x)))
                x = yield step(self.finish(path, s, t, x, v))
                continue
            eps = self.eps(path, s)
            y = x + np.sqrt(2 * eps * abs(h)) * (yield noise()) if eps * abs(h) > 0 else x
            ends = self.regular(path, t)
            first = t if ends and self.variant == "interpolants" else s
            k = self.slope(path, first, y, (yield evaluate(first, y)))
            if ends:
                ahead = y + h * k
                k = (k + self.slope(path, t, ahead, (yield evaluate(t, ahead)))) / 2
            x = yield step(y + h * (yield direction(k)))
