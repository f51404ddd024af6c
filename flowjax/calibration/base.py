"""What a calibration is: options, numbers found on a trained flow, and the solver that they make."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from flowjax import specs, times
from flowjax.couplings import SemidiscreteMap
from flowjax.flow import Field, Flow
from flowjax.keys import noise
from flowjax.solvers import Solver


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What a calibration file brings to sampling.

    Attributes:
        solver: the solver, or None for that of the recipe.
        times: the times to sample at.
        start: the map that the start states come from, in place of `path.start`, or None.

    Example:
        >>> import flowjax as fj
        >>> from flowjax.calibration.base import Calibrated
        >>> found = Calibrated(solver=fj.solvers.UniPC(order=2), times=fj.times.uniform(8))
        >>> found.start is None, len(found.times)
        (True, 9)
    """

    solver: Solver | None
    times: Float[np.ndarray, " times"]
    start: SemidiscreteMap | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a calibration is computed with.

    Attributes:
        recipe: Of the run.
        flow: The flow.
        guide: The field that is sampled with a scale of guidance.
        guidance: The scale.
        grid: Times with the ends that were asked for.
        seed: Of everything random.
        num: Number of samples.
        batch: Gives normalised data x1 (B, ...) and conditions, the same for the same number; reads the data.
        mean: Gives the mean of the normalised data; reads them.
        frechet: Gives the Frechet distance of normalised samples from the data; reads them.
        features: Gives a function of normalised samples to the features of a network, for JAX; reads the data.
        file: What will be written; what is done so far lies beside it.
        record: What the result belongs to.
        progress: Called with what is done, all there is to do, and how it goes.

    Example:
        >>> import dataclasses
        >>> from flowjax.calibration.base import Work
        >>> [field.name for field in dataclasses.fields(Work)][:4]
        ['recipe', 'flow', 'guide', 'guidance']
    """

    recipe: Any
    flow: Flow
    guide: Callable[[Any], Field]
    guidance: float
    grid: Float[np.ndarray, " times"]
    seed: int
    num: int
    batch: Callable[[int], tuple[Array, Any]]
    mean: Callable[[], float]
    frechet: Callable[[np.ndarray], float]
    features: Callable[[], Callable[[Array], Array]]
    file: Path
    record: Mapping[str, Any]
    progress: Callable[[int, int, str], None]

    @property
    def field(self) -> Field:
        """What is sampled, guidance included."""
        return self.guide(self.guidance)

    @property
    def key(self) -> Key[Array, ""]:
        """Of the seed."""
        return jax.random.key(self.seed)

    def states(self, first: int = 0, num: int | None = None) -> tuple[Array, Any]:
        """Start states of noises first, first + 1, ..., and conditions, all classes in turn."""
        num = self.num if num is None else num
        x = self.flow.path.start(noise(self.key, (num, *self.recipe.shape), first), self.grid[0])
        return x, jax.tree.map(jax.numpy.asarray, self.recipe.balanced(num))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A calibration file, and what it is asked for.

    Attributes:
        file: Its name, for messages.
        arrays: Of `Calibration.compute`.
        record: What it belongs to.
        flow: What is sampled.
        guidance: With which scale.
        steps: In how many steps.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> from flowjax.calibration.base import Stored
        >>> from flowjax.calibration.grids import Grid
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> found = {"arrays": {"times": np.array([0.0, 0.4, 1.0])}, "record": {}, "flow": flow}
        >>> Grid.use(Stored(file="grid.npz", guidance=1.0, steps=2, **found)).times.tolist()
        [0.0, 0.4, 1.0]
    """

    file: Any
    arrays: Mapping[str, Any]
    record: Mapping[str, Any]
    flow: Flow
    guidance: float
    steps: int


def option(default: Any, text: str) -> Any:
    """An option of a calibration, with a line of help for the command line."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration(abc.ABC):
    """What is computed once for a trained flow; its fields are options, flags of `flowjax.calibrate`.

    Attributes:
        start: First sampling time.
        end: Last sampling time.
        num: Number of samples.

    Example:
        >>> from flowjax.calibration import KINDS
        >>> sorted(KINDS)
        ['best', 'cache', 'compensation', 'ems', 'grid', 'learn', 'schedule', 'transport']
    """

    start: float = option(1e-3, "First sampling time.")
    end: float = option(1 - 1e-3, "Last sampling time.")
    num: int = option(128, "Samples that it is computed with.")

    # Options of which one stands for others, which must not be given beside it.
    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {"times": ("start", "end")}

    def grid(self, recipe: Any) -> Float[np.ndarray, " times"]:
        """Times of `steps` equal steps, or by the spec `times`, where there are such options."""
        steps, spec = self.evaluations or 1, getattr(self, "times", None)
        return times.uniform(steps, self.start, self.end) if spec is None else recipe.build_times(spec, steps)

    @property
    def reads_data(self) -> bool:
        """Whether it asks for data, which are then opened before any work."""
        return False

    def check(self, recipe: Any) -> None:  # noqa: B027
        """Refuses options that do not go with a run, before weights are read."""

    def parts(self) -> Sequence["Calibration"]:
        """The calibrations that this one stands for, each with a file of its own."""
        return [self]

    @property
    def evaluations(self) -> int | None:
        """Steps, where the result is for one number of them."""
        return getattr(self, "steps", None)

    @classmethod
    def summary(cls, arrays: Mapping[str, Any]) -> str:
        """What to tell people of a result."""
        return ""

    @classmethod
    def fields(cls, arrays: Mapping[str, Any]) -> tuple[str, ...]:
        """Specs of the fields that a file brings, to be put around those that are sampled, the first innermost."""
        return ()

    def sizes(self) -> dict[str, Any]:
        """The options that the result depends on, as JSON values."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept = {name: value for name, value in own.items() if name not in ("start", "end") and value is not None}
        return {k: specs.text(v) if k in ("times", "solver") else v for k, v in kept.items()}

    @classmethod
    def serves(cls, known: Mapping[str, Any], guidance: float) -> bool:
        """Whether a file with this record is for a scale of guidance."""
        return known.get("guidance") == guidance

    @abc.abstractmethod
    def compute(self, work: Work) -> dict[str, np.ndarray]:
        """The arrays of the file."""

    @classmethod
    @abc.abstractmethod
    def use(cls, stored: Stored) -> Calibrated:
        """What a file brings to sampling."""
