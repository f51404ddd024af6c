"""`find`: runs a search for many results at once, compiled or around a reward on the host."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from flowjax import _checks
from flowjax._captured import tracing
from flowjax._pytree import pytree
from flowjax.fields import Converted
from flowjax.flow import Field, check_field
from flowjax.keys import check_key
from flowjax.search.base import Search, Seen, Way, pick
from flowjax.search.problem import Problem
from flowjax.search.rewards import SearchError, Total, collected, judge, whole


@pytree
class Found:
    """What a search has found.

    Attributes:
        x: (num, ...) the results.
        reward: (num,) theirs, of the last time the reward was asked.
        rewards: (num,) each of the rewards by name where there are several, and each held-out one, of the results.
        evaluations: network evaluations of one result, counted; a guided pair is one.
        network_calls: network rows of one result; a guided pair is two.
        reward_calls: states of one result that the reward judged.
        history: after the first states and each round: "evaluations" (rounds + 1,), "reward" (num, rounds + 1), the
            largest so far, and what the search itself tells, (num, rounds + 1, ...).
        failed: (num,) where the reward was NaN or raised; x is then the best until there, and NaN without one.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: 1 - x, path=fj.paths.Linear())
        >>> found = fj.search.find(
        ...     flow, fj.search.BestOfN(budget=8, steps=2), lambda x: x[:, 0], (3, 1), key=jax.random.key(0)
        ... )
        >>> found.x.shape, int(found.evaluations), int(found.reward_calls), found.history["evaluations"].tolist()
        ((3, 1), 8, 4, [4, 8])
    """

    x: Float[Array, "num ..."]
    reward: Float[Array, " num"]
    rewards: dict[str, Any]
    evaluations: Int[Array, ""]
    network_calls: Int[Array, ""]
    reward_calls: Int[Array, ""]
    history: dict[str, Any]
    failed: Bool[Array, " num"]


def find(
    field: Field,
    search: Search,
    reward: Any,
    shape: tuple[int, ...],
    *,
    key: Key[Array, ""],
    cond: Any = None,
    index: Any = 0,
    held_out: Any = None,
    decode: Callable[[Any], Any] | None = None,
    entries: bool = False,
    dtype: Any = jnp.float32,
    sharding: Any = None,
) -> Found:
    """Searches for samples with a large reward.

    Result i depends on (key, index + i, its condition) only. The reward judges data predictions. A reward that is
    compiled runs with the search in one loop; one of `flowjax.search.on_host` is called between compiled rounds.

    Args:
        field: a `Flow` or a field around one, along a Gaussian path, without memory.
        search: what to do, for example `flowjax.search.RBF(budget=500)`.
        reward: a function of samples (B, ...), and of `cond=` if it has it, that returns (B,); or several by name, of
            which the sum counts.
        shape: (num, ...) of the results.
        key: typed key.
        cond: condition, a pytree with leading axis num.
        index: global index of the first result.
        held_out: further functions like the reward, which judge the results only.
        decode: what makes the samples that rewards see of states (B, ...); None for the states themselves.
        entries: whether states are padded sets, see `flowjax.keys.noise`.
        dtype: floating type of the states.
        sharding: a `jax.sharding.NamedSharding` that spreads the first axis of what the network is asked over devices:
            results, and their searches and particles. None leaves it to JAX.

    Returns:
        A `Found`.

    Raises:
        ValueError: arguments of another kind, a field that does not determine its score, a reward that cannot be
            compiled or answers with another shape.
        SearchError: a reward is NaN or +inf, or raises on the host; its attribute `found` is what was found until then.
            Within a `jax.jit` of your own, where nothing can be raised, see `Found.failed`.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> law = fj.oracles.Mixture.default(fj.paths.Linear(), dim=2)
        >>> flow, near = fj.Flow(law.network(), path=law.path), lambda x: -jnp.sum(x**2, axis=1)
        >>> found = fj.search.find(flow, fj.search.SVDD(budget=80, steps=5), near, (4, 2), key=jax.random.key(0))
        >>> bool(jnp.allclose(found.reward, near(found.x)))
        True
    """
    _checks.sizes(shape=shape)
    check_key(key)
    field, way = prepared(field, search)
    rewards, others = collected(reward), collected(held_out)
    if not rewards:
        raise ValueError("a search needs a reward, a function of samples (B, ...) that returns (B,)")
    if both := set(rewards) & set(others):
        raise ValueError(f"{min(both)} is a reward and held out: give it another name, or leave it out in one place")
    total: Any = Total(parts=tuple(rewards.values())) if len(rewards) > 1 else next(iter(rewards.values()))
    if total.host and search.dps > 0:
        raise ValueError(f"dps={search.dps} needs the gradient of the reward, and {total.name} is called on the host")
    problem = Problem(
        field=field,
        search=search,
        way=dataclasses.replace(way, times=jnp.asarray(way.times, jnp.promote_types(dtype, jnp.float32))),
        reward=None if total.host else total,
        decode=decode,
        cond=cond,
        key=key,
        index=jnp.asarray(index, jnp.uint32),
        shape=tuple(shape),
        dtype=jnp.dtype(dtype),
        entries=entries,
        sharding=sharding,
    )
    for function in others.values():
        if not function.host:  # a held-out reward that cannot be asked is found out before the search
            jax.eval_shape(_judged, problem, function, jax.ShapeDtypeStruct(problem.shape, problem.dtype))
    if total.host:
        found, error = _around_host(problem, total)
    else:
        found, error = _compiled(problem), None
    for name, function in ((rewards if len(rewards) > 1 else {}) | others).items():
        found.rewards[name], caught = _values(problem, function, found.x)
        error = error or (caught and (function.name, caught))
    if not isinstance(found.failed, jax.core.Tracer):
        _check(total, found, others, error)
    return found


def prepared(field: Field, search: Search) -> tuple[Field, Way]:
    """The field along the path of a search, and its way.

    Raises:
        ValueError: a field that a search cannot ask.
    """
    check_field(field)
    if not isinstance(search, Search):
        raise ValueError(f"search must be an object such as flowjax.search.RBF(budget=500), got {search!r}")
    if not field.stateless or not field.convertible:
        why = "carries a memory" if not field.stateless else "does not determine the score"
        raise ValueError(f"{type(field).__name__} {why}: a search asks a field on a Gaussian path, at any time again")
    inner: Any = field
    while isinstance(inner, Field):
        rule = getattr(inner, "rule", None)
        if getattr(rule, "couples_batch", False):
            raise ValueError(f"{type(rule).__name__} couples the samples of a batch, which a search compares")
        inner = getattr(inner, "field", None)
    if search.path is not None and search.path != field.path:
        field = Converted(field, path=search.path)
    way = search.way(field.path)
    search.check(field, way)
    return field, way


@jax.jit
@tracing()
def _compiled(problem: Problem) -> Found:
    """The whole search as one program."""
    asked = problem.search.asked[1:]
    carry, record = problem.begin(*problem.first())

    def body(carry: Any, round_: Any) -> Any:
        number, own = round_
        seen, costs = problem.look_next(carry, number, bool(asked[0]) if own is None else own)
        return problem.update(carry, seen, costs, number)

    rounds = jnp.arange(len(asked), dtype=jnp.int32), None if len(set(asked.tolist())) == 1 else jnp.asarray(asked)
    carry, records = jax.lax.scan(body, carry, rounds)
    history = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), record, records)
    return _found(problem, problem.end(carry), history)


_first, _begin, _look_next, _update, _end = (
    jax.jit(tracing()(part)) for part in (Problem.first, Problem.begin, Problem.look_next, Problem.update, Problem.end)
)


@jax.jit
@tracing()
def _shown(problem: Problem, x: Array) -> Array:
    return problem.shown(x)


def _around_host(problem: Problem, reward: Any) -> tuple[Found, Any]:
    """The search with a reward on the host, up to its end or to where no result is left; and what the reward raised."""
    search, error = problem.search, None

    def told(seen: Seen, asked: Any) -> Seen:
        nonlocal error
        if not asked:
            return seen
        num, rows = seen.t.shape
        data, cond = seen.data.reshape(-1, *seen.data.shape[2:]), problem.conditions(rows)
        cond = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), cond)
        values, caught = judge(reward, _shown(problem, data), cond)
        error = error or (caught and (reward.name, caught))
        return dataclasses.replace(seen, reward=jnp.asarray(values.reshape(num, rows), seen.reward.dtype))

    seen, costs = _first(problem)
    carry, record = _begin(problem, told(seen, search.asked[0]), costs)
    records = [record]
    for number in range(search.rounds):
        if np.all(whole(carry[2])):
            break
        seen, costs = _look_next(problem, carry, jnp.int32(number))
        carry, record = _update(problem, carry, told(seen, search.asked[number + 1]), costs, jnp.int32(number))
        records.append(record)
    history = jax.tree.map(lambda *rows: jnp.stack(rows), *records)
    found = _found(problem, _end(problem, carry), history)
    if search.finish:
        values, caught = _values(problem, reward, found.x)
        error = error or (caught and (reward.name, caught))
        bad = found.failed | jnp.isnan(values) | (values == jnp.inf)
        kept = jnp.where(carry[1][1] == -jnp.inf, jnp.nan, carry[1][1])
        x, reward = pick(bad, (carry[1][0], kept), (found.x, values.astype(found.reward.dtype)))
        found = dataclasses.replace(found, x=x, reward=reward, failed=bad)
    return found, error


def _found(problem: Problem, end: Any, history: dict[str, Array]) -> Found:
    x, reward, failed, costs = end
    search, rounds = problem.search, len(history["reward"])
    first = search.starts * max(len(search.lead), 1)
    spent = first + search.rows * np.arange(rounds)
    calls = search.starts * search.asked[0] + search.rows * np.sum(search.asked[1:rounds]) + (search.finish > 0)
    history = {name: jnp.swapaxes(rows, 0, 1) for name, rows in history.items()}
    return Found(
        x=x,
        reward=reward,
        rewards={},
        evaluations=costs[0],
        network_calls=costs[1],
        reward_calls=jnp.asarray(calls, jnp.int32),
        history={"evaluations": jnp.asarray(spent, jnp.int32)} | history,
        failed=failed,
    )


@jax.jit
@tracing()
def _judged(problem: Problem, function: Any, x: Array) -> Array:
    return function(problem.shown(x), problem.cond)


def _values(problem: Problem, function: Any, x: Array) -> tuple[Array, Exception | None]:
    """What a reward says of the results, and what it raised on the host."""
    if not function.host:
        return _judged(problem, function, x), None
    values, error = judge(function, _shown(problem, x), problem.cond)
    return jnp.asarray(values), error


def _check(total: Any, found: Found, others: Mapping[str, Any], error: Any) -> None:
    """Raises SearchError where a reward failed, with what was found."""
    failed = whole(found.failed)
    if error is not None:
        name, caught = error
        message = f"the reward {name} raised {type(caught).__name__}: {' '.join(str(caught).split())}"
        raise SearchError(message, found) from caught
    if failed.any():
        what = f"the reward {total.name} is NaN or infinite for {failed.sum()} of {len(failed)} results"
        raise SearchError(f"{what} after at most {int(found.evaluations)} evaluations each", found)
    for name in others:
        if np.any(np.isnan(whole(found.rewards[name]))):
            raise SearchError(f"the held-out reward {name} is NaN for some results", found)
