"""What a flow can be asked for: conditions by name, each with the shape and the null it has, read from command lines.

A condition with `mask` says which of the `entries` of a padded set there are; its null is None, and nothing drops it.

A recipe names them: {"label": {"name": "label", "options": {"classes": 10}}}. A network then gets the dict
{"label": (B,) int32}; recipes without names give a bare label, as `cond`. A task learns them from the data: the
condition "label" from the labels, others from the fields of their names.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import _checks, specs
from flowjax.data import Source
from flowjax.data.pictures import MAX_PIXELS, Reader, endings
from flowjax.data.records import check_memory
from flowjax.data.sources import labels_of
from flowjax.data.texts import lines_of
from flowjax.facts import fact
from flowjax.models.text import PAD, Words

EXAMPLES = 64
"""At most so many texts of the data are kept as examples."""


@fact("condition", "label", "a class", example=lambda: {"classes": 3})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """A class.

    Attributes:
        classes: How many there are; the null is the number behind the last.
        names: Their names, which command lines may use; may be empty.

    Raises:
        ValueError: No class, or another number of names.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> label = fj.conditions.Label.learn(np.array([0, 2, 1]), names=("cat", "dog", "owl"))
        >>> label.classes, int(label.null)
        (3, 3)
    """

    classes: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _checks.whole(_checks.COUNT, classes=self.classes)
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"{self.classes} classes, but {len(self.names)} names")

    @classmethod
    def learn(cls, rows: np.ndarray, *, classes: int | None = None, names: tuple[str, ...] = ()) -> "Label":
        """The condition that the labels of the data are.

        Args:
            rows: Labels, (N,).
            classes: How many there are; by default one more than the largest label.
            names: Their names.

        Raises:
            ValueError: No integers (N,), or labels outside 0..classes - 1.
        """
        found = labels_of(np.asarray(rows), len(rows), classes, tuple(names))
        return cls(classes=found["num_classes"], names=tuple(names))

    @property
    def null(self) -> np.ndarray:
        """The condition that stands for none, without batch axis."""
        return np.asarray(self.classes, np.int32)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct((), jnp.int32)

    @property
    def encoder(self) -> dict[str, int]:
        """Options that an encoder of it must have."""
        return {"num_classes": self.classes}

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Labels of the data as networks take them, (N,).

        Raises:
            ValueError: No integers (N,), or labels outside 0..classes - 1.
        """
        return labels_of(np.asarray(rows), len(rows), self.classes)["cond"]

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """The labels as they are shown."""
        return rows

    def default(self, num: int) -> np.ndarray:
        """The classes in turn, (num,)."""
        return (np.arange(num) % self.classes).astype(np.int32)

    def read(self, text: str, num: int) -> np.ndarray:
        """Numbers or names of classes, separated by commas, in turn: (num,).

        Raises:
            ValueError: One that there is not.
        """
        known = {name: i for i, name in enumerate(self.names)}
        shown = f"0 to {self.classes - 1}" + (f", or {', '.join(self.names)}" if self.names else "")
        asked = [item.strip() for item in text.split(",")]
        for item in asked:
            if item not in known:
                if not (item.isdecimal() and len(item) <= len(str(self.classes)) and int(item) < self.classes):
                    raise ValueError(f"label {item!r} is out of range (allowed: {shown})")
                known[item] = int(item)
        return np.resize(np.array([known[item] for item in asked], np.int32), num)


@fact("condition", "vector", "a vector of numbers", example=lambda: {"dim": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Vector:
    """A vector of numbers; the null is zero.

    Attributes:
        dim: Its length.

    Raises:
        ValueError: A length below 1.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> wind = fj.conditions.Vector.learn(np.ones((5, 3), np.float32))
        >>> wind.dim, wind.null.tolist(), wind.struct.shape
        (3, [0.0, 0.0, 0.0], (3,))
    """

    dim: int

    def __post_init__(self) -> None:
        _checks.whole(_checks.COUNT, dim=self.dim)

    @classmethod
    def learn(cls, rows: np.ndarray, *, dim: int | None = None) -> "Vector":
        """The condition that a field of the data is.

        Args:
            rows: Vectors (N, dim), or numbers (N,), which are vectors of length 1.
            dim: Their length, if it is to be checked.

        Raises:
            ValueError: Something else.
        """
        found = cls(dim=(1 if rows.ndim == 1 else rows.shape[1]) if dim is None else dim)
        found.encode(rows[:1])
        return found

    @property
    def null(self) -> np.ndarray:
        """The condition that stands for none, without batch axis."""
        return np.zeros(self.dim, np.float32)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct((self.dim,), jnp.float32)

    @property
    def encoder(self) -> dict[str, int]:
        """Options that an encoder of it must have."""
        return {"size": self.dim}

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the data as networks take them, (N, dim).

        Raises:
            ValueError: No numbers (N, dim).
        """
        found = rows[:, None] if rows.ndim == 1 else rows
        if found.dtype.kind not in "biuf" or found.shape[1:] != (self.dim,):
            raise ValueError(f"vectors are numbers (N, {self.dim}), got {rows.dtype} {rows.shape}")
        return found.astype(np.float32)

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """The vectors as they are shown."""
        return rows

    def default(self, num: int) -> np.ndarray:
        """Nothing in particular: the null, (num, dim)."""
        return np.zeros((num, self.dim), np.float32)

    def read(self, text: str, num: int) -> np.ndarray:
        """Vectors of numbers separated by commas, several by semicolons, in turn: (num, dim).

        Raises:
            ValueError: Not numbers, or of another length.
        """
        try:
            rows = np.array([[float(item) for item in row.split(",")] for row in text.split(";")], np.float32)
        except ValueError:
            raise ValueError(f"a vector is {self.dim} numbers separated by commas, got {text!r}") from None
        if rows.shape[1:] != (self.dim,) or not np.isfinite(rows).all():
            raise ValueError(f"a vector is {self.dim} finite numbers separated by commas, got {text!r}")
        return np.resize(rows, (num, self.dim))


@fact("condition", "text", "a text", example=lambda: {"words": ("a", "circle", "red"), "length": 4})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A text, as tokens; the null is the empty text.

    Attributes:
        words: Known words in the order of their tokens, see `flowjax.models.Words`; others are spelled in bytes.
        length: Tokens of a text, at least 1.
        examples: Texts of the data, which are asked for where nothing else is; may be empty.

    Raises:
        ValueError: Words that are none, a length below 1, or too many examples.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> text = fj.conditions.Text.learn(np.array(["a red cross", "a blue cross"]))
        >>> text.length, text.tokenizer.decode(text.encode(np.array(["a red cross"])))
        (3, ['a red cross'])
    """

    words: tuple[str, ...]
    length: int
    examples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.examples) > EXAMPLES:
            raise ValueError(f"at most {EXAMPLES} examples, got {len(self.examples)}")
        self.tokenizer  # noqa: B018 - checks the words

    @classmethod
    def learn(cls, rows: np.ndarray, *, length: int | None = None, vocabulary: int = 4096) -> "Text":
        """The condition that the texts of the data are, with the words that they have.

        Args:
            rows: Texts, (N,).
            length: Tokens of a text; by default those of the longest. Longer texts of the data then lose their end.
            vocabulary: Most tokens in all, at least 257: more frequent words are known first.

        Raises:
            ValueError: No texts, or a number outside its range.
        """
        if rows.dtype.kind != "U":
            raise ValueError(f"texts are expected, got {rows.dtype} {rows.shape}")
        words = Words.learn(rows, size=vocabulary, length=length)
        spread = rows[np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(int))]
        examples = dict.fromkeys(words.decode(words.encode(spread, cut=True)))
        return cls(words=words.words, length=words.length, examples=tuple(filter(None, examples)))

    @property
    def tokenizer(self) -> Words:
        """What makes tokens of texts."""
        return Words(words=self.words, length=self.length)

    @property
    def null(self) -> np.ndarray:
        """The condition that stands for none, without batch axis."""
        return np.full(self.length, PAD, np.int32)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct((self.length,), jnp.int32)

    @property
    def encoder(self) -> dict[str, int]:
        """Options that an encoder of it must have."""
        return {"vocabulary": self.tokenizer.size, "length": self.length}

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Texts of the data as networks take them, (N, length); those that are too long lose their end.

        Raises:
            ValueError: No texts (N,).
        """
        if rows.dtype.kind != "U":
            raise ValueError(f"texts are expected, got {rows.dtype} {rows.shape}")
        check_memory("the tokens of all texts", 4 * len(rows) * self.length)
        return self.tokenizer.encode(rows, cut=True)

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """The texts of tokens as they are shown, (N,)."""
        return np.array(self.tokenizer.decode(rows))

    def default(self, num: int) -> np.ndarray:
        """The examples in turn, (num, length); empty texts where there are none."""
        return np.resize(self.tokenizer.encode(self.examples or ("",), cut=True), (num, self.length))

    def read(self, text: str, num: int) -> np.ndarray:
        """One text, or with @FILE those of the lines of a file, in turn: (num, length).

        Raises:
            ValueError: A file that cannot be read, or a text with too many tokens.
        """
        texts = lines_of(text[1:]) if text.startswith("@") else [text]
        return np.resize(self.tokenizer.encode(texts), (num, self.length))


@fact("condition", "image", "a picture", example=lambda: {"shape": (4, 4, 3)})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of bytes, which networks see in [-1, 1]; the null is grey.

    Attributes:
        shape: (H, W, C) with C = 1 or 3.

    Raises:
        ValueError: Another shape.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> view = fj.conditions.Picture.learn(np.full((5, 2, 2, 3), 255, np.uint8))
        >>> view.shape, float(view.encode(np.full((1, 2, 2, 3), 255, np.uint8)).max())
        ((2, 2, 3), 1.0)
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _checks.sizes(3, shape=self.shape)
        if self.shape[-1] not in (1, 3):
            raise ValueError(f"a picture is grey (H, W, 1) or in colour (H, W, 3), got {tuple(self.shape)}")
        object.__setattr__(self, "shape", tuple(self.shape))

    @classmethod
    def learn(cls, rows: np.ndarray) -> "Picture":
        """The condition that pictures of the data are.

        Args:
            rows: Bytes, (N, H, W, C).

        Raises:
            ValueError: Something else.
        """
        found = cls(shape=rows.shape[1:])
        found.encode(np.asarray(rows[:1]))
        return found

    @property
    def null(self) -> np.ndarray:
        """The condition that stands for none, without batch axis."""
        return np.zeros(self.shape, np.float32)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct(self.shape, jnp.float32)

    @property
    def encoder(self) -> dict[str, tuple[int, ...]]:
        """Options that an encoder of it must have."""
        return {"image_shape": self.shape}

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Pictures of the data as networks take them, (N, H, W, C) in [-1, 1].

        Raises:
            ValueError: No bytes (N, H, W, C).
        """
        if rows.dtype != np.uint8 or rows.shape[1:] != self.shape:
            raise ValueError(
                f"pictures are bytes (N, {', '.join(map(str, self.shape))}), got {rows.dtype} {rows.shape}"
            )
        check_memory("the pictures of all examples", 4 * rows.size)
        return rows.astype(np.float32) / 127.5 - 1

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """The pictures as bytes."""
        return np.rint(np.clip(127.5 * (np.asarray(rows) + 1), 0, 255)).astype(np.uint8)

    def default(self, num: int) -> np.ndarray:
        """Nothing in particular: the null."""
        return np.zeros((num, *self.shape), np.float32)

    def read(self, text: str, num: int) -> np.ndarray:
        """The picture in a file, or those of a folder in the order of their names, in turn: (num, H, W, C).

        Raises:
            ValueError: None, one that cannot be read, or one of another size.
        """
        place = Path(text)
        files = (
            sorted(path for path in place.iterdir() if path.suffix.lower() in endings()) if place.is_dir() else [place]
        )
        if not files or not place.exists():
            raise ValueError(f"{text} is neither a picture nor a folder with pictures")
        reader, rows = Reader(None, self.shape[-1], MAX_PIXELS), []
        for path in files[:num]:
            rows.append(reader.read(path, str(path)))
            if rows[-1].shape != self.shape:
                (height, width, _), (own, wide, _) = rows[-1].shape, self.shape
                raise ValueError(f"{path} has {width} x {height} pixels; this run takes {wide} x {own}: scale it")
        return self.encode(np.resize(np.stack(rows), (num, *self.shape)))


# ---------------------------------------------------------------------------------------------------- those of the data


def of_data(source: Source, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions by name, learned from the data.

    Args:
        source: The data.
        asked: Specs by name, such as {"label": "label", "text": "text(length=24)"}: names are entries of the catalogue,
            options those of the `learn` of their classes.

    Raises:
        ValueError: A condition that the data does not have, an unknown spec, or one that does not suit the data.
    """
    found = {}
    for name, spec in asked.items():
        rows, (kind, options) = _rows(source, name), specs.name_and_options(spec)
        make = specs.find("condition", kind).make
        if make is Label and name == "label" and "label" not in source.fields:
            options = {"classes": source.num_classes, "names": source.names} | options
        found[name] = _checks.call(f"condition {name}", make.learn, options, rows=rows)
    return found


def with_conditions(source: Source, conditions: Mapping[str, Any]) -> Source:
    """The data with its conditions as networks take them, by name; texts that are none are left out.

    Raises:
        ValueError: A condition that the data does not have or that does not suit it.
    """
    encoded = {name: condition.encode(_rows(source, name)) for name, condition in conditions.items()}
    fields = {name: rows for name, rows in source.fields.items() if rows.dtype.kind != "U"} | encoded
    if (mask := mask_of(conditions, encoded)) is not None:
        fields["mask"] = mask
    return dataclasses.replace(source, fields=fields, conditions=tuple(conditions))


def mask_of(conditions: Mapping[str, Any], encoded: Mapping[str, Any]) -> np.ndarray | None:
    """Which entries of padded sets are there, (N, entries), where one of the conditions says so."""
    masks = [condition.mask(encoded[name]) for name, condition in conditions.items() if hasattr(condition, "mask")]
    return masks[0] if masks else None


def _rows(source: Source, name: str) -> np.ndarray:
    if name == "label" and "label" not in source.fields and source.cond is not None:
        return source.cond
    if name not in source.fields:
        known = [*(["label"] if source.cond is not None else []), *source.fields]
        raise ValueError(f"the data has no condition {name!r}; it has {', '.join(known) or 'none'}")
    return np.asarray(source.fields[name])


def resized(cond: Any, first: int, batch: int) -> Any:
    """Conditions first, first + 1, ..., `batch` of them; a last block begins again with its own."""
    return jax.tree.map(lambda rows: np.resize(rows[first : first + batch], (batch, *rows.shape[1:])), cond)
