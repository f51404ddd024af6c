"""Empirical model statistics: what DPM-Solver-v3 knows about a model, and its steps with them."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.quadrature import derivative_weights


@fact("statistics", "statistics", "empirical model statistics", cite="zheng2023dpmsolverv3")
@pytree
class Statistics:
    """The curves l, s, b on points of lam.

    Measured for one model; with them DPM-Solver-v3 expands f = (sigma e - l x) / alpha, see `DPMSolverV3`.

    Attributes:
        lam: increasing points, (n,).
        l: (n, *shape), shape that of one sample, or with ones where a mean was taken, or () for numbers.
        s: like l.
        b: like l.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> path, lam = fj.paths.VP(), np.linspace(-4.0, 3.0, 8)
        >>> statistics = fj.solvers.Statistics(lam=lam, l=np.ones(8), s=np.zeros(8), b=np.zeros(8))
        >>> round(statistics.check_range(path, [path.time(1.0)])[0], 3)  # lam, which has to be in their range
        1.0
    """

    lam: Float[np.ndarray, " n"] = part("array")
    l: Any = part("array")  # noqa: E741 - the paper's letter
    s: Any = part("array")
    b: Any = part("array")

    def __post_init__(self) -> None:
        """Checks shapes and values.

        Raises:
            ValueError: lam that does not increase, curves of another length or unlike shapes, or NaN.
        """
        if any(isinstance(part, jax.core.Tracer) for part in (self.lam, self.l, self.s, self.b)):
            return
        lam = np.shape(self.lam)
        if len(lam) != 1 or lam[0] < 2 or not np.all(np.diff(self.lam) > 0):
            raise ValueError(f"statistics need two or more increasing values of lam, got an array of shape {lam}")
        shapes = {name: np.shape(getattr(self, name)) for name in ("l", "s", "b")}
        if len(set(shapes.values())) > 1 or shapes["l"][:1] != lam:
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(f"statistics on {lam[0]} points need l, s, b of one shape ({lam[0]}, ...), got {found}")
        if not all(np.all(np.isfinite(part)) for part in (self.lam, self.l, self.s, self.b)):
            raise ValueError("the statistics hold NaN or infinite numbers: measure them again")

    def check_range(self, path: GaussianPath, times: list[float]) -> list[float]:
        """The values of lam at `times`.

        Raises:
            ValueError: one of them is outside the range of the statistics, which belong to it.
        """
        lam = [float(path.lam(t)) for t in times]
        low, high = float(self.lam[0]), float(self.lam[-1])
        slack = 1e-6 * (high - low)
        for end, value, t in (("start", lam[0], times[0]), ("end", lam[-1], times[-1])):
            if not low - slack <= value <= high + slack:
                raise ValueError(
                    f"the statistics cover t from {float(path.time(low)):.4g} to {float(path.time(high)):.4g}, but the "
                    f"{end} of the times is t = {t:g}: move it, or calibrate that range"
                )
        return [min(max(value, low), high) for value in lam]

    def refined(self, lam: list[float]) -> "Curves":
        """The curves on their own points and on `lam`, by linear interpolation."""
        nodes = np.unique(np.concatenate([self.lam, lam]))
        position = np.interp(nodes, self.lam, np.arange(len(self.lam)))
        lower = np.minimum(position.astype(int), len(self.lam) - 2)
        weight = position - lower

        def at(curve: Any) -> np.ndarray:
            curve = np.asarray(curve, np.float64)
            w = weight.reshape(-1, *(1,) * (curve.ndim - 1))
            return (1 - w) * curve[lower] + w * curve[lower + 1]

        return Curves(nodes, at(self.l), at(self.s), at(self.b))


class Curves:
    """Statistics on a set of nodes that contains all sampling points.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> lam = np.array([-1.0, 1.0])
        >>> curves = fj.solvers.Statistics(lam=lam, l=lam, s=lam, b=lam).refined([0.5])
        >>> curves.lam.tolist(), curves.l.tolist()
        ([-1.0, 0.5, 1.0], [-1.0, 0.5, 1.0])
    """

    def __init__(
        self,
        lam: Float[np.ndarray, " n"],
        l: Float[np.ndarray, "n ..."],  # noqa: E741 - the paper's letter
        s: Float[np.ndarray, "n ..."],
        b: Float[np.ndarray, "n ..."],
    ):
        self.lam, self.l, self.s, self.b = lam, l, s, b

    def output(self, path: GaussianPath, t: float, lam: float, e: Any, x: Any) -> Any:
        """What is expanded, f = (sigma e - l x)/alpha, at a node, the lam of t."""
        weight = self.l[int(np.searchsorted(self.lam, lam))]
        return (float(path.sigma(t)) * e - weight * x) / float(path.alpha(t))

    def advance(
        self,
        end: float,
        points: list[tuple[float, Any]],
        estimation: list[int],
        scales: tuple[float, float],
        x: Any,
        factor: float = 1.0,
    ) -> Any:
        """The step from points[0] to `end`.

        Args:
            end: lam at the end.
            points: (lam, f), the start first.
            estimation: number of other points that the estimate of derivative 1, 2, ... uses, the first of the list.
            scales: alpha at the start and at the end.
            x: the state at the start.
            factor: of the first derivative.
        """
        from scipy.integrate import cumulative_trapezoid  # a third of the time of `import flowjax`

        nodes = [lam for lam, _ in points]
        first, last = (int(np.searchsorted(self.lam, u)) for u in (min([*nodes, end]), max([*nodes, end])))
        lam, part = self.lam[first : last + 1], slice(first, last + 1)
        base, at = (int(np.searchsorted(lam, u)) for u in (nodes[0], end))

        def integral(y: np.ndarray) -> np.ndarray:
            """From the start to every node."""
            total = cumulative_trapezoid(y, lam, axis=0, initial=0)
            return total - total[base]

        big_l, big_s = integral(self.l[part]), integral(self.s[part])
        if not max(np.max(np.abs(big_s)), np.max(np.abs(big_l + big_s))) < 80:  # its exponential would be useless
            raise ValueError(
                f"the statistics are too noisy for a step from lam = {nodes[0]:.3g} to {end:.3g}: measure them with "
                "more samples, or with mean curves (mode 'channel' or 'scalar')"
            )
        big_b = integral(np.exp(-big_s) * self.b[part])
        kernel = np.exp(big_l + big_s)
        offsets = (lam - nodes[0]).reshape(-1, *(1,) * (kernel.ndim - 1))
        where = [int(np.searchsorted(lam, u)) for u in nodes]
        g = [np.exp(-big_s[i]) * f + -big_b[i] for i, (_, f) in zip(where, points, strict=True)]
        total = integral(kernel)[at] * g[0] + integral(kernel * big_b)[at]
        for k, q in enumerate(estimation, start=1):
            weight = integral(kernel * offsets**k / math.factorial(k))[at] * (factor if k == 1 else 1.0)
            others = [u - nodes[0] for u in nodes[1 : q + 1]]
            for a, value in zip(derivative_weights(others, k), g[1 : q + 1], strict=True):
                total = a * weight * (value - g[0]) + total
        decay = scales[1] * np.exp(-big_l[at])
        return decay / scales[0] * x - decay * total
