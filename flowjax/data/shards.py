"""Numbered files with so many rows each, which appear whole or not at all, and one record of what they are."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from flowjax._files import replacing

_SHARD = 2**26  # bytes


class Shards:
    """Base of folders that a command fills file by file, and goes on with when it is given again.

    Args:
        folder: Where they lie.

    Attributes:
        record: What they are: "num" is how many rows there will be, "rows" those of a file; empty for a new folder.

    Raises:
        ValueError: A record that is none.

    Example:
        >>> from flowjax.data import Pairs
        >>> Pairs.mro()[1].__name__
        'Shards'
    """

    what: ClassVar[str] = "rows"
    record_name: ClassVar[str] = "record.json"
    ending: ClassVar[str] = ""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.record: dict[str, Any] = {}
        file = self.folder / self.record_name
        if file.exists():
            try:
                self.record = json.loads(file.read_text())
                sizes = [self.record[name] for name in ("num", "rows")]
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{file} is no record of {self.what}: {error!r}") from error
            if not all(type(size) is int and 0 < size < 2**48 for size in sizes):
                raise ValueError(f"{file} must hold num and rows, positive whole numbers; it has {sizes}")

    def begin(self, record: Mapping[str, Any], *, row: int, multiple: int) -> None:
        """Writes the record of a new folder, or refuses one of other rows.

        Args:
            record: What they are, JSON values; "num" is how many.
            row: Bytes of one row.
            multiple: Files of a new folder have a multiple of so many rows, but for the last.

        Raises:
            ValueError: The folder holds something else.
        """
        wanted = json.loads(json.dumps(dict(record)))
        if self.record:
            for name, value in wanted.items():
                if self.record.get(name) != value:
                    raise ValueError(
                        f"{self.folder} holds {self.what} of {name}={self.record.get(name)!r}, not {value!r}: name "
                        f"another folder, or ask for the same {self.what}"
                    )
            return
        if self.folder.exists() and any(path.suffix != ".lock" for path in self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no {self.record_name}: name a new folder")
        self.record = wanted | {"rows": multiple * max(1, _SHARD // (row * multiple))}
        self.note()

    def note(self, **more: Any) -> None:
        """Writes the record with further entries."""
        self.record |= more
        with replacing(self.folder / self.record_name) as part:
            part.write_text(json.dumps(self.record, indent=2) + "\n")

    @property
    def all(self) -> list[range]:
        """The rows of each file."""
        num, rows = self.record["num"], self.record["rows"]
        return [range(first, min(first + rows, num)) for first in range(0, num, rows)]

    @property
    def digest(self) -> str:
        """A short hash of the record."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()[:12]

    def missing(self) -> list[range]:
        """The rows of the files that are not written yet."""
        return [rows for rows in self.all if not self.file(rows).exists()]

    def file(self, rows: range) -> Path:
        """The file of these rows."""
        return self.folder / f"{rows.start // self.record['rows']:06d}{self.ending}"

    def check_complete(self, way: str) -> None:
        """Refuses a folder without rows, or without some of them.

        Args:
            way: The command that makes them.

        Raises:
            ValueError: See above.
        """
        if not self.record:
            raise ValueError(f"{self.folder} holds no {self.what}; draw some with python -m flowjax.sample {way}")
        if missing := self.missing():
            raise ValueError(
                f"{self.folder} is not complete: {sum(map(len, missing))} of {self.record['num']} {self.what} are "
                "missing; give the command that draws them again, and it goes on"
            )
