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
from flowjax._pytree import pytree, static
from flowjax.fields import Converted
from flowjax.flow import Field, check_field, count
from flowjax.keys import check_key
from flowjax.search.base import Draws, Search, Seen, Way, pick
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
    if search.path is not None and search.path != field.path:
        field = Converted(field, path=search.path)
    way = search.way(field.path)
    search.check(field, way)
    return field, way


@pytree
class Problem:
    """A search, with all that its compiled parts need.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> from flowjax.search.find import Problem
        >>> flow, search = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear()), fj.search.BestOfN(budget=20)
        >>> more = dict(reward=None, decode=None, cond=None, key=jax.random.key(0), index=jnp.uint32(0))
        >>> problem = Problem(field=flow, search=search, way=search.way(flow.path), shape=(3, 2), **more)
        >>> problem.states(jax.numpy.zeros((3, 4, 2))).shape
        (12, 2)
    """

    field: Field
    search: Search
    way: Way
    reward: Any
    decode: Any
    cond: Any
    key: Key[Array, ""]
    index: Array
    shape: tuple[int, ...] = static()
    dtype: Any = static(jnp.dtype("float32"))
    entries: bool = static(False)
    sharding: Any = static(None)

    @property
    def draws(self) -> Draws:
        """Of all results, with a leading axis."""
        index = self.index + jnp.arange(self.shape[0], dtype=jnp.uint32)
        keys = jax.vmap(lambda i: jax.random.fold_in(self.key, i))(index)
        return Draws(key=keys, event=self.shape[1:], dtype=self.dtype, entries=self.entries)

    def states(self, x: Array) -> Array:
        """States (num, rows, ...) as one batch of the network, spread over devices: filled up to a multiple of them."""
        x = x.reshape(-1, *x.shape[2:])
        if self.sharding is None:
            return x
        missing = -x.shape[0] % int(np.prod([self.sharding.mesh.shape[axis] for axis in self._axes]))
        x = jnp.concatenate([x, jnp.repeat(x[:1], missing, axis=0)]) if missing else x
        return jax.lax.with_sharding_constraint(x, self.sharding)

    @property
    def _axes(self) -> tuple[str, ...]:
        first = self.sharding.spec[0] if self.sharding.spec else None
        return () if first is None else (first if isinstance(first, tuple) else (first,))

    def conditions(self, rows: int) -> Any:
        """Conditions of `rows` states of each result."""
        return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[:, None], rows, axis=1), self.cond)

    def shown(self, x: Array) -> Array:
        """What rewards see of states (B, ...)."""
        return x if self.decode is None else self.decode(x)

    def look(self, t: Array, x: Array, asked: Any = True, graded: bool | None = None) -> tuple[Seen, Array]:
        """Asks the network, and where `asked` says so the reward, at states (num, rows, ...) and times (num, rows).

        Returns:
            What was seen, (num, rows, ...), and the evaluations and network rows of one state, (2,).
        """
        size, (num, rows) = t.size, t.shape
        times, states = self.states(t), self.states(x)
        cond = jax.tree.map(self.states, self.conditions(rows))
        # Parameters are gathered from their shards where they are used, see `flowjax.solving`.
        field, states = jax.lax.optimization_barrier((self.field, states))

        def predict(states: Array) -> Any:
            value, memory = field.evaluate(times, states, cond, field.init(states), to="velocity")
            return self.way.path.convert(value, given="velocity", to="data", t=times, x=states), value, memory

        def judged(data: Array) -> Array:
            return self.reward(self.shown(data), cond).astype(t.dtype)

        gradient, blank = None, jnp.full(times.shape, -jnp.inf, t.dtype)
        if self.search.dps > 0 if graded is None else graded:

            def score(states: Array) -> Any:
                data, value, memory = predict(states)
                return judged(data), (data, value, memory)

            reward, back, (data, value, memory) = jax.vjp(score, states, has_aux=True)
            (gradient,) = back(jnp.ones_like(reward))
        else:
            data, value, memory = predict(states)
            if self.reward is None:
                reward = blank
            elif isinstance(asked, bool | np.bool):
                reward = judged(data) if asked else blank
            else:
                reward = jax.lax.cond(asked, judged, lambda data: blank, data)
        leaves = (states, value, data, reward, gradient)
        states, value, data, reward, gradient = jax.tree.map(
            lambda leaf: leaf[:size].reshape(num, rows, *leaf.shape[1:]), leaves
        )
        seen = Seen(t=t, x=states, velocity=value, data=data, reward=reward, gradient=gradient)
        return seen, jnp.stack(count(memory))

    # What follows is of all results, with the state of the search in a carry (state, kept, failed, costs).

    def first(self) -> tuple[Seen, Array]:
        """What is seen at the first states, after their lead."""
        search, num = self.search, self.shape[0]
        x = jax.vmap(search.first)(self.draws)
        lead = jnp.asarray(search.lead, self.way.times.dtype) if len(search.lead) else self.way.times[:1]
        time = lambda t: jnp.full((num, search.starts), t)  # noqa: E731
        last = len(lead) - 1
        asked = bool(search.asked[0])
        seen, costs = self.look(time(lead[0]), self.way.path.start(x, lead[0]), asked and last == 0)

        def step(number: Any, carry: Any) -> Any:
            seen, costs = carry
            x = jax.vmap(self.way.move)(seen, time(lead[number]))
            seen, more = self.look(time(lead[number]), x, asked)
            return seen, costs + more

        return jax.lax.fori_loop(1, last + 1, step, (seen, costs)) if last else (seen, costs)

    def begin(self, seen: Seen, costs: Array) -> Any:
        """The carry after the first states, and the first record."""
        state = jax.vmap(lambda draws, seen: self.search.begin(self.way, draws, seen))(self.draws, seen)
        nothing = jnp.full((self.shape[0],), -jnp.inf, seen.reward.dtype)
        kept, failed = self._kept((jnp.full(self.shape, jnp.nan, seen.data.dtype), nothing), seen)
        return (state, kept, failed, costs * self.search.starts), self._record(state, kept)

    def look_next(self, carry: Any, number: Any, asked: Any = True) -> tuple[Seen, Array]:
        """What is seen in a round."""
        propose = jax.vmap(lambda draws, state: self.search.propose(self.way, draws, state, number))
        return self.look(*propose(self.draws, carry[0]), asked)

    def update(self, carry: Any, seen: Seen, costs: Array, number: Any) -> Any:
        """The carry after a round, and its record. Results whose reward failed stay as they were."""
        state, kept, failed, spent = carry
        update = jax.vmap(lambda draws, state, seen: self.search.update(self.way, draws, state, seen, number))
        new = update(self.draws, state, seen)
        better, bad = self._kept(kept, seen)
        failed = failed | bad
        state, kept = pick(failed, (state, kept), (new, better))
        return (state, kept, failed, spent + costs * self.search.rows), self._record(state, kept)

    def _kept(self, kept: Any, seen: Seen) -> Any:
        """The best data predictions so far with their rewards, and which results have a reward that is none."""
        bad = jnp.any(jnp.isnan(seen.reward) | (seen.reward == jnp.inf), axis=1)
        reward = jnp.where(jnp.isnan(seen.reward) | (seen.reward == jnp.inf), -jnp.inf, seen.reward)
        best = jnp.argmax(reward, axis=1)
        data, reward = jax.vmap(lambda data, reward, best: (data[best], reward[best]))(seen.data, reward, best)
        return pick(reward > kept[1], (data, reward), kept), bad

    def _record(self, state: Any, kept: Any) -> dict[str, Any]:
        return {"reward": kept[1], **jax.vmap(self.search.report)(state)}

    def end(self, carry: Any) -> tuple[Array, Array, Array, Array]:
        """Results, their rewards, which of them failed, and costs."""
        state, (data, reward), failed, costs = carry
        seen = jax.vmap(self.search.answer)(self.draws, state)
        if self.search.finish:
            seen, costs = self._finished(seen, costs)
            if self.reward is not None:
                judged = self.reward(self.shown(seen.data), self.cond).astype(reward.dtype)
                seen = dataclasses.replace(seen, reward=judged)
                failed = failed | jnp.isnan(judged) | (judged == jnp.inf)
        reward = jnp.where(reward == -jnp.inf, jnp.nan, reward)
        data, reward = pick(failed, (data, reward), (seen.data, seen.reward))
        return data, reward, failed, costs

    def _finished(self, seen: Seen, costs: Array) -> tuple[Seen, Array]:
        """Winners (num, ...) after steps of DDIM in equal steps of t, of which the last leads to t = 1."""
        begin, steps = seen.t[:, None], self.search.finish

        def step(number: Any, carry: Any) -> Any:
            seen, costs = carry
            to = begin + (1 - begin) * ((number + 1) / (steps + 1)).astype(begin.dtype)
            x = jax.vmap(self.way.path.ddim_step)(seen.t, to, seen.x, seen.data)
            seen, more = self.look(to, x, False, graded=False)
            return seen, costs + more

        rows = jax.tree.map(lambda leaf: leaf[:, None], dataclasses.replace(seen, gradient=None))
        seen, costs = jax.lax.fori_loop(0, steps, step, (rows, costs))
        return jax.tree.map(lambda leaf: leaf[:, 0], seen), costs


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
        found = dataclasses.replace(found, failed=bad, reward=jnp.where(found.failed, found.reward, values))
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
