"""Pairs of noise and sample in a folder: one record of what they are, and shards that appear whole or not at all.

A shard is one `.npy` file of named columns, "x0", "x1" and, where there are conditions, "cond" or "cond.NAME", in the
scale in which the network works. It is mapped, not read, so that a set may be larger than memory.
"""

import functools
from collections.abc import Mapping

import numpy as np

from flowjax._files import replacing
from flowjax.data.records import Records
from flowjax.data.shards import Shards
from flowjax.data.sources import Source


class Pairs(Shards):
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

    what, record_name, ending = "pairs", "pairs.json", ".npy"

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
        with replacing(self.file(rows)) as part, part.open("wb") as file:
            np.save(file, table, allow_pickle=False)

    @functools.cached_property
    def source(self) -> Source:
        """The pairs as data, read once: x is x1, the field "x0" its noise, and conditions as they were.

        Raises:
            ValueError: No pairs, some that are missing, or files of something else.
        """
        self.check_complete("--pairs=FOLDER")
        num, rows = self.record["num"], self.record["rows"]
        tables = [self._table(shard) for shard in self.all]
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

    def _table(self, rows: range) -> np.ndarray:
        file = self.file(rows)
        try:
            table = np.load(file, mmap_mode="r", allow_pickle=False)  # fails where a file holds less than it claims
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"cannot read the pairs in {file}: {error}") from error
        if table.shape != (len(rows),) or table.dtype.names is None:
            raise ValueError(f"{file} must hold {len(rows)} pairs, got {table.dtype} {table.shape}")
        return table


class _Column:
    """Reads rows of one column."""

    def __init__(self, tables: list[np.ndarray], name: str, rows: int):
        self.tables, self.name, self.rows = tables, name, rows

    def __call__(self, row: int) -> np.ndarray:
        return np.asarray(self.tables[row // self.rows][self.name][row % self.rows])
