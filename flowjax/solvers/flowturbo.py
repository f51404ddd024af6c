"""FlowTurbo (Zhao et al., 2409.18128): Heun, pseudo-corrector and refiner steps on one grid."""

import re
from typing import Any

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.flow import check_field
from flowjax.paths.base import GaussianPath
from flowjax.solvers.options import check_choice
from flowjax.solvers.requests import Updates, direction, evaluate, keep, pairs, step
from flowjax.solvers.solver import Solver


@fact(
    "solver",
    "flowturbo",
    "Heun, pseudo-corrector and velocity-refiner steps",
    cite="zhao2024flowturbo",
    order=2,
    example=lambda: {"blocks": "H2P4"},
)
@pytree
class FlowTurbo(Solver):
    """A schedule of Heun, pseudo-corrector and refiner steps.

    The steps share a velocity cache d. With h = t - s:

        H (Heun)              d = v(s, x);          e = v(t, x + h d);      x' = x + h (d + e)/2;   cache e
        P (pseudo corrector)  d = cache;            e = v(t, x + h d);      x' = x + h (d + e)/2;   cache e
        R (refiner)           d = cache + r(s, x, cache);  e = d + r(t, x + h d, d);  x' = x + h (d + e)/2;   cache d

    r is a small network trained to lift a velocity by a short time. "H2P4R2" is two H, four P, two R steps, in that
    order. H and P have order 2. Evaluations of the field: 2 for H, 1 for P, plus 1 if the first step is P; R makes 2 of
    the refiner, counted apart. Velocities are read at the end of each step, so on a path whose velocity is infinite at
    t = 1 move the end.

    Args:
        blocks: letters H, P, R with counts, for example "H8P9R5"; its number of steps must be that of the grid.
        refiner: a field whose network takes `velocity=`, needed for R steps.
        second_input: what the second refiner call gets as velocity: "d" (what the refiner is trained for) or "cache"
            (as in the released sampling script).

    Raises:
        ValueError: a schedule that cannot be read, R steps without a refiner or as first step; at bind, a grid of
            another number of steps.

    Reference: Zhao et al. (2409.18128).

    Example:
        >>> import flowjax as fj
        >>> bound = fj.solvers.FlowTurbo(blocks="H2P4").bind(fj.paths.Linear(), fj.times.uniform(6))
        >>> bound.pattern.rows  # two for each H, one for each P
        8
    """

    blocks: str = static("H2P4R2")
    refiner: Any = part("flow", None)
    second_input: str = static("d")

    def __post_init__(self) -> None:
        """Checks the schedule."""
        check_choice("second_input", self.second_input, ("d", "cache"))
        if self.refiner is not None:
            check_field(self.refiner)
        if "R" in self.kinds and self.refiner is None:
            raise ValueError(
                f"blocks={self.blocks!r} has refiner steps: pass refiner=, a field whose network takes velocity="
            )
        if self.kinds.startswith("R"):
            raise ValueError(f"blocks={self.blocks!r} begins with a refiner step, which has no velocity to refine")

    second = property(lambda self: self.refiner)
    steps = property(lambda self: len(self.kinds), doc="How many the schedule makes.")

    @property
    def kinds(self) -> str:
        """One letter per step.

        Raises:
            ValueError: the schedule cannot be read.
        """
        if not re.fullmatch(r"([HPR]\d{1,6})+", str(self.blocks)) or not re.search(r"[1-9]", self.blocks):
            raise ValueError(
                f"blocks={self.blocks!r} is not a schedule: write letters H (Heun), P (pseudo corrector), R (refiner), "
                "each with a count, for example H2P4R2"
            )
        return "".join(kind * int(count) for kind, count in re.findall(r"([HPR])(\d+)", self.blocks))

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The steps in turn, with the velocity cache between them."""
        kinds = self.kinds
        if len(kinds) != len(times) - 1:
            raise ValueError(f"blocks={self.blocks!r} makes {len(kinds)} steps, the grid has {len(times) - 1}")
        cache = None
        for kind, (s, t) in zip(kinds, pairs(times), strict=True):
            h = t - s
            if kind == "R":
                d = yield keep(cache + (yield evaluate(s, x, velocity=cache, second=True)))
                second = d if self.second_input == "d" else cache
                e = d + (yield evaluate(t, x + h * d, velocity=second, second=True))
            else:
                d = cache if kind == "P" and cache is not None else (yield evaluate(s, x))
                e = yield evaluate(t, x + h * d)
            cache = d if kind == "R" else e
            x = yield step(x + h * (yield direction((d + e) / 2)))
