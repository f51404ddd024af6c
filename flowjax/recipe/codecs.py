"""What lies between data and the latents that a flow lives on, as specs: `config.codec`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jax.sharding import Mesh

from flowjax import _checks
from flowjax.facts import fact
from flowjax.recipe.fixed import Fixed
from flowjax.recipe.runs import Loaded, Run

STATISTICS = ("all", "elements", "own")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """How latents are made, kept, normalised and decoded; a codec adds where they come from.

    Attributes:
        statistics: What normalises latents z: "all", (z - mean) / deviation of all their numbers; "elements",
            (z - mean) / sqrt(variance + 1e-5) of each entry (h, w, c) by itself; "own", the codec's own scale, which
            is z times its `latent_scale` if it has one, and z otherwise.
        sample: Whether latents are drawn from the posterior, anew at each visit of an example; False takes its mean.
        tile: Side of the tiles, in latents, in which large pictures are decoded; None decodes them whole.
        overlap: Rows and columns of latents that two tiles share, below `tile`; a quarter of it by default.
        cache: Folder of the latents, for codecs in places that cannot be written; by default that of the codec, and
            without weights none: then latents are made when they are asked for.

    Raises:
        ValueError: A number or name that is not allowed.

    Example:
        >>> Codec(tile=32, sample=True).described()
        {'sample': True, 'tiles': (32, 8)}
    """

    statistics: str = "all"
    sample: bool = False
    tile: int | None = None
    overlap: int | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.choose("statistics", self.statistics, STATISTICS)
        if not isinstance(self.sample, bool):
            raise ValueError(f"sample must be True or False, got {self.sample!r}")
        if self.cache is not None and not (isinstance(self.cache, str) and self.cache):
            raise ValueError(f"cache must be a folder, got {self.cache!r}")
        if self.tile is None and self.overlap is not None:
            raise ValueError(f"overlap={self.overlap} is that of tiles: give tile=")
        if self.tile is not None:
            _checks.whole("[2, inf)", tile=self.tile)
            _checks.whole(f"[0, {self.tile - 1}]", overlap=self.tiles[1])

    @property
    def tiles(self) -> tuple[int, int]:
        """Side and overlap."""
        side = self.tile or 0
        return side, side // 4 if self.overlap is None else self.overlap

    def described(self) -> dict[str, Any]:
        """What the recipe says of it beside shape and scale."""
        return ({"sample": True} if self.sample else {}) | ({} if self.tile is None else {"tiles": self.tiles})

    @classmethod
    def of_recipe(cls, codec: Mapping[str, Any]) -> "Codec":
        """That of a flow which was trained, for students; its latents have a scale already."""
        side, overlap = codec.get("tiles", (None, None))
        return cls(sample=codec.get("sample", False), tile=side, overlap=overlap)

    def open(self, of_data: Mapping[str, Any], mesh: Mesh | None) -> Loaded:
        """The codec itself.

        Args:
            of_data: What its recipe says of the data, where it has none of its own.
            mesh: Where its weights go.

        Raises:
            ValueError: There is no such codec, or it does not fit the data.
        """
        raise ValueError("a codec is run(workdir=...), identity or patch(size=...)")


@fact("codec", "run", "a trained autoencoder", cite="rombach2021high", example=lambda: {"workdir": "runs/autoencoder"})
@dataclasses.dataclass(frozen=True, kw_only=True)
class RunCodec(Codec, Run):
    """Latents of a trained run that encodes and decodes examples; options of `Codec`, and of `Run` the folder.

    Latents are encoded once and kept in WORKDIR/latents, or in `cache`.

    References:
        Rombach et al. (2021), High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752.
        Zheng et al. (2025), Diffusion Transformers with Representation Autoencoders, arXiv:2510.11690
        (statistics="elements").

    Example:
        >>> import flowjax as fj
        >>> codec = fj.build("codec", "run(workdir='runs/autoencoder', statistics=elements)")
        >>> codec.workdir, codec.statistics, codec.sample
        ('runs/autoencoder', 'elements', False)
    """

    def __post_init__(self) -> None:
        """Checks the options."""
        Run.__post_init__(self)
        if (self.which, self.average, self.dtype) != ("latest", None, None):
            raise ValueError(
                "a codec is the newest checkpoint with the default average in its own precision: leave which, average "
                "and dtype out"
            )
        super().__post_init__()

    def open(self, of_data: Mapping[str, Any], mesh: Mesh | None) -> Loaded:
        """Reads the run."""
        return self.load(mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fixed(Codec):
    """One without weights."""

    statistics: str = "own"

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        if self.sample:
            raise ValueError(f"sample=True draws from a posterior, and {self.name} has none: leave it out")

    @property
    def options(self) -> dict[str, Any]:
        """What latents depend on."""
        return {}

    def open(self, of_data: Mapping[str, Any], mesh: Mesh | None) -> Loaded:
        """Fits it to the data."""
        recipe = Fixed(network={"name": self.name, "options": self.options}, **of_data)
        networks = {recipe.label: recipe.build_network()}
        return Loaded(workdir=None, networks=networks, recipe=recipe, model=recipe.model)


@fact("codec", "identity", "examples as they are")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity(_Fixed):
    """Normalised examples themselves as latents, for their statistics: with "own" a flow as without a codec.

    Example:
        >>> import flowjax as fj
        >>> fj.build("codec", "identity(statistics=elements)").statistics
        'elements'
    """

    name: ClassVar[str] = "identity"


@fact("codec", "patch", "pixels of a patch as channels")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Patch(_Fixed):
    """Space to depth: images (H, W, C) as latents (H/p, W/p, p p C), and back exactly.

    Attributes:
        size: p; it divides H and W.

    Example:
        >>> import flowjax as fj
        >>> fj.build("codec", "patch(size=4)").options
        {'size': 4}
    """

    size: int = 2

    name: ClassVar[str] = "patch"

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        _checks.whole(_checks.COUNT, size=self.size)

    @property
    def options(self) -> dict[str, Any]:
        """What latents depend on."""
        return {"size": self.size}
