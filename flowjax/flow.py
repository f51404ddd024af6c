"""Flow: a path plus a network. The Field protocol that solvers evaluate, and the term for diffrax."""

import abc
import inspect
from collections.abc import Iterable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax._captured import captured_callables
from flowjax._pytree import pytree, static
from flowjax.paths.base import GaussianPath, check_prediction, check_time_and_state, precision

Memory = Any


class Field(abc.ABC):
    """What a solver evaluates. Fields are frozen pytrees and may wrap each other.

    Attributes:
        path: the path whose predictions the field gives.
        null: the condition that stands for "no condition" in guidance, or None.
        stateless: whether an evaluation depends on (t, x, cond) alone, so that any solver may call it in any order.
        one_evaluation_per_step: whether the field makes sense only under solvers with one evaluation per step.
        convertible: whether its predictions belong together, so that the path makes one from another; not so for the
            drift of an SDE in the place of the velocity, nor for two-sided interpolants.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> from flowjax._pytree import pytree
        >>> @pytree
        ... class Rotation(fj.Field):
        ...     path: fj.paths.GaussianPath = fj.paths.Linear()
        ...     def init(self, x, times=None):
        ...         return ()
        ...     def evaluate(self, t, x, cond, memory, *, to="velocity", **extra):
        ...         return jnp.stack([-x[:, 1], x[:, 0]], axis=1), memory
        >>> Rotation().velocity(0.5, jnp.array([[1.0, 2.0]])).tolist()
        [[-2.0, 1.0]]
    """

    path: GaussianPath
    null: Any = None
    stateless: bool = True
    one_evaluation_per_step: bool = False
    convertible: bool = True

    @abc.abstractmethod
    def init(self, x: Float[Array, "batch ..."], times: Any = None) -> Memory:
        """Memory before the first evaluation of a run that starts from x (B, ...) on the grid `times` (n + 1,)."""

    @abc.abstractmethod
    def evaluate(
        self, t: Any, x: Float[Array, "batch ..."], cond: Any, memory: Memory, *, to: str = "velocity", **extra: Any
    ) -> tuple[Any, Memory]:
        """The prediction `to` ("raw": the network's output as it is) at (t, x), and the next memory.

        Args:
            t: scalar or (B,), in [0, 1].
            x: (B, ...).
            cond: what the network takes as condition, a pytree with leading axis B, or None.
            memory: from `init` or the evaluation before.
            to: "velocity", "noise", "data", "score", "v" or "raw".
            **extra: passed on to the network (`end=`, `velocity=`, ...).
        """

    def check(self, times: Any, to: str) -> None:  # noqa: B027 - nothing to check is a fine default
        """Raises ValueError if `to` is undefined at one of the concrete evaluation times."""

    def report(self, memory: Memory) -> Any:
        """A small pytree of this evaluation, stacked over the run into `Solution.report`; None for nothing."""
        return None

    def velocity(
        self, t: Any, x: Float[Array, "batch ..."], cond: Any = None, **extra: Any
    ) -> Float[Array, "batch ..."]:
        """dx/dt at (t, x), (B, ...)."""
        return self.evaluate(t, x, cond, self.init(x), to="velocity", **extra)[0]

    def data(self, t: Any, x: Float[Array, "batch ..."], cond: Any = None, **extra: Any) -> Float[Array, "batch ..."]:
        """E[x1 | x_t = x], (B, ...)."""
        return self.evaluate(t, x, cond, self.init(x), to="data", **extra)[0]

    def noise(self, t: Any, x: Float[Array, "batch ..."], cond: Any = None, **extra: Any) -> Float[Array, "batch ..."]:
        """E[x0 | x_t = x], (B, ...)."""
        return self.evaluate(t, x, cond, self.init(x), to="noise", **extra)[0]

    def score(self, t: Any, x: Float[Array, "batch ..."], cond: Any = None, **extra: Any) -> Float[Array, "batch ..."]:
        """Gradient of log p_t at x, (B, ...)."""
        return self.evaluate(t, x, cond, self.init(x), to="score", **extra)[0]


@pytree
class Counts:
    """Network evaluations so far in a run, counted where they happen.

    Attributes:
        evaluations: solver evaluations that reached a network (a guided pair is one).
        network_calls: network rows per sample (a guided pair is two).
        batch: size of the sampled batch.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear(), null=0)
        >>> field = fj.guide(flow, fj.guidance.CFG(scale=2.0))
        >>> x, labels = jnp.ones((3, 2)), jnp.arange(3)
        >>> memory = field.evaluate(0.5, x, labels, field.init(x))[1]
        >>> int(memory[0].evaluations), int(memory[0].network_calls)  # two rows for each sample
        (1, 2)
    """

    evaluations: Int[Array, ""]
    network_calls: Int[Array, ""]
    batch: int = static()

    @classmethod
    def zero(cls, batch: int) -> "Counts":
        """Before the first evaluation."""
        return cls(evaluations=jnp.int32(0), network_calls=jnp.int32(0), batch=batch)

    def plus(self, rows: int, evaluations: int = 1) -> "Counts":
        """After one call of a network on `rows` rows."""
        return Counts(
            evaluations=self.evaluations + evaluations,
            network_calls=self.network_calls + rows // self.batch,
            batch=self.batch,
        )


def count(memory: Memory) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """(evaluations, network_calls) summed over all networks in a field's memory."""
    counts = [c for c in jax.tree.leaves(memory, is_leaf=lambda m: isinstance(m, Counts)) if isinstance(c, Counts)]
    zero = jnp.int32(0)
    return sum((c.evaluations for c in counts), zero), sum((c.network_calls for c in counts), zero)


@pytree
class Flow(Field):
    """A path plus a network that predicts one quantity along it.

    Args:
        network: any callable `network(x, t, cond, **extra)` with x (B, ...), t (B,) in [0, 1] and cond a pytree with
            leading axis B or None. A flax.nnx module, or a function; no flax is required. Times are in the precision of
            the state, float32 at least.
        path: the path the network was trained on.
        prediction: what the network returns: "velocity", "noise", "data", "score" or "v".
        null: the condition that stands for "no condition" in guidance, a pytree of scalars or per-sample arrays
            without batch axis (for class labels: the number of classes), or None.
        head: which output is the prediction, a key or an index, for a network that returns several; `to="raw"` gives
            them all.

    Raises:
        ValueError: unknown prediction, a path of another kind, a network that does not take (x, t, cond); when it is
            evaluated, a network in training mode (dropout, batch statistics).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> flow.velocity(0.5, jnp.ones((2, 3))).shape
        (2, 3)
    """

    positional = ("network",)

    network: Any
    path: GaussianPath
    prediction: str = static("velocity")
    null: Any = None
    head: str | int | None = static(None)

    def __post_init__(self) -> None:
        """Checks the names and the network's arguments."""
        check_prediction("prediction", self.prediction)
        if not isinstance(self.path, GaussianPath):
            raise ValueError(f"path must be one of flowjax.paths, such as flowjax.paths.Linear(), got {self.path!r}")
        check_network(self.network)

    def init(self, x: Float[Array, "batch ..."], times: Any = None) -> Counts:
        """Counters at zero; refuses a network in training mode."""
        check_inference(self.network)
        return Counts.zero(x.shape[0])

    def evaluate(
        self, t: Any, x: Float[Array, "batch ..."], cond: Any, memory: Counts, *, to: str = "velocity", **extra: Any
    ) -> tuple[Any, Counts]:
        """One network call, converted to `to`."""
        check_prediction("to", to, ("raw",))
        t = check_time_and_state(t, x)
        check_takes(self.network, [name for name, value in extra.items() if value is not None])
        if extra.get("end") is not None:
            if to not in ("raw", self.prediction):
                raise ValueError(f"an average {self.prediction} up to an end time does not determine the {to}")
            extra["end"] = network_times(extra["end"], x)
        value = self.network(x, network_times(t, x), cond, **extra)
        if to != "raw":
            value = check_answer(value if self.head is None else value[self.head], x)
            value = self.path.convert(value.astype(x.dtype), given=self.prediction, to=to, t=t, x=x)
        return value, memory.plus(x.shape[0])

    def check(self, times: Any, to: str) -> None:
        """Refuses evaluation times at which the network's prediction does not determine `to`."""
        if to != "raw" and len(times):  # inside (0, 1) a prediction determines all others
            for t in {min(times), max(times)}:
                check_determined(self.path, self.prediction, to, float(t))


def check_answer(value: Any, x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """What a network answered, which must have the shape of the state: others would be stretched over it."""
    if getattr(value, "shape", None) != x.shape:
        what = f"an array of shape {tuple(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"
        raise ValueError(
            f"the network answers with {what} for a state of shape {x.shape}; it must return one like that"
        )
    return value


def network_times(t: Any, x: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """A time as a network gets it: (B,), in the precision of the state x (B, ...), at least single."""
    return jnp.broadcast_to(jnp.asarray(t, precision(x)), x.shape[:1])


def check_determined(path: GaussianPath, given: str, to: str, t: float) -> None:
    """Raises ValueError, naming the end to move, if a prediction `given` does not determine `to` at time t."""
    if not path.determines(given, to, t):
        start = path.alpha(t) == 0
        end, where = ("start", "above") if start else ("end", "below")
        raise ValueError(
            f"a {given!r} prediction does not determine the {to} at t = {t:g}, where "
            f"{'alpha' if start else 'sigma'} = 0: move the {end} of the times {where} it, "
            f"e.g. flowjax.times.uniform(n, {end}={'1e-3' if start else '1 - 1e-3'})"
        )


def check_network(network: Any) -> None:
    """Raises ValueError if `network` cannot be called as network(x, t, cond)."""
    if not callable(network):
        raise ValueError(f"a network is a callable network(x, t, cond), got {network!r}")
    try:
        signature = inspect.signature(network)
    except (TypeError, ValueError):  # written in C
        return
    try:
        more = {name: None for name in ("end", "velocity", "guidance") if name in signature.parameters}
        signature.bind(None, None, None, **more)
    except TypeError:
        raise ValueError(
            f"a network is called as network(x, t, cond), with cond=None where there is no condition; this one takes "
            f"{signature}: wrap it, for example lambda x, t, cond: network(x, t)"
        ) from None


def check_takes(network: Any, names: Iterable[str]) -> None:
    """Raises ValueError if `network` has no such arguments: `end`, `velocity`, `guidance`, ..."""
    try:
        parameters = inspect.signature(network).parameters
    except (TypeError, ValueError):  # written in C
        return
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in names:
        if name not in parameters:
            which = {"end": " of average velocities", "guidance": " that answer with guidance"}.get(name, " like that")
            raise ValueError(f"the network takes ({', '.join(parameters)}) and no {name}=, as networks{which} do")


def check_inference(network: Any) -> None:
    """Raises ValueError if a flax.nnx network, or one that a function captures, has layers in training mode."""
    from flax import nnx  # not needed to import flowjax

    roots = [root for root in captured_callables(network) if isinstance(root, nnx.Module)]
    for module in (part for root in roots for _, part in nnx.iter_graph(root) if isinstance(part, nnx.Module)):
        drops = getattr(module, "rate", getattr(module, "dropout_rate", 1.0))
        if getattr(module, "deterministic", None) is False and drops:
            what = "drops values"
        elif getattr(module, "use_running_average", None) is False:
            what = "uses the statistics of the batch"
        else:
            continue
        raise ValueError(
            f"the network is in training mode (a {type(module).__name__} {what}): call network.eval() before sampling"
        )


def check_field(field: Any) -> None:
    """Raises ValueError unless `field` is one."""
    if not isinstance(field, Field):
        raise ValueError(
            f"expected a field, such as flowjax.Flow(network, path=flowjax.paths.Linear()), got {type(field).__name__}"
        )


def check_state(x: Any) -> None:
    """Raises ValueError unless x is an array of real floating-point numbers, (B, ...) with B at least 1."""
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise ValueError(f"the state is one array (B, ...), got {type(x).__name__}: pass jax.numpy.asarray(x)")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"the state holds floating-point numbers, got {x.dtype}: pass x.astype('float32')")
    if not x.shape or not x.shape[0]:
        raise ValueError(f"the state has shape (B, ...) with at least one sample, got {tuple(x.shape)}")


class Ask(eqx.Module):
    """A request to a field that travels through the `args` of diffrax, which shows solvers only `term.vf`.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> from flowjax.flow import Ask, FieldTerm
        >>> term = FieldTerm(field=fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear()))
        >>> memory, _ = term.vf(0.0, jnp.ones((3, 2)), Ask("init"))  # of the field, and of a second one
        >>> memory.batch
        3
    """

    kind: str = eqx.field(static=True)  # "init", "evaluate" or "noise"
    payload: Any = None
    to: str = eqx.field(static=True, default="velocity")


class FieldTerm(diffrax.AbstractTerm):
    """All of a field as a diffrax term, for bound solvers (made by `bound.term(field)`).

    Example:
        >>> import flowjax as fj, diffrax, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> term = fj.solvers.Euler().bind(flow.path, fj.times.uniform(4)).term(flow)
        >>> isinstance(term, diffrax.AbstractTerm), term.vf(0.5, jnp.ones((1, 2)), None).tolist()
        (True, [[-1.0, -1.0]])
    """

    field: Any
    second: Any = None
    key: Any = None
    index: Any = 0

    def vf(self, t: Any, y: Float[Array, "batch ..."], args: Any) -> Any:
        """The velocity at (t, y) under condition `args`, or the answer to an `Ask`."""
        if not isinstance(args, Ask):
            return self.field.velocity(t, y, args)
        if args.kind == "init":
            fields = (self.field, self.second)
            return tuple(None if f is None else f.init(y, args.payload) for f in fields)
        if args.kind == "noise":
            return self.key, self.index
        number, cond, memory, extra = args.payload
        field = self.second if number else self.field
        value, own = field.evaluate(t, y, cond, memory[number], to=args.to, **extra)
        return value, (memory[0], own) if number else (own, memory[1])

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """The length of the interval."""
        return t1 - t0

    def prod(self, vf: Float[Array, "batch ..."], control: Any) -> Float[Array, "batch ..."]:
        """Velocity times length."""
        return jnp.asarray(control, vf.dtype) * vf


class Velocity(eqx.Module):
    """The velocity of a field as the vector field (t, y, args) of a diffrax term; the condition is `args`.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> fj.term(flow).vector_field(0.5, jnp.ones((1, 2)), None).tolist()
        [[-1.0, -1.0]]
    """

    field: Any

    def __call__(self, t: Any, y: Float[Array, "batch ..."], args: Any) -> Float[Array, "batch ..."]:
        """Velocity at (t, y) under condition `args`."""
        return self.field.velocity(t, y, args)


def term(field: Field) -> diffrax.ODETerm:
    """The velocity of a field as a term for diffrax's own solvers; the condition is diffrax's `args`.

    Raises:
        ValueError: the field has a memory that a velocity alone would lose.
    """
    if not field.stateless:
        raise ValueError(
            f"{type(field).__name__} carries a memory from one evaluation to the next, which diffrax's own solvers "
            "would lose; use a solver of flowjax: diffeqsolve(bound.term(field), bound, ...)"
        )
    return diffrax.ODETerm(Velocity(field))
