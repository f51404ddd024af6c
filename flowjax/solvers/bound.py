"""A bound solver: rows ready to run, one at a time in any Python loop, or by diffrax."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowjax.flow import Ask, Field, FieldTerm
from flowjax.keys import noise as standard_normal
from flowjax.paths.base import at_least_single, namespace
from flowjax.solvers import executor
from flowjax.solvers.rows import FIELD, SECOND, Line, Pattern, Registers, State


class Bound(diffrax.AbstractSolver):
    """A solver bound to a path and a grid: rows ready to run, and a `diffrax.AbstractSolver`.

    Attributes:
        grid: the n + 1 times.
        times: time of every stage's evaluation.
        ends: end of every stage's span for flow maps, or None.
        weights: scalar coefficients, one line per stage.
        arrays: per-element coefficients, keyed by their column in `weights`.
        second: second field of methods that have one (a refiner, a guidance).
        pattern: the static structure.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> bound = fj.solvers.Midpoint().bind(fj.paths.Linear(), fj.times.uniform(20))
        >>> registers = bound.start(np.ones((1, 1), np.float32))
        >>> for row in range(bound.pattern.rows):
        ...     t, x = bound.point(row, registers)
        ...     registers = bound.advance(row, registers, -x)  # -x stands for anybody's network
        >>> round(float(registers[0][0, 0]), 3)  # exp(-1)
        0.368
    """

    grid: Any
    times: Any
    ends: Any
    weights: Any
    arrays: dict[int, Any]
    second: Any
    pattern: Pattern = eqx.field(static=True)

    term_structure = diffrax.AbstractTerm
    interpolation_cls = diffrax.LocalLinearInterpolation

    # ------------------------------------------------------------------------------------------- in any Python loop

    def start(self, x: State) -> Registers:
        """The registers before the first row: x of shape (B, ...) in at least single precision, then zeros."""
        return self._free(-1, self.allocate(x))

    def point(self, row: Any, registers: Registers, noise: tuple[State, ...] = ()) -> tuple[Any, State]:
        """The (t, x) at which row `row` evaluates the network; its prediction type is `bound.pattern.to`."""
        return executor.point(self.pattern, self.line(self._stage(row)), registers, noise)

    def velocity(self, row: Any, registers: Registers) -> State | None:
        """What row `row` passes to the second field as `velocity=`, or None."""
        return executor.velocity(self.pattern, self.line(self._stage(row)), registers)

    def advance(self, row: Any, registers: Registers, value: State, noise: tuple[State, ...] = ()) -> Registers:
        """The registers after a row, given the network's value there; register 0 is the solution."""
        stage = self._stage(row)
        registers = executor.advance(self.pattern, self.line(stage), registers, value, noise)
        if not isinstance(stage, jax.Array):
            return self._free(stage, registers)
        for before in self.pattern.stages:
            if self.pattern.free(before):  # a last step without an evaluation of its own, as in UniPC
                new = self._free(before, registers)
                registers = tuple(jnp.where(stage == before, n, r) for n, r in zip(new, registers, strict=True))
        return registers

    def _stage(self, row: Any) -> Any:
        stages = self.pattern.stages
        return jnp.asarray(stages)[row] if isinstance(row, jax.Array) else stages[row]

    def _free(self, before: int, registers: Registers) -> Registers:
        """The registers after the stages without an evaluation that follow a stage."""
        for stage in self.pattern.free(before):
            registers = executor.advance(self.pattern, self.line(stage), registers)
        return registers

    # ------------------------------------------------------------------------------------------------ stage by stage

    def line(self, stage: Any) -> Line:
        """The numbers of a stage (or a slice of stages)."""
        lines = Line(self.times, self.ends, self.weights, self.arrays)
        return jax.tree.map(lambda numbers: numbers[stage], lines)

    def allocate(self, x: State) -> Registers:
        """The registers before the first stage: x, then zeros.

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

    def draw(self, stage: Any, x: State, key: Any, index: Any) -> tuple[State, ...]:
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
        return FieldTerm(field=field, second=self.second, key=key, index=index)

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
        if self.second is not None:
            self.second.check(np.asarray(self.times)[kinds == SECOND].tolist(), self.pattern.to)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Any:
        """The number of the next step, the registers but the first, and the memories of the fields."""
        return jnp.int32(0), self.allocate(y0)[1:], terms.vf(t0, y0, Ask("init", self.grid))

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
            registers, memories = carry

            def ask(t: Any, x: Any, memories: Any, extra: Any) -> Any:
                return terms.vf(sign * t, x, Ask("evaluate", (kind, args, memories, extra), self.pattern.to))

            draw = functools.partial(bound.draw, stage, registers[0], key, index)
            return executor.run(self.pattern, kind, bound.line(stage), registers, memories, ask, draw)

        stages = self.pattern.step_stages()
        longest = max(stop - first for first, stop in stages)
        firsts, stops = (jnp.asarray(column) for column in zip(*stages, strict=True))

        def run(stage: Any, carry: Any) -> Any:
            return executor.by_kind(self.pattern, slice(None), stage, branch, stage, carry)

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

    Example:
        >>> import flowjax as fj, diffrax, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> bound = fj.solvers.Midpoint().bind(flow.path, fj.times.uniform(20))
        >>> steps = fj.solvers.StepTo(ts=jnp.asarray(bound.grid, jnp.float32))
        >>> options = {"stepsize_controller": steps, "throw": False}
        >>> run = diffrax.diffeqsolve(bound.term(flow), bound, 0.0, 1.0, None, jnp.ones((1, 1)), None, **options)
        >>> round(float(run.ys[0, 0, 0]), 3)  # exp(-1)
        0.368
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
