"""A data set with the numbers that normalise it, and those that come with flowjax."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from sklearn.datasets import load_digits, load_sample_images

from flowjax._checks import COUNT, SEED, real, whole
from flowjax.data.records import Records, check_finite, check_memory
from flowjax.data.texts import lines_of

MAX_CLASSES = 2**20
"""More classes than this are not believed on the word of a file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set in its own scale.

    Attributes:
        x: (N, ...) examples as they were loaded, in memory or read when they are indexed; images are (N, H, W, C).
        cond: (N,) int32 labels in [0, num_classes), or None.
        num_classes: Number of classes, or None.
        shift: Normalised data = (x - shift) / scale; a number, or one for each entry of an example.
        scale: See `shift`; positive.
        low: Smallest value that the data can take (black in pictures), or None where there is no bound.
        high: Largest value, or None.
        names: One name for each class; may be empty.
        fields: What else belongs to each example, by name: (N, ...) each, texts (N,) or numbers as networks see them,
            never normalised. "x0" are the points that are paired with x, of its shape.
        notes: What was skipped when it was read, one line each.
        conditions: Names of the fields that are conditions: batches have them in a dict "cond" in place of labels.
        blank: Whether x stands for the shape and number of examples alone, which nobody has.
        form: Name of the form (`flowjax.catalogue`) that examples have, where their shape does not tell; or None.
        deviation: Of laws N(x, deviation^2) in the scale of x, of its shape, that batches draw examples from, anew at
            each visit; None where x are the examples themselves.

    Raises:
        ValueError: No examples, a scale that is not positive, numbers that are not finite, labels without `num_classes`
            or outside their range, a number of labels, names or rows of a field that does not fit, a condition that
            is no field, or a shift, scale or deviation of another shape.

    Example:
        >>> import numpy as np
        >>> from flowjax.data import Source
        >>> pixels = np.array([[0.0], [255.0]])
        >>> source = Source(x=pixels, cond=np.array([0, 1]), num_classes=2, shift=127.5, scale=127.5)
        >>> source.normalize(pixels).tolist()
        [[-1.0], [1.0]]
    """

    x: Num[np.ndarray, "N ..."] | Records
    cond: Int[np.ndarray, " N"] | None = None
    num_classes: int | None = None
    shift: float | Float[np.ndarray, "..."] = 0.0
    scale: float | Float[np.ndarray, "..."] = 1.0
    low: float | None = None
    high: float | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fields: Mapping[str, np.ndarray | Records] = dataclasses.field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    blank: bool = False
    form: str | None = None
    deviation: Num[np.ndarray, "N ..."] | Records | None = None

    def __post_init__(self):
        if len(self.x) == 0:
            raise ValueError("a source needs at least one example")
        for name in ("shift", "scale"):
            if np.ndim(value := getattr(self, name)) and np.shape(value) != self.x.shape[1:]:
                raise ValueError(f"{name} is a number or has the shape {self.x.shape[1:]}, got {np.shape(value)}")
        if self.deviation is not None and self.deviation.shape != self.x.shape:
            raise ValueError(f"deviation must have the shape {self.x.shape}, got {self.deviation.shape}")
        shift, scale = np.asarray(self.shift), np.asarray(self.scale)
        if not (np.isfinite(shift).all() and (scale > 0).all() and np.isfinite(scale).all()):
            raise ValueError(f"shift must be finite and scale positive and finite, got {self.shift} and {self.scale}")
        bounds = [value for value in (self.low, self.high) if value is not None]
        if not all(map(math.isfinite, bounds)) or (len(bounds) == 2 and not bounds[0] < bounds[1]):
            raise ValueError(f"low must be less than high, and both finite, got {self.low} and {self.high}")
        if (self.cond is None) != (self.num_classes is None):
            raise ValueError("cond and num_classes must be given together")
        if self.cond is not None and self.num_classes is not None:
            if self.cond.shape != (len(self.x),):
                raise ValueError(f"{len(self.x)} examples need cond of shape ({len(self.x)},), got {self.cond.shape}")
            if self.cond.min() < 0 or self.cond.max() >= self.num_classes:
                raise ValueError(f"labels must be 0..{self.num_classes - 1}, got {self.cond.min()}..{self.cond.max()}")
        if self.names and len(self.names) != self.num_classes:
            raise ValueError(f"{self.num_classes} classes, but {len(self.names)} names")
        for name, rows in self.fields.items():
            if not name.isidentifier() or name in ("x1", "cond"):
                raise ValueError(f"a field of a source is named like a variable, and not x1 or cond, got {name!r}")
            if not rows.shape or len(rows) != len(self.x):
                raise ValueError(f"{len(self.x)} examples need as many rows of the field {name}, got {rows.shape}")
            if rows.dtype.kind not in "biufU" or (rows.dtype.kind == "U" and len(rows.shape) > 1):
                raise ValueError(f"the field {name} must be numbers or texts (N,), got {rows.dtype} {rows.shape}")
            if isinstance(rows, np.ndarray):
                check_finite(rows, f"the field {name}")
        if "x0" in self.fields and self.fields["x0"].shape != self.x.shape:
            raise ValueError(f"the field x0 must have the shape {self.x.shape}, got {self.fields['x0'].shape}")

        for name in self.conditions:
            if name not in self.fields:
                raise ValueError(f"a source has no field {name!r} for its condition; it has {', '.join(self.fields)}")

    def normalize(self, x: Num[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Data scale to the scale in which networks work."""
        return (x - self.shift) / self.scale

    def denormalize(self, x: Num[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """The inverse of `normalize`."""
        return x * self.scale + self.shift

    def take(self, num: int, seed: int = 0) -> "Source":
        """A random subset of `num` examples in memory, or all of them in their order if there are no more."""
        if num >= len(self.x):
            taken = self
        else:
            taken = self.select(np.sort(np.random.default_rng(seed).choice(len(self.x), num, replace=False)))
        return dataclasses.replace(
            taken,
            x=np.asarray(taken.x),
            fields={k: np.asarray(v) for k, v in taken.fields.items()},
            deviation=None if taken.deviation is None else np.asarray(taken.deviation),
        )

    def select(self, rows: Int[np.ndarray, " M"]) -> "Source":
        """The examples of these rows; those on disk stay there."""
        pick = lambda held: held.select(rows) if isinstance(held, Records) else held[rows]  # noqa: E731
        fields = {name: pick(values) for name, values in self.fields.items()}
        return dataclasses.replace(
            self,
            x=pick(self.x),
            cond=None if self.cond is None else self.cond[rows],
            fields=fields,
            deviation=None if self.deviation is None else pick(self.deviation),
        )

    def split(self, held_out: float, seed: int = 0) -> tuple["Source", "Source"]:
        """The data in two parts, drawn at random: the larger one, and the part that is held out.

        Args:
            held_out: Its size over that of all, in (0, 1); at least one example, and not all.
            seed: Equal seeds give equal parts.

        Raises:
            ValueError: Another size, or a single example.
        """
        real("(0, 1)", held_out=held_out)
        size = len(self.x)
        if size < 2:
            raise ValueError("one example cannot be split")
        order, cut = np.random.default_rng([seed, 2]).permutation(size), min(max(1, round(held_out * size)), size - 1)
        return self.select(np.sort(order[cut:])), self.select(np.sort(order[:cut]))


def labels_of(
    cond: np.ndarray, count: int, num_classes: int | None = None, names: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What `Source` needs of labels from a file, which are checked before anything as long as their largest is made.

    Args:
        cond: Labels as they were read.
        count: Number of examples.
        num_classes: Number of classes; by default that of the names, or else one more than the largest label.
        names: One name for each class; may be empty.

    Raises:
        ValueError: Labels of another shape, no integers, outside 0..num_classes - 1; or, without `num_classes` and
            names, labels that leave out more than half of the numbers up to the largest.
    """
    if not np.issubdtype(cond.dtype, np.integer) or cond.shape != (count,):
        raise ValueError(f"{count} examples need {count} integer labels, got {cond.dtype} {cond.shape}")
    if num_classes is not None and not 1 <= num_classes <= 2**31:
        raise ValueError(f"num_classes must be in 1..{2**31}, got {num_classes}")
    if count == 0:
        raise ValueError("a source needs at least one example")
    used, notes = np.unique(cond), []
    if (classes := num_classes or len(names)) == 0:
        classes = int(used[-1]) + 1
        if used[0] >= 0 and len(used) < classes:
            given = f"labels up to {used[-1]} make {classes} classes, of which {len(used)} have an example"
            if 2 * len(used) < classes:
                raise ValueError(f"{given}; number them 0..{len(used) - 1}, or give num_classes={classes}")
            notes = [given]
    if used[0] < 0 or used[-1] >= classes:
        raise ValueError(f"labels must be 0..{classes - 1}, got {used[0]}..{used[-1]}")
    return {"cond": cond.astype(np.int32), "num_classes": classes, "names": names, "notes": tuple(notes)}


def as_trained(source: Source, recipe: Any) -> Source:
    """The data of a run, in the scale that the run was trained in.

    Args:
        source: The data as they are now.
        recipe: What the run was trained with, a `flowjax.recipe.Recipe`.

    Raises:
        ValueError: Examples of another shape, or another number of classes: files were added, removed or replaced.
    """
    for what, now, then in (
        ("shape of the examples", source.x.shape[1:], tuple(recipe.shape)),
        ("number of classes", source.num_classes, recipe.num_classes),
    ):
        if now != then:
            raise ValueError(f"the data changed since training: the {what} is {now}, not {then}")
    return dataclasses.replace(source, shift=recipe.shift, scale=recipe.scale)


def digits() -> Source:
    """The 1,797 handwritten digits that come with scikit-learn: (8, 8, 1), values 0..16, ten classes.

    References:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
        1998.
    """
    bunch = load_digits()
    return Source(
        x=bunch.images[..., None].astype(np.float32),
        cond=bunch.target.astype(np.int32),
        num_classes=10,
        shift=8.0,
        scale=8.0,
        low=0.0,
        high=16.0,
        names=tuple("0123456789"),
    )


def blank(*, shape: list | tuple, num_classes: int | None = None, path: str | None = None, size: int = 1000) -> Source:
    """No examples, but their shape and conditions: what a teacher's students need that learn without data.

    Args:
        shape: Of an example, as the teacher has it; (H, W, C) for images.
        num_classes: Number of classes, which come in turn; None is without labels.
        path: A text file with a text in each line, the field "text", in place of classes.
        size: Number of examples to stand for, at least 1; with `path` that of its lines.

    Raises:
        ValueError: A number outside its range, classes and texts at once, or a file that cannot be read.
    """
    whole(COUNT, size=size, **{f"shape[{axis}]": side for axis, side in enumerate(shape)})
    if num_classes is not None:
        whole("[1, 1048576]", num_classes=num_classes)
        if path is not None:
            raise ValueError("examples that nobody has have classes or texts: leave num_classes or path out")
    texts = [] if path is None else lines_of(path)
    check_memory(f"the texts of {path}", 4 * len(texts) * max(map(len, texts), default=0))  # all as wide as the longest
    count = len(texts) or size
    return Source(
        x=np.broadcast_to(np.float32(0), (count, *shape)),
        cond=None if num_classes is None else np.arange(count, dtype=np.int32) % num_classes,
        num_classes=num_classes,
        fields={"text": np.array(texts)} if texts else {},
        blank=True,
    )


def synthetic(*, shape: list | tuple, num_classes: int | None = None, size: int = 1_000_000) -> Source:
    """Normal noise, made when it is read: stands in for data that are not at hand, to plan and to time a run.

    Args:
        shape: Of an example; (H, W, C) for images.
        num_classes: Number of classes, which come in turn; None is without labels.
        size: Number of examples.

    Raises:
        ValueError: A number outside its range.
    """
    whole(COUNT, size=size, **{f"shape[{axis}]": side for axis, side in enumerate(shape)})
    if num_classes is not None:
        whole("[1, 1048576]", num_classes=num_classes)

    def read(row: int) -> np.ndarray:
        return np.random.default_rng(row).standard_normal(tuple(shape), np.float32)

    return Source(
        x=Records((size, *shape), np.dtype(np.float32), read),
        cond=None if num_classes is None else np.arange(size, dtype=np.int32) % num_classes,
        num_classes=num_classes,
    )


def photographs(*, size: int = 32, stride: int = 8) -> Source:
    """Square patches of the two photographs that come with scikit-learn: (size, size, 3) bytes, a class for each.

    Args:
        size: Pixels of a side, at most 427.
        stride: Pixels between neighbours; below `size` they overlap.

    Raises:
        ValueError: A number outside its range.
    """
    whole("[1, 427]", size=size)
    whole("[1, inf)", stride=stride)
    pictures = load_sample_images().images
    parts = [np.lib.stride_tricks.sliding_window_view(p, (size, size), (0, 1))[::stride, ::stride] for p in pictures]
    count = sum(part.shape[0] * part.shape[1] for part in parts)
    check_memory(f"{count} patches", count * 3 * size**2)
    x = [part.transpose(0, 1, 3, 4, 2).reshape(-1, size, size, 3) for part in parts]
    cond = np.repeat(np.arange(len(x), dtype=np.int32), [len(part) for part in x])
    return Source(
        x=np.concatenate(x),
        cond=cond,
        num_classes=len(x),
        names=("china", "flower"),
        shift=127.5,
        scale=127.5,
        low=0.0,
        high=255.0,
    )


def _eight_gaussians(rng: np.random.Generator, size: int) -> np.ndarray:
    """Eight equally likely Gaussians of standard deviation 0.3, evenly on a circle of radius 4."""
    angle = 2 * np.pi * rng.integers(8, size=size) / 8
    return 4.0 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.3 * rng.normal(size=(size, 2))


def _two_moons(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two interleaved half circles of radius 1 with noise 0.1; a half turn around the origin swaps them."""
    side = rng.choice([-1.0, 1.0], size=size)
    angle = np.pi * rng.random(size)
    moon = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], 1)
    return side[:, None] * moon + 0.1 * rng.normal(size=(size, 2))


def _checkerboard(rng: np.random.Generator, size: int) -> np.ndarray:
    """Uniform on the eight squares of [-4, 4]^2, side 2, whose column and row numbers have an even sum."""
    column = rng.integers(4, size=size)
    row = 2 * rng.integers(2, size=size) + column % 2
    return 2.0 * (np.stack([column, row], 1) + rng.random((size, 2))) - 4.0


def _spiral(rng: np.random.Generator, size: int) -> np.ndarray:
    """An Archimedean spiral, radius 4 angle / (3 pi), angle 3 pi sqrt(U), with noise 0.1."""
    angle = 3 * np.pi * np.sqrt(rng.random(size))
    radius = 4.0 * angle / (3 * np.pi)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + 0.1 * rng.normal(size=(size, 2))


# Each law with the root mean square of its coordinates, which brings the normalised data to unit size.
_LAWS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "checkerboard": (_checkerboard, float(np.sqrt(16 / 3))),
    "eight_gaussians": (_eight_gaussians, float(np.sqrt(8 + 0.09))),
    "spiral": (_spiral, float(np.sqrt(4 + 0.01))),
    "two_moons": (_two_moons, float(np.sqrt((1 + 0.25 + 0.0625 - 1 / np.pi) / 2 + 0.01))),
}


def toy2d(law: str, *, size: int = 50_000, seed: int = 0) -> Source:
    """Independent points from a law in the plane, without labels.

    Args:
        law: "checkerboard", "eight_gaussians", "spiral" or "two_moons".
        size: Number of points, at least 1.
        seed: Equal seeds give equal points, different seeds independent ones.

    Raises:
        ValueError: Unknown law, or a number outside its range.
    """
    sampler, scale = _LAWS[choose("law", law, _LAWS)]
    whole("[1, inf)", size=size)
    whole(SEED, seed=seed)
    check_memory(f"size={size}", 64 * size)
    x = sampler(np.random.default_rng(seed), size)
    return Source(x=x.astype(np.float32), scale=scale)


def laws(source: str = "eight_gaussians", target: str = "two_moons", *, size: int = 50_000, seed: int = 0) -> Source:
    """Independent points from two laws in the plane, for flows from one to the other.

    The examples are those of `toy2d(target)`; the field "x0", (size, 2), has points of the source, both of unit size:
    their coordinates have the root mean square 1 when they reach a network.

    Args:
        source: Where the flow starts: "checkerboard", "eight_gaussians", "spiral" or "two_moons".
        target: Where it leads.
        size: Number of points of each, at least 1.
        seed: Equal seeds give equal points, different seeds independent ones.

    Raises:
        ValueError: Unknown law, or a number outside its range.
    """
    sampler, scale = _LAWS[choose("law", source, _LAWS)]
    found = toy2d(target, size=size, seed=seed)
    x0 = sampler(np.random.default_rng([seed, 1]), size) / scale
    return dataclasses.replace(found, fields={"x0": x0.astype(np.float32)})


def choose(what: str, name: str, allowed: Iterable[str]) -> str:
    """`name` if it is allowed, else a ValueError that helps."""
    allowed = list(allowed)
    if name in allowed:
        return name
    close = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {what} {name!r}{hint} (allowed: {', '.join(allowed) or 'none'})")
