"""One executor of stages: for `solve`, for diffrax, and for foreign loops, one row at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flowjax.paths.base import namespace
from flowjax.solvers.rows import FREE, SECOND, Line, Pattern, Registers, State


def point(pattern: Pattern, line: Line, registers: Registers, noise: tuple[State, ...] = ()) -> tuple[Any, State]:
    """The (t, x) at which a stage evaluates."""
    return line.time, line.combine(pattern.point, (*registers, None, *noise))


def velocity(pattern: Pattern, line: Line, registers: Registers) -> State | None:
    """What a stage passes to the second field as `velocity=`, or None."""
    return None if pattern.velocity is None else line.combine(pattern.velocity, registers)


def advance(
    pattern: Pattern, line: Line, registers: Registers, value: State | None = None, noise: tuple[State, ...] = ()
) -> Registers:
    """The registers after a stage; value is None for one without an evaluation."""
    xp = namespace(registers[0])
    value = xp.zeros_like(registers[0]) if value is None else namespace(value).asarray(value, dtype=registers[0].dtype)
    noise = noise or (namespace(value).zeros_like(value),) * pattern.noises  # a stage that draws none
    operands = (*registers, value, *noise)
    return tuple(line.combine(entry, operands) for entry in pattern.advance)


def run(
    pattern: Pattern,
    kind: int,
    line: Line,
    registers: Registers,
    memories: Any,
    ask: Callable[[Any, Any, Any, dict[str, Any]], tuple[Any, Any]],
    draw: Callable[[], tuple[State, ...]],
) -> tuple[Registers, Any]:
    """Runs a stage of this kind: the next registers and memories of the fields.

    `ask(t, x, memories, extra)` returns a field's value and the next memories, `draw()` the noises of the stage.
    """
    if kind == FREE:
        return advance(pattern, line, registers), memories
    noise = draw()
    t, x = point(pattern, line, registers, noise)
    extra = {} if line.end is None else {"end": line.end}
    if kind == SECOND and pattern.velocity is not None:
        extra["velocity"] = velocity(pattern, line, registers)
    value, memories = ask(t, x, memories, extra)
    return advance(pattern, line, registers, value, noise), memories


def by_kind(pattern: Pattern, stages: slice, stage: Any, branch: Callable[..., Any], *operands: Any) -> Any:
    """branch(kind, *operands) of the kind that `stage` has, one of `stages`."""
    used = sorted(set(pattern.kinds[stages]))
    if len(used) == 1:
        return branch(used[0], *operands)
    number = jnp.asarray([used.index(kind) if kind in used else 0 for kind in pattern.kinds])[stage]
    return jax.lax.switch(number, [functools.partial(branch, kind) for kind in used], *operands)
