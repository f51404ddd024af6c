"""What is asked of a run, and the samples that it answers with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Generated samples and what they cost.

    Attributes:
        x: (N, ...) samples in the data's own scale.
        cond: (N,) labels, a dict of conditions by name with texts as texts, or None.
        evaluations: Solver evaluations per sample that reached a network; a guided pair is one.
        network_calls: Network rows per sample; a guided pair is two.

    Example:
        >>> import numpy as np
        >>> samples = Samples(x=np.array([[1.0], [np.nan]]), cond=None, evaluations=20, network_calls=40)
        >>> samples.bad, samples.network_calls // samples.evaluations  # guided: two rows for each evaluation
        (1, 2)
    """

    x: Float[np.ndarray, "N ..."]
    cond: Any
    evaluations: int
    network_calls: int

    @property
    def arrays(self) -> dict[str, Any]:
        """What is stored of them: `x`, and `cond`, or `cond_NAME` for conditions by name."""
        named = self.cond if isinstance(self.cond, dict) else {"": self.cond}
        columns = {f"cond_{name}" if name else "cond": rows for name, rows in named.items() if rows is not None}
        return {"x": self.x} | {name: np.asarray(rows) for name, rows in columns.items()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], evaluations: int, network_calls: int) -> "Samples":
        """The samples of such arrays."""
        named = {k.removeprefix("cond_"): v for k, v in arrays.items() if k.startswith("cond_")}
        return cls(
            x=arrays["x"], cond=named or arrays.get("cond"), evaluations=evaluations, network_calls=network_calls
        )

    @property
    def notes(self) -> str:
        """What is to be said of them besides."""
        return ""

    @property
    def bad(self) -> int:
        """Number of samples with NaN or infinite values."""
        return len(self.x) - int(np.isfinite(self.x.reshape(len(self.x), -1)).all(1).sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a run, as command lines say it; None is what the recipe says.

    Attributes:
        num: Number of samples.
        seed: Of the noise.
        batch: Samples generated at once.
        conditions: Texts by name.
        solver: Spec of a solver.
        times: Spec of a grid.
        steps: Number of solver steps.
        guidance: A scale, or the spec of a rule.
        against: Texts by name of the negative condition: what the guidance leads away from, in the place of the null.
            Names that are not given are null.
        second: Texts by name of a second condition, for the rule `composed` and for edits; names that are not given are
            those of `conditions`.
        edit: Spec of an edit. It declares conditions of its own: "picture", "mask", and "picture" among `second`.
        fields: Specs of fields around the flow, the first innermost.
        calibration: A file of `flowjax.calibrate`, which brings solver and times.
        straightness: Steps of the trajectories along which `assess` measures how straight they are; None does not.
        first: Number of the first sample; sample i is the same in every request that has it.
        search: Spec of a search for samples with a high reward, or None.
        reward: What it searches for: "module:function", several separated by commas, or functions in Python. It is
            code, which no file of a run can name.
        held_out: Rewards that judge the results only.

    Example:
        >>> request = Request(num=100, steps=8, solver="dpm_solver(order=3)", guidance=4.0)
        >>> request.steps, request.times  # None: the grid is the recipe's
        (8, None)
    """

    num: int = 100
    seed: int = 0
    batch: int = 200
    conditions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    solver: Any = None
    times: Any = None
    steps: int | None = None
    guidance: Any = None
    against: Mapping[str, str] = dataclasses.field(default_factory=dict)
    second: Mapping[str, str] = dataclasses.field(default_factory=dict)
    edit: Any = None
    fields: Sequence[Any] | None = None
    calibration: str | None = None
    straightness: int | None = None
    first: int = 0
    search: Any = None
    reward: Any = None
    held_out: Any = None

    def part(self, rows: range) -> "Request":
        """The request for some of its samples."""
        return dataclasses.replace(self, num=len(rows), first=self.first + rows.start)
