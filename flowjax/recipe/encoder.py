"""The recipe of a published encoder: what makes tokens of images, and was trained elsewhere."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from flowjax import _checks
from flowjax.data import Source
from flowjax.models.representation import check_encoder
from flowjax.models.vit import ViT
from flowjax.recipe.base import Base, shapes_of
from flowjax.recipe.request import Request
from flowjax.recipe.runs import export_run
from flowjax.weights import read_dinov2


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderRecipe(Base):
    """How to rebuild an encoder whose weights come from elsewhere; attributes are those of `Base`.

    Its network makes tokens (B, h, w, hidden_size) of images in [0, 1] by `encode(images)`. Such a run stands behind
    others, as `config.encoder="run(workdir=...)"`; it draws no samples and has no data of its own.

    Example:
        >>> options = {"image_shape": (8, 8, 3), "patch": 4, "width": 8, "depth": 1, "heads": 2}
        >>> recipe = EncoderRecipe(network={"name": "vit", "options": options}, **of_images((8, 8, 3)))
        >>> recipe.check_networks({"network": shapes_of(recipe.build_network)})
        >>> recipe.kind, recipe.data["name"]
        ('encoder', 'blank')
    """

    kind: str = "encoder"

    label: ClassVar[str] = "network"

    def check_networks(self, shapes: Mapping[str, Any]) -> None:
        """Images must become tokens."""
        check_tokens("the network", shapes["network"], self.shape)

    def sweep(self, request: Request, **lists: Sequence[Any]) -> list[tuple[dict[str, Any], Request]]:
        """Refuses.

        Raises:
            ValueError: There is nothing to measure.
        """
        raise ValueError(
            "an encoder is measured by what stands on it: train a decoder of its tokens, --config=rae:decoder"
        )

    def assess(
        self,
        networks: Mapping[str, Any],
        source: Source,
        request: Request,
        *,
        judge: Any = None,
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        """Refuses, as `sweep`."""
        return self.sweep(request)[0][0]


def of_images(shape: tuple[int, ...]) -> dict[str, Any]:
    """What a recipe says of images (H, W, C) in [0, 1] that it has none of."""
    blank = {"name": "blank", "options": {"shape": tuple(shape)}}
    return {
        "data": blank,
        "shape": tuple(shape),
        "shift": 0.5,
        "scale": 0.5,
        "low": 0.0,
        "high": 1.0,
        "num_classes": None,
    }


def check_tokens(what: str, network: Any, shape: tuple[int, ...]) -> None:
    """Refuses a network that does not make tokens (B, h, w, hidden_size) of images (H, W, C) in [0, 1].

    Raises:
        ValueError: See above.
    """
    check_encoder(what, network)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    try:
        found = jax.eval_shape(lambda network, x: network.encode(x), network, images)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} does not encode images of shape {tuple(shape)}: {error}") from error
    if not hasattr(found, "shape") or len(found.shape) != 4 or found.shape[-1] != network.hidden_size:
        raise ValueError(f"{what} must make tokens (B, h, w, {network.hidden_size}), got {found}")


def import_dinov2(
    path: str | Path,
    folder: str | Path,
    *,
    size: str = "base",
    image_shape: tuple[int, int, int] = (256, 256, 3),
    resize: int | None = 224,
    sha256: str | None = None,
    dtype: Any = None,
) -> None:
    """Makes a run of published weights of DINOv2 with registers, which `config.encoder` may name.

    Args:
        path: `model.safetensors`, see `flowjax.weights.dinov2`.
        folder: Folder to write; made if needed.
        size: "small", "base" or "large".
        image_shape: (H, W, C) of the images that will be encoded.
        resize: Side to which they are resized, a multiple of 14; None leaves them.
        sha256: Hash that the file must have.
        dtype: Type of the weights in the folder, for example "float16"; None keeps float32.

    Raises:
        FileNotFoundError: There is no such file; the line says where to put it.
        ValueError: It does not fit, see `flowjax.weights.read_dinov2`; a shape that is none of images.
        FileExistsError: The folder holds weights or a recipe already.
    """
    _checks.sizes(3, image_shape=image_shape)
    options = {**ViT.size(size), "image_shape": tuple(image_shape), "resize": resize}
    recipe = EncoderRecipe(network={"name": "vit", "options": options}, **of_images(image_shape))
    shapes = shapes_of(recipe.build_network)
    recipe.check_networks({"network": shapes})
    export_run({"network": read_dinov2(path, shapes, sha256=sha256)}, recipe, folder, dtype)
