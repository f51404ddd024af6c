"""DC-Solver (Zhao et al., 2409.03755): UniPC with dynamic compensation of its newest stored output."""

import math
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from flowjax import _checks
from flowjax._pytree import part, pytree
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath
from flowjax.solvers.requests import Request, Updates, keep
from flowjax.solvers.unipc import UniPC


@fact("solver", "dc_solver", "UniPC with calibrated dynamic compensation", cite="zhao2024dcsolver", order=2)
@pytree
class DCSolver(UniPC):
    """UniPC with compensation ratios; the other arguments are those of `UniPC`.

    After the corrector has moved x, the stored output no longer belongs to it. At the beginning of step i (from t_i,
    once three outputs are stored) it is replaced, for good, by the polynomial through the last outputs at a shifted
    time,

        t* = rho_i t_i + (1 - rho_i) t_{i-1},     f_0 <- sum_j L_j(t*) f_j,

    L_j the Lagrange polynomials on the times of the outputs. rho_i = 1 changes nothing. The ratios are calibrated per
    model, grid and guidance (`flowjax.calibration.compensation`). Order and evaluations are UniPC's.

    Args:
        ratios: rho_i of every step, N numbers (those of the first two steps are not used); may be traced. None is
            UniPC.

    Raises:
        ValueError: as for `UniPC`, or ratios that are no list of numbers; at bind, ratios of another number of steps.

    Reference: Zhao et al. (2409.03755).

    Example:
        >>> import flowjax as fj, numpy as np
        >>> path, times = fj.paths.VP(), fj.times.uniform(6, end=0.99)
        >>> plain = fj.solvers.UniPC(order=2).bind(path, times)
        >>> bound = fj.solvers.DCSolver(order=2, ratios=np.full(6, 1.1)).bind(path, times)
        >>> plain.pattern.rows, bound.pattern.rows
        (6, 6)
    """

    ratios: Any = part("array", None)

    depth = property(lambda self: max(self.order, 3))

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        if self.ratios is None:
            return
        array = isinstance(self.ratios, jax.Array | np.ndarray)
        if self.ratios.ndim != 1 if array else not isinstance(self.ratios, list | tuple):
            raise ValueError(
                f"ratios are one number for each step of the grid, got {type(self.ratios).__name__} of shape "
                f"{getattr(self.ratios, 'shape', ())}"
            )
        for ratio in () if isinstance(self.ratios, jax.Array) else self.ratios:
            _checks.real("(-inf, inf)", ratios=ratio)

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """UniPC's steps with compensated histories."""
        if self.ratios is not None and len(self.ratios) != len(times) - 1:
            raise ValueError(
                f"these are the ratios of {len(self.ratios)} steps, the times have {len(times) - 1}: ratios belong to "
                "their grid (flowjax.calibration.compensation finds those of another)"
            )
        return super().updates(path, times, x)

    def compensated(
        self, number: int, history: list[tuple[float, Any]]
    ) -> Generator[Request, Any, list[tuple[float, Any]]]:
        """Replaces the newest output."""
        if self.ratios is None or len(history) < 3:
            return history
        ratio = self.ratios[number]
        if not isinstance(ratio, jax.Array) and ratio == 1:
            return history
        nodes = [t for t, _ in history[:3]]
        if len(set(nodes)) < 3:
            return history
        target = ratio * nodes[0] + (1 - ratio) * nodes[1]
        total: Any = 0.0
        for j, node in enumerate(nodes):
            weight = math.prod((target - other) / (node - other) for other in nodes[:j] + nodes[j + 1 :])
            total = total + weight * history[j][1]
        kept = yield keep(total)
        return [(nodes[0], kept), *history[1:]]
