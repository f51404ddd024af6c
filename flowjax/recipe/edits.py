"""What a request says beside its own conditions: negative and second ones, and edits with their pictures and masks."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import specs
from flowjax.conditions import Example, Mask
from flowjax.editing import GIVEN
from flowjax.guidance import Each, in_turn
from flowjax.paths.base import GaussianPath
from flowjax.recipe.autoencoder import encode
from flowjax.recipe.decoding import unscaled
from flowjax.recipe.request import Request
from flowjax.solving import Solution, solve

# What an edit may declare: the argument of its function, where it is asked for, and under which name.
_INPUTS = {"picture": ("conditions", "picture"), "mask": ("conditions", "mask"), "second": ("second", "picture")}


def _takes(request: Request) -> dict[str, bool]:
    """The arguments of the edit of a request, and whether it can do without."""
    if request.edit is None:
        return {}
    entry = specs.find("edit", specs.name_and_options(request.edit)[0])
    found = inspect.signature(entry.make).parameters
    return {name: argument.default is not argument.empty for name, argument in found.items()}


def own(request: Request) -> Request:
    """The request without what its edit declares: only conditions of the run are left."""
    taken = [_INPUTS[name] for name in _takes(request) if name in _INPUTS]
    left: dict[str, Any] = {
        place: {name: text for name, text in getattr(request, place).items() if (place, name) not in taken}
        for place in ("conditions", "second")
    }
    return dataclasses.replace(request, **left)


def check(recipe: Any, request: Request, solver: Any, grid: np.ndarray) -> None:
    """Reads what is asked for, and traces the edit of one example.

    Raises:
        ValueError: Conditions that nothing uses or that are missing, an edit of a flow that has none, or settings that
            it refuses.
    """
    rule, plain = recipe.build_rule(request.guidance), own(request)
    field = asked_field(recipe, recipe.flow_in_shapes, request, recipe.other_shapes)
    if rule is not None and recipe.inputs:
        rule.questions(recipe.null, recipe.null, (recipe.null,) * bool(_beside(recipe, request)))
    if request.edit is None:
        if plain.second and not _beside(recipe, request):
            raise ValueError("a second condition is given, but neither a rule nor an edit that uses it")
        return
    if recipe.padded is not None or recipe.starts_from_data or not isinstance(recipe.build_path(), GaussianPath):
        raise ValueError("edits are for flows from noise to examples of one size")
    if clash := [name for name in ("picture", "mask") if name in recipe.inputs]:
        raise ValueError(f"this run has a condition {clash[0]!r} of its own, which edits would take for theirs")
    operator = specs.name_and_options(request.edit)[1].get("operator")
    if recipe.codec is not None and operator is not None and specs.name_and_options(operator)[0] != "masked":
        raise ValueError("this flow moves latents, and its operators would measure these: only masked is for both")
    if plain.second and "second_cond" not in _takes(request):
        raise ValueError(f"a second condition is given, but edit={specs.text(request.edit)} uses none")
    one = request.part(range(1))
    given = rows(recipe, one, read_latents=False)
    like = jax.ShapeDtypeStruct((1, *recipe.state_shape), jnp.float32)
    shapes = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in given.items() if name != "second_cond"
    }
    if recipe.codec is not None:
        shapes = {name: like for name in shapes}
    cond = recipe.read_conditions(own(one).conditions, one.num, first=one.first)

    def edit(field: Any, noise: Array, shapes: dict[str, Any], cond: Any, second: Any) -> Array:
        key = jax.random.key(0)
        return run(
            request.edit, in_turn(field, 0, 1), solver, grid, noise, cond, key, 0, shapes | {"second_cond": second}
        ).x

    jax.eval_shape(edit, field, like, shapes, cond, given.get("second_cond"))


def _beside(recipe: Any, request: Request) -> tuple[Any, ...]:
    """Further conditions of the guidance, values of samples in turn; none where the edit uses them."""
    plain = own(request)
    if not plain.second or "second_cond" in _takes(request):
        return ()
    return (jax.tree.map(lambda values: Each(values=values), _second(recipe, plain, plain.first + plain.num, 0)),)


def _second(recipe: Any, plain: Request, num: int, first: int) -> Any:
    """The second condition of `num` samples, the rest of it as the first has it."""
    base = recipe.read_conditions(plain.conditions, num, first=first)
    base = base if isinstance(base, dict) else {"label": base}
    given = {name: values for name, values in base.items() if name not in plain.second}
    return recipe.read_conditions(plain.second, num, given, first)


def asked_field(recipe: Any, flow: Any, request: Request, networks: Mapping[str, Any]) -> Any:
    """The field that a request asks for, with values of samples in turn still in it (`flowjax.guidance.in_turn`)."""
    against, num = None, request.first + request.num
    if request.against:
        negative = recipe.negative(request.against, num)
        against = jax.tree.map(lambda values: Each(values=np.asarray(values)), negative)
    beside, fields = _beside(recipe, request), recipe.all_fields(request)
    return recipe.field(flow, request.guidance, fields, against, beside, networks)


def rows(recipe: Any, request: Request, read_latents: bool = True) -> dict[str, Any]:
    """What the edit of a request is given of each sample, by argument: (num, ...) each.

    Raises:
        ValueError: Something is missing or cannot be read.
    """
    takes, plain, found = _takes(request), own(request), {}
    scale = {name: getattr(recipe, name) for name in ("shift", "scale", "low", "high")}
    for name, (place, key) in _INPUTS.items():
        if name in takes:
            text = getattr(request, place).get(key)
            where = f"{'cond' if place == 'conditions' else place}.{key}"
            if text is None:
                if takes[name]:
                    continue
                raise ValueError(
                    f"edit={specs.text(request.edit)} needs {where}: a picture, a folder of them, or an npz with x"
                )
            reader = (Mask if name == "mask" else Example)(shape=tuple(recipe.shape), **scale)
            try:
                found[name] = reader.read(text, request.num, request.first)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
    if "second_cond" in takes and plain.second:
        found["second_cond"] = _second(recipe, plain, plain.num, plain.first)
    return found


def latents(recipe: Any, codec: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures and masks as the flow moves them: on latents their means, and the cells that a mask keeps whole.

    Raises:
        ValueError: Masks that latents do not divide.
    """
    found = dict(given)
    if recipe.codec is None:
        return found
    network, shift, scale, _ = unscaled(codec, recipe.codec)
    for name in ("picture", "second"):
        if name in found:
            found[name] = (encode(network, found[name])[0] - shift) / scale
    if "mask" in found:
        mask, (height, width) = found["mask"], recipe.state_shape[:2]
        if mask.shape[1] % height or mask.shape[2] % width or mask.shape[-1] != 1:
            raise ValueError(f"masks of {mask.shape[1:]} cannot be brought to latents of {recipe.state_shape}")
        cells = mask.reshape(len(mask), height, mask.shape[1] // height, width, mask.shape[2] // width, 1)
        found["mask"] = cells.min(axis=(2, 4))
    return found


def run(
    edit: Any,
    field: Any,
    solver: Any,
    grid: np.ndarray,
    noise: Array,
    cond: Any,
    key: Any,
    index: Any,
    given: Mapping[str, Any],
) -> Solution:
    """One block of samples: those of an edit, or without one of plain sampling from the state `noise`."""
    if edit is None:
        return solve(field, solver, noise, grid, cond=cond, key=key, index=index)
    name, options = specs.name_and_options(edit)
    if taken := [option for option in options if option in GIVEN]:
        raise ValueError(f"{name} gets its {taken[0]} from the request: leave {taken[0]}= out")
    known = {"field": field, "solver": solver, "times": grid, "noise": noise, "cond": cond, "key": key, "index": index}
    return specs.build("edit", edit, **known, **{"second_cond": None, **given})
