"""SDEs of a flow for diffrax: the drift v + eps s as a field, and the pair of terms with its noise."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Key

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.fields.wrapper import FieldWrapper
from flowjax.flow import Counts, Field, check_answer, check_determined, network_times, term
from flowjax.paths.base import check_time_and_state, expand
from flowjax.paths.sde import as_diffusion

PREDICTIONS = ("velocity", "score", "noise")  # of an interpolant


@fact("field", "drift_plus_score", "the drift of an SDE with any diffusion", cite="albergo2023stochastic")
@pytree
class DriftPlusScore(FieldWrapper):
    """A field whose velocity is the drift v + eps(t) s of the SDE with that diffusion (backwards: v - eps(t) s).

    Other predictions are those of the field. Solve it with `EulerMaruyama(drift="field", diffusion=...)` and the same
    diffusion, or through `sde_terms`. Where eps = 0 the score is not used, so it may be infinite there. It goes around
    whatever else changes the field, except guidance of an `InterpolantFlow`: guide(DriftPlusScore(field), rule).

    Args:
        field: a `Flow`, a guided field, or an `InterpolantFlow`.
        diffusion: as for `flowjax.solvers.EulerMaruyama`.
        backward: drift of the run from data to noise.

    Raises:
        ValueError: no such diffusion, or a field whose velocity does not determine its score.

    Reference: Albergo, Boffi and Vanden-Eijnden (2303.08797), section 2; SiT (2401.08740).

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path = fj.paths.Linear()
        >>> flow = fj.Flow(fj.oracles.Gaussian(mean=1.0, std=0.5, path=path).network(), path=path)
        >>> drift = fj.fields.DriftPlusScore(flow, diffusion=0.3)
        >>> x = jnp.array([[2.0]])
        >>> expected = flow.velocity(0.5, x) + 0.3 * flow.score(0.5, x)
        >>> bool(jnp.allclose(drift.velocity(0.5, x), expected))
        True
    """

    positional = ("field",)

    field: Field = part("field")
    diffusion: Any = part("diffusion", "sigma", static=True)
    backward: bool = static(False)

    convertible = False

    def __post_init__(self) -> None:
        """Checks the field and the diffusion."""
        super().__post_init__()
        as_diffusion(self.diffusion)
        if not isinstance(self.field, InterpolantFlow) and not self.field.convertible:
            raise ValueError(
                f"the velocity of {type(self.field).__name__} does not determine its score: DriftPlusScore goes around "
                "a field on a Gaussian path or an InterpolantFlow; guide the drift, guide(DriftPlusScore(field), rule)"
            )

    def check(self, times: Any, to: str) -> None:
        """The field must give `to`, and for the drift the score wherever eps is not 0.

        Raises:
            ValueError: a time at which it does not, or at which eps is not finite or negative.
        """
        self.field.check(times, to)
        for t in times if to == "velocity" else ():
            eps = float(self.eps(np.float64(t)))
            if not 0 <= eps < np.inf:
                raise ValueError(
                    f"diffusion {self.diffusion!r} is {eps} at t = {t:g}, it must be finite and not negative: move "
                    "that end of the times, e.g. flowjax.times.uniform(n, start=1e-3)"
                )
            if eps and isinstance(self.field, InterpolantFlow):
                self.field.check([t], "score")
            elif eps:
                check_determined(self.path, "velocity", "score", float(t))

    def eps(self, t: Any) -> Any:
        """eps(t)."""
        return as_diffusion(self.diffusion).value(self.path, t)

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Any, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Any]:
        """The drift, from one evaluation of the field where it has one network."""
        if to != "velocity":
            return self.field.evaluate(t, x, cond, memory, to=to, **extra)
        eps = expand(self.eps(jnp.asarray(check_time_and_state(t, x))), x)
        if isinstance(self.field, InterpolantFlow):
            velocity, score, _, memory = self.field.all(t, x, cond, memory, **extra)
        else:
            velocity, memory = self.field.evaluate(t, x, cond, memory, to="velocity", **extra)
            score = self.path.convert(velocity, given="velocity", to="score", t=t, x=x)
        part = jnp.where(eps == 0, 0, eps * score)
        return velocity - part if self.backward else velocity + part, memory


@fact("field", "interpolant_flow", "a two-sided interpolant with its networks", cite="albergo2023stochastic")
@pytree
class InterpolantFlow(Field):
    """The field of a two-sided interpolant, from one network, or two where the score is needed.

    b = velocity, or v - g g' s with the drift v; s = -etaz / g with the denoiser etaz = E[z | x_t], or a network of its
    own. A forward drift v + (g' - eps / g) etaz learned as one network stands in the place of the velocity. Both
    networks together are one evaluation.

    Args:
        network: called as `network(x, t, cond, **extra)`, like that of a `Flow`.
        path: the `flowjax.paths.Interpolant`.
        prediction: what the network returns: "velocity" or "drift".
        second: the network for the score, or None.
        second_prediction: what that returns: "denoiser" or "score".

    Raises:
        ValueError: unknown predictions, or a drift without a second network.

    Reference: Albergo, Boffi and Vanden-Eijnden (2303.08797), section 2.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> bridge = fj.paths.Interpolant(form="linear", gamma="brownian")
        >>> flow = fj.fields.InterpolantFlow(lambda x, t, cond: -x, path=bridge, second=lambda x, t, cond: x)
        >>> flow.score(0.5, jnp.ones((1, 2))).tolist()  # -etaz / g with g = 1/2
        [[-2.0, -2.0]]
    """

    positional = ("network",)

    network: Any
    path: Any = part("path")
    prediction: str = static("velocity")
    second: Any = None
    second_prediction: str = static("denoiser")

    convertible = False

    def __post_init__(self) -> None:
        """Checks the predictions."""
        if self.prediction not in ("velocity", "drift") or self.second_prediction not in ("denoiser", "score"):
            raise ValueError(
                "prediction must be 'velocity' or 'drift' and second_prediction 'denoiser' or 'score', got "
                f"{self.prediction!r} and {self.second_prediction!r}"
            )
        if self.prediction == "drift" and self.second is None:
            raise ValueError("the velocity is v - g g' s: prediction='drift' needs second=, a network for the score")

    def init(self, x: Array, times: Any = None) -> Counts:
        """Counters at zero."""
        return Counts.zero(x.shape[0])

    def check(self, times: Any, to: str) -> None:
        """The networks must give `to`, at these times.

        A denoiser says nothing of the score where gamma = 0, nor a drift with it of the velocity v - g g' s if g g' is
        not 0 there (brownian). Under jit both are NaN.

        Raises:
            ValueError: they do not.
        """
        if to not in PREDICTIONS:
            raise ValueError(f"an interpolant gives {', '.join(PREDICTIONS)}, not {to!r}")
        if to != "velocity" and self.second is None:
            raise ValueError(f"the {to} needs a network of its own: pass second=")
        if self.second is None or self.second_prediction == "score":
            return
        for t in times:
            c = self.path.coefficients(np.float64(t))
            if c.g == 0 and (to == "score" or (to == "velocity" and self.prediction == "drift" and c.gdg != 0)):
                raise ValueError(
                    f"a denoiser does not determine the {to} at t = {t:g}, where gamma = 0: move that end of the "
                    "times, e.g. flowjax.times.uniform(n, 1e-3, 1 - 1e-3), or take second_prediction='score'"
                )

    def all(self, t: Any, x: Array, cond: Any, memory: Counts, **extra: Any) -> tuple[Array, Array, Array, Counts]:
        """The velocity b, the score s, the noise etaz and the next memory: one evaluation of both networks."""
        self.check((), "score")
        times, t = network_times(t, x), jnp.asarray(check_time_and_state(t, x))
        c = self.path.coefficients(t)
        first = check_answer(self.network(x, times, cond, **extra), x).astype(x.dtype)
        second = check_answer(self.second(x, times, cond, **extra), x).astype(x.dtype)
        if self.second_prediction == "score":
            score, noise = second, -expand(c.g, x) * second
        else:
            score, noise = jnp.where(expand(c.g, x) == 0, jnp.nan, self.path.score(t, second)), second
        if self.prediction == "drift":
            # g' etaz; with g also etaz is 0, and so is the product unless g' is infinite.
            bounded = jnp.where(c.g == 0, jnp.where(c.gdg == 0, 0, jnp.nan), c.dg)
            first += expand(bounded, x) * noise if self.second_prediction == "denoiser" else -expand(c.gdg, x) * score
        return first, score, noise, memory.plus(2 * x.shape[0])

    def evaluate(
        self, t: Any, x: Array, cond: Any, memory: Counts, *, to: str = "velocity", **extra: Any
    ) -> tuple[Array, Counts]:
        """The "velocity", "score" or "noise" (etaz).

        Raises:
            ValueError: another prediction, or one that needs a second network.
        """
        t = check_time_and_state(t, x)
        self.check((), to)
        if to == "velocity" and self.prediction == "velocity":
            value = check_answer(self.network(x, network_times(t, x), cond, **extra), x)
            return value.astype(x.dtype), memory.plus(x.shape[0])
        *values, memory = self.all(t, x, cond, memory, **extra)
        return values[PREDICTIONS.index(to)], memory


class SampleBrownian(diffrax.AbstractBrownianPath):
    """Brownian motion of a batch by diffrax's `VirtualBrownianTree`, one tree per sample, keyed by its global index.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> flow = fj.Flow(lambda x, t, cond: -x, path=fj.paths.Linear())
        >>> drift = fj.fields.DriftPlusScore(flow, diffusion=0.3)
        >>> terms = fj.fields.sde_terms(drift, jnp.zeros((3, 2)), jax.random.key(0), start=0.1)
        >>> motion = terms.terms[1].control
        >>> len(motion.trees.key), float(motion.t0), float(motion.t1)
        (3, 0.1, 1.0)
    """

    trees: diffrax.VirtualBrownianTree
    levy_area: Any = eqx.field(static=True)

    def __init__(self, key: Key[Array, ""], x: Array, t0: float, t1: float, tol: float, index: Any, levy_area: Any):
        """Trees for the samples `index`, `index + 1`, ... of shape x.shape[1:] on [t0, t1]."""
        indices = jnp.asarray(index, jnp.uint32) + jnp.arange(x.shape[0], dtype=jnp.uint32)
        shape = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        self.trees = eqx.filter_vmap(
            lambda i: diffrax.VirtualBrownianTree(t0, t1, tol, shape, jax.random.fold_in(key, i), levy_area=levy_area)
        )(indices)
        self.levy_area = levy_area

    @property
    def t0(self) -> Any:
        """Start of the interval."""
        return self.trees.t0[0] if jnp.ndim(self.trees.t0) else self.trees.t0

    @property
    def t1(self) -> Any:
        """End of the interval."""
        return self.trees.t1[0] if jnp.ndim(self.trees.t1) else self.trees.t1

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """The increment over [t0, t1], (B, ...)."""
        return eqx.filter_vmap(lambda tree: tree.evaluate(t0, t1, left, use_levy))(self.trees)


class _Noise(eqx.Module):
    """sqrt(2 eps(t)) times the identity."""

    field: DriftPlusScore

    def __call__(self, t: Any, y: Array, args: Any) -> Any:
        size = jnp.sqrt(2 * expand(self.field.eps(jnp.asarray(check_time_and_state(t, y))), y))
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(size, y.shape))


def sde_terms(
    field: DriftPlusScore,
    x: Array,
    key: Key[Array, ""],
    *,
    start: float = 0.0,
    end: float = 1.0,
    tol: float = 1e-3,
    index: Any = 0,
    levy_area: Any = diffrax.BrownianIncrement,
) -> diffrax.MultiTerm:
    """The pair (drift, noise) for diffrax's SDE solvers, with the drift of `DriftPlusScore`.

    The noise is additive, so Ito and Stratonovich agree. `diffeqsolve(sde_terms(...), diffrax.Euler(), start, end, dt,
    x, cond)` runs noise to data; a field with `backward=True` runs from `end` to `start` with a negative step.

    Args:
        field: drift and diffusion.
        x: the initial state (B, ...), for its shape and precision.
        key: typed key; the motion of sample i depends on (key, index + i) only.
        start: first time.
        end: last time.
        tol: resolution of the tree, below the smallest step.
        index: global index of the first sample.
        levy_area: what the solver needs (`diffrax.SpaceTimeLevyArea` for `ShARK`, `SRA1`).

    Raises:
        ValueError: a field with a memory, or one whose drift is undefined where the run begins.
    """
    field.check([end if field.backward else start], "velocity")
    motion = SampleBrownian(key, x, start, end, tol, index, levy_area)
    return diffrax.MultiTerm(term(field), diffrax.ControlTerm(_Noise(field), motion))
