"""Low-rank adapters: what a trained network has learned in addition, as small factors beside its kernels.

    W = W0 + scale (alpha / rank) A B,   A: inputs x rank, normal with variance 1 / inputs at the start,   B = 0,

for kernels of dense layers, seen as matrices from their input axes to their output axes, and of convolutions, where
A is a convolution to `rank` channels and B one of 1 x 1. Stacked layers (`DiT(scan=True)`) have factors for each. Base
and adapters are separate trees: adapters are trained on a frozen base, and any number of them can be added to it.

References:
    Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models, section 4, arXiv:2106.09685.
    Luo et al. (2023), LCM-LoRA, section 3 (convolutions, sums of adapters), arXiv:2311.05556.
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax import _checks
from flowjax.facts import fact
from flowjax.models.layers import named


class LowRank(nnx.Module):
    """The factors of one kernel.

    Attributes:
        down: A, (*stack, *inputs, rank).
        up: B, (*stack, rank, *outputs).
        factor: alpha / rank.
        stack: Number of leading axes over which layers are stacked.

    Example:
        >>> from flax import nnx
        >>> from flowjax.models import MLP, lora
        >>> network = MLP(2, width=8, depth=1, rngs=nnx.Rngs(0))
        >>> factors = lora.add(network, rank=2, patterns="unembed", rngs=nnx.Rngs(1)).layers["unembed"]
        >>> factors.down.shape, factors.up.shape, factors.delta().shape
        ((8, 2), (2, 2), (8, 2))
    """

    def __init__(self, down: nnx.Param, up: nnx.Param, factor: float, stack: int):
        self.down, self.up, self.factor, self.stack = down, up, factor, stack

    def delta(self) -> Float[Array, "..."]:
        """(alpha / rank) A B in the shape of the kernel."""
        stacked = tuple(range(self.stack))
        dimensions = (((self.down.ndim - 1,), (self.stack,)), (stacked, stacked))
        # Sums into weights; a rounded product would be a permanent error of the merged network.
        product = jax.lax.dot_general(self.down[...], self.up[...], dimensions, precision=jax.lax.Precision.HIGHEST)
        return self.factor * product


class Adapters(nnx.Module):
    """Factors for some layers of a network, from `add`.

    Attributes:
        layers: `LowRank` by the dotted path of the layer.
        whole: Layers that are trained whole: their parameters by name, by the dotted path of the layer.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from flowjax.models import MLP, lora
        >>> network = MLP(2, width=8, depth=1, rngs=nnx.Rngs(0))
        >>> adapters = lora.add(network, rank=2, patterns="unembed", rngs=nnx.Rngs(1))
        >>> merged = lora.merge(network, adapters, scale=0.5)  # a network of its own
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(adapters)))  # (8 + 2) * 2
        20
    """

    def __init__(self, layers: Mapping[str, LowRank], whole: Mapping[str, Mapping[str, nnx.Param]] | None = None):
        self.layers = nnx.data(layers)
        if whole:  # without, a tree as it was before there were such layers
            self.whole = nnx.data({name: dict(parameters) for name, parameters in whole.items()})


@fact("adapters", "lora", "low-rank adapters of dense layers and convolutions", cite="hu2021lora")
def add(
    network: nnx.Module,
    rank: int = 4,
    alpha: float | None = None,
    patterns: Sequence[str] = ("*",),
    whole: Sequence[str] = (),
    *,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> Adapters:
    """New adapters for a network, which with them is what it was.

    Only shapes and names of the network are read: it may be one of `nnx.eval_shape`, and no value of it becomes a
    constant of a compiled program.

    Args:
        network: The base; it stays as it is.
        rank: Rank of the factors; for a layer with fewer inputs or outputs their number.
        alpha: The factors' product counts alpha / rank times; `rank` unless given.
        patterns: Which dense layers and convolutions: patterns of their dotted paths, such as "blocks.*.qkv".
        whole: Patterns of layers that are trained whole in place of factors, such as a new last layer. They start as
            the network's, and as zeros where only its shapes are known.
        param_dtype: Type of the factors.
        rngs: Source of the initial values.

    Raises:
        ValueError: A number outside its range, or a pattern without a layer.

    Example:
        >>> from flax import nnx
        >>> import flowjax as fj
        >>> network = fj.models.MLP(2, width=8, depth=1, rngs=nnx.Rngs(0))
        >>> list(add(network, rank=2, patterns=("layers.*.inner", "unembed"), rngs=nnx.Rngs(1)).layers)
        ['layers.0.inner', 'unembed']
    """
    _checks.whole(_checks.COUNT, rank=rank)
    alpha = float(rank) if alpha is None else alpha
    _checks.real("(0, inf)", alpha=alpha)
    found = dict(_adaptable(network))
    replaced = _chosen(found, whole) if whole else []
    chosen = [name for name in _chosen(found, patterns) if name not in replaced]
    return Adapters(
        {name: _factors(found[name], rank, alpha / rank, param_dtype, rngs) for name in chosen},
        {name: {key: _copied(value) for key, value in _parameters(found[name])} for name in replaced},
    )


def _chosen(found: Mapping[str, Any], patterns: Sequence[str] | str) -> list[str]:
    """The layers whose paths fit one of the patterns."""
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    matches = {pattern: {name for name in found if fnmatch.fnmatchcase(name, pattern)} for pattern in patterns}
    for pattern, names in (matches or {"": set()}).items():
        if not names:
            raise ValueError(f"no dense layer or convolution has a path like {pattern!r}; there are {_listed(found)}")
    return [name for name in found if any(name in names for names in matches.values())]


def _parameters(layer: Any) -> Iterator[tuple[str, nnx.Param]]:
    """Kernel and bias of a layer."""
    for key in ("kernel", "bias"):
        if getattr(layer, key) is not None:
            yield key, getattr(layer, key)


def _copied(parameter: nnx.Param) -> nnx.Param:
    """A parameter of the same value; zeros where only the shape is known."""
    (value,) = jax.tree.leaves(parameter)
    known = not isinstance(value, jax.ShapeDtypeStruct)
    return parameter.replace(value if known else jnp.zeros(value.shape, value.dtype))


def merge(network: Any, adapters: Adapters, scale: Any = 1.0) -> Any:
    """The network with `scale` times the adapters added to its kernels, which keep their types.

    Several adapters of one base: `merge(merge(base, first, 0.8), second)`, in any order.

    Args:
        network: The base; it stays as it is.
        adapters: From `add`, for a network of this structure.
        scale: A number, which may be traced; 1 for adapters with layers that are trained whole.

    Raises:
        ValueError: The adapters are those of another network, or have whole layers and another scale.
    """
    return _merged(network, adapters, scale, keep=True)


def unmerge(network: Any, adapters: Adapters, scale: Any = 1.0) -> Any:
    """Undoes `merge`, up to rounding.

    Raises:
        ValueError: The adapters are those of another network, or have whole layers, in whose place nothing is known.
    """
    return _merged(network, adapters, -scale, keep=True)


def combine(trained: Any, frozen: Mapping[str, Any]) -> Any:
    """Networks from trained adapters and frozen bases: the `combine` of `flowjax.objectives.Assembled`.

    Adapters meet the base of their own label, or else the base "network": several of one base, or their average.
    Everything else stays beside them. Merged kernels have the larger type of base and factors, so that a base in
    bfloat16 does not round off what is learned.

    Args:
        trained: Adapters, or a dict of them and of further networks by label; a bare one has the label "network".
        frozen: Bases and further networks by label.

    Returns:
        A dict by label; the bare network if there is no other.

    Raises:
        ValueError: Adapters without a base, or with another one than they were made for.
    """
    single = not isinstance(trained, dict)
    networks = {**frozen, **({"network": trained} if single else trained)}
    for label, part in networks.items():
        if isinstance(part, Adapters):
            base = frozen.get(label, frozen.get("network"))
            if base is None:
                raise ValueError(f"the adapters {label!r} need a frozen base; frozen are {_listed(frozen)}")
            networks[label] = _merged(base, part, 1.0, keep=False)
    return networks["network"] if single and len(networks) == 1 else networks


def _listed(names: Iterable[str]) -> str:
    """The first names."""
    names = list(names)
    return ", ".join([*names[:20], *(["..."] if len(names) > 20 else [])]) or "none"


def _adaptable(network: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Dense layers and convolutions by their dotted paths."""
    for path, layer in nnx.iter_graph(network):
        if isinstance(layer, nnx.Linear | nnx.LinearGeneral | nnx.Conv):
            yield ".".join(map(str, path)), layer


def _axes(layer: Any) -> tuple[int, int]:
    """Numbers of a kernel's leading axes over which layers are stacked, and of its input axes."""
    if isinstance(layer, nnx.LinearGeneral):
        inputs, outputs = len(layer.in_features), len(layer.out_features)
    else:
        inputs, outputs = (1 if isinstance(layer, nnx.Linear) else len(layer.kernel_size) + 1), 1
    return layer.kernel.ndim - inputs - outputs, inputs


def _factors(layer: Any, rank: int, factor: float, dtype: Any, rngs: nnx.Rngs) -> LowRank:
    stack, inputs = _axes(layer)
    shape, split = layer.kernel.shape, stack + inputs
    fan_in, fan_out = math.prod(shape[stack:split]), math.prod(shape[split:])
    rank = min(rank, fan_in, fan_out)
    names = layer.kernel.get_metadata().get("out_sharding") or (None,) * len(shape)
    down = jax.random.normal(rngs.params(), (*shape[:split], rank), dtype) / jnp.sqrt(jnp.asarray(fan_in, dtype))
    up = jnp.zeros((*shape[:stack], rank, *shape[split:]), dtype)
    return LowRank(
        nnx.Param(down, **named(*names[:split], None)),
        nnx.Param(up, **named(*names[:stack], None, *names[split:])),
        factor,
        stack,
    )


def _merged(network: Any, adapters: Adapters, scale: Any, *, keep: bool) -> Any:
    """`network` with new kernels, of their own types or else of the larger one."""
    merged = jax.tree.map(lambda leaf: leaf, network)  # another module around the same arrays
    layers = dict(_adaptable(merged))
    for name, factors in adapters.layers.items():
        if name not in layers:
            raise ValueError(f"the adapters have a layer {name!r} that the network has not; it has {_listed(layers)}")
        kernel, delta = layers[name].kernel, factors.delta()
        if kernel.shape != delta.shape:
            raise ValueError(
                f"the adapters of {name!r} are for a kernel of shape {delta.shape}, the network's has {kernel.shape}"
            )
        wide = np.promote_types(kernel.dtype, delta.dtype)
        value = kernel[...].astype(wide) + jnp.asarray(scale, wide) * delta.astype(wide)
        layers[name].kernel = kernel.replace(value.astype(kernel.dtype) if keep else value)
    for name, parameters in getattr(adapters, "whole", {}).items():
        if isinstance(scale, jax.Array) or scale != 1:
            raise ValueError(f"the layer {name!r} was trained whole and takes the place of the base's: scale must be 1")
        if name not in layers:
            raise ValueError(f"the adapters have a layer {name!r} that the network has not; it has {_listed(layers)}")
        for key, value in parameters.items():
            own = getattr(layers[name], key)
            if own is None or own.ndim != value.ndim:
                raise ValueError(f"the adapters of {name!r} are for a layer of another kind")
            setattr(layers[name], key, own.replace(value[...].astype(own.dtype) if keep else value[...]))
        shape, outputs = parameters["kernel"].shape, layers[name].out_features
        layers[name].out_features = shape[-len(outputs) :] if isinstance(outputs, tuple) else shape[-1]
    return merged
