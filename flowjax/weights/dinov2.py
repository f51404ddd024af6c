"""Published weights of DINOv2 with registers, as the library transformers names them, for the network `ViT`.

The files are `model.safetensors` of facebook/dinov2-with-registers-small, -base or -large; an npz file with arrays of
the same names is read as well. Kernels are turned from (out, in) to (in, out) and from OIHW to patches, row by row.
What an encoder of tokens has no use for (mask token, scale and shift of the last normalisation, a classifier) is left
out.
"""

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from flowjax._trees import flatten, unflatten
from flowjax.models.vit import ViT

PREFIX = "dinov2_with_registers."
"""In front of all names where the file holds a classifier."""

UNUSED = re.compile(r"embeddings\.mask_token|layernorm\.(weight|bias)|classifier\.(weight|bias)")

_LAYERS = {
    "norm1.weight": "norm1.scale",
    "norm1.bias": "norm1.bias",
    "attention.output.dense.weight": "project.kernel",
    "attention.output.dense.bias": "project.bias",
    "layer_scale1.lambda1": "scale1",
    "norm2.weight": "norm2.scale",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "inner.kernel",
    "mlp.fc1.bias": "inner.bias",
    "mlp.fc2.weight": "outer.kernel",
    "mlp.fc2.bias": "outer.bias",
    "layer_scale2.lambda1": "scale2",
}
_PARTS = ("query", "key", "value")


def names(network: ViT) -> dict[str, tuple[str, int | None, tuple[int, ...]]]:
    """Each name of a file, with the array of the network that it is for, which third of it, and its shape there."""
    width, patch, channels = network.hidden_size, network.patch_size, network.image_shape[-1]
    shapes = {name: leaf.shape for name, leaf in flatten(network).items()}
    rows, columns = network.table_grid
    found: dict[str, tuple[str, int | None, tuple[int, ...]]] = {
        "embeddings.cls_token": ("token", None, (1, 1, width)),
        "embeddings.position_embeddings": ("positions", None, (1, 1 + rows * columns, width)),
        "embeddings.patch_embeddings.projection.weight": ("embed.kernel", None, (width, channels, patch, patch)),
        "embeddings.patch_embeddings.projection.bias": ("embed.bias", None, (width,)),
    }
    if network.registers is not None:
        found["embeddings.register_tokens"] = ("registers", None, (1, *shapes["registers"]))
    for i in range(len(network.blocks)):
        for there, here in _LAYERS.items():
            own = shapes[f"blocks.{i}.{here}"]
            flat = {"project.kernel": (width, width)}.get(here, own)
            found[f"encoder.layer.{i}.{there}"] = (f"blocks.{i}.{here}", None, flat[::-1])
        for number, part in enumerate(_PARTS):
            name = f"encoder.layer.{i}.attention.attention.{part}"
            found[f"{name}.weight"] = (f"blocks.{i}.qkv.kernel", number, (width, width))
            found[f"{name}.bias"] = (f"blocks.{i}.qkv.bias", number, (width,))
    return found


def read_dinov2(path: str | Path, network: ViT, sha256: str | None = None) -> ViT:
    """The network with the weights of a file, in its own types.

    Args:
        path: A safetensors file, or an npz file.
        network: A `ViT`, or one in shapes (`nnx.eval_shape`), without `outputs`; a size is `ViT.size("base")`.
        sha256: Hash that the file must have, in hexadecimal digits.

    Raises:
        ValueError: No such file, one that is not whole or has another hash, names that are missing or that the network
            has no place for, arrays of another shape, or values that are not finite.
    """
    path = Path(path)
    if network.head is not None:
        raise ValueError("a published encoder has no logits: build the ViT without outputs=")
    if not path.is_file():
        hashed = "" if sha256 is None else f" with the SHA-256 {sha256}"
        raise ValueError(
            f"the weights {path} are missing: get model.safetensors of facebook/dinov2-with-registers-small, -base or "
            f"-large{hashed} and put it there"
        )
    if sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256.lower():
            raise ValueError(f"{path} has the SHA-256 {found}, not {sha256}: get it again")
    try:
        with _opened(path) as (shapes, get):
            return _filled(path, network, shapes, get)
    except (SafetensorError, zipfile.BadZipFile, EOFError, KeyError, OSError) as error:
        raise ValueError(f"{path} is not a whole file of weights: {error}") from error


def _filled(path: Path, network: ViT, shapes: dict[str, tuple], get: Callable[[str], np.ndarray]) -> ViT:
    wanted = names(network)
    own = {name.removeprefix(PREFIX): name for name in shapes}
    missing = [name for name in wanted if name not in own]
    unexpected = [name for name in own if name not in wanted and not UNUSED.fullmatch(name)]
    if missing or unexpected:
        parts = [f"{what} {_listed(some)}" for what, some in (("lacks", missing), ("has besides", unexpected)) if some]
        raise ValueError(f"{path} does not fit the network: it {' and '.join(parts)}; see ViT.size for those published")
    for name, (_, _, shape) in wanted.items():
        if shapes[own[name]] != shape:
            raise ValueError(f"{path} does not fit the network: {name} is {shapes[own[name]]} there and {shape} here")
    like = flatten(network)
    made: dict[str, Any] = {}
    for name, (target, third, _) in wanted.items():
        value = np.asarray(get(own[name]))
        if not np.isfinite(value).all():
            raise ValueError(f"{path} is refused: {name} has values that are NaN or infinite")
        if third is None and target == "positions":
            made["token_position"], value = value[0, 0], value[0, 1:]
        if name.endswith("projection.weight"):
            value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO, whose first three axes are the pixels of a patch
        elif value.ndim == 2 and name.endswith(".weight"):
            value = value.T
        if third is None:
            made[target] = value
        else:
            made.setdefault(target, {})[third] = value
    for name, value in made.items():
        leaf = like[name]
        if isinstance(value, dict):  # (in, out) of three layers as (in, 3, heads, head)
            value = np.stack([value[i] for i in range(3)], axis=-2)
        made[name] = jnp.asarray(np.reshape(value, leaf.shape), leaf.dtype)
    return unflatten(made, network)


def _listed(some: list[str]) -> str:
    return ", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "")


class _opened:
    """Shapes by name, and what reads one array, of a safetensors or an npz file; nothing is read before."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> tuple[dict[str, tuple], Callable[[str], np.ndarray]]:
        if zipfile.is_zipfile(self.path):
            self.file: Any = np.load(self.path, allow_pickle=False)
            return dict(self._headers()), self.file.__getitem__
        self.file = safe_open(self.path, framework="flax")
        self.file.__enter__()
        shapes = {name: tuple(self.file.get_slice(name).get_shape()) for name in self.file.keys()}
        return shapes, lambda name: np.asarray(self.file.get_tensor(name).astype(jnp.float32))

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def _headers(self) -> Iterator[tuple[str, tuple]]:
        with zipfile.ZipFile(self.path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    one = np.lib.format.read_magic(member) == (1, 0)
                    read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(member)
                    if dtype.kind != "f":
                        raise ValueError(f"{self.path} is refused: {name} holds no floating-point numbers")
                    yield name.removesuffix(".npy"), shape
