"""Codecs without weights: examples as they are, or folded into patches."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from flowjax import _checks
from flowjax._pytree import pytree, static
from flowjax.recipe.base import Base


@pytree
class Unchanged:
    """Examples as latents.

    Example:
        >>> import numpy as np
        >>> x = np.arange(4.0).reshape(1, 2, 2, 1)
        >>> Unchanged().decode(Unchanged().encode(x)) is x
        True
    """

    def encode(self, x: Any) -> Any:
        """Latents of normalised examples (B, ...)."""
        return x

    def decode(self, z: Any) -> Any:
        """Examples of latents."""
        return z

    decode_part = decode


@pytree
class Patches:
    """Images (..., H, W, C) as (..., H/p, W/p, p p C): rows of a patch, then its columns, then channels.

    Attributes:
        size: p, the pixels of a patch's side.

    Example:
        >>> import numpy as np
        >>> x = np.arange(16.0).reshape(1, 4, 4, 1)
        >>> z = Patches(size=2).encode(x)
        >>> z.shape, z[0, 0, 0].tolist(), bool((Patches(size=2).decode(z) == x).all())
        ((1, 2, 2, 4), [0.0, 1.0, 4.0, 5.0], True)
    """

    size: int = static()

    def __post_init__(self) -> None:
        """Checks the size."""
        _checks.whole(_checks.COUNT, size=self.size)

    def encode(self, x: Any) -> Any:
        """Latents of normalised images.

        Raises:
            ValueError: Patches do not divide them.
        """
        if x.ndim < 4 or x.shape[-3] % self.size or x.shape[-2] % self.size:
            raise ValueError(f"patches of {self.size} x {self.size} do not divide examples of shape {x.shape[1:]}")
        return einops.rearrange(x, "... (h p) (w q) c -> ... h w (p q c)", p=self.size, q=self.size)

    def decode(self, z: Any) -> Any:
        """Images of latents, exactly those that were encoded."""
        return einops.rearrange(z, "... h w (p q c) -> ... (h p) (w q) c", p=self.size, q=self.size)

    decode_part = decode


WITHOUT_WEIGHTS: dict[str, Callable[..., Any]] = {"identity": Unchanged, "patch": Patches}
"""What `Fixed` may name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed(Base):
    """A codec without weights; it is no run of its own, and stands in the recipe of the flow on its latents.

    Example:
        >>> scale = {"shift": 8.0, "scale": 8.0, "low": 0.0, "high": 16.0}
        >>> patch, digits = {"name": "patch", "options": {"size": 2}}, {"name": "digits", "options": {}}
        >>> recipe = Fixed(network=patch, data=digits, shape=(8, 8, 1), num_classes=10, **scale)
        >>> recipe.latent_shape(recipe.build_network()), len(recipe.model)
        ((4, 4, 4), 12)
    """

    kind: str = "fixed"

    label: ClassVar[str] = "codec"
    specs: ClassVar[tuple[str, ...]] = ("data",)

    def __post_init__(self) -> None:
        """Checks names and numbers."""
        super().__post_init__()
        _checks.choose("codec without weights", dict(self.network).get("name"), WITHOUT_WEIGHTS)
        self.latent_shape(self.build_network())

    @property
    def model(self) -> str:
        """Twelve hexadecimal digits over all that latents depend on beside the examples."""
        known = [self.network, self.shape, self.shift, self.scale]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]

    def build_network(self, rngs: nnx.Rngs | None = None) -> Any:
        """The codec."""
        return _checks.call("codec", WITHOUT_WEIGHTS[self.network["name"]], self.network["options"])

    def stored(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def latent_shape(self, network: Any) -> tuple[int, ...]:
        """Shape of the latents of one example.

        Raises:
            ValueError: The codec does not fit the examples.
        """
        return jax.eval_shape(network.encode, jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)).shape[1:]

    def check_networks(self, shapes: Mapping[str, Any]) -> None:
        """Examples must be encoded."""
        self.latent_shape(shapes[self.label])

    def assess(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Refuses.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"the codec {self.network['name']} loses nothing: there is nothing to measure")
