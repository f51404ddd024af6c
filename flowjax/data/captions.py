"""Pictures of small coloured bodies with a text each: a small text-to-image problem without files.

A text is "a small red circle" or has a second body and where the first one stands: "a red circle left of a big blue
square". Sizes are named half of the time; what a text does not say is drawn at random, and so are the places.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from flowjax._checks import SEED, choose, whole
from flowjax.data.records import check_memory, scale_of
from flowjax.data.sources import Source

SIZES = {"small": 0.13, "big": 0.21}
"""Half the width of a body over that of the picture."""
COLOURS = {"red": (230, 40, 40), "green": (40, 190, 60), "blue": (60, 90, 240), "yellow": (240, 220, 50)}
BODIES = ("circle", "square", "triangle", "cross")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the first body stands, seen from the second: columns to the right, rows down."""
_FINE = 4  # sub-pixels along each side of a pixel
_BLOCK = 256


def _inside(
    body: Int[np.ndarray, " B"], x: Float[np.ndarray, "B 1 columns"], y: Float[np.ndarray, "B rows 1"]
) -> Bool[np.ndarray, "B rows columns"]:
    """Which points lie in bodies that reach from -1 to 1."""
    found = np.empty((len(body), y.shape[1], x.shape[2]), bool)
    for kind, name in enumerate(BODIES):
        u, v = x[body == kind], y[body == kind]
        if name == "circle":
            found[body == kind] = u**2 + v**2 <= 1
        elif name == "square":
            found[body == kind] = (abs(u) <= 0.9) & (abs(v) <= 0.9)
        elif name == "triangle":
            found[body == kind] = (abs(u) <= (v + 1) / 2) & (v <= 1)
        else:
            found[body == kind] = np.where(abs(v) <= 0.35, abs(u) <= 1, (abs(u) <= 0.35) & (abs(v) <= 1))
    return found


def _draw(scenes: dict[str, np.ndarray], resolution: int) -> UInt8[np.ndarray, "B H W 3"]:
    """The pictures of scenes; a pixel is covered by the part of its sub-pixels that lie in a body."""
    fine = resolution * _FINE
    edge = ((np.arange(fine) + 0.5) / fine).astype(np.float32)
    colours = np.array(list(COLOURS.values()), np.float32)
    picture = np.zeros((len(scenes["two"]), resolution, resolution, 3), np.float32)
    for i, shown in enumerate((np.ones(len(picture), bool), scenes["two"])):
        place, radius = scenes["places"][:, i].astype(np.float32), scenes["radius"][:, i].astype(np.float32)
        x, y = ((edge[None] - place[:, axis, None]) / radius[:, None] for axis in (0, 1))
        inside = _inside(scenes["body"][:, i], x[:, None, :], y[:, :, None]) & shown[:, None, None]
        parts = inside.reshape(-1, resolution, _FINE, resolution, _FINE).mean((2, 4), dtype=np.float32)
        picture += parts[..., None] * colours[scenes["colour"][:, i], None, None]  # bodies never overlap
    return np.round(picture).astype(np.uint8)


def _scenes(u: Float[np.ndarray, "N 16"], relations: tuple) -> dict[str, np.ndarray]:
    """What stands where, from uniform numbers."""
    known = np.array([list(RELATIONS).index(name) for name in relations])

    def pick(columns: slice, count: int) -> np.ndarray:
        return np.minimum((u[:, columns] * count).astype(int), count - 1)

    two, relation = u[:, 0] < 0.75, known[pick(slice(1, 2), len(known))[:, 0]]
    shift = np.array(list(RELATIONS.values()))[relation]
    # Two bodies keep to their halves, whatever their sizes; one stands anywhere.
    along, across = 0.25 + 0.06 * (u[:, 2:6] - 0.5), 0.3 + 0.4 * u[:, 2:6]
    places = np.empty((len(u), 2, 2))
    for i, side in ((0, shift), (1, -shift)):
        inner = np.where(side > 0, 1 - along[:, 2 * i : 2 * i + 2], along[:, 2 * i : 2 * i + 2])
        free = (side == 0) | ~two[:, None]
        places[:, i] = np.where(free, across[:, 2 * i : 2 * i + 2], inner)
    size = pick(slice(10, 12), 2)
    return {
        "two": two,
        "relation": relation,
        "places": places,
        "body": pick(slice(6, 8), len(BODIES)),
        "colour": pick(slice(8, 10), len(COLOURS)),
        "size": size,
        "radius": np.array(list(SIZES.values()))[size],
        "named": u[:, 12:14] < 0.5,
    }


def _texts(scenes: dict[str, np.ndarray]) -> np.ndarray:
    """What the scenes are called."""
    sizes, colours, relations = list(SIZES), list(COLOURS), list(RELATIONS)

    def phrase(row: int, i: int) -> str:
        named = f"{sizes[scenes['size'][row, i]]} " if scenes["named"][row, i] else ""
        return f"a {named}{colours[scenes['colour'][row, i]]} {BODIES[scenes['body'][row, i]]}"

    texts = [
        f"{phrase(row, 0)} {relations[scenes['relation'][row]]} {phrase(row, 1)}" if two else phrase(row, 0)
        for row, two in enumerate(scenes["two"])
    ]
    return np.array(texts)


def source(*, size: int = 8192, resolution: int = 16, seed: int = 0, relations: tuple = tuple(RELATIONS)) -> Source:
    """Pictures of small coloured bodies (size, resolution, resolution, 3), with texts that say what stands where.

    The texts are the field "text", (size,). There are four colours, four bodies, two sizes and four relations.

    Args:
        size: Number of pictures, at least 1.
        resolution: Height and width in pixels, 8 to 256.
        seed: Equal seeds give equal pictures, different seeds independent ones; the first ones do not depend on `size`.
        relations: Those that texts of two bodies have. Of a relation and its opposite small models learn neither: which
            body stands where then depends on two things of which each alone says nothing.

    Raises:
        ValueError: A number outside its range, an unknown relation or none, or more pictures than half of this
            machine's memory holds.

    Example:
        >>> data = source(size=10)
        >>> data.x.shape, str(data.fields["text"][3])
        ((10, 16, 16, 3), 'a small green square below a small yellow circle')
    """
    whole("[1, 1e12]", size=size)
    whole("[8, 256]", resolution=resolution)
    whole(SEED, seed=seed)
    if not relations:
        raise ValueError(f"relations must be some of {', '.join(RELATIONS)}, got none")
    for name in relations:
        choose("relation", name, RELATIONS)
    check_memory(f"size={size}", size * (resolution**2 * 3 + 16 * 8 + 1000))
    scenes = _scenes(np.random.default_rng(seed).random((size, 16)), relations)
    x = np.empty((size, resolution, resolution, 3), np.uint8)
    rows = max(1, _BLOCK * 16**2 // resolution**2)
    for start in range(0, size, rows):
        block = slice(start, start + rows)
        x[block] = _draw({name: values[block] for name, values in scenes.items()}, resolution)
    return Source(x=x, **scale_of(x), fields={"text": _texts(scenes)})
