"""Samples in a folder of many files, made over all devices and hosts, and gone on with after an interruption."""

import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flowjax._files import replacing
from flowjax.calibration.store import model_hash
from flowjax.data import Source
from flowjax.data.files import BROKEN, read_arrays
from flowjax.data.records import check_memory
from flowjax.data.shards import Shards
from flowjax.launch import check_shared, everywhere
from flowjax.recipe.base import Base
from flowjax.recipe.flow import Recipe
from flowjax.recipe.request import Request, Samples
from flowjax.search import SearchError
from flowjax.training.mesh import count_rows, make_mesh

PACKAGES = ("flowjax-generative", "jax", "jaxlib", "flax", "numpy")


class Parts(Shards):
    """A folder of samples: `manifest.json`, and files 000000.npz, 000001.npz, ... like those of `flowjax.sample`.

    Args:
        folder: Where they lie.

    Attributes:
        record: The manifest: "num" samples, "rows" of a file, what was asked for, the hash of the weights, versions,
            and once the first file is there "evaluations" and "network_calls" of each sample; empty for a new folder.

    Example:
        >>> import numpy as np, tempfile
        >>> from flowjax.recipe import Samples
        >>> from flowjax.recipe.parts import Parts
        >>> parts = Parts(tempfile.mkdtemp())
        >>> parts.begin({"num": 5}, row=8, multiple=4)
        >>> made = Samples(x=np.zeros((5, 2)), cond=None, evaluations=3, network_calls=3)
        >>> parts.write(parts.missing()[0], made)
        >>> parts.missing(), parts.samples.x.shape, parts.samples.evaluations
        ([], (5, 2), 3)
    """

    what, record_name, ending = "samples", "manifest.json", ".npz"

    def write(self, rows: range, samples: Samples) -> None:
        """Writes a file, and before the first one what a sample costs."""
        if "evaluations" not in self.record:
            self.note(evaluations=samples.evaluations, network_calls=samples.network_calls)
        with replacing(self.file(rows)) as part, part.open("wb") as file:
            np.savez(file, **samples.arrays)

    @property
    def samples(self) -> Samples:
        """All of them, in memory.

        Raises:
            ValueError: Some are missing, a file that is damaged or of something else, or more than the memory holds.
        """
        self.check_complete("--out=FOLDER")
        files = [self.file(rows) for rows in self.all]
        check_memory(f"{self.folder}", 2 * sum(file.stat().st_size for file in files))
        found: dict[str, list[np.ndarray]] = {}
        for rows, file in zip(self.all, files, strict=True):
            try:
                arrays = read_arrays(file, texts=True)
            except BROKEN as error:
                raise ValueError(f"{file} cannot be read: {error}") from error
            if "x" not in arrays or (found and arrays.keys() != found.keys()):
                raise ValueError(f"{file} has {', '.join(arrays)}, and the files before it {', '.join(found) or 'x'}")
            for name, array in arrays.items():
                if array.ndim == 0 or len(array) != len(rows):
                    raise ValueError(f"{file} must hold {len(rows)} rows of {name}, got {array.shape}")
                found.setdefault(name, []).append(array)
        columns = {name: np.concatenate(arrays) for name, arrays in found.items()}
        costs = {name: int(self.record[name]) for name in ("evaluations", "network_calls")}
        return Samples.of_arrays(columns, **costs)


def draw(
    recipe: Base,
    networks: Mapping[str, Any],
    request: Request,
    folder: str | Path,
    *,
    source: Source | None = None,
    mesh: Mesh | None = None,
) -> Iterator[tuple[int, Samples | None]]:
    """Draws samples into a folder; files that are there are kept.

    Sample i depends on (seed, i, its conditions) only, whatever the number of devices, processes and interruptions;
    where a solver couples the samples of a block, on its block of `request.batch` besides.

    Args:
        recipe: From `load_run`.
        networks: From `load_run`.
        request: What is asked for.
        folder: A new one, or one with some of the same samples.
        source: The data, where sampling starts from them.
        mesh: Splits each block over its devices; all devices by default.

    Yields:
        How many samples are drawn, and those of the newest file.

    Raises:
        ValueError: A request that the recipe refuses, a folder of something else, samples that are not finite.
    """
    mesh = make_mesh() if mesh is None else mesh
    recipe.check(request.part(range(min(request.num, request.batch))))
    if recipe.couples(request) and request.batch % count_rows(mesh):
        raise ValueError(
            f"the solver couples the samples of a block, and batch={request.batch} does not split over "
            f"{count_rows(mesh)} devices: take a multiple of them"
        )
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    parts, first = Parts(folder), jax.process_index() == 0
    check_shared(folder, bool(parts.record))
    if first or parts.record:
        asked = {"num": request.num} | recipe.record(networks, request) | {"versions": versions}
        if isinstance(recipe, Recipe) and recipe.starts_from_data:
            asked["start_sha256"] = model_hash(recipe.start_rows(source, min(request.num, 1000)))
        parts.begin(asked, row=4 * math.prod(recipe.shape), multiple=request.batch)
    everywhere(True)  # nobody looks for files before the record is there
    parts = Parts(folder)
    missing = parts.missing()
    check_shared(folder, len(missing))  # and nobody writes before all have looked
    done = request.num - sum(map(len, missing))
    yield done, None
    for rows in missing:
        try:
            samples = recipe.sample(networks, request.part(rows), source, mesh)
        except SearchError as error:
            raise ValueError(f"{error.reason}; {folder} has {done} of {request.num} samples so far") from error
        if samples.bad:
            raise ValueError(
                f"{samples.bad} of the samples {rows.start}..{rows.stop - 1} have NaN or infinite values; try more "
                "steps, a smaller guidance or another solver"
            )
        if first:
            parts.write(rows, samples)
        done += len(rows)
        yield done, samples
