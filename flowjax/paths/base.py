"""The Gaussian path: coefficients, interpolation, and the one converter between predictions.

A path is x_t = alpha(t) x1 + sigma(t) x0 with noise x0 ~ N(0, I) and data x1. A network may predict any one of

    velocity   v = E[alpha' x1 + sigma' x0 | x_t]      noise   e = E[x0 | x_t]       data   m = E[x1 | x_t]
    score      s = -e / sigma                          "v"     alpha e - sigma m (of older diffusion models)

and each is a combination of x and any other one, with the `weights` that `convert` uses. "v" is the v-prediction of
Salimans and Ho (2202.00512); it is not the velocity.
"""

import abc
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

Prediction = Literal["velocity", "noise", "data", "score", "v"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
# What other libraries call them.
FOREIGN = {"epsilon": "noise", "eps": "noise", "v_prediction": "v", "v-prediction": "v", "vpred": "v"}
FOREIGN |= {"sample": "data", "x0": "data", "x_start": "data", "pred_x0": "data", "x1": "data"}
FOREIGN |= {"flow": "velocity", "flow_prediction": "velocity", "vector_field": "velocity"}
Array = Any  # a NumPy or a JAX array: float64 on the host, the state's precision in compiled code
Time = Any  # a scalar or (B,)

INFINITE_SLOPE = 1e12  # stands for the infinite sigma' of a path with sigma ~ sqrt(1 - t) at its end


def namespace(*arrays: Any) -> Any:
    """`jax.numpy` if any argument is a JAX array, else `numpy` (float64 on the host)."""
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def expand(coefficient: Time, like: Array) -> Array:
    """A coefficient of shape () or (B,) shaped and typed to multiply `like` of shape (B, ...)."""
    xp = namespace(coefficient, like)
    dtype = like.dtype if hasattr(like, "dtype") else None
    coefficient = xp.asarray(coefficient, dtype=dtype)
    return coefficient.reshape(coefficient.shape + (1,) * (np.ndim(like) - 1 if coefficient.ndim else 0))


def precision(*arrays: Any) -> Any:
    """Double precision if one of the arrays has it and JAX is in its x64 mode, else single."""
    double = any(getattr(array, "dtype", None) == np.float64 for array in arrays)
    return jax.dtypes.canonicalize_dtype(np.float64 if double else np.float32)


def at_least_single(x: Array) -> Array:
    """The array in its own precision, or in single precision if that is lower."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def divide(numerator: Array, denominator: Array) -> Array:
    """The quotient, zero where the denominator is zero (the minimum-norm solution of a x = 0 y)."""
    xp = namespace(numerator, denominator)
    zero = denominator == 0
    return xp.where(zero, 0, numerator / xp.where(zero, 1, denominator))


def check_time_and_state(t: Time, x: Array) -> Time:
    """Refuses swapped arguments: t is a scalar or has one entry per sample of x.

    Returns:
        The time to compute coefficients with: a JAX array in its own or the state's precision, whichever is higher, and
        at least single; float64 on the host.

    Raises:
        ValueError: t is neither a scalar nor of shape (B,) for x of shape (B, ...).
    """
    if np.ndim(t) > 1 or (np.ndim(t) == 1 and (np.ndim(x) == 0 or np.shape(t)[0] != np.shape(x)[0])):
        raise ValueError(
            f"expected (t, x) with t a scalar or of shape (B,) and x of shape (B, ...), got t of shape {np.shape(t)} "
            f"and x of shape {np.shape(x)}; fields and paths take the time first, networks the state first"
        )
    if isinstance(t, jax.Array):
        return t.astype(precision(t, x))
    return t.astype(np.float64) if isinstance(t, np.ndarray | np.generic) else t


def check_prediction(name: str, prediction: str, more: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless `prediction` is a known one."""
    if prediction not in PREDICTIONS + more:
        known = FOREIGN.get(str(prediction).lower())
        hint = f" ({prediction!r} elsewhere is {known!r} here)" if known else ""
        raise ValueError(f"{name}={prediction!r} is not a prediction; use one of {', '.join(PREDICTIONS + more)}{hint}")


class GaussianPath(abc.ABC):
    """A path x_t = alpha(t) x1 + sigma(t) x0 with increasing signal-to-noise ratio.

    All coefficient methods take t in [0, 1], scalar or (B,), as a float, NumPy or JAX array, and answer in kind: NumPy
    float64 for coefficients made on the host, JAX arrays in compiled code. An infinite sigma' (VP and cosine paths at
    t = 1) is returned as -1e12, so that the converter stays finite and takes its limit.

    Example:
        >>> import flowjax as fj
        >>> path = fj.paths.VP()  # one of the paths
        >>> t = path.time(0.0)  # where data and noise are equally strong
        >>> round(float(path.alpha(t)), 3), round(float(path.sigma(t)), 3)
        (0.707, 0.707)
        >>> a, b = fj.paths.Linear().weights("velocity", "data", 0.25)  # E[x1 | x_t] = x + (1 - t) v
        >>> float(a), float(b)
        (1.0, 0.75)
    """

    @abc.abstractmethod
    def alpha(self, t: Time) -> Time:
        """Coefficient of the data: rises to alpha(1)."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Time:
        """Coefficient of the noise: falls from sigma(0)."""

    @abc.abstractmethod
    def dalpha(self, t: Time) -> Time:
        """Derivative alpha'(t)."""

    @abc.abstractmethod
    def dsigma(self, t: Time) -> Time:
        """Derivative sigma'(t); -1e12 where it is infinite."""

    @abc.abstractmethod
    def time(self, lam: Time) -> Time:
        """Inverse of `lam`."""

    def sigma_dsigma(self, t: Time) -> Time:
        """The product sigma sigma', which is finite even where sigma' is not."""
        return self.sigma(t) * self.dsigma(t)

    def lam(self, t: Time) -> Time:
        """Half log signal-to-noise ratio log(alpha / sigma); -inf where alpha = 0, inf where sigma = 0."""
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return xp.log(xp.asarray(self.alpha(t))) - xp.log(xp.asarray(self.sigma(t)))

    def determinant(self, t: Time) -> Time:
        """alpha sigma' - sigma alpha': (x, v) as a function of (m, e) has this determinant."""
        return self.alpha(t) * self.dsigma(t) - self.sigma(t) * self.dalpha(t)

    def has_velocity(self, t: float) -> bool:
        """Whether the velocity is bounded at the concrete time t (false where sigma' is infinite)."""
        return bool(abs(self.dsigma(t)) < INFINITE_SLOPE)

    def determines(self, given: str, to: str, t: float) -> bool:
        """Whether the prediction `given` determines the prediction `to` at the concrete time t.

        Inside (0, 1) it always does.
        """
        if given == to:
            return True
        if self.alpha(t) == 0 and given in ("noise", "score"):  # x is all noise: nothing is known of the data
            return to in ("noise", "score")
        if self.sigma(t) == 0:  # x is all data: nothing is known of the noise
            if given == "data" or (to == "score" and (given != "velocity" or self.sigma_dsigma(t) == 0)):
                return False
            return to != "velocity" or given == "score" or self.has_velocity(t)
        return True

    def start(self, noise: Array, t: Time = 0.0) -> Array:
        """State at the source end of a run that begins at time t: sigma(t) times `noise` of shape (B, ...)."""
        t = check_time_and_state(t, noise)
        return expand(self.sigma(t), noise) * noise

    def interpolate(self, t: Time, x0: Array, x1: Array) -> Array:
        """x_t = alpha(t) x1 + sigma(t) x0 for noise x0 and data x1 of shape (B, ...)."""
        t = check_time_and_state(t, x1)
        return expand(self.alpha(t), x1) * x1 + expand(self.sigma(t), x0) * x0

    def ddim_step(self, t: Time, to: Time, x: Array, data: Array) -> Array:
        """Where the noise that goes with `data` at (t, x) leads at another time: one first-order step.

        x' = (sigma(to) / sigma(t)) x + (alpha(to) - alpha(t) sigma(to) / sigma(t)) data, and `data` where sigma is 0.

        Args:
            t: scalar or (B,).
            to: likewise, not before t.
            x: state at t, (B, ...).
            data: the data prediction there, (B, ...).
        """
        ratio = divide(self.sigma(to), self.sigma(t))
        return expand(ratio, x) * x + expand(self.alpha(to) - ratio * self.alpha(t), x) * data

    def conditional_velocity(self, t: Time, x0: Array, x1: Array) -> Array:
        """d/dt x_t = alpha'(t) x1 + sigma'(t) x0."""
        t = check_time_and_state(t, x1)
        return expand(self.dalpha(t), x1) * x1 + expand(self.dsigma(t), x0) * x0

    def target(self, prediction: str, t: Time, x0: Array, x1: Array) -> Array:
        """What a network of this prediction regresses on: its value when x0 and x1 are known."""
        check_prediction("prediction", prediction)
        t = check_time_and_state(t, x1)
        if prediction == "velocity":
            return self.conditional_velocity(t, x0, x1)
        if prediction == "noise":
            return x0
        if prediction == "data":
            return x1
        if prediction == "score":
            return divide(-x0, expand(self.sigma(t), x0))
        return expand(self.alpha(t), x0) * x0 - expand(self.sigma(t), x1) * x1

    def weights(self, given: str, to: str, t: Time) -> tuple[Time, Time]:
        """(a, b) with which the prediction `to` is a x + b times the prediction `given`.

        With (m, e) the data and the noise prediction, x = alpha m + sigma e, v = alpha' m + sigma' e, s = -e / sigma.
        At the ends (alpha = 0 or sigma = 0) the limit is taken where it exists. Where the given prediction says nothing
        about the other member of the pair (noise at alpha = 0, data at sigma = 0) that member is zero.

        Args:
            given: "velocity", "noise", "data", "score" or "v".
            to: likewise.
            t: scalar or (B,).

        Returns:
            Both weights, each of the shape of t.

        Raises:
            ValueError: for an unknown kind.
        """
        check_prediction("given", given)
        check_prediction("to", to)
        alpha, sigma, dalpha, dsigma = self.alpha(t), self.sigma(t), self.dalpha(t), self.dsigma(t)
        zero, one = 0.0 * alpha, 0.0 * alpha + 1.0
        if given == to:
            return zero, one
        if (given, to) == ("velocity", "score"):  # sigma' may be infinite at sigma = 0, and then sigma sigma' is not
            denominator = alpha * self.sigma_dsigma(t) - sigma**2 * dalpha
            return divide(dalpha, denominator), divide(-alpha, denominator)
        if (given, to) == ("score", "velocity"):
            growth = divide(dalpha, alpha)
            return growth, growth * sigma**2 - self.sigma_dsigma(t)
        if given == "velocity":
            determinant = self.determinant(t)
            data, noise = (dsigma / determinant, -sigma / determinant), (-dalpha / determinant, alpha / determinant)
        elif given == "noise":
            data, noise = (divide(one, alpha), divide(-sigma, alpha)), (zero, one)
        elif given == "data":
            data, noise = (zero, one), (divide(one, sigma), divide(-alpha, sigma))
        elif given == "score":
            data, noise = (divide(one, alpha), divide(sigma**2, alpha)), (zero, -sigma)
        else:
            square = alpha**2 + sigma**2
            data, noise = (alpha / square, -sigma / square), (sigma / square, alpha / square)
        if to == "data":
            return data
        if to == "noise":
            return noise
        if to == "score":
            return divide(-noise[0], sigma), divide(-noise[1], sigma)
        c, d = (dalpha, dsigma) if to == "velocity" else (-sigma, alpha)
        return c * data[0] + d * noise[0], c * data[1] + d * noise[1]

    def convert(self, value: Array, *, given: str, to: str, t: Time, x: Array) -> Array:
        """One prediction from another at (t, x), by `weights`.

        Args:
            value: the given prediction, (B, ...); like x also a symbol of a solver's formula.
            given: its kind: "velocity", "noise", "data", "score" or "v".
            to: the kind asked for.
            t: scalar or (B,).
            x: the state, (B, ...).

        Returns:
            The prediction of kind `to`, (B, ...).

        Raises:
            ValueError: for an unknown kind, or when t and x are swapped.
        """
        t = check_time_and_state(t, x)
        check_prediction("given", given)
        if given == to:
            return value
        a, b = (expand(weight, x) for weight in self.weights(given, to, t))
        return a * x + b * value
