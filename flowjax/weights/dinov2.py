"""Published weights of DINOv2 with registers, as the library transformers names them, for the network `ViT`."""

import re
import warnings
from pathlib import Path

import numpy as np

from flowjax._trees import flatten
from flowjax.models.vit import SIZES, ViT
from flowjax.weights.foreign import Origin, dense_kernel, file_digest, read_foreign

PREFIX = "dinov2_with_registers."
"""In front of all names where the file holds a classifier."""

PUBLISHED = {
    "facebook/dinov2-with-registers-small": "",
    "facebook/dinov2-with-registers-base": "7a6f7b3b9fa4b8732e707476a03cd6cdce210048582f21aafb7991c17d98e362",
    "facebook/dinov2-with-registers-large": "",
}
"""Digests of `model.safetensors`; "" where none is known."""

UNUSED = re.compile(r"embeddings\.mask_token|layernorm\.(weight|bias)|classifier\.(weight|bias)")
"""What an encoder of tokens has no use for; its last normalisation has neither scale nor shift."""


def read_dinov2(path: str | Path, network: ViT, *, sha256: str | None = None) -> ViT:
    """The network with the weights of a file, in its own types.

    The files are `model.safetensors` of facebook/dinov2-with-registers-small, -base or -large.

    Args:
        path: A safetensors file.
        network: A `ViT`, or one in shapes (`nnx.eval_shape`), without `outputs`; a size is `ViT.size("base")`.
        sha256: Digest of the file, by which another one is refused; without it, a warning names a file of a published
            size that is not the published one, where its digest is known.

    Raises:
        FileNotFoundError: There is no such file; the line says where to put it.
        ValueError: A network with `outputs`, and see `read_foreign`.
    """
    if network.head is not None:
        raise ValueError("a published encoder has no logits: build the ViT without outputs=")

    def rename(name: str) -> str | None:
        name = name.removeprefix(PREFIX)
        return None if UNUSED.fullmatch(name) else name

    sized = {name: PUBLISHED[name] for size, name in zip(SIZES, PUBLISHED, strict=True) if _is_of(network, size)}
    made = read_foreign(path, network, origins(network), sha256=sha256, published=sized, rename=rename)
    for name, digest in sized.items():
        if sha256 is None and digest and digest != (found := file_digest(path)):
            warnings.warn(f"{path} is not the published {name}: its sha256 is {found}, not {digest}", stacklevel=2)
    return made


def _is_of(network: ViT, size: str) -> bool:
    """Whether a network has the width and the depth of a published size."""
    return (network.hidden_size, len(network.blocks)) == (SIZES[size]["width"], SIZES[size]["depth"])


def origins(network: ViT) -> dict[str, Origin]:
    """What every array of a `ViT` is made of, for `read_foreign`."""
    shapes = {name: leaf.shape for name, leaf in flatten(network).items()}
    places = ("embeddings.position_embeddings",)
    projection = "embeddings.patch_embeddings.projection"
    found: dict[str, Origin] = {
        "token": (("embeddings.cls_token",), lambda token: token[0, 0]),
        "token_position": (places, lambda table: table[0, 0]),
        "positions": (places, lambda table: table[0, 1:].reshape(shapes["positions"])),
        # OIHW -> HWIO, whose first three axes are the pixels of a patch.
        "embed.kernel": (
            (f"{projection}.weight",),
            lambda weight: weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]),
        ),
        "embed.bias": ((f"{projection}.bias",), lambda bias: bias),
        "registers": (("embeddings.register_tokens",), lambda tokens: tokens[0]),
    }

    def dense(own: str, there: str) -> None:
        shape = shapes[f"{own}.kernel"]
        found[f"{own}.kernel"] = (f"{there}.weight",), lambda weight: dense_kernel(weight).reshape(shape)
        found[f"{own}.bias"] = (f"{there}.bias",), lambda bias: bias

    for i in range(len(network.blocks)):
        own, there = f"blocks.{i}", f"encoder.layer.{i}"
        dense(f"{own}.project", f"{there}.attention.output.dense")
        dense(f"{own}.inner", f"{there}.mlp.fc1")
        dense(f"{own}.outer", f"{there}.mlp.fc2")
        for number in "12":
            found[f"{own}.norm{number}.scale"] = (f"{there}.norm{number}.weight",), lambda scale: scale
            found[f"{own}.norm{number}.bias"] = (f"{there}.norm{number}.bias",), lambda bias: bias
            found[f"{own}.scale{number}"] = (f"{there}.layer_scale{number}.lambda1",), lambda scale: scale
        three = [f"{there}.attention.attention.{part}" for part in ("query", "key", "value")]
        for name, other in (("kernel", "weight"), ("bias", "bias")):
            shape = shapes[f"{own}.qkv.{name}"]  # (in, 3, heads, head)
            found[f"{own}.qkv.{name}"] = (
                tuple(f"{part}.{other}" for part in three),
                lambda *parts, shape=shape: np.stack([part.T for part in parts], axis=-2).reshape(shape),
            )
    return found
