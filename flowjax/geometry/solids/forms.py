"""Solids as people look at them: contact sheets, meshes, clouds of points, turntables; and how near they are."""

import abc
import dataclasses
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from PIL import Image

from flowjax._checks import COUNT, choose, whole
from flowjax._files import replacing
from flowjax.evaluation import pictures
from flowjax.facts import fact
from flowjax.geometry.solids import meshes
from flowjax.geometry.solids.sources import camera, density
from flowjax.geometry.solids.sources import pictures as render
from flowjax.geometry.solids.structure import decode, features, numbers_of

MESHES = ("glb", "ply", "obj", "none")
_SHOWN = 40  # samples of a contact sheet
_WRITTEN = re.compile(r"\d{4,}(\.(glb|ply|obj|gif)|_points\.ply)")  # names that `write` gives


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form(abc.ABC):
    """What solids of both stages share: each sample is a grid of signed distances with colours.

    Attributes:
        mesh: Form of the meshes that are written: "glb", "ply", "obj", or "none".
        points: Points on the surface that are written as a PLY cloud; 0 is none.
        frames: Pictures of a turntable, an animated GIF; 0 is none.
        size: Pixels along a side of renderings.
        most: So many of the samples, the first, get files of their own.

    Raises:
        ValueError: An unknown name, or a number outside its range.

    Example:
        >>> issubclass(Voxels, Form) and issubclass(Solids, Form)
        True
    """

    mesh: str = "glb"
    points: int = 2048
    frames: int = 24
    size: int = 96
    most: int = 16

    grey: ClassVar[float] = 0.75

    def __post_init__(self) -> None:
        choose("mesh", self.mesh, MESHES)
        whole("[0, inf)", points=self.points, frames=self.frames, most=self.most)
        whole(COUNT, size=self.size)

    @abc.abstractmethod
    def grids(self, samples: Any) -> list[tuple[Float[np.ndarray, "F F F"], Float[np.ndarray, "F F F 3"]]]:
        """Distances and colours of each sample."""

    @abc.abstractmethod
    def compare(self, samples: Any, real: np.ndarray) -> dict[str, float]:
        """How near samples are to the examples under whose conditions they were drawn, row by row."""

    @abc.abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses to show samples of another shape.

        Raises:
            ValueError: They have one.
        """

    def seen(self, grids: list[Any], azimuth: float | None = None) -> Float[np.ndarray, "N size size 3"]:
        """Renderings of grids of distances and colours, from where views are taken or another azimuth in degrees."""
        turned = {} if azimuth is None else {"azimuth": azimuth}
        distances, colours = (np.stack(part) for part in zip(*grids, strict=True))
        return np.asarray(render(density(distances), colours.astype(np.float32), camera(self.size, **turned)))

    def picture(self, samples: Any, path: str | Path) -> None:
        """A contact sheet: renderings of the first 40 samples, each below the picture that it was asked for by."""
        first = dataclasses.replace(samples, x=samples.x[:_SHOWN], cond=_rows(samples.cond, _SHOWN))
        rows = [self.seen(self.grids(first))]
        if isinstance(first.cond, dict) and "image" in first.cond:
            frames = [
                Image.fromarray(view).resize((self.size,) * 2, Image.Resampling.NEAREST) for view in first.cond["image"]
            ]
            rows.insert(0, np.stack([np.asarray(frame) for frame in frames]) / 255)
        columns = 10
        shown = [row[i : i + columns] for i in range(0, len(first.x), columns) for row in rows]
        if len(rows) == 2 and len(shown[-1]) < columns < len(first.x):  # rows of a sheet are of equal length
            shown[-2:] = [np.concatenate([r, np.ones((columns - len(r), *r.shape[1:]))]) for r in shown[-2:]]
        width = min(columns, len(first.x))
        pictures.grid(np.concatenate(shown), path, low=0.0, high=1.0, columns=width, zoom=1)

    def require(self) -> None:
        """Refuses to begin where files could not be written in the end.

        Raises:
            ValueError: A library is not installed.
        """
        meshes.require()

    def write(self, samples: Any, folder: Path) -> str:
        """Writes meshes, points and turntables of the first samples, in place of earlier ones; says what it wrote."""
        for earlier in folder.glob("*"):
            if _WRITTEN.fullmatch(earlier.name):
                earlier.unlink()
        count = min(self.most, len(samples.x))
        grids = self.grids(dataclasses.replace(samples, x=samples.x[:count], cond=_rows(samples.cond, count)))
        empty = 0
        for number, (distance, colour) in enumerate(grids):
            surface = meshes.surface(distance, colour)
            if surface is None:
                empty += 1
                continue
            if self.mesh != "none":
                meshes.write(surface, folder / f"{number:04d}.{self.mesh}")
            if self.points:
                meshes.write(meshes.cloud(surface, self.points, number), folder / f"{number:04d}_points.ply")
        angles = np.linspace(0, 360, self.frames, endpoint=False)
        turns = [self.seen(grids, float(angle)) for angle in angles] if grids else []
        for number in range(count if turns else 0):
            frames = [Image.fromarray(np.rint(255 * turn[number]).astype(np.uint8)) for turn in turns]
            with replacing(folder / f"{number:04d}.gif") as part:
                frames[0].save(part, save_all=True, append_images=frames[1:], duration=100, loop=0)
        kinds = {f"meshes ({self.mesh})": self.mesh != "none", "points": self.points, "turntables": self.frames}
        said = f"{count} of {len(samples.x)} samples as {', '.join(k for k, is_asked in kinds.items() if is_asked)}"
        return said + (f"; {empty} are empty" if empty else "")


def _rows(cond: Any, count: int) -> Any:
    return {name: rows[:count] for name, rows in cond.items()} if isinstance(cond, dict) else cond


@fact("form", "voxels", "occupancy grids")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Voxels(Form):
    """Occupancy grids (R, R, R, 1), full where above 1/2; see `Form`.

    Example:
        >>> import numpy as np
        >>> from flowjax.recipe import Samples
        >>> full = np.zeros((1, 4, 4, 4, 1)); full[0, 1:3, 1:3, 1:3] = 1.0
        >>> samples = Samples(x=full, cond=None, evaluations=1, network_calls=1)
        >>> Voxels().compare(samples, full)
        {'iou': 1.0}
    """

    def check(self, shape: tuple[int, ...]) -> None:
        """Grids of one number."""
        if len(shape) != 4 or shape[-1] != 1:
            raise ValueError(f"voxels are grids (R, R, R, 1), and samples have the shape {tuple(shape)}")

    def grids(self, samples: Any) -> list[tuple[Float[np.ndarray, "F F F"], Float[np.ndarray, "F F F 3"]]]:
        """1/2 - occupancy in voxels, grey."""
        side = 2 / samples.x.shape[1]
        return [(side * (0.5 - x[..., 0]), np.full((*x.shape[:3], 3), self.grey)) for x in samples.x]

    def compare(self, samples: Any, real: np.ndarray) -> dict[str, float]:
        """Mean "iou", full voxels of both over those of either."""
        made, there = (np.asarray(x).reshape(len(x), -1) > 0.5 for x in (samples.x, real))
        either = np.maximum((made | there).sum(1), 1)
        return {"iou": float(((made & there).sum(1) / either).mean())}


@fact("form", "solids", "details of the blocks of occupancy grids")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Solids(Form):
    """Features (N, F) of active blocks, of samples with the condition "structure"; see `Form`.

    Attributes:
        block: Voxels along a block.
        fine: Points of the distances along a voxel.

    Example:
        >>> Solids(mesh="ply", frames=0).fine
        2
    """

    block: int = 2
    fine: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(COUNT, block=self.block, fine=self.fine)

    def check(self, shape: tuple[int, ...]) -> None:
        """Blocks of this size have so many numbers."""
        if shape[-1] != features(self.block):
            raise ValueError(f"block={self.block} has {features(self.block)} numbers, and samples have {shape[-1]}")

    def grids(self, samples: Any) -> list[tuple[Float[np.ndarray, "F F F"], Float[np.ndarray, "F F F 3"]]]:
        """See `flowjax.geometry.solids.structure.decode`."""
        return self._decoded(samples.cond["structure"], samples.x)

    def _decoded(self, structures: np.ndarray, details: np.ndarray) -> list[Any]:
        return [
            decode(s.astype(np.float32), d, self.block, self.fine) for s, d in zip(structures, details, strict=True)
        ]

    def compare(self, samples: Any, real: np.ndarray, structures: np.ndarray | None = None) -> dict[str, float]:
        """Mean "chamfer" distance of the surfaces, and mean "colour_error" of the blocks that both have.

        Args:
            samples: See `Form`.
            real: The examples.
            structures: Their grids, where samples have others; by default those of the samples.
        """
        own = samples.cond["structure"]
        structures = own if structures is None else structures
        pairs = zip(self.grids(samples), self._decoded(structures, real), strict=True)
        found = [meshes.apart(*(meshes.surface(*grid) for grid in pair)) for pair in pairs]
        numbers, errors = (numbers_of(grids, self.block) for grids in (own, structures)), []
        for made, there, *blocks in zip(samples.x, real, *numbers, strict=True):
            first, second = ({tuple(n): row for row, n in enumerate(some[: len(made)])} for some in blocks)
            errors += [np.abs(made[row] - there[second[n]])[-3:] / 2 for n, row in first.items() if n in second]
        return {"chamfer": float(np.mean(found)), "colour_error": float(np.mean(errors)) if errors else math.nan}
