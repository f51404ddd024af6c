"""Euler-Maruyama on the SDE of a flow, forwards or backwards, with any diffusion eps(t)."""

from typing import Any

import numpy as np

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths.sde import as_diffusion
from flowjax.solvers.options import check_choice
from flowjax.solvers.requests import Updates, direction, evaluate, noise, pairs, step
from flowjax.solvers.solver import Solver


class SDESolver(Solver):
    """What the two SDE solvers share: the drift at a time as a function of (x, v), and the last step.

    Example:
        >>> import flowjax as fj
        >>> solver = fj.solvers.StochasticHeun(diffusion="linear")  # one of the two
        >>> solver.eps(fj.paths.Linear(), 0.25), solver.regular(fj.paths.Linear(), 0.25)
        (0.75, True)
    """

    stochastic = True

    diffusion: Any
    drift: str
    backward: bool
    last: str | None

    def _check(self) -> None:
        as_diffusion(self.diffusion)
        check_choice("drift", self.drift, ("path", "field"))
        check_choice("backward", self.backward, (True, False))
        check_choice("last", self.last, (None, "none", "mean", "tweedie", "euler"))
        if self.backward and self.last not in (None, "none"):
            raise ValueError(f"last={self.last!r} removes noise at the data end, which a backward run starts from")
        if self.drift == "field" and self.last in ("tweedie", "euler"):
            raise ValueError(f"last={self.last!r} needs the velocity apart from the drift: use drift='path'")

    @property
    def _last(self) -> str:
        return self.last or ("none" if self.backward else "mean")

    def eps(self, path: Any, t: float) -> float:
        """eps(t) at a concrete time.

        Raises:
            ValueError: it is infinite or negative.
        """
        eps = float(as_diffusion(self.diffusion).value(path, t))
        if not 0 <= eps < np.inf:
            raise ValueError(
                f"diffusion {self.diffusion!r} is {eps} at t = {t:g}: it must be finite and not negative at every time "
                "evaluated; move the start of the times above 0, e.g. flowjax.times.uniform(n, start=1e-3)"
            )
        return eps

    def regular(self, path: Any, t: float) -> bool:
        """Whether the drift is bounded at the concrete time t."""
        if not path.has_velocity(t):
            return False
        return self.drift == "field" or bool(np.isfinite(as_diffusion(self.diffusion).over_sigma(path, t)))

    def slope(self, path: Any, t: float, x: Any, v: Any) -> Any:
        """The drift F in the direction of time, from the field's value v at (t, x).

        Raises:
            ValueError: it is infinite.
        """
        if self.drift == "field":
            return v
        self.eps(path, t)
        ratio = float(as_diffusion(self.diffusion).over_sigma(path, t))
        if not np.isfinite(ratio):
            raise ValueError(f"the score is infinite at t = {t:g}, where sigma = 0: move the end of the times below it")
        e = path.convert(v, given="velocity", to="noise", t=t, x=x)
        return v + (ratio if self.backward else -ratio) * e

    def finish(self, path: Any, s: float, t: float, x: Any, v: Any) -> Any:
        """The state after a last step without noise, from the field's value v at (s, x)."""
        if self._last == "mean":
            return x + (t - s) * self.slope(path, s, x, v)
        if self._last == "euler":
            return x + (t - s) * v
        m, e = (path.convert(v, given="velocity", to=to, t=s, x=x) for to in ("data", "noise"))
        return float(path.alpha(t)) * m + float(path.sigma(t)) * e


@fact("solver", "euler_maruyama", "Euler-Maruyama, diffusion chosen at sampling time", cite="ma2024sit")
@pytree
class EulerMaruyama(SDESolver):
    """Euler-Maruyama with a diffusion chosen at sampling time.

    Forwards (noise to data) dx = (v + eps s) dt + sqrt(2 eps) dW; backwards, from the last time to the first,
    dx = (v - eps s) dt + sqrt(2 eps) dW. With h = t - s and F the drift at s:

        x' = x + h F(s, x) + sqrt(2 eps(s) h) z              x' = x - h F(t, x) + sqrt(2 eps(t) h) z   (backwards)

    The score comes from the same evaluation as the velocity: eps s = -(eps/sigma) e, and e is a combination of x and v.
    Weak and strong order 1, one evaluation per step. The last step may do without noise ("mean": x + h F; "euler":
    x + h v; "tweedie": alpha_t m + sigma_t e, at t = 1 the data prediction m).

    Args:
        diffusion: a form's name ("sigma", "constant", "sbdm", "linear", "decreasing", "increasing_decreasing"), a
            number (constant), a `flowjax.solvers.Diffusion`, or a function of t. "sbdm" starts above t = 0.
        last: the last step: "none" (noise as in every step), "mean", "tweedie" or "euler" (without noise); None is
            "mean" forwards and "none" backwards. `flowjax.times.with_last_step` makes SiT's grid.
        backward: run from the last time to the first: the state given to `solve` is at times[-1].
        drift: "path": the field gives the velocity, the score follows from the path. "field": the field's velocity is
            the whole drift already (`flowjax.fields.DriftPlusScore`, interpolants).

    Raises:
        ValueError: options that are unknown or contradict; at bind, an infinite diffusion or score.

    Reference: Albergo, Boffi and Vanden-Eijnden (2303.08797), algorithm 4; SiT (2401.08740).

    Example:
        >>> import flowjax as fj
        >>> solver = fj.solvers.EulerMaruyama(diffusion=lambda t: 0.5 * (1 - t))
        >>> solver.bind(fj.paths.Linear(), fj.times.uniform(8)).pattern.rows
        8
    """

    diffusion: Any = part("diffusion", "sigma", static=True)
    last: str | None = static(None)
    backward: bool = static(False)
    drift: str = static("path")

    def __post_init__(self) -> None:
        """Checks the options."""
        self._check()

    def updates(self, path: Any, times: list[float], x: Any) -> Updates:
        """x + h F + sqrt(2 eps h) z."""
        for s, t in pairs(times[::-1] if self.backward else times):
            h = t - s
            v = yield direction((yield evaluate(s, x)))
            if t == times[-1] and self._last != "none":
                x = yield step(self.finish(path, s, t, x, v))
                continue
            eps = self.eps(path, s)
            x = x + h * self.slope(path, s, x, v)
            if eps * abs(h) > 0:
                x = x + np.sqrt(2 * eps * abs(h)) * (yield noise())
            x = yield step(x)
