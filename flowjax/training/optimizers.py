"""Optimisers as specs: optax's, with a schedule, a bound of the gradient and rates by parameter.

The learning rate rises linearly from 0 over `warmup` of the updates (over none where that is 0, else over one at
least), then falls as `decay` says: "cosine" to `final` of it, "linear" to the same, or "constant". Updates are counted
by the optimiser itself: a network that moves at every fifth step needs the number of its own turns as `steps`
(`flowjax.objectives.turns`), and its schedule ends with them. `groups` multiplies the rate of
parameters by a factor: the first pattern that fits a parameter's path (blocks.0.attention.kernel) counts.
"""

import fnmatch
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

from flowjax import _checks
from flowjax.facts import fact

Groups = tuple[tuple[str, float], ...]
DECAYS = ("cosine", "linear", "constant")


def schedule(rate: float, steps: int, warmup: float, decay: str, final: float) -> optax.Schedule:
    """The learning rate by the number of updates done."""
    _checks.real("(0, inf)", rate=rate)
    _checks.real("[0, 1]", warmup=warmup, final=final)
    _checks.choose("decay", decay, DECAYS)
    rise = max(1, round(warmup * steps)) if warmup else 0
    if decay == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, rate, rise, max(steps, rise + 1), rate * final)
    fall = rate * final if decay == "linear" else rate
    falling = optax.linear_schedule(rate, fall, max(1, steps - rise))
    return optax.join_schedules([optax.linear_schedule(0.0, rate, rise), falling], [rise]) if rise else falling


def names(tree: Any) -> Any:
    """A tree of the same structure with the path of each leaf, in the form `blocks.0.kernel`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"), tree
    )


def grouped(transform: optax.GradientTransformation, groups: Groups) -> optax.GradientTransformation:
    """The transformation with its updates multiplied by the factor of the first pattern that fits a parameter.

    Raises:
        ValueError: when it is initialised, a pattern that fits no parameter.
    """
    if not groups:
        return transform
    for pattern, factor in groups:
        _checks.real("[0, inf)", **{f"the factor of {pattern!r}": factor})

    def factor_of(name: str) -> float:
        return next((factor for pattern, factor in groups if fnmatch.fnmatchcase(name, pattern)), 1.0)

    def init(params: Any) -> Any:
        known = jax.tree.leaves(names(params))
        for pattern, _ in groups:
            if not fnmatch.filter(known, pattern):
                raise ValueError(f"no parameter is called {pattern!r}; there are {', '.join(known[:6])}, ...")
        return transform.init(params)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = transform.update(gradient, state, params)
        return jax.tree.map(lambda u, name: u * factor_of(name), updates, names(updates)), state

    return optax.GradientTransformation(init, update)


def optimizer(
    make: Callable[..., optax.GradientTransformation],
    *,
    steps: int,
    rate: float = 1e-3,
    warmup: float = 0.05,
    decay: str = "cosine",
    final: float = 0.01,
    clip: float | None = 1.0,
    groups: Groups = (),
    **options: Any,
) -> optax.GradientTransformation:
    """One of optax's optimisers with everything around it.

    Args:
        make: optax's function, which takes the learning rate first.
        steps: Updates of the run.
        rate: Largest learning rate, positive.
        warmup: Part of the updates in which it rises, in [0, 1].
        decay: "cosine", "linear" or "constant".
        final: What is left of it at the end, in [0, 1].
        clip: Largest norm of the gradient of a network, positive; None does not clip.
        groups: ((pattern, factor of the rate), ...) by the path of a parameter.
        **options: Of `make`; AdamW's decay of the weights is 0 unless given.

    Raises:
        ValueError: A number outside its range, an unknown decay; when it is initialised, a pattern that fits nothing.
    """
    _checks.whole(_checks.COUNT, steps=steps)
    if clip is not None:
        _checks.real("(0, inf)", clip=clip)
    known = inspect.signature(make).parameters
    for name, value in options.items():
        decays = name.rpartition("_")[2] in ("b1", "b2", "b3", "beta", "momentum")
        usual = known[name].default if name in known else None
        if (decays and value is not None) or any(type(number) in (int, float) for number in (value, usual)):
            _checks.real("[0, 1)" if decays else "[0, inf)", **{name: value})
    defaults = {"weight_decay": 0.0} if "weight_decay" in known else {}
    inner = make(schedule(rate, steps, warmup, decay, final), **(defaults | options))
    chain = inner if clip is None else optax.chain(optax.clip_by_global_norm(clip), inner)
    return grouped(chain, groups)


for _name, _make, _summary, _cite in (
    ("adamw", optax.adamw, "Adam with decoupled weight decay", "loshchilov2017decoupled"),
    ("adam", optax.adam, "Adam", "kingma2014adam"),
    ("adan", optax.adan, "adaptive Nesterov momentum", "xie2022adan"),
    ("lion", optax.lion, "the sign of a momentum", "chen2023symbolic"),
    ("muon", contrib.muon, "orthogonal updates of matrices, Adam for the rest", "liu2025muon"),
    ("sgd", optax.sgd, "gradient descent, with momentum if asked for", None),
):
    fact("optimizer", _name, _summary, cite=_cite, more=(_make,))(functools.partial(optimizer, _make))
