"""Published weights of the autoencoder of Stable Diffusion."""

import re
from pathlib import Path

import numpy as np

from flowjax.models import KLAutoencoder
from flowjax.weights.foreign import Origin, conv_kernel, dense_kernel, read_foreign

PUBLISHED = {
    "stabilityai/sd-vae-ft-mse": "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
}
"""Digests of `diffusion_pytorch_model.safetensors`."""

# The names of attention in the files of Stable Diffusion 1 and 2, and what later files call the same.
_OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_kl_autoencoder(path: str | Path, like: KLAutoencoder, *, sha256: str | None = None) -> KLAutoencoder:
    """The weights of a file with the names of diffusers' AutoencoderKL.

    Stable Diffusion has them as `vae/diffusion_pytorch_model.safetensors`. Files that call the layers of attention
    query, key, value and proj_attn are read as well.

    Args:
        path: The file, float32 or float16.
        like: A network of the same widths, or its shapes; any height and width.
        sha256: Digest of the file, by which another one is refused.

    Raises:
        FileNotFoundError: There is no such file; the line says where to put it.
        ValueError: See `read_foreign`.

    Example:
        >>> from flax import nnx
        >>> like = nnx.eval_shape(lambda: KLAutoencoder((512, 512, 3), rngs=nnx.Rngs(0)))
        >>> read_kl_autoencoder("sd/vae.safetensors", like)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: the weights vae.safetensors ... put it at sd/vae.safetensors; stabilityai/sd-vae-ft-mse ...
    """

    def rename(name: str) -> str:
        before, between, after = name.partition(".attentions.0.")
        match = re.fullmatch(r"(query|key|value|proj_attn)\.(weight|bias)", after)
        return f"{before}{between}{_OLDER[match[1]]}.{match[2]}" if match else name

    return read_foreign(
        path, like, origins(like.levels, like.blocks), sha256=sha256, published=PUBLISHED, rename=rename
    )


def origins(levels: int, blocks: int) -> dict[str, Origin]:
    """What every array of a `KLAutoencoder` is made of, for `read_foreign`."""
    found: dict[str, Origin] = {}

    def conv(own: str, there: str) -> None:
        found[f"{own}.kernel"] = (f"{there}.weight",), conv_kernel
        found[f"{own}.bias"] = (f"{there}.bias",), lambda bias: bias

    def norm(own: str, there: str) -> None:
        for name, other in (("scale", "weight"), ("bias", "bias")):
            found[f"{own}.{name}"] = (f"{there}.{other}",), lambda array: array

    def block(own: str, there: str) -> None:
        for number in "12":
            norm(f"{own}.norm{number}", f"{there}.norm{number}")
            conv(f"{own}.conv{number}", f"{there}.conv{number}")
        conv(f"{own}.skip", f"{there}.conv_shortcut")  # there and here where the width changes

    def attend(own: str, there: str) -> None:
        norm(f"{own}.norm", f"{there}.group_norm")
        names = [f"{there}.to_{letter}" for letter in "qkv"]
        found[f"{own}.qkv.kernel"] = (
            tuple(f"{name}.weight" for name in names),
            lambda *three: np.stack([dense_kernel(weight) for weight in three], axis=1)[:, :, None],  # one head
        )
        found[f"{own}.qkv.bias"] = (
            tuple(f"{name}.bias" for name in names),
            lambda *three: np.stack(three)[:, None],
        )
        found[f"{own}.project.kernel"] = (f"{there}.to_out.0.weight",), lambda weight: dense_kernel(weight)[None]
        found[f"{own}.project.bias"] = (f"{there}.to_out.0.bias",), lambda bias: bias

    for half, mix in (("encoder", "quant_conv"), ("decoder", "post_quant_conv")):
        conv(f"{half}.embed", f"{half}.conv_in")
        conv(f"{half}.mix", mix)
        norm(f"{half}.norm", f"{half}.conv_norm_out")
        conv(f"{half}.unembed", f"{half}.conv_out")
        middle = [f"{half}.mid_block.resnets.{number}" for number in (0, 1)]
        places: list[tuple[str, str]] = []
        for level in range(levels):
            way, sampler = ("down", "downsamplers.0.conv") if half == "encoder" else ("up", "upsamplers.0.conv")
            inner = f"{half}.{way}_blocks.{level}"
            places += [(f"{inner}.resnets.{j}", "") for j in range(blocks + (half == "decoder"))]
            if level < levels - 1:
                places.append((f"{inner}.{sampler}", "" if half == "encoder" else ".conv"))
        ordered = [*places, *((place, "") for place in middle)]
        if half == "decoder":
            ordered = [*((place, "") for place in middle), *places]
        for number, (there, inside) in enumerate(ordered):
            own = f"{half}.layers.{number}"
            if "sampler" in there:
                conv(own + inside, there)
            else:
                block(own, there)
            if there == middle[0]:
                attend(f"{own}.attend", f"{half}.mid_block.attentions.0")
    return found
