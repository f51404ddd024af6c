"""Methods that exist only here, a made-up network, and the solvers that the tests of the machinery run over."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problem import PATHS

from flowjax._pytree import pytree, static
from flowjax.solvers import (
    DDIM,
    RK4,
    AdamsBashforth,
    DPMSolver,
    Euler,
    Formula,
    HeavyBall,
    Heun,
    Midpoint,
    UniPC,
)
from flowjax.solvers.requests import direction, evaluate, keep, noise, pairs, step
from flowjax.solvers.solver import Solver

LINEAR = PATHS["linear"]
UNEVEN = np.array([0.08, 0.1, 0.17, 0.2, 0.31, 0.42, 0.44, 0.6, 0.71, 0.93])


def smooth(x, t):
    """A made-up network output on NumPy or JAX arrays."""
    xp = jnp if isinstance(x, jax.Array) else np
    return xp.sin(2 * x + 3 * t) - 0.5 * x


def answer(request):
    value = smooth(request.x, request.t)
    return value if request.velocity is None else value - 0.3 * request.velocity


def network(x, t, cond=None, velocity=None):
    value = smooth(x, t[:, None])
    return value if velocity is None else value - 0.3 * velocity


def states(dtype=np.float64):
    return np.random.default_rng(1).standard_normal((5, 3)).astype(dtype)


def corrected(path, times, x):
    """Second-order predictor-corrector with one evaluation per step; the last step has no evaluation of its own."""
    before, point = None, x
    for number, t in enumerate(times[:-1]):
        value = yield evaluate(t, point)
        if before is not None:
            x = yield step(x + (t - times[number - 1]) / 2 * (before + value))
        slope = value
        if before is not None:
            slope = value + (times[number + 1] - t) / (t - times[number - 1]) / 2 * (value - before)
        point, before = x + (times[number + 1] - t) * slope, value
    yield step(point)


@pytree
class Turbo(Solver):
    """Heun blocks H, pseudo-corrector blocks P, refiner blocks R, in this order of letters."""

    blocks: str = static()
    second: Any = None

    def updates(self, path, times, x):
        cache = None
        for block, (s, t) in zip(self.blocks, pairs(times), strict=True):
            if block == "R":
                d = cache + (yield evaluate(s, x, velocity=cache, second=True))
                e = d + (yield evaluate(t, x + (t - s) * d, velocity=d, second=True))
                cache = d
            else:
                d = cache if block == "P" and cache is not None else (yield evaluate(s, x))
                e = yield evaluate(t, x + (t - s) * d)
                cache = e
            x = yield step(x + (t - s) / 2 * (d + e))


def churn(path, times, x):
    """Noise before each evaluation raises the noise level by a tenth, as in EDM (VE path: alpha = 1)."""
    for s, t in pairs(times):
        raised = 1.1 * path.sigma(s)
        x = x + np.sqrt(raised**2 - path.sigma(s) ** 2) * (yield noise())
        e = yield evaluate(float(path.time(-np.log(raised))), x, to="noise")
        x = yield step(x + (path.sigma(t) - raised) * e)


def spans(path, times, x):
    """One evaluation of a flow map per step."""
    for s, t in pairs(times):
        x = yield step(x + (t - s) * (yield evaluate(s, x, end=t)))


def two_noises(path, times, x):
    """One noise before the evaluation, one after it, the first used twice."""
    for s, t in pairs(times):
        first = yield noise()
        d = yield evaluate(s, x + 0.1 * first)
        second = yield noise()
        x = yield step(x + (t - s) * d + 0.2 * first + 0.3 * second)


def momentum(path, times, x):
    """Keeps a running mean."""
    v = None
    for s, t in pairs(times):
        d = yield evaluate(s, x)
        v = yield keep(d if v is None else 0.4 * v + 0.6 * d)
        x = yield step(x + (t - s) * (yield direction(v)))


SOLVERS = {
    "euler": Euler(),
    "heun": Heun(),
    "midpoint": Midpoint(),
    "rk4": RK4(),
    "ddim": DDIM(),
    "corrected": Formula(function=corrected),
    "momentum": Formula(function=momentum),
    "turbo": Turbo(blocks="HHPPRRHPR", second=None),
    "hb_heun": HeavyBall(solver=Heun(), beta=0.7),
    "hb_2m": HeavyBall(solver=DPMSolver(lower_order_final=False), beta=0.8),
    "hb_corrected": HeavyBall(solver=UniPC(order=2), beta=0.8),
    "ab1_velocity": AdamsBashforth(order=1),
    "ab2_noise": AdamsBashforth(order=2, form="noise"),
}
SOLVERS |= {
    f"ab4_{form}_{weights}_{start}": AdamsBashforth(order=4, form=form, weights=weights, start=start)
    for form, weights, start in itertools.product(("velocity", "noise"), ("variable", "fixed"), ("lower", "rk4"))
}
SOLVERS |= {
    f"dpm{order}_{form}_{kind}_{lower}": DPMSolver(order=order, form=form, solver_type=kind, lower_order_final=lower)
    for order, form, kind, lower in itertools.product((2, 3), ("data", "noise"), ("midpoint", "taylor"), (True, False))
    if (order, kind) != (3, "midpoint")
}
