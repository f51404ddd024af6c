"""What a compiled program sends between devices, read from its text."""

import dataclasses
import math
import re
from collections import defaultdict

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
_SIZES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_CALLS = re.compile(
    r"(?:body|condition|to_apply|calls|branch_computations|called_computations)=\{?((?:%[\w.\-]+(?:, )?)+)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One kind of exchange in a program.

    Attributes:
        kind: One of `KINDS`.
        group: Number of devices that take part together.
        size: Bytes of the whole array that is reduced, gathered, ..., on one device.
        times: How often it runs.

    Example:
        >>> Collective(kind="all-reduce", group=8, size=1000, times=2).sent
        3500.0
    """

    kind: str
    group: int
    size: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends for it in all, in a ring."""
        share = (self.group - 1) / max(self.group, 1)
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(self.kind, share)
        return factor * self.size * self.times


def collectives(text: str) -> list[Collective]:
    """The exchanges of a compiled program, alike ones together; those in a loop count as often as it runs.

    Args:
        text: `compiled.as_text()`.
    """
    lines: dict[str, list[str]] = defaultdict(list)
    entry = name = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
        else:
            lines[name].append(line)
    found: dict[str, tuple[tuple[str, int, int], int]] = {}

    def trips(line: str) -> int:
        """How often a loop runs: as it says, or up to the one number that its condition compares with."""
        if told := re.search(r"known_trip_count[^\d]*(\d+)", line):
            return int(told[1])
        condition = re.search(r"condition=%([\w.\-]+)", line)
        limits = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(lines[condition[1]])) if condition else []
        return int(limits[0]) if len(limits) == 1 else 1

    def walk(computation: str, times: int) -> None:
        for number, line in enumerate(lines[computation]):
            if operation := re.search(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(", line):
                # An exchange that is spread over other work stands at each of its pieces, under one number.
                channel = re.search(r"channel_id=(\d+)", line)
                place = channel[1] if channel else f"{computation} {number}"
                measured = _measured(line, operation[1], operation[2], bool(operation[3]))
                found[place] = measured, max(times, found.get(place, (measured, 0))[1])
                continue  # what a reduction adds up is no program
            inner = times * trips(line) if " while(" in line else times
            for names in _CALLS.findall(line):
                for called in re.findall(r"%([\w.\-]+)", names):
                    walk(called, inner)

    walk(entry, 1)
    alike: dict[tuple[str, int, int], int] = defaultdict(int)
    for measured, times in found.values():
        alike[measured] += times
    return sorted(
        (Collective(kind=k, group=g, size=s, times=t) for (k, g, s), t in alike.items()), key=lambda one: -one.sent
    )


def _measured(line: str, types: str, kind: str, started: bool) -> tuple[str, int, int]:
    """Kind, number of devices, and bytes of the whole array."""
    shapes = [
        math.prod(map(int, filter(None, sides.split(",")))) * _SIZES.get(number, 1)
        for number, sides in re.findall(r"(\w+)\[([\d,]*)\]", types)
    ]
    # The start of one has its operand, its result and more.
    size = max(shapes, default=0) if started and kind != "all-reduce" else sum(shapes)
    group = _group(line)
    return kind, group, size * (group if kind == "reduce-scatter" and not started else 1)


def _group(line: str) -> int:
    """Number of devices that take part: groups are listed, cut from all of them, or axes of a mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    if spread := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(spread[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sides[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return 2  # pairs, of permutations
