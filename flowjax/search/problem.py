"""A search with its field and reward: the compiled parts that `find` puts together, of many results at once."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from flowjax._pytree import pytree, static
from flowjax.flow import Field, count
from flowjax.search.base import Draws, Search, Seen, Way, pick


@pytree
class Problem:
    """A search, with all that its compiled parts need.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> from flowjax.search.problem import Problem
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
