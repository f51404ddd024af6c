"""`solve`: runs a solver's rows over a field."""

import functools
import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowjax._captured import marked, tracing, unmarked
from flowjax._pytree import pytree
from flowjax.flow import Field, check_field, check_state, count
from flowjax.keys import check_key
from flowjax.solvers import executor
from flowjax.solvers.adaptive import OwnSteps
from flowjax.solvers.bound import Bound
from flowjax.solvers.rows import FIELD, FREE
from flowjax.solvers.solver import Solver


@pytree
class Solution:
    """The result of `solve`.

    Attributes:
        x: the state at the last time, (B, ...).
        evaluations: solver evaluations that reached a network (a guided pair is one, a skipped one none).
        network_calls: network rows per sample (a guided pair is two).
        trajectory: the states at all n + 1 times, (n + 1, B, ...), or None.
        report: what the field reports of each evaluation, stacked over evaluations, or None.
        second_evaluations: evaluations of the solver's own second field (a refiner, a guidance), if it has one.
        stopped: whether `monitor` ended the run before its last evaluation, or None without one.
        rounds: evaluations that wait for each other, of solvers that make several at once; None for the others, where
            it is all of them.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> result = fj.solve(flow, fj.solvers.Heun(), jnp.ones((1, 1)), fj.times.uniform(10), trajectory=True)
        >>> round(float(result.x[0, 0]), 2), int(result.evaluations), result.trajectory.shape
        (0.37, 20, (11, 1, 1))
    """

    x: Float[Array, "batch ..."]
    evaluations: Int[Array, ""]
    network_calls: Int[Array, ""]
    trajectory: Float[Array, "times batch ..."] | None = None
    report: Any = None
    second_evaluations: Any = None
    stopped: Any = None
    rounds: Any = None

    @property
    def refiner_evaluations(self) -> Any:
        """`second_evaluations` under its name of version 0.2."""
        return self.second_evaluations


# Compiled programs kept by `solve`; with one more, all are dropped, so that ever new shapes do not fill the memory.
PROGRAMS = 64


def solve(
    field: Field,
    solver: Solver | Bound | OwnSteps,
    x: Float[Array, "batch ..."],
    times: Any = None,
    cond: Any = None,
    key: Any = None,
    index: Any = 0,
    trajectory: bool = False,
    after_step: Callable[[Any, Array], Array] | None = None,
    *,
    invert: bool = False,
    registers: int | None = None,
    checkpoint: bool = False,
    noise: Any = None,
    monitor: Callable[[Any, Array, Array], Any] | None = None,
) -> Solution:
    """Integrates a field from times[0] to times[-1].

    Compiled inside: one compilation per pattern of rows; new weights, scales and times reuse it. A network given as a
    plain function is compiled with what it captures, and anew when that changes; a module, or a
    `jax.tree_util.Partial` of a function and arrays, changes without. Within a jit of your own JAX decides: pass
    networks and a bound solver (`bound = solver.bind(path, times)`) as arguments.

    Args:
        field: a `Flow` or a field around one.
        solver: a solver, or one already bound (then `times` is not needed).
        x: the state at times[0], (B, ...): `path.start(flowjax.noise(key, shape), times[0])`.
        times: n + 1 concrete times, see `flowjax.times`.
        cond: condition, a pytree with leading axis B.
        key: typed key for stochastic solvers.
        index: global index of the first sample; noise of sample i depends on (key, index + i) only.
        trajectory: also return the state at every time of the grid.
        after_step: a function (t, x) -> x applied to the solution after each step (inpainting, projections). A
            `jax.tree_util.Partial` of a function and arrays is not compiled anew when the arrays change.
        invert: integrate from data to noise, on decreasing times; deterministic solvers only.
        registers: see `Solver.bind`.
        checkpoint: recompute evaluations in the backward pass instead of storing them.
        noise: the standard normal noise of a stochastic solver in place of `key`: (rows, B, ...), one for each
            evaluation, or (rows, n, B, ...) for a solver that uses n = `bound.pattern.noises` in each.
        monitor: a function (t, x, data) -> stop called in the compiled loop at each evaluation of the field, with its
            time, its state (B, ...) and the data prediction there (B, ...). True, a boolean scalar, ends the run: no
            evaluation follows, and x is the solution reached by then. None goes on. `jax.debug.callback` calls host
            code from it.

    Returns:
        A `Solution`.

    Raises:
        ValueError: arguments of another kind, times missing or bad, a solver that the field does not allow, a
            stochastic solver without key, noise of another shape, a network in training mode.

    Example:
        >>> import flowjax as fj, jax
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> x0 = fj.noise(jax.random.key(0), (4, 2))
        >>> int(fj.solve(flow, fj.solvers.Heun(), x0, fj.times.uniform(5)).evaluations)
        10
    """
    check_field(field)
    _check_solver(solver)
    check_state(x)
    if isinstance(solver, OwnSteps):
        fixed = {"after_step": after_step, "registers": registers, "noise": noise, "monitor": monitor}
        if any(value is not None for value in fixed.values()):
            given = ", ".join(name for name, value in fixed.items() if value is not None)
            raise ValueError(f"{given}: these belong to fixed grids, {type(solver).__name__} chooses its steps")
        return Solution(**solver.solve(field, x, times, cond, trajectory=trajectory, invert=invert))
    if isinstance(solver, Solver):
        if times is None:
            raise ValueError("pass times, for example flowjax.times.uniform(10), or a bound solver")
        solver = _bind(solver, field.path, times, registers, invert)
    elif times is not None or registers is not None or invert:
        raise ValueError("a bound solver has its times, registers and direction already; do not pass them again")
    solver.check(field)
    if not solver.pattern.completes and (trajectory or after_step is not None):
        raise ValueError("padded rows keep no account of steps: leave out registers= for a trajectory or after_step")
    if noise is not None:
        noise = _given_noise(noise, solver, x.shape)
    elif solver.pattern.noises and key is None:
        raise ValueError("this solver is stochastic: pass key=jax.random.key(seed)")
    if key is not None:
        check_key(key)
    if monitor is not None and not field.convertible:
        raise ValueError(f"monitor= is shown the data prediction, which {type(field).__name__} does not determine")
    if _run._cache_size() >= PROGRAMS:  # type: ignore[attr-defined]
        _run.clear_cache()  # type: ignore[attr-defined]
    hook = after_step if not jax.tree_util.all_leaves([after_step]) else None
    noticed = hook.func if isinstance(hook, jax.tree_util.Partial) else after_step if hook is None else None
    options = {"trajectory": trajectory, "checkpoint": checkpoint, "hook": hook}
    functions = {"after_step": marked(noticed), "monitor": marked(monitor)}
    return _run(field, solver, x, cond, key, index, noise, **functions, **options)


def _check_solver(solver: Any) -> None:
    if not isinstance(solver, Solver | Bound | OwnSteps):
        what = "an object, not its class: write it with brackets" if isinstance(solver, type) else "a solver object"
        raise ValueError(f"solver must be {what}, for example flowjax.solvers.Heun(), got {solver!r}")


def _given_noise(noise: Any, bound: Bound, shape: tuple[int, ...]) -> Array:
    """The noise of `solve` with one entry per stage, (stages, n, B, ...)."""
    rows, count = bound.pattern.rows, bound.pattern.noises
    if not count:
        raise ValueError("noise= is for stochastic solvers, and this one draws none: leave it out")
    allowed = [(rows, count, *shape)] + ([(rows, *shape)] if count == 1 else [])
    if np.shape(noise) not in allowed:
        raise ValueError(f"noise must have shape {' or '.join(map(str, allowed))}, got {np.shape(noise)}")
    of_stage = np.clip(np.searchsorted(bound.pattern.stages, np.arange(len(bound.pattern.kinds))), 0, rows - 1)
    return jnp.asarray(noise).reshape(allowed[0])[of_stage]


_bounds: dict[Any, Bound] = {}


def _bind(solver: Solver, path: Any, times: Any, registers: int | None, invert: bool) -> Bound:
    """`solver.bind`, remembered by content: of the solver, the path and the times."""
    grid = solver.grid(times, invert=invert)
    content = None if solver.second is not None else _content((solver, path))  # networks are not kept alive
    key = (content, tuple(grid.tolist()), registers, invert)
    bound = _bounds.get(key) if content else None
    if bound is None:
        bound = solver.bind(path, grid, registers=registers, invert=invert)
        # JAX arrays may belong to a program being traced.
        if content and not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(bound)):
            if len(_bounds) >= (8 if any(isinstance(part, bytes) for part in content) else PROGRAMS):
                _bounds.clear()  # statistics may be as large as samples
            _bounds[key] = bound
    return bound


def _content(tree: Any) -> tuple[Any, ...] | None:
    """What tells a pytree of numbers and NumPy arrays from another; None with JAX arrays, which may be traced."""
    leaves, structure = jax.tree.flatten(tree)
    parts: list[Any] = [structure]
    for leaf in leaves:
        if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype != object:
            parts += [leaf.dtype, leaf.shape, hashlib.blake2b(leaf.tobytes()).digest()]
        elif isinstance(leaf, bool | int | float | str):
            parts += [type(leaf), leaf]
        else:
            return None
    try:
        hash(structure)
    except TypeError:  # something static without a hash
        return None
    return tuple(parts)


@functools.partial(jax.jit, static_argnames=("after_step", "monitor", "trajectory", "checkpoint"))
@tracing()
def _run(
    field: Field,
    bound: Bound,
    x: Array,
    cond: Any,
    key: Any,
    index: Any,
    given: Any,
    *,
    after_step: Any,
    monitor: Any,
    trajectory: bool,
    checkpoint: bool,
    hook: Any = None,
) -> Solution:
    after_step, monitor = (unmarked(marked(unmarked(function))) for function in (after_step, monitor))
    after_step = after_step if hook is None else hook  # what is called after steps, where it is an argument
    pattern = bound.pattern
    bound = jax.tree.map(jnp.asarray, bound)
    registers = bound.allocate(x)
    fields = (field, bound.second, None)
    memories = tuple(f if f is None else f.init(registers[0], bound.grid) for f in fields)
    step_of = jnp.asarray([0, *itertools.accumulate(map(int, pattern.completes))])

    def corrected(stage: Any, registers: tuple[Array, ...]) -> tuple[Array, ...]:
        if after_step is None:
            return registers
        new = after_step(bound.grid[step_of[stage + 1]], registers[0]).astype(registers[0].dtype)
        if not all(pattern.completes):
            new = jnp.where(jnp.asarray(pattern.completes)[stage], new, registers[0])
        return (new, *registers[1:])

    def run(kind: int, carry: Any, row: Any) -> Any:
        (registers, memories, stopped), (stage, line) = carry, row
        # Parameters that do not change over the loop would be gathered from their shards once, ahead of it, and stay in
        # memory whole; tied to the state by a barrier they are gathered where they are used.
        own, registers = jax.lax.optimization_barrier((fields[kind], registers))
        seen: list[Any] = []

        def ask(t: Any, at: Array, memories: Any, extra: dict[str, Any]) -> Any:
            value, memory = own.evaluate(t, at, cond, memories[kind], to=pattern.to, **extra)
            if monitor is not None and kind == FIELD:
                seen.append(monitor(t, at, field.path.convert(value, given=pattern.to, to="data", t=t, x=at)))
            return value, (*memories[:kind], memory, *memories[kind + 1 :])

        def draw() -> tuple[Array, ...]:
            return bound.draw(stage, registers[0], key, index) if given is None else tuple(given[stage])

        registers, memories = executor.run(pattern, kind, line, registers, memories, ask, draw)
        if seen and seen[0] is not None:
            stopped = stopped | seen[0]
        return corrected(stage, registers), memories, stopped

    def unless_stopped(kind: int, carry: Any, row: Any) -> Any:
        if monitor is None:
            return run(kind, carry, row)
        return jax.lax.cond(carry[2], lambda carry, row: carry, functools.partial(run, kind), carry, row)

    def scan(kinds: tuple[int, ...], carry: Any, first: int) -> Any:
        """Runs stages of one kind, or of several that take turns."""
        stages = slice(first, first + len(kinds))

        def body(carry: Any, row: Any) -> Any:
            carry = executor.by_kind(pattern, stages, row[0], unless_stopped, carry, row)
            return carry, (carry[0][0] if trajectory else None, field.report(carry[1][0]))

        rows = (jnp.arange(stages.start, stages.stop), bound.line(stages))
        return jax.lax.scan(jax.checkpoint(body) if checkpoint else body, carry, rows)

    groups = [tuple(group) for _, group in itertools.groupby(pattern.kinds)]
    if len(groups) > 8:  # kinds that take turns: one loop, not a program that grows with the steps
        groups = [pattern.kinds]
    stopped = None if monitor is None else jnp.array(False)
    carry, states, reports, first = (registers, memories, stopped), [registers[0][None]], [], 0
    for kinds in groups:
        if set(kinds) == {FREE}:
            for stage in range(first, first + len(kinds)):
                carry = unless_stopped(FREE, carry, (stage, bound.line(stage)))
                states.append(carry[0][0][None])
        else:
            carry, (visited, report) = scan(kinds, carry, first)
            if trajectory:
                states.append(visited[np.flatnonzero(pattern.completes[first : first + len(kinds)])])
            own = np.flatnonzero([kind == FIELD for kind in kinds])
            reports += [jax.tree.map(lambda part, own=own: part[own], report)] if len(own) else []
        first += len(kinds)
    registers, memories, stopped = carry
    evaluations, network_calls = count(memories[0])
    return Solution(
        x=registers[0],
        evaluations=evaluations,
        network_calls=network_calls,
        trajectory=jnp.concatenate(states) if trajectory else None,
        report=jax.tree.map(lambda *parts: jnp.concatenate(parts), *reports),
        second_evaluations=None if bound.second is None else count(memories[1])[0],
        stopped=stopped,
    )
