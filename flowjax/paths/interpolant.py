"""Stochastic interpolants: paths between any two laws, with a latent noise of their own."""

import math
from typing import Any, Literal, NamedTuple, get_args

from flowjax._pytree import part, pytree, static
from flowjax.facts import fact
from flowjax.paths.base import (
    INFINITE_SLOPE,
    Array,
    GaussianPath,
    Time,
    check_time_and_state,
    divide,
    expand,
    namespace,
)

Form = Literal["linear", "trig", "encoding_decoding", "mirror", "one_sided"]
Gamma = Literal["brownian", "quadratic", "sine_squared", "sigmoid", "constant", "zero"]
STEEPNESS = 10.0  # of the sigmoid gamma


class Coefficients(NamedTuple):
    """c0, c1, g, their derivatives, and the product g g'.

    Example:
        >>> import flowjax as fj
        >>> c = fj.paths.Interpolant(form="linear", gamma="quadratic").coefficients(0.25)
        >>> float(c.c0), float(c.c1), float(c.g)
        (0.75, 0.25, 0.1875)
    """

    c0: Any
    c1: Any
    g: Any
    dc0: Any
    dc1: Any
    dg: Any
    gdg: Any


@fact("path", "interpolant", "two-sided stochastic interpolant between two laws", cite="albergo2023stochastic")
@pytree
class Interpolant:
    """x_t = c0 x0 + c1 x1 + g z in one of the forms of the table below.

    x_t = c0(t) x0 + c1(t) x1 + g(t) z with x0 ~ rho0, x1 ~ rho1 (possibly paired) and z ~ N(0, I) apart from both:

    | form              | c0                          | c1                          | g                         |
    |-------------------|-----------------------------|-----------------------------|---------------------------|
    | linear            | 1 - t                       | t                           | any                       |
    | trig              | sqrt(1 - g^2) cos(pi t / 2) | sqrt(1 - g^2) sin(pi t / 2) | any up to 1               |
    | encoding_decoding | cos^2(pi t), t <= 1/2       | cos^2(pi t) for t > 1/2     | sin^2(pi t): x_(1/2) = z  |
    | mirror            | 0                           | 1                           | any: data to itself       |
    | one_sided         | 0                           | alpha of a `GaussianPath`   | its sigma: z is the noise |

    With eta0, eta1, etaz = E[x0 | x_t], E[x1 | x_t], E[z | x_t]:

        c0 eta0 + c1 eta1 + g etaz = x                              (two determine the third)
        velocity b = c0' eta0 + c1' eta1 + g' etaz                  score s = -etaz / g
        drift    v = E[d/dt (c0 x0 + c1 x1) | x_t] = c0' eta0 + c1' eta1,     b = v - g g' s

    g' of sqrt(t (1 - t)) is infinite at both ends and g g' is not: the three g, g', g g' are given apart, and an
    infinite g' as +-1e12.

    Times are scalars or (B,), in [0, 1]; NumPy in float64 or JAX arrays, and answers are in kind.

    Args:
        form: "linear", "trig", "encoding_decoding", "mirror" or "one_sided".
        gamma: "brownian" sqrt(scale t (1 - t)), "quadratic" t (1 - t), "sine_squared" sin^2(pi t), "sigmoid" (a smooth
            bump with flat ends), "constant" 1 (both ends are blurred: the paths of I-CFM, 2302.00482), "zero"; None
            takes sine_squared for encoding_decoding and brownian otherwise.
        scale: multiplies g^2, positive. With linear coefficients, brownian and scale 2 the sum of the squares of the
            three coefficients is 1.
        path: the Gaussian path of the one-sided form.

    Raises:
        ValueError: an unknown name, or parts that do not fit together.

    Reference: Albergo, Boffi, Vanden-Eijnden, Stochastic Interpolants (2303.08797), sections 3 and 4.

    Example:
        >>> import numpy as np
        >>> bridge = Interpolant(form="linear", scale=2.0)
        >>> c = bridge.coefficients(np.float64(0.25))
        >>> round(float(c.c0**2 + c.c1**2 + c.g**2), 12)
        1.0
    """

    form: str = static("linear")
    gamma: str | None = static(None)
    scale: float = static(1.0)
    path: GaussianPath | None = part("path", None)

    def __post_init__(self) -> None:
        """Checks and completes the options."""
        for name, value, allowed in (
            ("form", self.form, get_args(Form)),
            ("gamma", self.gamma, (None, *get_args(Gamma))),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if (self.form == "one_sided") != (self.path is not None):
            raise ValueError("path= belongs to form='one_sided', which needs it: path=flowjax.paths.Linear()")
        if self.form == "one_sided" and self.gamma is not None:
            raise ValueError("the one-sided form has its path's sigma in place of gamma; leave gamma out")
        if self.form == "encoding_decoding" and (self.gamma not in (None, "sine_squared") or self.scale != 1):
            raise ValueError("the encoding-decoding form needs gamma='sine_squared', scale 1: x_(1/2) is the noise z")
        if self.gamma is None and self.form != "one_sided":
            gamma = "sine_squared" if self.form == "encoding_decoding" else "brownian"
            object.__setattr__(self, "gamma", gamma)
        if self.form == "trig" and float(self._gamma(0.5)[0]) > 1:
            raise ValueError(f"the trig form needs gamma up to 1, got {float(self._gamma(0.5)[0]):g} at t = 1/2")

    def _gamma(self, t: Time) -> tuple[Any, Any, Any]:
        """g, g' and g g'."""
        xp = namespace(t)
        t = xp.asarray(t, dtype=getattr(t, "dtype", float))
        side, early = xp.sign(0.5 - t), 0.5 - xp.abs(t - 0.5)  # all are symmetric: exact zeros at both ends
        root = math.sqrt(self.scale)
        if self.gamma == "brownian":
            g, product = xp.sqrt(self.scale * t * (1.0 - t)), self.scale * (0.5 - t)
            safe = xp.where(g == 0, 1.0, g)
            return g, xp.where(g == 0, side * INFINITE_SLOPE, product / safe), product
        if self.gamma == "quadratic":
            g, slope = t * (1.0 - t), 1.0 - 2 * t
        elif self.gamma == "sine_squared":
            g, slope = xp.sin(math.pi * early) ** 2, side * math.pi * xp.sin(2 * math.pi * early)
        elif self.gamma == "sigmoid":

            def bump(u: Any) -> Any:  # S(u + 1) - S(u - 1) with S(u) = (1 + tanh(u / 2)) / 2
                return (xp.tanh((u + 1) / 2) - xp.tanh((u - 1) / 2)) / 2

            def slope_of(u: Any) -> Any:
                return (xp.tanh((u - 1) / 2) ** 2 - xp.tanh((u + 1) / 2) ** 2) / 4

            u = STEEPNESS * (early - 0.5)
            g = bump(u) - bump(xp.full_like(u, -STEEPNESS / 2))
            slope = side * STEEPNESS * slope_of(u)
        else:
            g, slope = xp.full_like(t, self.gamma == "constant"), xp.zeros_like(t)
        return root * g, root * slope, self.scale * g * slope

    def coefficients(self, t: Time) -> Coefficients:
        """All coefficients at t, each of the shape of t."""
        xp = namespace(t)
        t = xp.asarray(t, dtype=getattr(t, "dtype", float))
        zero, one = xp.zeros_like(t), xp.ones_like(t)
        if self.path is not None:
            p = self.path
            return Coefficients(zero, p.alpha(t), p.sigma(t), zero, p.dalpha(t), p.dsigma(t), p.sigma_dsigma(t))
        g, dg, gdg = self._gamma(t)
        if self.form == "linear":
            return Coefficients(1.0 - t, t, g, -one, one, dg, gdg)
        if self.form == "mirror":
            return Coefficients(zero, one, g, zero, zero, dg, gdg)
        if self.form == "encoding_decoding":
            square, slope = xp.cos(math.pi * t) ** 2, -math.pi * xp.sin(2 * math.pi * t)
            first = t <= 0.5
            return Coefficients(
                xp.where(first, square, 0.0),
                xp.where(first, 0.0, square),
                g,
                xp.where(first, slope, 0.0),
                xp.where(first, 0.0, slope),
                dg,
                gdg,
            )
        root = xp.sqrt((1.0 - g) * (1.0 + g))
        droot = -divide(gdg, root)  # 0 where g = 1: the mean of the two one-sided slopes
        cos, sin = xp.sin(math.pi / 2 * (1.0 - t)), xp.sin(math.pi / 2 * t)
        turn = math.pi / 2 * root
        return Coefficients(root * cos, root * sin, g, droot * cos - turn * sin, droot * sin + turn * cos, dg, gdg)

    def has_velocity(self, t: float) -> bool:
        """Whether the velocity is bounded at the concrete time t."""
        return self.path is None or self.path.has_velocity(t)

    def interpolate(self, t: Time, x0: Array | None, x1: Array, z: Array) -> Array:
        """x_t, (B, ...); x0 may be None where the form does not use it."""
        c = self._expanded(t, x1)
        return _sum((c.c0, x0), (c.c1, x1), (c.g, z))

    def conditional_drift(self, t: Time, x0: Array | None, x1: Array) -> Array:
        """c0' x0 + c1' x1, whose conditional mean is the drift v."""
        c = self._expanded(t, x1)
        return _sum((c.dc0, x0), (c.dc1, x1))

    def conditional_velocity(self, t: Time, x0: Array | None, x1: Array, z: Array) -> Array:
        """d/dt x_t = c0' x0 + c1' x1 + g' z, whose conditional mean is the velocity b."""
        c = self._expanded(t, x1)
        return _sum((c.dc0, x0), (c.dc1, x1), (c.dg, z))

    def velocity(self, t: Time, drift: Array, score: Array) -> Array:
        """b = v - g g' s."""
        return drift - self._expanded(t, drift).gdg * score

    def drift(self, t: Time, velocity: Array, score: Array) -> Array:
        """v = b + g g' s."""
        return velocity + self._expanded(t, velocity).gdg * score

    def score(self, t: Time, denoiser: Array) -> Array:
        """s = -etaz / g; 0 where g = 0."""
        return divide(-denoiser, self._expanded(t, denoiser).g)

    def third(
        self, t: Time, x: Array, *, source: Array | None = None, data: Array | None = None, noise: Array | None = None
    ) -> Array:
        """The one of eta0 (`source`), eta1 (`data`), etaz (`noise`) that is not given; 0 where its coefficient is.

        Raises:
            ValueError: not exactly two are given.
        """
        c = self._expanded(t, x)
        parts = [(c.c0, source), (c.c1, data), (c.g, noise)]
        missing = [coefficient for coefficient, eta in parts if eta is None]
        if len(missing) != 1:
            raise ValueError("give exactly two of source, data and noise")
        return divide(x - _sum(*((k, eta) for k, eta in parts if eta is not None)), missing[0])

    def _expanded(self, t: Time, x: Array) -> Coefficients:
        t = check_time_and_state(t, x)
        return Coefficients(*(expand(c, x) for c in self.coefficients(t)))


def _sum(*terms: tuple[Any, Any]) -> Any:
    """The sum of coefficient times array over the arrays that are there."""
    first, *rest = [c * x for c, x in terms if x is not None]
    return sum(rest, first)
