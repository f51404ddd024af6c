"""Calibration files: arrays with a record of what they belong to, and partial results of an interrupted run."""

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowjax._files import replacing
from flowjax.data.files import BROKEN, read_arrays
from flowjax.launch import check_shared


def model_hash(tree: Any) -> str:
    """Twelve hexadecimal digits of SHA-256 over all arrays of a model, in the order of its leaves."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def save(path: str | Path, arrays: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Writes arrays and their record to one .npz file, replacing it only when the new one is complete.

    Among several processes, which all have the same, the first one writes.

    Args:
        path: the file.
        arrays: NumPy arrays by name.
        record: what they were computed for: JSON values.
    """
    if jax.process_index() > 0:
        return
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, record=np.array(json.dumps(record, sort_keys=True)), **arrays)


def resume(path: Path | None, expected: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], int]:
    """What an interrupted calibration has stored, and how much is done; ({}, 0) for nothing.

    Raises:
        ValueError: See `load`; some processes of several do not find it.
    """
    arrays, record = load(path, expected) if path is not None and path.exists() else ({}, {"done": 0})
    check_shared(str(path), record["done"])
    return arrays, record["done"]


def load(path: str | Path, expected: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a calibration file.

    Args:
        path: the file.
        expected: entries that its record must hold with these values.

    Returns:
        The arrays by name, and the record.

    Raises:
        ValueError: the file belongs to something else, and the message names the first entry that differs; or it is no
            calibration file, or has NaN or infinite values.
        FileNotFoundError: there is no such file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(errno.ENOENT, "no such calibration file", str(path))
    try:
        arrays = read_arrays(Path(path), texts=True)
        if "record" not in arrays:
            raise ValueError(f"it has {', '.join(arrays) or 'no array'}, but no record")
        record = json.loads(str(arrays.pop("record")))
        if not isinstance(record, dict):
            raise ValueError("its record has no entries")
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} has NaN or infinite values")
    except (*BROKEN, RecursionError) as error:
        raise ValueError(f"{path} is not a whole file of flowjax.calibrate: {error}") from error
    for name, value in json.loads(json.dumps(dict(expected))).items():
        if record.get(name) != value:
            raise ValueError(
                f"{path} was calibrated for {name}={record.get(name)!r}, not {value!r}: remove it and calibrate "
                "again, or name another file"
            )
    return arrays, record
