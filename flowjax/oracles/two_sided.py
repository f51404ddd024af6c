"""Mixtures at both ends of an interpolant."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax._pytree import pytree, static
from flowjax.oracles.base import State, Time, expand_components, prepare
from flowjax.paths.base import expand


@pytree
class TwoSidedMixture:
    """Mixtures at both ends of a stochastic interpolant, independent of each other: all its fields in closed form.

    With rho0 = sum_i w0_i N(m0_i, S0_i) and rho1 likewise, x_t is a mixture over the pairs (i, j) with

        m = c0 m0_i + c1 m1_j,  V = c0^2 S0_i + c1^2 S1_j + g^2,  u = V^-1 (x - m),  r_ij(t, x) the responsibilities,
        velocity = sum r (m' + V' u / 2),  score = -sum r u,  denoiser = -g score,
        source = sum r (m0_i + c0 S0_i u),  data likewise,  drift = c0' source + c1' data.

    S is diagonal, given by standard deviations, or full, given by covariances of states (B, d); the ends may differ.

    Attributes:
        weights0: (I,), positive; normalised on use.
        means0: (I, *event).
        stds0: (I, *event), or None with `covariances0`.
        covariances0: (I, d, d), symmetric and positive definite, or None with `stds0`.
        weights1, means1, stds1, covariances1: likewise, with J components.
        interpolant: a `flowjax.paths.Interpolant`.

    Raises:
        ValueError: shapes that do not fit together, both or neither of deviations and covariances at one end.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> bridge = fj.paths.Interpolant(form="linear", gamma="brownian")
        >>> ends = {"means0": [[-1.0]], "stds0": [[0.5]], "means1": [[1.0]], "stds1": [[0.5]]}
        >>> laws = fj.oracles.TwoSidedMixture(weights0=[1.0], weights1=[1.0], interpolant=bridge, **ends)
        >>> velocity = jax.jit(lambda x: laws.predict("velocity", 0.5, x))
        >>> velocity(jnp.zeros((1, 1))).tolist()  # half way between the means: their distance
        [[2.0]]
    """

    weights0: Any
    means0: Any
    weights1: Any
    means1: Any
    interpolant: Any
    stds0: Any = None
    covariances0: Any = None
    stds1: Any = None
    covariances1: Any = None

    def __post_init__(self) -> None:
        """Checks the shapes, and concrete covariances."""
        for end, weights, means, stds, covariances in (
            (0, self.weights0, self.means0, self.stds0, self.covariances0),
            (1, self.weights1, self.means1, self.stds1, self.covariances1),
        ):
            if (stds is None) == (covariances is None):
                raise ValueError(f"give one of stds{end} and covariances{end}")
            shape, spread = np.shape(means), np.shape(covariances if stds is None else stds)
            if shape[:1] != np.shape(weights) or spread != (shape if stds is not None else (*shape, *shape[1:])):
                raise ValueError(
                    f"expected weights{end} (K,), means{end} (K, ...) and stds{end} like the means, or for means "
                    f"(K, d) covariances{end} (K, d, d); got {np.shape(weights)}, {shape} and {spread}"
                )
            if stds is None and len(shape) != 2:
                raise ValueError(f"covariances are for states (B, d), got means{end} of shape {shape}")
            if covariances is not None and not isinstance(covariances, jax.core.Tracer):
                matrices = np.asarray(covariances, np.float64)
                asymmetry = np.abs(matrices - np.swapaxes(matrices, 1, 2)).max()
                if not (asymmetry <= 1e-5 * np.abs(matrices).max() and np.all(np.linalg.eigvalsh(matrices) > 0)):
                    raise ValueError(f"covariances{end} must be finite, symmetric and positive definite")

    @property
    def _full(self) -> bool:
        return self.stds0 is None or self.stds1 is None

    def _spread(self, stds: Any, covariances: Any, x: Array) -> Array:
        """S (K, *event), or (K, d, d) if either end has covariances."""
        if stds is None:
            return jnp.asarray(covariances, x.dtype)
        variances = jnp.asarray(stds, x.dtype) ** 2
        return jax.vmap(jnp.diag)(variances) if self._full else variances

    def _times(self, s: Array, u: Array) -> Array:
        """S u for S of `_spread` with a leading axis 1."""
        return jnp.einsum("pde,bpe->bpd", s[0], u, precision="highest") if self._full else s * u

    def _solve(self, c: Any, s0: Array, s1: Array, residual: Array) -> tuple[Array, Array]:
        """u = V^-1 (x - m), and -log N(x; m, V) without the constant, (B, P)."""
        if not self._full:
            total = c.c0**2 * s0 + c.c1**2 * s1 + c.g**2
            density = residual**2 / total + jnp.log(total)
            return residual / total, jnp.sum(density, axis=tuple(range(2, density.ndim))) / 2
        c0, c1, g = (k if k.ndim == 0 else k[..., None] for k in (c.c0, c.c1, c.g))
        total = c0**2 * s0 + c1**2 * s1 + g**2 * jnp.eye(s0.shape[-1], dtype=s0.dtype)[None, None]
        root = jnp.broadcast_to(jnp.linalg.cholesky(total), (*residual.shape, residual.shape[-1]))
        white = jax.scipy.linalg.solve_triangular(root, residual[..., None], lower=True)
        u = jax.scipy.linalg.solve_triangular(root, white, lower=True, trans=1)[..., 0]
        return u, jnp.sum(white[..., 0] ** 2 / 2 + jnp.log(jnp.diagonal(root, axis1=2, axis2=3)), axis=2)

    def _pairs(self, t: Time, x: Array) -> tuple[Any, ...]:
        """The coefficients, the log joint (B, P) of pair and state, and per pair m0, S0, m1, S1 and u."""
        wide = x[:, None]
        c = type(self.interpolant.coefficients(t))(*(expand(k, wide) for k in self.interpolant.coefficients(t)))
        i, j = (a.ravel() for a in np.indices((np.shape(self.weights0)[0], np.shape(self.weights1)[0])))
        m0, m1 = jnp.asarray(self.means0, x.dtype)[i][None], jnp.asarray(self.means1, x.dtype)[j][None]
        s0 = self._spread(self.stds0, self.covariances0, x)[i][None]
        s1 = self._spread(self.stds1, self.covariances1, x)[j][None]
        u, exponent = self._solve(c, s0, s1, wide - c.c0 * m0 - c.c1 * m1)
        logs = [jax.nn.log_softmax(jnp.log(jnp.asarray(w, x.dtype))) for w in (self.weights0, self.weights1)]
        joint = (logs[0][i] + logs[1][j])[None] - exponent - math.log(2 * math.pi) / 2 * math.prod(x.shape[1:])
        return c, joint, m0, s0, m1, s1, u

    def log_density(self, t: Time, x: State) -> Float[Array, " B"]:
        """Log rho(t, x)."""
        return jax.nn.logsumexp(self._pairs(*prepare(t, x))[1], axis=1)

    def predict(self, prediction: str, t: Time, x: State) -> Float[Array, "B ..."]:
        """The exact "velocity", "drift", "score", "denoiser", "source" or "data" at (t, x)."""
        t, x = prepare(t, x)
        c, joint, m0, s0, m1, s1, u = self._pairs(t, x)
        responsibilities = expand_components(jax.nn.softmax(joint, axis=1), u)
        source, data = m0 + c.c0 * self._times(s0, u), m1 + c.c1 * self._times(s1, u)
        drift = c.dc0 * source + c.dc1 * data
        values = {"velocity": drift + c.gdg * u, "drift": drift, "score": -u, "denoiser": c.g * u}
        values |= {"source": source, "data": data}
        if prediction not in values:
            raise ValueError(f"prediction={prediction!r} is unknown; use one of {', '.join(values)}")
        return jnp.sum(responsibilities * values[prediction], axis=1)

    def network(self, prediction: str) -> "TwoSidedNetwork":
        """A perfectly trained network of this prediction, as a pytree."""
        return TwoSidedNetwork(target=self, prediction=prediction)


@pytree
class TwoSidedNetwork:
    """A two-sided mixture behind the call of a network.

    Attributes:
        target: The laws at both ends.
        prediction: One of those of `TwoSidedMixture.predict`.

    Example:
        >>> import flowjax as fj
        >>> bridge = fj.paths.Interpolant(form="linear", gamma="brownian")
        >>> ends = {"means0": [[-1.0]], "stds0": [[0.5]], "means1": [[1.0]], "stds1": [[0.5]]}
        >>> laws = fj.oracles.TwoSidedMixture(weights0=[1.0], weights1=[1.0], interpolant=bridge, **ends)
        >>> flow = fj.fields.InterpolantFlow(laws.network("velocity"), path=bridge, second=laws.network("denoiser"))
        >>> flow.second.prediction
        'denoiser'
    """

    target: TwoSidedMixture
    prediction: str = static("velocity")

    def __call__(self, x: State, t: Float[Array, " B"], cond: Any = None) -> Float[Array, "B ..."]:
        """Evaluates the prediction at states x and times t."""
        return self.target.predict(self.prediction, t, x)
