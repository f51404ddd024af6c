"""Targets whose flow is known in closed form, the truth for tests of solvers, objectives and networks.

On a path x_t = alpha x1 + sigma x0 a mixture x1 ~ sum_k w_k N(m_k, S_k) with diagonal S_k has at time t the
density p_t = sum_k w_k N(alpha m_k, V_k), V_k = alpha^2 S_k + sigma^2. With the responsibilities r_k(t, x)
and u = sum_k r_k (x - alpha m_k) / V_k,

    score = -u,  noise = sigma u,  data = sum_k r_k (m_k + alpha S_k (x - alpha m_k) / V_k),
    velocity = alpha' data + sigma sigma' u,

which need no limits at either end. All functions compute in the precision of x (float64 under jax's x64
mode).

References:
    Albergo, Boffi and Vanden-Eijnden (2023), Stochastic Interpolants, appendix A, arXiv:2303.08797.
    Geng et al. (2025), Mean Flows for One-step Generative Modeling, equation 3, arXiv:2505.13447 (mean
    velocity).
"""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from flowjax._pytree import pytree, static
from flowjax.paths import PREDICTIONS, GaussianPath
from flowjax.paths.base import check_time_and_state, divide, expand

Time = Any  # a scalar or (B,)
State = Float[Array | np.ndarray, "B ..."]


class _Target(abc.ABC):
    """A closed-form target. `cond` selects a component; targets with one component ignore it."""

    path: GaussianPath

    @abc.abstractmethod
    def _posterior(self, t: Time, x: Array, cond: Array | None) -> tuple[Array, Array]:
        """The pair (data, u) of the module's formulas, each (B, ...)."""

    @abc.abstractmethod
    def log_density(self, t: Time, x: State, cond: Any = None) -> Float[Array, " B"]:
        """Log p_t(x), summed over all dimensions but the first."""

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""], n: int, cond: Any = None) -> Float[Array, "n ..."]:
        """Draws n data points x1."""

    @abc.abstractmethod
    def flow_map(self, x: State, t: Time, end: Time, cond: Any = None) -> Float[Array, "B ..."]:
        """Solution at time `end` of dx/dt = velocity that passes through x at time t."""

    def predict(self, prediction: str, t: Time, x: State, cond: Any = None) -> Float[Array, "B ..."]:
        """The exact prediction of any kind: "velocity", "noise", "data", "score" or "v"."""
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction={prediction!r} is unknown; use one of {', '.join(PREDICTIONS)}")
        t, x = _prepare(t, x)
        data, u = self._posterior(t, x, cond)
        if prediction == "data":
            return data
        if prediction == "score":
            return -u
        sigma = expand(self.path.sigma(t), x)
        if prediction == "noise":
            return sigma * u
        if prediction == "v":
            return expand(self.path.alpha(t), x) * sigma * u - sigma * data
        return expand(self.path.dalpha(t), x) * data + expand(self.path.sigma_dsigma(t), x) * u

    def velocity(self, t: Time, x: State, cond: Any = None) -> Float[Array, "B ..."]:
        """E[alpha' x1 + sigma' x0 | x_t = x]."""
        return self.predict("velocity", t, x, cond)

    def data(self, t: Time, x: State, cond: Any = None) -> Float[Array, "B ..."]:
        """E[x1 | x_t = x]."""
        return self.predict("data", t, x, cond)

    def noise(self, t: Time, x: State, cond: Any = None) -> Float[Array, "B ..."]:
        """E[x0 | x_t = x]."""
        return self.predict("noise", t, x, cond)

    def score(self, t: Time, x: State, cond: Any = None) -> Float[Array, "B ..."]:
        """Gradient of log p_t at x."""
        return self.predict("score", t, x, cond)

    def mean_velocity(self, x: State, t: Time, end: Time, cond: Any = None) -> Float[Array, "B ..."]:
        """(flow_map(x, t, end) - x) / (end - t), and the velocity where end = t."""
        t, x = _prepare(t, x)
        end, _ = _prepare(end, x)
        span = expand(end, x) - expand(t, x)
        quotient = divide(self.flow_map(x, t, end, cond) - x, span)
        return jnp.where(span == 0, self.velocity(t, x, cond), quotient)

    def network(self, prediction: str = "velocity") -> "Network":
        """A perfectly trained network of this prediction, or of "mean_velocity", as a pytree."""
        return Network(target=self, prediction=prediction)


@pytree
class Network:
    """A closed-form target behind the call of a network.

    Attributes:
        target: The law of the data.
        prediction: "velocity", "noise", "data", "score", "v", or "mean_velocity", which takes `end`.

    Example:
        >>> import flowjax as fj, jax.numpy as jnp
        >>> path = fj.paths.Linear()
        >>> network = fj.oracles.Gaussian(mean=2.0, std=0.5, path=path).network("data")
        >>> network(jnp.zeros((1, 3)), jnp.zeros(1)).tolist()  # from noise alone: the mean of the data
        [[2.0, 2.0, 2.0]]
        >>> flow = fj.Flow(network, path=path, prediction="data")
    """

    target: _Target
    prediction: str = static("velocity")

    def __call__(
        self, x: State, t: Float[Array, " B"], cond: Any = None, end: Time | None = None
    ) -> Float[Array, "B ..."]:
        """Evaluates the prediction at states x and times t; end=None means end = t."""
        if self.prediction == "mean_velocity":
            return self.target.mean_velocity(x, t, t if end is None else end, cond)
        return self.target.predict(self.prediction, t, x, cond)


@pytree
class Gaussian(_Target):
    """The law N(mean, std^2), independent in each dimension; states have any shape (B, ...).

    The flow map is affine: x -> alpha(e) m + sqrt(V(e) / V(t)) (x - alpha(t) m).

    Attributes:
        mean: Scalar, or an array that broadcasts to one state.
        std: Standard deviation, non-negative (0: a single point); a scalar, or an array that broadcasts to
            one state.
        path: The path from noise to data.

    Example:
        >>> import jax.numpy as jnp
        >>> from flowjax.paths import Linear
        >>> float(Gaussian(mean=2.0, std=0.5, path=Linear()).flow_map(jnp.array([0.25]), 0.0, 1.0)[0])
        2.125
    """

    mean: Any
    std: Any
    path: GaussianPath

    def _moments(self, t: Time, x: Array) -> tuple[Array, Array, Array, Array, Array]:
        alpha, sigma = expand(self.path.alpha(t), x), expand(self.path.sigma(t), x)
        mean, variance = jnp.asarray(self.mean, x.dtype), jnp.asarray(self.std, x.dtype) ** 2
        mean, variance = (jnp.broadcast_to(a, x.shape[1:])[None] for a in (mean, variance))
        return alpha, mean, variance, alpha**2 * variance + sigma**2, x - alpha * mean

    def _posterior(self, t: Time, x: Array, cond: Array | None) -> tuple[Array, Array]:
        alpha, mean, variance, total, residual = self._moments(t, x)
        u = divide(residual, total)
        return mean + alpha * variance * u, u

    def log_density(self, t: Time, x: State, cond: Any = None) -> Float[Array, " B"]:
        """Log N(x; alpha m, V), summed over all dimensions but the first."""
        t, x = _prepare(t, x)
        *_, total, residual = self._moments(t, x)
        logs = -(residual**2 / total + jnp.log(2 * math.pi * total)) / 2
        return jnp.sum(logs, axis=tuple(range(1, x.ndim)))

    def sample(self, key: Key[Array, ""], n: int, cond: Any = None) -> Float[Array, "n ..."]:
        """Draws n data points of the shape of `mean` and `std` broadcast together."""
        shape = np.broadcast_shapes(np.shape(self.mean), np.shape(self.std))
        noise = jax.random.normal(key, (n, *shape))
        return jnp.asarray(self.mean, noise.dtype) + jnp.asarray(self.std, noise.dtype) * noise

    def flow_map(self, x: State, t: Time, end: Time, cond: Any = None) -> Float[Array, "B ..."]:
        """Affine map of the state at time t to the state at time end; both scalar or (B,), in any order."""
        t, x = _prepare(t, x)
        end, _ = _prepare(end, x)
        _, mean, _, total, residual = self._moments(t, x)
        alpha_end, _, _, total_end, _ = self._moments(end, x)
        return alpha_end * mean + jnp.sqrt(divide(total_end, total)) * residual


@pytree
class Mixture(_Target):
    """The law sum_k w_k N(m_k, diag(s_k^2)); component k is class k, class K is the whole mixture.

    Attributes:
        weights: (K,), positive; normalised on use.
        means: (K, *event), where a state is (B, *event); event () and (1,) are one-dimensional.
        stds: Standard deviations, positive: a scalar, (K,), or (K, *event).
        path: The path from noise to data.

    Example:
        >>> import flowjax as fj, jax, jax.numpy as jnp
        >>> law = fj.oracles.Mixture(weights=[1.0, 1.0], means=[[-1.0], [1.0]], stds=0.1, path=fj.paths.Linear())
        >>> round(float(jax.jit(law.data)(0.5, jnp.array([[0.5]]))[0, 0]), 2)  # near the second mean
        0.76
    """

    weights: Any
    means: Any
    stds: Any
    path: GaussianPath

    def __post_init__(self) -> None:
        """Checks the shapes.

        Raises:
            ValueError: shapes do not fit together.
        """
        count, event = np.shape(self.weights), np.shape(self.means)
        if len(count) != 1 or event[:1] != count or np.shape(self.stds) not in ((), count, event):
            raise ValueError(
                "expected weights (K,), means (K, ...) and stds (), (K,) or like the means; got "
                f"{count}, {event} and {np.shape(self.stds)}"
            )

    @classmethod
    def default(cls, path: GaussianPath, dim: int = 1) -> "Mixture":
        """The shared test problem: three unequal components, of order 1, in `dim` = 1 or 2 dimensions.

        Raises:
            ValueError: another dimension.
        """
        means = {1: [[-1.4], [0.2], [1.3]], 2: [[-1.2, -0.7], [0.1, 1.1], [1.3, -0.4]]}
        if dim not in means:
            raise ValueError(f"dim={dim} must be 1 or 2")
        return cls(
            weights=np.array([0.3, 0.25, 0.45]),
            means=np.array(means[dim]),
            stds=np.array([0.35, 0.25, 0.3]),
            path=path,
        )

    @property
    def num_classes(self) -> int:
        """Number K of components, and the label of the whole mixture."""
        return np.shape(self.weights)[0]

    def _log_weights(self, x: Array, cond: Array | None) -> Float[Array, "B K"]:
        """Log prior weights of the components that each state's condition allows."""
        logs = jax.nn.log_softmax(jnp.log(jnp.asarray(self.weights, x.dtype)))[None]
        if cond is None:
            return jnp.broadcast_to(logs, (x.shape[0], self.num_classes))
        cond = jnp.asarray(cond)[:, None]
        allowed = (cond == jnp.arange(self.num_classes, dtype=cond.dtype)[None]) | (cond == self.num_classes)
        logs = jnp.where(allowed, logs, -jnp.inf)
        return logs - jax.nn.logsumexp(logs, axis=1, keepdims=True)

    def _components(self, t: Time, x: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Returns alpha () or (B, 1, ...), m and S (1, K, *event), V and x - alpha m (B, K, *event)."""
        if x.shape[1:] != np.shape(self.means)[1:]:
            raise ValueError(f"expected states (B, {np.shape(self.means)[1:]}), got {x.shape}")
        wide = x[:, None]
        alpha, sigma = expand(self.path.alpha(t), wide), expand(self.path.sigma(t), wide)
        means, stds = jnp.asarray(self.means, x.dtype), jnp.asarray(self.stds, x.dtype)
        stds = stds.reshape(stds.shape + (1,) * (means.ndim - stds.ndim))
        means, variances = means[None], jnp.broadcast_to(stds**2, means.shape)[None]
        return alpha, means, variances, alpha**2 * variances + sigma**2, wide - alpha * means

    def _joint(self, t: Time, x: Array, cond: Array | None) -> Float[Array, "B K"]:
        """Log w_k + log N(x; alpha m_k, V_k)."""
        _, _, _, totals, residuals = self._components(t, x)
        logs = -(residuals**2 / totals + jnp.log(2 * math.pi * totals)) / 2
        return self._log_weights(x, cond) + jnp.sum(logs, axis=tuple(range(2, logs.ndim)))

    def _posterior(self, t: Time, x: Array, cond: Array | None) -> tuple[Array, Array]:
        alpha, means, variances, totals, residuals = self._components(t, x)
        responsibilities = _expand(jax.nn.softmax(self._joint(t, x, cond), axis=1), residuals)
        u = residuals / totals
        data = jnp.sum(responsibilities * (means + alpha * variances * u), axis=1)
        return data, jnp.sum(responsibilities * u, axis=1)

    def log_density(self, t: Time, x: State, cond: Any = None) -> Float[Array, " B"]:
        """Log p_t(x | cond)."""
        return jax.nn.logsumexp(self._joint(*_prepare(t, x), cond), axis=1)

    def sample(self, key: Key[Array, ""], n: int, cond: Int[Array, " n"] | None = None) -> Float[Array, "n ..."]:
        """Draws n data points, of the given classes or, without them, of the whole mixture."""
        for_component, for_noise = jax.random.split(key)
        noise = jax.random.normal(for_noise, (n, *np.shape(self.means)[1:]))
        component = jax.random.categorical(for_component, self._log_weights(noise, cond), axis=1)
        _, means, variances, *_ = self._components(1.0, noise)
        return means[0, component] + jnp.sqrt(variances[0, component]) * noise

    def flow_map(self, x: State, t: Time, end: Time, cond: Any = None) -> Float[Array, "B ..."]:
        """The map that keeps the quantile, which in one dimension is the flow map; by bisection.

        The flow maps of the components alone bracket the solution. Probabilities are compared in logarithms,
        of the nearer tail, so that relative accuracy does not degrade far out.

        Raises:
            ValueError: states have more than one dimension (there the map has no closed form).
        """
        if math.prod(np.shape(self.means)[1:]) != 1:
            raise ValueError("the flow map of a mixture is known for one-dimensional targets only")
        t, x = _prepare(t, x)
        end, _ = _prepare(end, x)
        alpha_end, means, _, totals_end, _ = self._components(end, x)
        _, _, _, totals, residuals = self._components(t, x)
        scores = residuals / jnp.sqrt(totals)
        log_weights = _expand(self._log_weights(x, cond), residuals)
        images = alpha_end * means + jnp.sqrt(totals_end) * scores

        def log_tail(scores: Array, sign: Array) -> Array:
            return jax.nn.logsumexp(log_weights + jax.scipy.special.log_ndtr(sign * scores), axis=1)

        ones = jnp.ones_like(x)
        sign = jnp.where(log_tail(scores, ones[:, None]) < log_tail(scores, -ones[:, None]), ones, -ones)
        level = log_tail(scores, sign[:, None])

        def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = (low + high) / 2
            at_middle = log_tail((middle[:, None] - alpha_end * means) / jnp.sqrt(totals_end), sign[:, None])
            below = sign * (at_middle - level) < 0
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        low, high = jax.lax.fori_loop(0, 64, halve, (jnp.min(images, axis=1), jnp.max(images, axis=1)))
        return (low + high) / 2


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
        return jax.nn.logsumexp(self._pairs(*_prepare(t, x))[1], axis=1)

    def predict(self, prediction: str, t: Time, x: State) -> Float[Array, "B ..."]:
        """The exact "velocity", "drift", "score", "denoiser", "source" or "data" at (t, x)."""
        t, x = _prepare(t, x)
        c, joint, m0, s0, m1, s1, u = self._pairs(t, x)
        responsibilities = _expand(jax.nn.softmax(joint, axis=1), u)
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


def _expand(weights: Float[Array, "B K"], like: Float[Array, "B K ..."]) -> Float[Array, "B K ..."]:
    """`weights` with the trailing unit axes that it needs to multiply `like`."""
    return weights.reshape(weights.shape + (1,) * (like.ndim - weights.ndim))


def _prepare(t: Time, x: Any) -> tuple[Time, Array]:
    """The state as a JAX array, and the time in at least its precision."""
    x = jnp.asarray(x)
    return check_time_and_state(t, x), x
