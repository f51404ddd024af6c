"""Fields that answer some steps with a prediction of an earlier one: what users compare SADA with."""

import math
import reprlib
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import choose, real, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.fields.saving import Saving, Spared
from flowjax.flow import Field, Flow, network_times

PROBES = ("modulated", "block", "input")


class Held(Saving):
    """A saved evaluation is answered by the last prediction of the network, of the kind `keep`.

    The first and the last step reach the network, and the first `warmup` of all. What differs is the decision.

    Example:
        >>> import flowjax as fj
        >>> issubclass(fj.fields.MagCache, fj.fields.Held)
        True
    """

    warmup: Any
    keep: str

    def __post_init__(self) -> None:
        """Checks the field and the options."""
        super().__post_init__()
        choose("keep", self.keep, ("velocity", "noise", "data"))
        real("[0, 1]", warmup=self.warmup)

    def state(self, x: Array) -> Any:
        """What the decision keeps."""
        return ()

    def begin(self, x: Array, steps: int) -> Any:
        """No prediction yet."""
        return jnp.zeros_like(x), self.state(x)

    def allowed(self, memory: Spared) -> Array:
        """Whether the step that comes may be saved at all."""
        first = jnp.ceil(jnp.asarray(self.warmup, jnp.float32) * memory.steps)
        return (memory.step >= first) & (memory.step < memory.steps - 1) & (memory.step > 0)

    def answer(self, t: Any, x: Array, memory: Spared, more: Any, to: str) -> Array:
        """The prediction kept."""
        return self.path.convert(memory.own[0], given=self.keep, to=to, t=t, x=x)

    def remember(self, t: Any, x: Array, value: Array, to: str, skip: Array, memory: Spared, more: Any) -> Any:
        """The prediction of a call."""
        new = self.path.convert(value, given=to, to=self.keep, t=t, x=x)
        return jnp.where(skip, memory.own[0], new), self.after(skip, more)

    def after(self, skip: Array, more: Any) -> Any:
        """What the decision keeps after a step."""
        return ()


@fact("field", "every_nth", "every n-th step reaches the network")
@pytree
class EveryNth(Held):
    """A field whose network is asked at every `n`-th step only.

    Args:
        field: the field, guidance included.
        n: steps from one call to the next, at least 1.
        warmup: share of the steps at the beginning that always reach the network.
        keep: the prediction that stays what it was: "velocity", "noise" or "data".

    Raises:
        ValueError: a number or name that is not allowed; when it is bound, a solver with other evaluations than one per
            step.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> field = fj.fields.EveryNth(flow, n=2)
        >>> result = fj.solve(field, fj.solvers.Euler(), jnp.ones((1, 1)), fj.times.uniform(9))
        >>> int(result.evaluations), result.report["skipped"].tolist()[:4]
        (5, [False, True, False, True])
    """

    field: Field = part("field")
    n: Any = 2
    warmup: Any = 0.0
    keep: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        whole("[1, 10000]", n=self.n)

    def decide(self, t: Any, x: Array, cond: Any, memory: Spared) -> tuple[Any, Any, Any]:
        """By the number of calls saved in a row."""
        run = memory.run + 1
        return self.allowed(memory) & (run < self.n), run.astype(memory.measure.dtype), ()


@fact("field", "teacache", "calls skipped while the input changes little", cite="liu2024teacache", couples_batch=True)
@pytree
class TeaCache(Held):
    """A field that asks its network when what goes in has changed by more than a threshold since the last call.

    With I_j the indicator at step j and |.| the mean size over everything, the batch included,

        a <- a + max(p(|I_j - I_{j-1}|/|I_{j-1}|), 0),    saved while a < threshold; a call sets a = 0.

    The polynomial p turns changes of the indicator into changes of the answer. It belongs to a model: a fit may explain
    nothing. `python -m flowjax.calibrate cache` fits it, measures the fit on noise that it has not seen, and refuses
    one that does not hold. Unlike in the published programs, the prediction of the network stays what it was, not the
    residual of its hidden layers.

    Args:
        field: the field, guidance included; the indicator is that of its condition.
        threshold: a number, not negative.
        coefficients: of p, the highest power first; None is p(c) = c.
        indicator: "modulated", the input of the first block after its modulation by the time, of a network with
            `probe` (`flowjax.models.DiT`); or "input", the state itself, for every network.
        warmup: share of the steps at the beginning that always reach the network.
        keep: the prediction that stays what it was: "velocity", "noise" or "data".

    Raises:
        ValueError: a number or name that is not allowed, or a network without `probe`; when it is bound, a solver with
            other evaluations than one per step.

    Reference: Liu et al. (2024), Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model,
    arXiv:2411.19108.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> field = fj.fields.TeaCache(flow, threshold=0.25, indicator="input")
        >>> result = fj.solve(field, fj.solvers.Euler(), jnp.ones((1, 1)), fj.times.uniform(10))
        >>> result.report["skipped"].tolist()[:4], round(float(result.report["measure"][1]), 2)  # x falls by a tenth
        ([False, True, True, False], 0.1)
    """

    field: Field = part("field")
    threshold: Any = 0.1
    coefficients: Any = part("array", None)
    indicator: str = static("modulated")
    warmup: Any = 0.0
    keep: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        real("[0, inf)", threshold=self.threshold)
        choose("indicator", self.indicator, ("modulated", "input"))
        if self.coefficients is not None:
            numbers("coefficients", "(-inf, inf)", self.coefficients)
        check_probe(self.field, self.indicator)

    def state(self, x: Array) -> Any:
        """The last indicator, and the sum of changes."""
        return no_probe(self.field, self.indicator, x), jnp.zeros((), x.dtype)

    def decide(self, t: Any, x: Array, cond: Any, memory: Spared) -> tuple[Any, Any, Any]:
        """By the sum of changes since the last call."""
        before, total = memory.own[1]
        now = probe(self.field, self.indicator, t, x, cond)
        change = relative_change(now, before)
        if self.coefficients is not None:
            change = jnp.maximum(jnp.polyval(jnp.asarray(self.coefficients, change.dtype), change), 0)
        total = jnp.where(memory.step > 0, total + change, 0)
        return self.allowed(memory) & (total < self.threshold), total, (now, total)

    def after(self, skip: Array, more: Any) -> Any:
        """A call begins the sum anew."""
        now, total = more
        return now, jnp.where(skip, total, 0)


@fact("field", "first_block", "calls skipped while the first block says the same", couples_batch=True)
@pytree
class FirstBlock(Held):
    """A field that asks its network when its first block answers otherwise than at the last call.

    With r the residual of the first transformer block (what it adds), a step is saved while the mean of |r - r_c| over
    everything, the batch included, is below `threshold` times that of |r_c|, r_c the residual at the last call. The
    first block is computed at every step, and once more in a call: 1/depth of a network each.

    Args:
        field: the field, guidance included; the residual is that of its condition.
        threshold: a number, not negative.
        warmup: share of the steps at the beginning that always reach the network.
        keep: the prediction that stays what it was: "velocity", "noise" or "data".

    Raises:
        ValueError: a number or name that is not allowed, or a network without `probe` (`flowjax.models.DiT` has one);
            when it is bound, a solver with other evaluations than one per step.

    Reference: the first block cache of ParaAttention (chengzeyi, 2025), whose programs keep residuals of hidden layers.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> network = fj.models.DiT((4, 4, 1), patch=2, width=8, depth=2, heads=2, rngs=nnx.Rngs(0))
        >>> field = fj.fields.FirstBlock(fj.Flow(network, path=fj.paths.Linear()), threshold=0.05)
        >>> x0 = fj.noise(jax.random.key(0), (2, 4, 4, 1))
        >>> result = fj.solve(field, fj.solvers.Euler(), x0, fj.times.uniform(6))
        >>> bool(result.evaluations <= 6)
        True
    """

    field: Field = part("field")
    threshold: Any = 0.1
    warmup: Any = 0.0
    keep: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        real("[0, inf)", threshold=self.threshold)
        check_probe(self.field, "block")

    def state(self, x: Array) -> Any:
        """The residual at the last call."""
        return no_probe(self.field, "block", x)

    def decide(self, t: Any, x: Array, cond: Any, memory: Spared) -> tuple[Any, Any, Any]:
        """By the change since the last call."""
        before = memory.own[1]
        now = probe(self.field, "block", t, x, cond)
        change = jnp.where(memory.step > 0, relative_change(now, before), 0)
        return self.allowed(memory) & (change < self.threshold), change, (now, before)

    def after(self, skip: Array, more: Any) -> Any:
        """The residual of a call."""
        return jnp.where(skip, more[1], more[0])


@fact(
    "field",
    "magcache",
    "calls skipped while predictions keep their size",
    cite="ma2025magcache",
    example=lambda: {"ratios": [0.97] * 10},
)
@pytree
class MagCache(Held):
    """A field that skips calls by how the size of its prediction changes from step to step, measured beforehand.

    With g_j the mean ratio of the sizes of the predictions at steps j and j - 1,

        r <- r g_j,   e <- e + |1 - r|,    saved while e < threshold, at most most_skips times; a call sets r = 1, e =
        0.

    The steps that are saved are the same for all samples. `python -m flowjax.calibrate cache` measures the ratios, and
    refuses sizes that differ too much between samples. Published are ratios of what all blocks together add to their
    input; here it is the prediction `keep`.

    Args:
        field: the field, guidance included.
        ratios: g_j, one positive number for each step of the run (the first is not used).
        threshold: a number, not negative.
        most_skips: most calls skipped in a row, at least 1.
        warmup: share of the steps at the beginning that always reach the network.
        keep: the prediction that stays what it was: "velocity", "noise" or "data".

    Raises:
        ValueError: a number or name that is not allowed; when it is bound, ratios of another number of steps, or a
            solver with other evaluations than one per step.

    Reference: Ma et al. (2025), MagCache: Fast Video Generation with Magnitude-Aware Cache, arXiv:2506.09045.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> field = fj.fields.MagCache(flow, ratios=[0.9] * 10, threshold=0.15, warmup=0.2)
        >>> result = fj.solve(field, fj.solvers.Euler(), jnp.ones((1, 1)), fj.times.uniform(10))
        >>> result.report["skipped"].tolist()  # 0.1 and 0.1 + 0.19
        [False, False, True, False, True, False, True, False, True, False]
    """

    field: Field = part("field")
    ratios: Any = part("array")
    threshold: Any = 0.1
    most_skips: Any = 4
    warmup: Any = 0.2
    keep: str = static("velocity")

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        real("[0, inf)", threshold=self.threshold)
        whole("[1, 10000]", most_skips=self.most_skips)
        numbers("ratios", "(0, inf)", self.ratios)

    def check(self, times: Any, to: str) -> None:
        """As for all that saves, and there is a ratio for each step."""
        super().check(times, to)
        if len(self.ratios) != len(times):
            raise ValueError(
                f"these are the ratios of {len(self.ratios)} steps, and the run has {len(times)}: ratios belong to "
                "their grid (flowjax.calibrate cache measures those of another)"
            )

    def state(self, x: Array) -> Any:
        """R and e."""
        return jnp.ones((), x.dtype), jnp.zeros((), x.dtype)

    def decide(self, t: Any, x: Array, cond: Any, memory: Spared) -> tuple[Any, Any, Any]:
        """By the sum of errors since the last call."""
        r, e = memory.own[1]
        g = jnp.asarray(self.ratios, r.dtype)
        allowed = self.allowed(memory)
        r = r * g[jnp.minimum(memory.step, len(g) - 1)]
        e = e + jnp.abs(1 - r)
        return allowed & (e < self.threshold) & (memory.run < self.most_skips), e, (r, e)

    def after(self, skip: Array, more: Any) -> Any:
        """A call begins anew."""
        r, e = more
        return jnp.where(skip, r, 1), jnp.where(skip, e, 0)


# ------------------------------------------------------------------------------------------------ what goes into a flow


def numbers(name: str, interval: str, values: Any) -> None:
    """Raises ValueError unless `values` are a list of numbers, or a line of them in an array."""
    if not isinstance(values, list | tuple) and getattr(values, "ndim", None) != 1:
        raise ValueError(f"{name} must be a list of numbers, got {reprlib.repr(values)}")
    for number in values if isinstance(values, list | tuple) else (values,):
        real(interval, **{name: number})


def flow_of(field: Any) -> Flow:
    """The flow inside of a field.

    Raises:
        ValueError: There is none.
    """
    while not isinstance(field, Flow):
        if not isinstance(getattr(field, "field", None), Field):
            raise ValueError(f"a {type(field).__name__} has no flow inside, whose network could be looked into")
        field = field.field
    return field


def check_probe(field: Any, what: str) -> None:
    """Raises ValueError unless the network inside of a field can be looked into."""
    choose("indicator", what, PROBES)
    if what != "input" and not hasattr(flow_of(field).network, "probe"):
        raise ValueError(
            f"a {type(flow_of(field).network).__name__} has no probe(x, t, cond, what), which this decides by: "
            "networks such as flowjax.models.DiT have one; sada, magcache and teacache(indicator=input) need none"
        )


def probe(field: Any, what: str, t: Any, x: Array, cond: Any) -> Array:
    """What a network makes first of (t, x): its input ("input"), or what its `probe` gives, (B, ...)."""
    if what == "input":
        return x
    return flow_of(field).network.probe(x, network_times(t, x), cond, what).astype(x.dtype)


def no_probe(field: Any, what: str, x: Array) -> Array:
    """Zeros of the shape of `probe`: of one for each token of a network."""
    if what == "input":
        return jnp.zeros_like(x)
    return jnp.zeros(flow_of(field).network.block_cache(x.shape[0]).shape[1:], x.dtype)


def relative_change(now: Array, before: Array) -> Array:
    """Mean size of the change over the mean size of what was; over everything."""
    tiny = math.sqrt(jnp.finfo(before.dtype).tiny)
    return jnp.mean(jnp.abs(now - before)) / jnp.maximum(jnp.mean(jnp.abs(before)), tiny)
