"""Pairs of noise and sample in a folder: one record of what they are, and shards that appear whole or not at all.

A shard is one `.npy` file of named columns, "x0", "x1" and, where there are conditions, "cond" or "cond.NAME", in the
scale in which the network works. It is mapped, not read, so that a set may be larger than memory.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowjax._files import replacing
from flowjax.data.records import Records
from flowjax.data.sources import Source

RECORD = "pairs.json"
_SHARD = 2**26  # bytes


class Pairs:
    """A folder of pairs.

    Args:
        folder: Where they lie.

    Attributes:
        record: What they are: "num", "rows" of a shard, "model" (the hash of the weights that drew them), "seed", and
            how they were drawn; empty for a new folder.

    Raises:
        ValueError: A record that is none.

    Example:
        >>> import numpy as np, tempfile
        >>> pairs = Pairs(tempfile.mkdtemp())
        >>> pairs.begin({"num": 5}, row=8, multiple=2)
        >>> [list(shard) for shard in pairs.missing()]
        [[0, 1, 2, 3, 4]]
        >>> pairs.write(pairs.missing()[0], {"x0": np.zeros((5, 2)), "x1": np.ones((5, 2))})
        >>> pairs.missing(), pairs.source.fields["x0"].shape
        ([], (5, 2))
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.record: dict[str, Any] = {}
        file = self.folder / RECORD
        if file.exists():
            try:
                self.record = json.loads(file.read_text())
                sizes = [self.record[name] for name in ("num", "rows")]
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{file} is no record of pairs: {error!r}") from error
            if not all(type(size) is int and 0 < size < 2**48 for size in sizes):
                raise ValueError(f"{file} must hold num and rows, positive whole numbers; it has {sizes}")

    def begin(self, record: Mapping[str, Any], *, row: int, multiple: int) -> None:
        """Writes the record of a new folder, or refuses one of other pairs.

        Args:
            record: What the pairs are, JSON values; "num" is how many.
            row: Bytes of one pair.
            multiple: Shards of a new folder have a multiple of so many rows, but for the last.

        Raises:
            ValueError: The folder holds something else.
        """
        wanted = json.loads(json.dumps(dict(record)))
        if self.record:
            for name, value in wanted.items():
                if self.record.get(name) != value:
                    raise ValueError(
                        f"{self.folder} holds pairs of {name}={self.record.get(name)!r}, not {value!r}: name another "
                        "folder, or ask for the same pairs"
                    )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no {RECORD}: name a new folder")
        self.record = wanted | {"rows": multiple * max(1, _SHARD // (row * multiple))}
        with replacing(self.folder / RECORD) as part:
            part.write_text(json.dumps(self.record, indent=2) + "\n")

    def missing(self) -> list[range]:
        """The rows of the shards that are not written yet."""
        num, rows = self.record["num"], self.record["rows"]
        shards = [range(first, min(first + rows, num)) for first in range(0, num, rows)]
        return [shard for shard in shards if not self._file(shard.start).exists()]

    def write(self, rows: range, columns: Mapping[str, np.ndarray]) -> None:
        """Writes a shard.

        Args:
            rows: Which, from `missing`.
            columns: Arrays with as many rows, by name.
        """
        kind = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in columns.items()])
        table = np.empty(len(rows), kind)
        for name, array in columns.items():
            table[name] = array
        with replacing(self._file(rows.start)) as part, part.open("wb") as file:
            np.save(file, table, allow_pickle=False)

    @functools.cached_property
    def source(self) -> Source:
        """The pairs as data, read once: x is x1, the field "x0" its noise, and conditions as they were.

        Raises:
            ValueError: No pairs, some that are missing, or files of something else.
        """
        if not self.record:
            raise ValueError(f"{self.folder} holds no pairs; draw some with python -m flowjax.sample --pairs=FOLDER")
        if missing := self.missing():
            raise ValueError(
                f"{self.folder} is not complete: {sum(map(len, missing))} of {self.record['num']} pairs are missing; "
                "give the command that draws them again, and it goes on"
            )
        num, rows = self.record["num"], self.record["rows"]
        tables = [self._table(first, min(rows, num - first)) for first in range(0, num, rows)]
        kind = tables[0].dtype
        names = kind.names or ()
        numbers = all(kind[name].base.kind in "biuf" for name in names)
        if any(table.dtype != kind for table in tables) or not {"x0", "x1"} <= set(names) or not numbers:
            raise ValueError(f"{self.folder} must hold numbers x0 and x1 in every shard, got {kind}")
        columns = {
            name: Records((num, *kind[name].shape), kind[name].base, _Column(tables, name, rows)).settle(None)
            for name in names
        }
        x, x0, label = columns.pop("x1"), columns.pop("x0"), columns.pop("cond", None)
        conditions = {name.removeprefix("cond."): column for name, column in columns.items()}
        return Source(
            x=x,
            cond=None if label is None else np.asarray(label),
            num_classes=None if label is None else self.record.get("num_classes"),
            fields={"x0": x0, **conditions},
            conditions=tuple(conditions),
        )

    def _file(self, first: int) -> Path:
        return self.folder / f"{first // self.record['rows']:06d}.npy"

    def _table(self, first: int, count: int) -> np.ndarray:
        file = self._file(first)
        try:
            table = np.load(file, mmap_mode="r", allow_pickle=False)  # fails where a file holds less than it claims
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"cannot read the pairs in {file}: {error}") from error
        if table.shape != (count,) or table.dtype.names is None:
            raise ValueError(f"{file} must hold {count} pairs, got {table.dtype} {table.shape}")
        return table


class _Column:
    """Reads rows of one column."""

    def __init__(self, tables: list[np.ndarray], name: str, rows: int):
        self.tables, self.name, self.rows = tables, name, rows

    def __call__(self, row: int) -> np.ndarray:
        return np.asarray(self.tables[row // self.rows][self.name][row % self.rows])
