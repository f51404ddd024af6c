"""Calibration files: arrays with a record of what they belong to, and partial results of an interrupted run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowjax._files import replacing


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

    Args:
        path: the file.
        arrays: NumPy arrays by name.
        record: what they were computed for: JSON values.
    """
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, record=np.array(json.dumps(record, sort_keys=True)), **arrays)


def load(path: str | Path, expected: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a calibration file.

    Args:
        path: the file.
        expected: entries that its record must hold with these values.

    Returns:
        The arrays by name, and the record.

    Raises:
        ValueError: the file belongs to something else; the message names the first entry that differs.
        FileNotFoundError: there is no such file.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    record = json.loads(str(arrays.pop("record")))
    for name, value in json.loads(json.dumps(dict(expected))).items():
        if record.get(name) != value:
            raise ValueError(
                f"{path} was calibrated for {name}={record.get(name)!r}, not {value!r}: calibrate again, or name "
                "another file"
            )
    return arrays, record
