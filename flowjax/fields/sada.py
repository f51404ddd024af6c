"""SADA: skipped network calls, decided on the run by a criterion of stability (Jiang et al., 2507.17135)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import SEED, choose, pair, sizes, whole
from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.fields.probed import flow_of
from flowjax.fields.pruned import Pruned, kept_tokens, token_scores
from flowjax.fields.saving import Saving, Spared
from flowjax.flow import Field, Flow

# x^ = x + h (v + a d + b D2), d and D2 the first and second difference of v.
_EXTRAPOLATIONS = {"paper": (1 / 2, -2 / 3), "code": (0.0, -3 / 8)}


@pytree
class _History:
    """x_i; v_i, v_{i-1}, v_{i-2}; the noise of the last call or two answers of the network; stored data predictions."""

    x: Array
    v: tuple[Array, ...]
    held: tuple[Array, ...]
    data: Array | None
    steps: Array | None
    last: Array  # step that was skipped last, -1 before


@fact("field", "sada", "calls skipped by a criterion of stability", cite="jiang2025sada", couples_batch=True)
@pytree
class SADA(Saving):
    r"""A field that skips network calls where the sampler's own quantities show that its velocity settles.

    After step i of N, with D2 the second difference over steps and m an elementwise product,

        x^_{i+1} = x_i + h (5/6 v_i + 5/6 v_{i-1} - 2/3 v_{i-2}),    m = -(x_{i+1} - x^_{i+1}) * D2 v_i,

    x_{i+1} the solver's result (where times fall, the sign is turned); the step is stable if the mean of m over
    everything, the batch included, is at most 0.
    For Euler that says that first and second difference of v have opposite signs: its change is dying out. In
    acc_range a stable step skips the call of the next one, at most max_interval in a row. A skipped call is answered by
    the data prediction (x^ - sigma noise)/alpha of the noise that was last predicted. From `lagrange_step` on, the
    network is asked at every `lagrange_int`-th step only, and the others are answered by the polynomial, in the number
    of the step, through the last `lagrange_term` stored data predictions. Solver and path may be any, as long as there
    is one evaluation in a step: predictions convert, v is the velocity of the path, and on grids of unequal steps
    differences are divided ones, so that x^ is of second order on all of them.

    For solvers of second order x_{i+1} - x^ is 2/3 h D2 v up to higher orders, so that every step is stable and the
    counts alone decide; for Euler and DDIM the criterion does.

    The decision is one for the whole batch, so that samples depend on their batch mates. Guidance goes inside:
    SADA(guide(flow, rule)) skips whole pairs. For solvers of ODEs; under a stochastic one the criterion sees the noise
    of each step as a velocity that changes its mind, and says little.

    Args:
        field: the field, guidance included.
        acc_range: steps (first, last) after which a call may be skipped, at least 3. None is 0.2 N and 0.94 N, the
            published (10, 47) of 50.
        max_interval: most skipped calls in a row.
        lagrange_step: first step of the regular phase, a multiple of lagrange_int. None is near 0.48 N, the published
            24 of 50, or later where predictions are too few by then; Flux has 20.
        lagrange_int: steps between calls in the regular phase.
        lagrange_term: number of predictions that the polynomial goes through, 1 to 8; Flux has 3. 0 is no regular
            phase.
        criterion: "paper", or "flow_code": m = D2 v alone, of the published program for Flux, which changes its
            decisions with the sign of the data. A step that was skipped is stable there.
        coeffs: of x^: "paper", or "code": (0.625, 0.75, -0.375), of first order, whatever the steps.
        approx: what answers a skipped call: "paper", or "flow_code", of the program for Flux: 2 v_i - v_{i-1} at the
            first skipped call in a row and v_i at the others, in the regular phase too.
        tokens: (cells, most) prunes tokens in calls within acc_range: of every cells x cells tokens one drawn at random
            is computed, and the `most` others with the largest means of m; blocks answer the rest from what they said
            before, of which all is renewed after a skipped call and every max_interval steps. Equally many are computed
            whatever is stable, at their own positions (the published program moves them). Needs a network with
            `block_cache` (`flowjax.models.DiT`) and keeps depth x B x N x width numbers.
        seed: of the tokens drawn.

    Raises:
        ValueError: a number or name that is not allowed; when it is bound, a range that the run does not reach, or a
            solver with other evaluations than one per step.

    Reference: Jiang et al. (2025), SADA: Stability-guided Adaptive Diffusion Acceleration, arXiv:2507.17135.

    Example:
        >>> import flowjax as fj, jax
        >>> law = fj.oracles.Mixture.default(fj.paths.Linear())
        >>> flow = fj.Flow(law.network("velocity"), path=law.path)
        >>> x0 = fj.noise(jax.random.key(0), (8, 1))
        >>> result = fj.solve(fj.fields.SADA(flow), fj.solvers.Euler(), x0, fj.times.uniform(50))
        >>> int(result.evaluations), int(result.report["skipped"].sum())
        (28, 22)
    """

    field: Field = part("field")
    acc_range: Any = None
    max_interval: Any = 4
    lagrange_step: int | None = static(None)
    lagrange_int: int = static(4)
    lagrange_term: int = static(4)
    criterion: str = static("paper")
    coeffs: str = static("paper")
    approx: str = static("paper")
    tokens: tuple[int, int] | None = static(None)
    seed: int = static(0)

    def __post_init__(self) -> None:
        """Checks the field and the options."""
        super().__post_init__()
        choose("criterion", self.criterion, ("paper", "flow_code"))
        choose("coeffs", self.coeffs, ("paper", "code"))
        choose("approx", self.approx, ("paper", "flow_code"))
        whole("[1, 10000]", max_interval=self.max_interval)
        whole("[2, 10000]", lagrange_int=self.lagrange_int)
        whole("[0, 8]", lagrange_term=self.lagrange_term)
        if self.acc_range is not None:
            pair("[0, inf)", acc_range=self.acc_range)
        if self.lagrange_step is not None:
            whole("[0, 10000]", lagrange_step=self.lagrange_step)
            full = self.lagrange_term * self.lagrange_int
            if self.lagrange_step % self.lagrange_int or self.lagrange_step < full:
                raise ValueError(
                    f"lagrange_step={self.lagrange_step} must be a multiple of lagrange_int={self.lagrange_int}, "
                    f"{full} or later, when {self.lagrange_term} predictions are stored"
                )
        whole(SEED, seed=self.seed)
        if self.tokens is not None:
            sizes(2, tokens=self.tokens)
            _ = self.asked

    @property
    def asked(self) -> Field:
        """The field, its flows with caches of tokens where tokens are pruned."""
        if self.tokens is None:
            return self.field
        flow_of(self.field)
        return jax.tree.map(
            lambda part: Pruned(part) if isinstance(part, Flow) else part,
            self.field,
            is_leaf=lambda part: isinstance(part, Flow),
        )

    def check(self, times: Any, to: str) -> None:
        """As for all that saves, and the range must lie within the run."""
        super().check(times, to)
        first, last = self.acc_range or (0, 0)
        if not isinstance(last, jax.core.Tracer) and last > len(times):
            raise ValueError(
                f"acc_range=({first}, {last}) are numbers of steps, and this run has {len(times)}: leave it out for a "
                "range that follows their number"
            )

    def _ranges(self, steps: int) -> tuple[Any, Any, Any]:
        """First and last step after which calls may be skipped, and the first of the regular phase."""
        first, last = (_round(0.2 * steps), _round(0.94 * steps)) if self.acc_range is None else self.acc_range
        full, regular = self.lagrange_term * self.lagrange_int, self.lagrange_step
        if regular is None:
            regular = max(full, self.lagrange_int * _round(0.48 * steps / self.lagrange_int))
        return jnp.maximum(jnp.asarray(first, jnp.int32), 3), jnp.asarray(last, jnp.int32), regular

    def begin(self, x: Array, steps: int) -> _History:
        """Zeros."""
        zero, term = jnp.zeros_like(x), self.lagrange_term if self.approx == "paper" else 0
        return _History(
            x=zero,
            v=(zero,) * 3,
            held=(zero,) * (1 if self.approx == "paper" else 2),
            data=jnp.zeros((term, *x.shape), x.dtype) if term else None,
            steps=-1 - jnp.arange(term, dtype=jnp.int32) if term else None,
            last=jnp.int32(-1),
        )

    def decide(self, t: Any, x: Array, cond: Any, memory: Spared) -> tuple[Any, Any, Any]:
        """The criterion after the last step, and what the phase makes of it."""
        ahead, second = self._extrapolate(memory)
        forward = jnp.sign(memory.times[memory.steps] - memory.times[0]).astype(x.dtype)
        m = second if self.criterion == "flow_code" else -forward * (x - ahead) * second
        measure = jnp.where(memory.step >= 3, jnp.mean(m), 0)
        if self.criterion == "flow_code":
            measure = jnp.where(memory.skipped, 0, measure)
        skip, lagrange = self.phases(measure <= 0, memory.step - 1, memory.run, memory.steps)
        return skip, measure, (ahead, lagrange, m)

    def phases(self, stable: Any, i: Any, run: Any, steps: int) -> tuple[Array, Array]:
        """Whether the call after step i is skipped, and whether the polynomial answers it.

        Args:
            stable: whether the step was.
            i: its number.
            run: calls skipped in a row before.
            steps: their number N.
        """
        first, last, regular = self._ranges(steps)
        within, lagrange = (i >= first) & (i < last), jnp.array(False)
        if self.lagrange_term:
            lagrange = within & (i >= regular) & (i % self.lagrange_int != 0)
            stable = stable & (i < regular)
        return ((within & stable) | lagrange) & (run < self.max_interval), lagrange

    def _extrapolate(self, memory: Spared) -> tuple[Array, Array]:
        """x^ at the evaluation that comes, and D2 v of the last three."""
        (v0, v1, v2), grid, dtype = memory.own.v, memory.times, memory.own.x.dtype
        a, b = _EXTRAPOLATIONS[self.coeffs]
        steps = jnp.diff(grid[jnp.clip(memory.step - jnp.arange(4, dtype=jnp.int32), 0, memory.steps)][::-1])
        h2, h1, h = (steps[k].astype(dtype) for k in range(3))
        first, second = v0 - v1, v1 - v2
        if self.coeffs == "paper":  # as on steps of the length h
            h1, h2 = (jnp.where(memory.step >= 3, length, h) for length in (h1, h2))
            first, second = first * (h / h1), second * (h / h2)
            second = (first - second) * (2 * h / (h1 + h2))
        else:
            second = first - second
        return memory.own.x + h * (v0 + a * first + b * second), second

    def answer(self, t: Any, x: Array, memory: Spared, more: Any, to: str) -> Array:
        """From the noise that was last predicted, from stored predictions, or by a line through two velocities."""
        (ahead, lagrange, _), own = more, memory.own
        if self.approx == "flow_code":
            return self.path.convert(2 * own.held[0] - own.held[1], given="velocity", to=to, t=t, x=x)

        def stale() -> Array:
            return self.path.convert(own.held[0], given="noise", to="data", t=t, x=ahead)

        def interpolated() -> Array:
            nodes, here = own.steps.astype(x.dtype), memory.step.astype(x.dtype)
            apart = nodes[:, None] - nodes[None, :]
            same = jnp.eye(len(nodes), dtype=bool)
            weights = jnp.prod(jnp.where(same, 1, (here - nodes)[None, :] / jnp.where(same, 1, apart)), axis=1)
            return sum(weights[k] * own.data[k] for k in range(1, len(nodes))) + weights[0] * own.data[0]

        m = stale() if own.data is None else jax.lax.cond(lagrange, interpolated, stale)
        return self.path.convert(m, given="data", to=to, t=t, x=x)

    def remember(self, t: Any, x: Array, value: Array, to: str, skip: Array, memory: Spared, more: Any) -> _History:
        """The velocity that was given; of a call, its noise; at every lagrange_int-th step, the data prediction."""
        own = memory.own
        v = self.path.convert(value, given=to, to="velocity", t=t, x=x)
        data, steps, held = own.data, own.steps, own.held
        if self.approx == "flow_code":
            held = (jnp.where(skip, own.held[0], v), own.held[0])
        else:
            held = (jnp.where(skip, own.held[0], self.path.convert(value, given=to, to="noise", t=t, x=x)),)
            if data is not None:
                place = (memory.step // self.lagrange_int) % self.lagrange_term
                due = memory.step % self.lagrange_int == 1 % self.lagrange_int
                m = self.path.convert(value, given=to, to="data", t=t, x=x)
                data = data.at[place].set(jnp.where(due, m, data[place]))
                steps = steps.at[place].set(jnp.where(due, memory.step, steps[place]))
        return _History(
            x=x, v=(v, *own.v[:2]), held=held, data=data, steps=steps, last=jnp.where(skip, memory.step, own.last)
        )

    def ask_for(self, x: Array, memory: Spared, more: Any) -> dict[str, Any]:
        """Which tokens, and whether all of them after all."""
        if self.tokens is None:
            return {}
        grid, (cells, most) = flow_of(self.field).network.token_grid, self.tokens
        key = jax.random.fold_in(jax.random.key(self.seed), memory.step)
        tokens = kept_tokens(token_scores(more[2], grid), grid, cells, most, key)
        (first, last, _), j = self._ranges(memory.steps), memory.step
        since = jnp.where(first > memory.own.last, first, memory.own.last + 1)
        refresh = (j < first) | (j >= last) | ((j - since) % self.max_interval == 0)
        return {"tokens": tokens, "refresh": refresh}


def _round(number: float) -> int:
    """The nearest whole number, halves up."""
    return math.floor(number + 0.5)
