"""The size of the noise of an SDE, chosen at sampling time, and the drift that goes with it.

For every eps(t) >= 0 the SDE dx = (v + eps s) dt + sqrt(2 eps) dW has the marginals of the flow dx = v dt. Forms of SiT
(2401.08740), with a norm n and lamv = (alpha'/alpha) sigma^2 - sigma sigma':

    constant n     sbdm n lamv     sigma n sigma     linear n (1 - t)     decreasing (n cos(pi t) + 1)^2 / 4
    increasing_decreasing n sin^2(pi t)

"sbdm" is the SDE of score-based diffusion. On a Gaussian path the score is a combination of x and v (`path.weights`).

Other programs give the factor g of dW instead, eps = g^2 / 2. The forms of RBF (2503.19385) are called g_ here, with a
norm k and r = 1 - t:

    g_sigma k sigma(t)     g_constant k     g_sin k sin(pi r / 2)     g_linear k r     g_square k r^2
    g_clipping k max(0, 2 r - 1)     g_exp k exp(-100 (r - 1)^2)     g_tan k tan(pi min(r, 0.95) / 2)
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.paths.base import GaussianPath, Time, namespace

FORMS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing_decreasing")
FACTORS = ("g_sigma", "g_constant", "g_sin", "g_linear", "g_square", "g_clipping", "g_exp", "g_tan")


@pytree
class Diffusion:
    """eps(t) in one of SiT's forms.

    Args:
        form: "constant", "sbdm", "sigma", "linear", "decreasing" or "increasing_decreasing".
        norm: the factor n, not negative; 0 gives the ODE (except for "decreasing").

    Raises:
        ValueError: unknown form, or a negative norm.

    Example:
        >>> import flowjax as fj
        >>> eps = fj.solvers.Diffusion(form="linear", norm=0.5)
        >>> eps.value(fj.paths.Linear(), 0.2)
        0.4
        >>> solver = fj.solvers.EulerMaruyama(diffusion=eps)
    """

    form: str = static("sigma")
    norm: float = static(1.0)

    def __post_init__(self) -> None:
        """Checks both."""
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} is not one of {', '.join(map(repr, FORMS))}")
        if not 0 <= self.norm < math.inf:
            raise ValueError(f"norm must be finite and not negative, got {self.norm}")

    def value(self, path: Any, t: Time) -> Time:
        """eps(t); infinite for "sbdm" where alpha = 0."""
        xp = namespace(t)
        if self.form in ("sbdm", "sigma"):
            if not isinstance(path, GaussianPath):
                raise ValueError(f"diffusion {self.form!r} needs a Gaussian path, got {path!r}")
            return self.over_sigma(path, t) * path.sigma(t)
        if self.form == "constant":
            return self.norm * xp.ones_like(t, dtype=getattr(t, "dtype", float))
        if self.form == "linear":
            return self.norm * (1.0 - t)
        if self.form == "decreasing":
            return (self.norm * xp.cos(math.pi * t) + 1) ** 2 / 4
        return self.norm * xp.sin(math.pi * t) ** 2

    def over_sigma(self, path: GaussianPath, t: Time) -> Time:
        """eps / sigma, finite at sigma = 0 for the forms that vanish with sigma."""
        xp = namespace(t)
        if self.form == "sigma":
            return self.norm * xp.ones_like(t, dtype=getattr(t, "dtype", float))
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.form == "sbdm":
                alpha = xp.asarray(path.alpha(t))
                return self.norm * (path.dalpha(t) / alpha * path.sigma(t) - path.dsigma(t))
            return _ratio(self.value(path, t), path.sigma(t))


for _form in FORMS:
    fact("diffusion", _form, f"SiT's form {_form}", cite="ma2024sit", fixed={"form": _form})(Diffusion)


@pytree
class Factor:
    """eps(t) = g(t)^2 / 2 by the factor g of dW, in one of the forms of RBF.

    Args:
        form: "g_sigma", "g_constant", "g_sin", "g_linear", "g_square", "g_clipping", "g_exp" or "g_tan".
        norm: the factor k, not negative; 0 gives the ODE.

    Raises:
        ValueError: unknown form, or a negative norm.

    Reference: Kim et al. (2503.19385) and the authors' program.

    Example:
        >>> import flowjax as fj
        >>> eps = fj.solvers.Factor(form="g_linear", norm=2.0)
        >>> float(eps.value(fj.paths.Linear(), 0.5))  # g = 1
        0.5
    """

    form: str = static("g_square")
    norm: float = static(3.0)

    def __post_init__(self) -> None:
        """Checks both."""
        if self.form not in FACTORS:
            raise ValueError(f"form={self.form!r} is not one of {', '.join(map(repr, FACTORS))}")
        if not 0 <= self.norm < math.inf:
            raise ValueError(f"norm must be finite and not negative, got {self.norm}")

    def factor(self, path: Any, t: Time) -> Time:
        """g(t)."""
        xp, r = namespace(t), 1.0 - t
        if self.form == "g_sigma":
            if not isinstance(path, GaussianPath):
                raise ValueError(f"diffusion {self.form!r} needs a Gaussian path, got {path!r}")
            return self.norm * path.sigma(t)
        return (
            self.norm
            * {
                "g_constant": lambda: xp.ones_like(t, dtype=getattr(t, "dtype", float)),
                "g_sin": lambda: xp.sin(math.pi / 2 * r),
                "g_linear": lambda: r,
                "g_square": lambda: r**2,
                "g_clipping": lambda: xp.maximum(0.0, 2 * r - 1),
                "g_exp": lambda: xp.exp(-100 * (r - 1) ** 2),
                "g_tan": lambda: xp.tan(math.pi / 2 * xp.minimum(r, 0.95)),
            }[self.form]()
        )

    def value(self, path: Any, t: Time) -> Time:
        """eps(t)."""
        return self.factor(path, t) ** 2 / 2

    def over_sigma(self, path: GaussianPath, t: Time) -> Time:
        """eps / sigma, finite at sigma = 0 for the forms that vanish with sigma."""
        if self.form == "g_sigma":
            return self.norm**2 * path.sigma(t) / 2
        return _ratio(self.value(path, t), path.sigma(t))


for _form in FACTORS:
    _text = f"factor of dW in RBF's form {_form.removeprefix('g_')}"
    fact("diffusion", _form, _text, cite="kim2025inference", fixed={"form": _form})(Factor)


@pytree
class Chosen:
    """eps(t) as a function of your own, `function(t)`, for scalar t, NumPy or JAX.

    Example:
        >>> from flowjax.paths.sde import as_diffusion
        >>> eps = as_diffusion(lambda t: 0.5 * (1 - t))  # what a solver makes of a function
        >>> eps.value(None, 0.2)
        0.4
    """

    function: Callable[[Time], Time]

    def value(self, path: Any, t: Time) -> Time:
        """eps(t)."""
        return self.function(t)

    def over_sigma(self, path: GaussianPath, t: Time) -> Time:
        """eps / sigma; 0 where both vanish."""
        return _ratio(self.function(t), path.sigma(t))


def as_diffusion(choice: Any) -> Diffusion | Factor | Chosen:
    """The diffusion that a form's name, a number, a function of t, a `Diffusion` or a `Factor` stands for.

    Raises:
        ValueError: none of these.
    """
    if isinstance(choice, Diffusion | Factor | Chosen):
        return choice
    if isinstance(choice, str):
        return Factor(form=choice) if choice in FACTORS else Diffusion(form=choice)
    if isinstance(choice, int | float):
        return Diffusion(form="constant", norm=float(choice))
    if callable(choice):
        return Chosen(function=choice)
    names = ", ".join((*FORMS, *FACTORS))
    raise ValueError(f"diffusion must be one of {names}, a number or a function of t, got {choice!r}")


def _ratio(eps: Any, sigma: Any) -> Any:
    """eps / sigma, 0 where both are 0."""
    xp = namespace(eps, sigma)
    eps, sigma = xp.asarray(eps), xp.asarray(sigma)
    with np.errstate(divide="ignore"):
        return xp.where(eps == 0, 0.0, eps / xp.where((sigma == 0) & (eps == 0), 1.0, sigma))
