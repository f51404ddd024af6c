"""From a formula to rows: the machinery behind every fixed-grid solver.

A method is a generator that reads like its paper and yields *requests*: `evaluate(t, x)` answers with the field's
value, `step(x)` declares the solution at the next grid time, `keep(value)` asks for a combination to be stored as it is
(momentum), `noise()` answers with fresh standard normals, `direction(value)` announces the quantity that a wrapper such
as HeavyBall may replace.

`bind` runs the generator once on the host, on symbols: each state is a linear combination of the initial state, of
values and of noises with float64 coefficients. What is still needed after an evaluation is given a *register*
(register 0 is the solution), and each evaluation becomes a *row*: its time, the combination at which it is made, and
the combinations of (registers, value, noises) that are the next registers. One loop runs the rows of any method; its
compiled program depends on their pattern only, not on their numbers.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowjax import _checks
from flowjax._pytree import pytree
from flowjax.flow import Ask, Field, FieldTerm
from flowjax.keys import noise as standard_normal
from flowjax.paths.base import GaussianPath, at_least_single, namespace
from flowjax.times import check_times

Registers = tuple[Any, ...]
T = TypeVar("T")


# ----------------------------------------------------------------------------------------------------------- requests


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluate:
    """Asks for the field's prediction `to` at (t, x)."""

    t: float
    x: Any
    to: str = "velocity"
    end: float | None = None
    velocity: Any = None
    refiner: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Declares the solution at the next time of the grid."""

    x: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Keep:
    """Asks for a value to be stored as it is now."""

    value: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Asks for fresh standard normal noise of the state's shape."""


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """Announces the increment's direction; answered with it, unless a wrapper changes it."""

    value: Any


Request = Evaluate | Step | Keep | Noise | Direction
Updates = Generator[Request, Any, None]


def evaluate(
    t: float,
    x: Any,
    *,
    to: str = "velocity",
    end: float | None = None,
    velocity: Any = None,
    refiner: bool = False,
) -> Evaluate:
    """Requests the field's value at (t, x): one network evaluation.

    Args:
        t: time in [0, 1].
        x: the state, a linear combination of what the generator was given.
        to: prediction asked for; the same in all requests of one method.
        end: end of the span for networks that take `end=` (flow maps).
        velocity: a combination passed to the network as `velocity=` (refiners).
        refiner: ask the solver's own second field (`solver.refiner`: a refiner, a guidance) instead of the main one.
    """
    return Evaluate(t=t, x=x, to=to, end=end, velocity=velocity, refiner=refiner)


def step(x: Any) -> Step:
    """Declares x as the solution at the next grid time; answered with x."""
    return Step(x)


def keep(value: Any) -> Keep:
    """Stores a combination, so that later uses do not spell out its history; answered with it."""
    return Keep(value)


def noise() -> Noise:
    """Requests fresh standard normal noise of the state's shape."""
    return Noise()


def direction(value: Any) -> Direction:
    """Announces the direction of the step; answered with the direction to use."""
    return Direction(value)


def pairs(times: Iterable[T]) -> Iterator[tuple[T, T]]:
    """Consecutive pairs (s, t) of a grid."""
    return itertools.pairwise(times)


# Words of the authors' programs and of diffusers for the choices of solvers, by name of the choice.
FOREIGN = {
    "solver_type": {"heun": "taylor", "dpmsolver": "midpoint"},
    "variant": {"vary_coeff": "vary"},
    "form": {"dpmsolver++": "data", "dpmsolver": "noise", "data_prediction": "data", "noise_prediction": "noise"}
    | {"epsilon": "noise", "eps": "noise", "sample": "data", "sde-dpmsolver++": "data", "sde-dpmsolver": "noise"},
}


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        known = FOREIGN.get(name, {}).get(value) if isinstance(value, str) else None
        more = ", with eta=1" if str(value).startswith("sde-") else ""
        hint = f" ({value!r} elsewhere is {known!r} here{more})" if known in allowed and known else ""
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}{hint}")


LOWER_ORDER_FINAL = ("auto", True, False)
GROWTH = 1.25  # of the last step over the one before: up to it, extrapolation over the last step was harmless


def lowers_final_order(option: bool | str, nodes: list[float], published: int) -> bool:
    """Whether the last steps of a multistep method have lower orders: 1 in the last, at most 2 in the one before, ...

    The meaning of `lower_order_final` in all of them. "auto" is True for fewer steps than in the published code, and
    where the last step is longer than 1.25 times the step before: the last outputs are then extrapolated far beyond
    their distance, and of order 3 the error grows with the square of that ratio. (Measured on mixtures, 10 to 50 steps
    of four grids to t = 0.99 ... 0.99999: above 1.25 full orders are up to 160 times worse, below they are better or
    at most 1.3 times worse.)

    Args:
        option: the option.
        nodes: the grid in the variable in which the method extrapolates.
        published: number of steps from which on the published code has full orders.
    """
    if option != "auto":
        return bool(option)
    distinct = [node for node, _ in itertools.groupby(nodes)]
    if len(nodes) - 1 < published or len(distinct) < 3:
        return True
    before, last = (abs(b - a) for a, b in pairs(distinct[-3:]))
    return bool(last > GROWTH * before)


def check_newest_weight(name: str, value: Any, of: str) -> None:
    """Raises ValueError unless a weight of what is new is in (0, 1], or traced."""
    if not isinstance(value, jax.core.Tracer):
        number = (
            np.asarray(value).item() if isinstance(value, jax.Array | np.ndarray) and np.ndim(value) == 0 else value
        )
        _checks.real("(0, 1]", **{f"{name}, the weight of the new {of},": number})


def check_noise_left(path: GaussianPath, times: list[float]) -> None:
    """Raises ValueError if an inversion starts at sigma = 0, where the data prediction says nothing of the noise."""
    if times[0] > times[-1] and path.sigma(times[0]) == 0:
        raise ValueError(
            f"an inversion cannot start at t = {times[0]:g}, where sigma = 0 and the data prediction says nothing of "
            f"the noise: move the start of the times, e.g. flowjax.times.uniform(n, end=1 - 1e-3)[::-1], or take a "
            "method of the velocity (Euler, Heun, RK4, AdamsBashforth)"
        )


# ------------------------------------------------------------------------------------------------------------ symbols


CONSTANT = -1  # the atom, and the operand, that is 1


class Combination:
    """A linear combination of numbered atoms; supports +, - and scaling by numbers (concrete or traced).

    Adding a number or an array of a sample's shape adds a constant.
    """

    __array_ufunc__ = None  # NumPy scalars leave the arithmetic to this class

    def __init__(self, terms: dict[int, Any]):
        self.terms = terms

    def __add__(self, other: Any) -> "Combination":
        if not isinstance(other, Combination):
            other = Combination({CONSTANT: other})
        terms = dict(self.terms)
        for atom, coefficient in other.terms.items():
            terms[atom] = terms[atom] + coefficient if atom in terms else coefficient
        return Combination({atom: c for atom, c in terms.items() if not _is_number(c, 0)})

    def __mul__(self, factor: Any) -> "Combination":
        if isinstance(factor, Combination):
            return NotImplemented
        return Combination({a: c * factor for a, c in self.terms.items() if not _is_number(factor, 0)})

    def __truediv__(self, divisor: Any) -> "Combination":
        return self * (1.0 / divisor)

    def __neg__(self) -> "Combination":
        return self * -1.0

    def __sub__(self, other: "Combination") -> "Combination":
        return self + -other

    __rmul__ = __mul__
    __radd__ = __add__


def _is_number(coefficient: Any, number: float) -> bool:
    """Whether a coefficient is concretely this number (a traced or per-element one is not)."""
    if type(coefficient) is float:  # nearly always
        return coefficient == number
    return not isinstance(coefficient, jax.Array) and np.ndim(coefficient) == 0 and bool(coefficient == number)


@dataclasses.dataclass
class _Stage:
    """An evaluation (None if a step follows another without one) and the definitions after it."""

    request: Evaluate | None
    value: int | None = None
    noises: list[int] = dataclasses.field(default_factory=list)
    definitions: dict[int, Combination] = dataclasses.field(default_factory=dict)
    solution: int | None = None  # the atom of the step completed here

    def uses(self) -> list[Combination]:
        """The combinations this stage needs of what existed before it."""
        request = self.request
        inputs = [] if request is None else [request.x] + ([request.velocity] if request.velocity is not None else [])
        return inputs + list(self.definitions.values())


def _trace(updates: Callable[[Combination], Updates]) -> list[_Stage]:
    """Runs a generator on symbols. Atom 0 is the initial state."""
    stages: list[_Stage] = []
    pending: list[int] = []  # noises requested since the last evaluation that no definition has used yet
    count = 0

    def atom() -> int:
        nonlocal count
        count += 1
        return count

    generator = updates(Combination({0: 1.0}))
    answer: Any = None
    while True:
        try:
            request = generator.send(answer)
        except StopIteration:
            return stages
        if isinstance(request, Direction):
            answer = request.value
            continue
        if isinstance(request, Keep) and not stages:  # nothing to store yet: the expression itself
            answer = request.value
            continue
        new = atom()
        answer = Combination({new: 1.0})
        if isinstance(request, Evaluate):
            stages.append(_Stage(request, value=new, noises=pending))
            pending = []
        elif isinstance(request, Noise):
            pending.append(new)
        else:
            if not stages or (isinstance(request, Step) and stages[-1].solution is not None):
                stages.append(_Stage(None))
            stage = stages[-1]
            combination = request.x if isinstance(request, Step) else request.value
            used = [z for z in pending if z in combination.terms]
            drawn_in = next((earlier for earlier in reversed(stages) if earlier.request is not None), stage)
            drawn_in.noises += used
            pending = [z for z in pending if z not in used]
            stage.definitions[new] = combination
            if isinstance(request, Step):
                stage.solution = new


# --------------------------------------------------------------------------------------------------------------- rows


@dataclasses.dataclass(frozen=True)
class Combine:
    """A weighted sum over operands (registers, then the value, then noises, or `CONSTANT`).

    `first` is the column of its first weight.
    """

    sources: tuple[int, ...]
    first: int


FIELD, REFINER, FREE = range(3)  # what a stage evaluates


class Line(NamedTuple):
    """The numbers of one stage (of many, when stacked)."""

    time: Any
    end: Any
    weights: Any
    arrays: dict[int, Any]


@dataclasses.dataclass(frozen=True)
class Pattern:
    """The static half of bound rows: everything that decides the compiled program.

    `point`, `velocity` and each entry of `advance` are an operand's number (a plain copy) or a `Combine`.
    """

    registers: int
    noises: int
    to: str
    kinds: tuple[int, ...]  # per stage: FIELD, REFINER or FREE
    completes: tuple[bool, ...]  # per stage: whether a step of the grid is complete after it; () for padded rows
    point: int | Combine
    velocity: int | Combine | None
    advance: tuple[int | Combine, ...]

    @property
    def rows(self) -> int:
        """Number of evaluations."""
        return len(self.stages)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stage of every row: nearly always the same number."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind != FREE)

    def free(self, stage: int) -> range:
        """The stages without an evaluation that follow a stage (-1 for the start)."""
        stop = stage + 1
        while stop < len(self.kinds) and self.kinds[stop] == FREE:
            stop += 1
        return range(stage + 1, stop)

    def step_stages(self) -> list[tuple[int, int]]:
        """For every step of the grid, its first stage and the stage after its last."""
        ends = [i + 1 for i, done in enumerate(self.completes) if done]
        return list(zip([0, *ends[:-1]], ends, strict=True))


class Bound(diffrax.AbstractSolver):
    """A solver bound to a path and a grid: rows ready to run, and a `diffrax.AbstractSolver`.

    Attributes:
        grid: the n + 1 times.
        times: time of every stage's evaluation.
        ends: end of every stage's span for flow maps, or None.
        weights: scalar coefficients, one line per stage.
        arrays: per-element coefficients, keyed by their column in `weights`.
        refiner: second field of methods that have one.
        pattern: the static structure.
    """

    grid: Any
    times: Any
    ends: Any
    weights: Any
    arrays: dict[int, Any]
    refiner: Any
    pattern: Pattern = eqx.field(static=True)

    term_structure = diffrax.AbstractTerm
    interpolation_cls = diffrax.LocalLinearInterpolation

    # ------------------------------------------------------------------------------------------- in any Python loop

    def start(self, x: Any) -> Registers:
        """The registers before the first row: x of shape (B, ...) in at least single precision, then zeros."""
        xp = namespace(x)
        registers = self.begin(x)
        for stage in self.pattern.free(-1):
            registers = self.after(self.line(stage), registers, xp.zeros_like(x))
        return registers

    def point(self, row: Any, registers: Registers, noise: tuple[Any, ...] = ()) -> tuple[Any, Any]:
        """The (t, x) at which row `row` evaluates the network; its prediction type is `bound.pattern.to`."""
        return self.at(self.line(self._stage(row)), registers, noise)

    def velocity(self, row: Any, registers: Registers) -> Any:
        """What row `row` passes to a refiner as `velocity=`, or None."""
        return (
            None
            if self.pattern.velocity is None
            else self._combine(self.pattern.velocity, self.line(self._stage(row)), registers)
        )

    def advance(self, row: Any, registers: Registers, value: Any, noise: tuple[Any, ...] = ()) -> Registers:
        """The registers after a row, given the network's value there; register 0 is the solution."""
        registers = self.after(self.line(self._stage(row)), registers, value, noise)
        for before in self.pattern.stages:
            for stage in self.pattern.free(before):  # a last step without an evaluation of its own, as in UniPC
                new = self.after(self.line(stage), registers, namespace(value).zeros_like(registers[0]))
                here = self._stage(row) == before
                if isinstance(here, bool):
                    registers = new if here else registers
                else:
                    registers = tuple(jnp.where(here, n, r) for n, r in zip(new, registers, strict=True))
        return registers

    def _stage(self, row: Any) -> Any:
        stages = self.pattern.stages
        return jnp.asarray(stages)[row] if isinstance(row, jax.Array) else stages[row]

    # ------------------------------------------------------------------------------------------------ stage by stage

    @property
    def lines(self) -> Line:
        """The numbers of all stages, to be scanned over."""
        return Line(self.times, self.ends, self.weights, self.arrays)

    def line(self, stage: Any) -> Line:
        """The numbers of a stage (or a slice of stages)."""
        return jax.tree.map(lambda numbers: numbers[stage], self.lines)

    def begin(self, x: Any) -> Registers:
        """The registers before the first stage.

        Raises:
            ValueError: per-element coefficients of samples of another shape.
        """
        x = at_least_single(x)
        for array in self.arrays.values():
            shape = np.shape(array)[2:]  # after the stages and the batch
            if len(shape) != np.ndim(x) - 1 or any(a not in (1, b) for a, b in zip(shape, x.shape[1:], strict=True)):
                raise ValueError(
                    f"this solver holds arrays (statistics, a mean) for samples of shape {shape}, those of the state "
                    f"have shape {x.shape[1:]}: calibrate for these, or take means (mode='scalar')"
                )
        return (x, *(namespace(x).zeros_like(x) for _ in range(self.pattern.registers - 1)))

    def at(self, line: Line, registers: Registers, noise: tuple[Any, ...] = ()) -> tuple[Any, Any]:
        """Where a stage evaluates."""
        return line.time, self._combine(self.pattern.point, line, (*registers, None, *noise))

    def after(self, line: Line, registers: Registers, value: Any, noise: tuple[Any, ...] = ()) -> Registers:
        """The registers after a stage."""
        value = namespace(value).asarray(value, dtype=registers[0].dtype)
        noise = noise or (namespace(value).zeros_like(value),) * self.pattern.noises  # a stage that draws none
        operands = (*registers, value, *noise)
        return tuple(self._combine(entry, line, operands) for entry in self.pattern.advance)

    def _combine(self, entry: Any, line: Line, operands: tuple[Any, ...]) -> Any:
        if isinstance(entry, int):
            return operands[entry]
        total = None
        for column, source in enumerate(entry.sources, entry.first):
            x = operands[0 if source == CONSTANT else source]
            weight = line.arrays[column] if column in line.arrays else line.weights[column]
            term = namespace(x, weight).asarray(weight, dtype=x.dtype)
            term = term if source == CONSTANT else term * x
            total = term if total is None else total + term
        return total

    def run(self, kind: int, ask: Callable[..., Any], line: Line, registers: Registers, noise: tuple[Any, ...]) -> Any:
        """Runs a stage of this kind: `ask(t, x, extra)` answers (value, memory); returns (registers, memory)."""
        t, x = self.at(line, registers, noise)
        extra = {} if line.end is None else {"end": line.end}
        if kind == REFINER and self.pattern.velocity is not None:
            extra["velocity"] = self._combine(self.pattern.velocity, line, registers)
        value, memory = ask(t, x, extra)
        return self.after(line, registers, value, noise), memory

    def draw(self, stage: Any, x: Any, key: Any, index: Any) -> tuple[Any, ...]:
        """The noises of a stage for the samples `index`, `index + 1`, ...; () for a deterministic method."""
        if not self.pattern.noises:
            return ()
        if key is None:
            raise ValueError("this solver is stochastic: pass key=jax.random.key(seed)")
        keys = [jax.random.fold_in(key, stage * self.pattern.noises + i) for i in range(self.pattern.noises)]
        return tuple(standard_normal(k, x.shape, index, x.dtype) for k in keys)

    # ------------------------------------------------------------------------------------------------------- diffrax

    def term(self, field: Field, key: Any = None, index: Any = 0) -> FieldTerm:
        """The term to hand to `diffrax.diffeqsolve` together with this solver.

        Args:
            field: what the solver evaluates.
            key: typed key of stochastic methods.
            index: global index of the first sample of the batch.
        """
        self.check(field)
        if not self.pattern.completes:
            raise ValueError("padded rows keep no account of steps: bind without registers= for diffrax")
        return FieldTerm(field=field, refiner=self.refiner, key=key, index=index)

    def check(self, field: Field) -> None:
        """Raises ValueError if this method and this field do not go together."""
        if isinstance(self.times, jax.core.Tracer):
            return
        kinds = np.asarray(self.pattern.kinds)
        times = np.asarray(self.times)[kinds == FIELD].tolist()
        if field.one_evaluation_per_step and times != np.asarray(self.grid)[:-1].tolist():
            raise ValueError(
                f"{type(field).__name__} needs a solver with one evaluation per step, at its start (Euler, DDIM, "
                f"DPMSolver, ...); this one makes {self.pattern.rows} evaluations in {len(self.grid) - 1} steps"
            )
        field.check(times, self.pattern.to)
        if self.refiner is not None:
            self.refiner.check(np.asarray(self.times)[kinds == REFINER].tolist(), self.pattern.to)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Any:
        """The number of the next step, the registers but the first, and the memories of the field and the refiner."""
        return jnp.int32(0), self.begin(y0)[1:], terms.vf(t0, y0, Ask("init", self.grid))

    def step(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any) -> Any:
        """Runs the stages of one step of the grid.

        The result is `dt_min_reached` when (t0, t1) is not that step: use `flowjax.solvers.StepTo(ts=bound.grid)`.
        """
        bound = jax.tree.map(jnp.asarray, self)
        number, rest, memory = solver_state
        backwards = bound.grid[-1] < bound.grid[0]
        sign = jnp.where(backwards, -1, 1).astype(bound.grid.dtype)  # diffrax turns falling times into rising -t
        key, index = terms.vf(t0, y0, Ask("noise")) if self.pattern.noises else (None, 0)

        def branch(kind: int, stage: Any, carry: Any) -> Any:
            registers, memory = carry
            line = bound.line(stage)
            if kind == FREE:
                return bound.after(line, registers, jnp.zeros_like(registers[0])), memory

            def ask(t: Any, x: Any, extra: Any) -> Any:
                return terms.vf(sign * t, x, Ask("evaluate", (kind, args, memory, extra), self.pattern.to))

            return bound.run(kind, ask, line, registers, bound.draw(stage, registers[0], key, index))

        kinds, stages = self.pattern.kinds, self.pattern.step_stages()
        used = sorted(set(kinds))
        lookup = jnp.asarray([used.index(kind) for kind in kinds])
        longest = max(stop - first for first, stop in stages)
        firsts, stops = (jnp.asarray(column) for column in zip(*stages, strict=True))

        def run(stage: Any, carry: Any) -> Any:
            if len(used) == 1:
                return branch(used[0], stage, carry)
            return jax.lax.switch(lookup[stage], [functools.partial(branch, kind) for kind in used], stage, carry)

        def body(carry: Any, offset: Any) -> Any:
            stage = firsts[number] + offset
            if all(stop - first == longest for first, stop in stages):
                return run(stage, carry), None
            return jax.lax.cond(stage < stops[number], run, lambda _, carry: carry, stage, carry), None

        carry = ((y0, *rest), memory)
        if longest == 1:
            carry, _ = body(carry, 0)
        else:
            carry, _ = jax.lax.scan(body, carry, jnp.arange(longest))
        (y1, *rest), memory = carry
        grid = sign * bound.grid
        expected = (jnp.abs(t0 - grid[number]) <= 1e-6) & (jnp.abs(t1 - grid[number + 1]) <= 1e-6)
        result = diffrax.RESULTS.where(expected, diffrax.RESULTS.successful, diffrax.RESULTS.dt_min_reached)
        return y1, None, {"y0": y0, "y1": y1}, (number + 1, tuple(rest), memory), result

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        """The velocity."""
        return terms.vf(t0, y0, args)


class StepTo(diffrax.StepTo):
    """diffrax's `StepTo` without its run-time checks, which are host callbacks.

    A bound solver checks its grid itself.
    """

    def wrap(self, direction: Any) -> "StepTo":
        """The grid in the direction of integration."""
        return type(self)(ts=self.ts * direction)

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: None, args: Any, func: Any, error_order: Any
    ) -> tuple[Any, int]:
        """The first step."""
        if dt0 is not None:
            raise ValueError("StepTo(ts=...) decides the steps: pass dt0=None")
        return self.ts[1], 2


class Solver(abc.ABC):
    """A fixed-grid method: frozen keyword-only hyper-parameters and the generator `updates`."""

    refiner: Any = None
    stochastic: bool = False  # whether the method is one of an SDE: such a run cannot be inverted
    no_direction: str = ""  # why momentum (HeavyBall, Nesterov) cannot act on the method; empty where it can

    @abc.abstractmethod
    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """The method as a generator of requests, from `times[0]` to `times[-1]`.

        Args:
            path: the path, for its coefficients at concrete times.
            times: the grid, n + 1 floats, increasing, or for an inversion decreasing.
            x: the initial state (symbols or arrays).
        """

    def bind(self, path: Any, times: Any, *, registers: int | None = None, invert: bool = False) -> Bound:
        """Turns the formula into rows for this path and grid.

        Args:
            path: the field's path: a `GaussianPath`, or an `Interpolant` for methods that ask it for nothing but times.
            times: n + 1 concrete increasing times in [0, 1].
            registers: None compiles the exact pattern of zeros and copies of this method. An integer pads to that many
                registers with dense weights and asks for the velocity, whatever the method expands: all deterministic
                methods with equally many rows then share one program. Padded rows keep no account of steps: they have
                no trajectory, `after_step` or diffrax form.
            invert: times decrease, and the run goes from data to noise. Deterministic methods only.

        Raises:
            ValueError: bad times, a method undefined on this grid, a stochastic one to be inverted, or too few
                registers.
        """
        grid = self.grid(times, invert=invert)

        def updates(x: Any) -> Updates:
            requests = self.updates(path, grid.tolist(), x)
            return requests if registers is None else _asking_for_the_velocity(requests, path)

        stages = _trace(updates)
        steps = sum(stage.solution is not None for stage in stages)
        if steps != len(grid) - 1:
            raise ValueError(f"{type(self).__name__} made {steps} steps on a grid of {len(grid) - 1}")
        if registers is not None:
            stages = _joined(stages)
            grid = np.append(grid, [grid[-1]] * (len(stages) + 1 - len(grid)))[-len(stages) - 1 :]
        if invert and any(stage.noises for stage in stages):
            raise ValueError(_NOT_INVERTED.format(self))
        for request in (stage.request for stage in stages if stage.request is not None):
            if request.to == "velocity" and not path.has_velocity(request.t):
                raise ValueError(
                    f"the velocity of {path!r} is infinite at t = {request.t:g}, where {type(self).__name__} evaluates "
                    "it: move that end of the times"
                )
        return _rows(stages, grid, registers, self.refiner)

    def grid(self, times: Any, *, invert: bool = False) -> np.ndarray:
        """The times as a float64 array.

        Raises:
            ValueError: bad times, or a stochastic method to be inverted.
        """
        if invert and self.stochastic:
            raise ValueError(_NOT_INVERTED.format(self))
        return check_times(times, invert=invert)


_NOT_INVERTED = "{!r} draws noise, which no run back from the data can undo: invert=True is for deterministic solvers"


@pytree
class Formula(Solver):
    """A solver from a bare generator function `(path, times, x) -> requests`, for methods of your own.

    Example:
        >>> import flowjax as fj
        >>> from flowjax.solvers.rows import evaluate, pairs, step
        >>> def euler(path, times, x):
        ...     for s, t in pairs(times):
        ...         x = yield step(x + (t - s) * (yield evaluate(s, x)))
        >>> fj.solvers.Formula(function=euler).bind(fj.paths.Linear(), fj.times.uniform(4)).pattern.rows
        4
    """

    function: Callable[..., Updates]

    def updates(self, path: GaussianPath, times: list[float], x: Any) -> Updates:
        """Calls the function."""
        return self.function(path, times, x)


def run_on_arrays(
    solver: Solver,
    path: GaussianPath,
    times: Any,
    x: Any,
    network: Callable[..., Any],
    noise: Callable[[], Any] | None = None,
    *,
    invert: bool = False,
) -> list[Any]:
    """The same generator run on arrays: a plain Python loop, in the arrays' own precision.

    Args:
        solver: the method.
        path: the path.
        times: the grid.
        x: initial state, (B, ...).
        network: called as network(request) for each `Evaluate`; returns the prediction `request.to` at
            (request.t, request.x).
        noise: called for each noise of a stochastic method.
        invert: as in `Solver.bind`.

    Returns:
        The solution at every time of the grid, n + 1 arrays.
    """
    generator = solver.updates(path, solver.grid(times, invert=invert).tolist(), x)
    solutions, answer = [x], None
    while True:
        try:
            request = generator.send(answer)
        except StopIteration:
            return solutions
        if isinstance(request, Evaluate):
            answer = network(request)
        elif isinstance(request, Step):
            answer = request.x
            solutions.append(answer)
        elif isinstance(request, Noise):
            if noise is None:
                raise ValueError("this method is stochastic: pass noise=, a function that draws it")
            answer = noise()
        else:
            answer = request.value


def _asking_for_the_velocity(requests: Updates, path: Any) -> Updates:
    """The same requests, where data and noise are made from x and the velocity, which determine them."""
    answer: Any = None
    while True:
        try:
            request = requests.send(answer)
        except StopIteration:
            return
        if isinstance(request, Evaluate) and request.to in ("data", "noise"):
            t = request.t
            if request.refiner:
                raise ValueError(
                    "padded rows (registers=) ask for the velocity, from which a second field's "
                    f"{request.to} cannot be made: use methods of the velocity form, or leave registers out"
                )
            if not path.has_velocity(t):
                raise ValueError(
                    f"padded rows (registers=) ask for the velocity, which is infinite at t = {t:g}: move that end of "
                    "the times, or leave registers out"
                )
            v = yield dataclasses.replace(request, to="velocity")
            if request.to == "data":
                a, b = path.dsigma(t), -path.sigma(t)
            else:
                a, b = -path.dalpha(t), path.alpha(t)
            determinant = float(path.determinant(t))
            answer = yield keep(float(a) / determinant * request.x + float(b) / determinant * v)
        else:
            answer = yield request


def _joined(stages: list[_Stage]) -> list[_Stage]:
    """Stages without an evaluation become part of the one before; what the leading ones define is spelled out."""
    known: dict[int, Combination] = {}

    def spelled(combination: Combination) -> Combination:
        parts = (known.get(atom, Combination({atom: 1.0})) * c for atom, c in combination.terms.items())
        return sum(parts, Combination({}))

    while stages and stages[0].request is None and not stages[0].noises:
        for atom, definition in stages[0].definitions.items():
            known[atom] = spelled(definition)
        stages = stages[1:]
    joined: list[_Stage] = []
    for stage in stages:
        if known:
            stage.definitions = {atom: spelled(definition) for atom, definition in stage.definitions.items()}
            if stage.request is not None:
                inputs = {"x": stage.request.x, "velocity": stage.request.velocity}
                inputs = {name: spelled(value) for name, value in inputs.items() if value is not None}
                stage.request = dataclasses.replace(stage.request, **inputs)
        if stage.request is None and joined and joined[-1].request is not None:
            joined[-1].definitions |= stage.definitions
            joined[-1].solution = stage.solution
        else:
            joined.append(stage)
    return joined


def _rows(stages: list[_Stage], grid: np.ndarray, registers: int | None, refiner: Any) -> Bound:
    """Allocates registers and tabulates the coefficients."""
    rows = [stage.request for stage in stages if stage.request is not None]
    predictions = sorted({request.to for request in rows})
    if len(predictions) != 1:
        raise ValueError(f"a method asks for one kind of prediction, this one asks for {predictions}")
    if any(stage.noises for stage in stages if stage.request is None):
        raise ValueError("a step without an evaluation cannot draw noise")

    contents = _register_contents(stages)
    width = max(len(atoms) for atoms in contents)
    if registers is not None and registers < width:
        raise ValueError(f"this method needs {width} registers, got registers={registers}")
    size = width if registers is None else registers
    noises = max(len(stage.noises) for stage in stages)

    point_lines, velocity_lines = [], []
    advance_lines: list[list[dict[int, Any] | None]] = [[] for _ in range(size)]
    for number, stage in enumerate(stages):
        columns = {atom: i for i, atom in enumerate(contents[number])}
        columns |= {CONSTANT: CONSTANT} | ({} if stage.value is None else {stage.value: size})
        columns |= {atom: size + 1 + i for i, atom in enumerate(stage.noises)}

        def resolve(combination: Combination, columns=columns, stage=stage) -> dict[int, Any]:
            total = Combination({})
            for atom, coefficient in combination.terms.items():
                inner = (
                    Combination({columns[atom]: 1.0})
                    if atom in columns
                    else Combination(resolve(stage.definitions[atom], columns, stage))
                )
                total = total + inner * coefficient
            return total.terms

        request = stage.request
        point_lines.append(None if request is None else resolve(request.x))
        velocity_lines.append(None if request is None or request.velocity is None else resolve(request.velocity))
        kept = contents[number + 1]
        for i in range(size):
            advance_lines[i].append(resolve(Combination({kept[i]: 1.0})) if i < len(kept) else None)

    dense = None if registers is None else tuple(range(size))
    drawn = (*range(size + 1, size + 1 + noises), CONSTANT)
    table = _Table(len(stages))
    advance = tuple(table.entry(lines, dense and (*dense, size, *drawn)) for lines in advance_lines)
    point = table.entry(point_lines, dense and (*dense, *drawn))
    velocity = table.entry(velocity_lines, dense) if any(line is not None for line in velocity_lines) else None
    times = np.array([0.0 if stage.request is None else stage.request.t for stage in stages])
    ends = [None if stage.request is None else stage.request.end for stage in stages]
    return Bound(
        grid=grid,
        times=times,
        ends=None
        if not any(ends)
        else np.array([t if end is None else end for t, end in zip(times, ends, strict=True)]),
        weights=table.weights(),
        arrays=table.arrays,
        refiner=refiner,
        pattern=Pattern(
            registers=size,
            noises=noises,
            to=predictions[0],
            kinds=tuple(FREE if s.request is None else REFINER if s.request.refiner else FIELD for s in stages),
            completes=() if registers is not None else tuple(stage.solution is not None for stage in stages),
            point=point,
            velocity=velocity,
            advance=advance,
        ),
    )


def _register_contents(stages: list[_Stage]) -> list[list[int]]:
    """Which atoms are in the registers before each stage and at the end: the solution, then the newest first."""
    born = {0: 0}  # first stage before which the atom is in a register
    for number, stage in enumerate(stages):
        for atom in [*stage.definitions, *stage.noises, *([] if stage.value is None else [stage.value])]:
            born[atom] = number + 1
    last_use: dict[int, int] = {}
    for number, stage in enumerate(stages):
        for combination in stage.uses():
            for atom in combination.terms.keys() - {CONSTANT}:
                last_use[atom] = number
    contents: list[list[int]] = []
    solution = 0
    for number in range(len(stages) + 1):
        live = [atom for atom, last in last_use.items() if born[atom] <= number <= last and atom != solution]
        contents.append([solution, *sorted(live, reverse=True)])
        completed = stages[number].solution if number < len(stages) else None
        solution = solution if completed is None else completed
    return contents


class _Table:
    """Collects the coefficients of all entries in columns, one line per stage."""

    def __init__(self, stages: int):
        self.stages = stages
        self.columns: list[Any] = []
        self.arrays: dict[int, Any] = {}

    def entry(self, lines: list[dict[int, Any] | None], dense: tuple[int, ...] | None) -> int | Combine:
        """Adds one output. A line is None where the output is not needed, so that anything finite may stand there."""
        needed = [line for line in lines if line is not None]
        sources = tuple(sorted({source for line in needed for source in line}))
        if dense is not None:
            sources = dense
        elif (
            len(sources) == 1
            and sources[0] != CONSTANT
            and all(_is_number(line.get(sources[0], 0), 1) for line in needed)
        ):
            return sources[0]
        first = len(self.columns)
        for source in sources:
            column = [0.0 if line is None else line.get(source, 0.0) for line in lines]
            if any(np.ndim(c) for c in column):
                if dense is not None:
                    raise ValueError("per-element coefficients have no dense form; use registers=None")
                shape = np.broadcast_shapes(*(np.shape(c) for c in column))
                xp = namespace(*column)
                self.arrays[len(self.columns)] = xp.stack([xp.broadcast_to(xp.asarray(c), (1, *shape)) for c in column])
                column = [0.0] * self.stages
            self.columns.append(namespace(*column).stack(column))
        if not sources:  # zero throughout
            self.columns.append(np.zeros(self.stages))
        return Combine(sources=sources or (0,), first=first)

    def weights(self) -> Any:
        """The (stages, columns) matrix of scalar coefficients."""
        if not self.columns:
            return np.zeros((self.stages, 0))
        return namespace(*self.columns).stack(self.columns, axis=1)
