"""A workdir belongs to one process at a time, and to one run."""

import datetime
import fcntl
import json
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import jax

from flowjax.launch import everywhere

OUTPUTS = ("recipe.json", "classifier.json", "metrics.jsonl", "samples.png", "ways.png", "report.json")
"""Files at the top of a workdir that a run replaces, its config apart."""


class Lock:
    """Keeps a second process out of a folder; a context manager.

    The file NAME.lock in the folder names the process that holds it. What counts is the lock of the operating system
    on this file: it ends with the process, however that ends, so a file that was left behind is taken over. Among
    several processes of one run the first one holds it for all.

    Args:
        folder: Made if needed.
        name: What the folder is locked for; other names do not exclude each other.

    Raises:
        ValueError: Another process holds it, which the message names; or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from flowjax.training.workdir import Lock
        >>> with tempfile.TemporaryDirectory() as folder, Lock(folder):
        ...     try:
        ...         Lock(folder).__enter__()  # as a second run would
        ...     except ValueError as error:
        ...         print("is in use" in str(error))
        True
    """

    def __init__(self, folder: str | Path, name: str = "train"):
        self.path = Path(folder) / f"{name}.lock"
        self._file: int | None = None

    def __enter__(self) -> "Lock":
        problem = None
        try:
            if jax.process_index() == 0:
                self._take()
        except OSError as error:
            problem = f"cannot write {self.path}: {error.strerror}"
        except ValueError as error:
            problem = str(error)
        if not everywhere(problem is None):
            self.__exit__()
            raise ValueError(problem or f"the first process cannot lock {self.path.parent}")
        return self

    def _take(self) -> None:
        """Takes the lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _name(os.pread(file, 4096, 0))
                os.close(file)
                raise ValueError(
                    f"{self.path.parent} is in use by {holder} ({self.path.name}); wait for its end, stop it, or use "
                    "another folder"
                ) from None
            except OSError as error:
                warnings.warn(
                    f"{self.path.parent} cannot be locked ({error.strerror}): let no other process use it", stacklevel=3
                )
            # Another process may have removed the file between the two calls.
            if self.path.exists() and os.path.samestat(os.fstat(file), os.stat(self.path)):
                self._file = file
            else:
                os.close(file)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        content = {"pid": os.getpid(), "host": socket.gethostname(), "start": now}
        os.truncate(self._file, 0)
        os.pwrite(self._file, (json.dumps(content) + "\n").encode(), 0)

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _name(content: bytes) -> str:
    """The process that a lock names."""
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']} since {holder['start']}"
    except (ValueError, TypeError, KeyError):
        return "a process that has just begun"


def check_ours(workdir: str | Path) -> None:
    """Refuses a folder without a run, in which files lie that a run would replace.

    Raises:
        ValueError: The message names the file.
    """
    workdir = Path(workdir)
    if (workdir / "config.json").exists() or any(path.name.isdigit() for path in workdir.glob("checkpoints/*")):
        return
    for name in OUTPUTS:
        if (workdir / name).exists():
            raise ValueError(
                f"{workdir / name} would be replaced, but is not of a training run (there is no config.json); "
                "move it away or use another --workdir"
            )


def read_report(workdir: str | Path) -> dict[str, Any] | None:
    """The report of a finished run; None if there is none, or one that cannot be read.

    Raises:
        ValueError: `report.json` is another file.
    """
    path = Path(workdir) / "report.json"
    try:
        report = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(report, dict) or "steps" not in report:
        raise ValueError(f"{path} is not the report of a training run; move it away or use another --workdir")
    return report
