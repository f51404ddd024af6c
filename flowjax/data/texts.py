"""Texts from a file."""

from pathlib import Path

FILE = 2**24
"""Bytes of a file of texts that are read, at most."""


def lines_of(path: str) -> list[str]:
    """The texts of a file, one in each line.

    Raises:
        ValueError: A file that cannot be read, with more than 16 MiB or without a line.
    """
    try:
        with Path(path).open("rb") as file:
            held = file.read(FILE + 1)
        texts = held.decode().splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ValueError(f"cannot read texts from {path}: {reason}") from None
    if len(held) > FILE or not texts:
        raise ValueError(f"cannot read texts from {path}: it has {'more than 16 MiB' if texts else 'no line'}")
    return texts
