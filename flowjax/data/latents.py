"""Latents as a data set: encoded once, measured exactly, kept on disk."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from flowjax._files import replacing
from flowjax.data.files import BROKEN, read_arrays
from flowjax.data.prepared import blocks_of, tfds, write_blocks
from flowjax.data.records import Records, check_finite
from flowjax.data.sources import Source

STATISTICS = "statistics.npz"
"""Mean and variance of every entry of the latents, beside them."""

_METADATA = "metadata.json"
_SAMPLE = 256  # examples that statistics without a digest are compared with

Rows = Num[np.ndarray, "N ..."] | Records


def measure(x: Rows, deviation: Rows | None = None) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Mean and variance of every entry of examples, in two passes over blocks of them: the mean, then the variance.

    Args:
        x: Examples, in memory or on disk.
        deviation: Of laws N(x, deviation^2) that examples are drawn from: then the variance is that of what is drawn,
            var x + mean deviation^2.

    Returns:
        Both in float64, of the shape of an example.

    Example:
        >>> import numpy as np
        >>> mean, variance = measure(np.array([[1.0, 1e8], [3.0, 1e8 + 2]]))
        >>> mean.tolist(), variance.tolist()
        ([2.0, 100000001.0], [1.0, 1.0])
    """
    shape, size = x.shape[1:], max(1, 2**20 // max(1, int(np.prod(x.shape[1:]))))

    def parts(rows: Rows) -> Iterator[np.ndarray]:
        return (np.asarray(rows[first : first + size], np.float64) for first in range(0, len(rows), size))

    mean = sum((part.sum(0) for part in parts(x)), np.zeros(shape)) / len(x)
    variance = sum((((part - mean) ** 2).sum(0) for part in parts(x)), np.zeros(shape)) / len(x)
    if deviation is not None:
        variance = variance + sum(((part**2).sum(0) for part in parts(deviation)), np.zeros(shape)) / len(x)
    return mean, variance


def overall(mean: Float[np.ndarray, "..."], variance: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """Mean and standard deviation of all numbers, from mean and variance of every entry.

    Raises:
        ValueError: They are all equal, or not finite.
    """
    centre = mean.mean()
    deviation = float(np.sqrt(variance.mean() + np.mean((mean - centre) ** 2)))
    if not 0 < deviation < np.inf:
        raise ValueError("latents must be finite and not all equal")
    return float(centre), deviation


def cache_latents(
    encode: Callable[[Num[np.ndarray, "B ..."]], Num[np.ndarray, "B ..."]],
    source: Source,
    folder: str | Path,
    *,
    block: int = 64,
    name: str = "latents",
    record: Mapping[str, Any] | None = None,
    posterior: bool = False,
) -> None:
    """Encodes every example once and writes the latents like `store`, normalised by their mean and deviation.

    Mean and variance of every entry lie beside them, `statistics.npz`. `metadata.json` has digests of these and of the
    overall shift and scale, by which others are refused when they are read.

    Args:
        encode: Normalised float32 examples (B, ...) to latents (B, ...), in numpy or JAX; B is always `block`.
        source: What to encode.
        folder: New folder, read back with `read_latents`, or with `load("tfds", folder=...)`.
        block: Examples encoded at once, at least 1.
        name: Name of the data set: letters, digits and _.
        record: What else `metadata.json` says, JSON values.
        posterior: Whether `encode` gives laws N(mean, deviation^2): mean and deviation, one behind the other on the
            last axis.

    Raises:
        ValueError: Another name, the folder exists, the source has fields, `block` is below 1, or latents that are not
            one for each example, not finite or all equal.
        OSError: It cannot be written, for example because the disk is full.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for x, cond in blocks_of(source, block):
            # The last block is filled up, so that nothing compiles twice.
            whole = np.resize(source.normalize(x.astype(np.float32)).astype(np.float32), (block, *x.shape[1:]))
            latents = np.asarray(encode(whole), np.float32)
            if latents.shape[:1] != (block,):
                raise ValueError(f"encode must give {block} latents for {block} examples, got shape {latents.shape}")
            check_finite(latents[: len(x)], "latents")
            yield latents[: len(x)], cond

    def finish(part: Path) -> dict[str, Any]:
        found = _read(part, posterior)
        mean, variance = measure(found.x, found.deviation)
        shift, scale = overall(mean, variance)
        _keep(part, mean, variance)
        digests = {"scale": _digest(shift, scale), "statistics": _digest(mean, variance)}
        return {"shift": shift, "scale": scale, "digests": digests}

    # The numbers of the first metadata stand there until the latents are measured.
    write_blocks(Path(folder), name, blocks(), source, {**(record or {}), "shift": 0.0, "scale": 1.0}, finish)


def read_latents(folder: str | Path, *, posterior: bool = False) -> Source:
    """What `cache_latents` has written, without labels.

    Args:
        folder: Where it lies.
        posterior: As it was written.

    Raises:
        ValueError: See `tfds`; a shift and a scale that are not those of these latents.
    """
    found = _read(Path(folder), posterior)
    if not _belong(Path(folder), "scale", found, found.shift, found.scale):
        raise ValueError(
            f"shift and scale in {Path(folder) / _METADATA} are not those of its latents; remove {folder}, and it is "
            "made again"
        )
    return found


def _read(folder: Path, posterior: bool) -> Source:
    found = tfds(str(folder), label=None)
    if not posterior:
        return found
    channels = found.x.shape[-1] // 2
    halves = (slice(None, channels), slice(channels, None))
    x, deviation = (_channels(found.x, half) for half in halves)
    return Source(x=x, deviation=deviation, shift=found.shift, scale=found.scale)


def _channels(rows: Rows, half: slice) -> Rows:
    if isinstance(rows, np.ndarray):
        return rows[..., half]
    return Records((*rows.shape[:-1], rows.shape[-1] // 2), rows.dtype, lambda row: rows.read(row)[..., half])


def statistics(folder: str | Path, latents: Source) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Mean and variance of every entry of the latents in a folder; measured and kept where they are not there.

    Raises:
        ValueError: A file of something else, or of other latents.
        OSError: It cannot be written.
    """
    folder = Path(folder)
    file, shape = folder / STATISTICS, latents.x.shape[1:]
    if not file.exists():
        measured, record = measure(latents.x, latents.deviation), _record(folder)
        record["digests"] = record.get("digests", {}) | {"statistics": _digest(*measured)}
        with replacing(folder / _METADATA) as part:
            part.write_text(json.dumps(record))
        _keep(folder, *measured)
    try:
        found = read_arrays(file, ["mean", "variance"])
        mean, variance = found["mean"], found["variance"]
        if not all(a.shape == shape and np.isfinite(a).all() for a in (mean, variance)) or (variance < 0).any():
            raise ValueError(f"its arrays are not those of latents of the shape {shape}")
        if not _belong(folder, "statistics", latents, mean, variance):
            raise ValueError("its arrays are those of other latents")
        return mean, variance
    except BROKEN as error:
        raise ValueError(f"{file} cannot be read: {error}; remove it, and it is made again") from error


def _record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _METADATA).read_text())


def _digest(*numbers: Any) -> str:
    """Twelve hexadecimal digits of SHA-256."""
    found = hashlib.sha256()
    for array in (np.ascontiguousarray(each, np.float64) for each in numbers):
        found.update(f"{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:12]


def _belong(folder: Path, name: str, latents: Source, first: Any, second: Any) -> bool:
    """Whether mean and variance of the entries, or overall shift and scale, are those that were measured.

    Folders of older versions have no digest. There a mean may be five standard errors from that of 256 examples, in the
    mean over entries, which may all move together; and a variance up to four times as large or small.
    """
    known = _record(folder).get("digests", {}).get(name)
    if known is not None:
        return known == _digest(first, second)
    rows = np.linspace(0, len(latents.x) - 1, min(len(latents.x), _SAMPLE)).astype(int)
    mean, variance = measure(latents.x[rows], None if latents.deviation is None else latents.deviation[rows])
    if name == "scale":
        shift, scale = overall(mean, variance)
        mean, variance, second = np.array(shift), np.array(scale**2), second**2
    error = np.mean((mean - first) ** 2 / (second + 1e-3 * np.mean(second)))
    return bool(error <= 25 / len(rows) and 1 / 4 <= variance.mean() / np.mean(second) <= 4)


def _keep(folder: Path, mean: np.ndarray, variance: np.ndarray) -> None:
    with replacing(folder / STATISTICS) as part, part.open("wb") as file:
        np.savez(file, mean=mean, variance=variance)
