"""SDEs of interpolants and through diffrax: exact moments, and the same numbers as a loop by hand."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import two_gaussians

import flowjax as fj
from flowjax.fields import DriftPlusScore, InterpolantFlow, sde_terms
from flowjax.fields.drift import SampleBrownian
from flowjax.paths import Interpolant, Linear
from flowjax.solvers import EulerMaruyama, StochasticHeun, run_on_arrays


def moments(solver, times, drift, start):
    """Mean and variance after a run with an affine drift(t, (a, b)) -> (a + b x); start is (mean, deviation).

    A state is kept as its coefficients on (1, start, z_1, z_2, ...): no sampling, no statistics.
    """
    width, used = 2 * len(times) + 2, iter(range(2, 2 * len(times) + 2))

    def network(request):
        offset, slope = drift(request.t)
        value = slope * request.x
        value[0] += offset
        return value

    x = np.zeros(width)
    x[:2] = start
    end = run_on_arrays(solver, Linear(), times, x, network, lambda: np.eye(width)[next(used)])[-1]
    return end[0], np.sum(end[1:] ** 2)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("interpolant", [Interpolant(), Interpolant(form="trig", gamma="quadratic")], ids=["a", "b"])
def test_gaussian_to_gaussian_for_any_diffusion(interpolant, backward):
    """N(-1, 0.5^2) to N(1.5, 0.8^2): mean and variance of x_t whatever eps, with an error that falls like h."""
    with jax.enable_x64(True):
        target = two_gaussians(interpolant)
        grid = np.linspace(0.05, 0.95, 361)
        at = jax.jit(lambda t, x, k: target.predict(k, t, x), static_argnums=2)
        values = {
            k: [np.asarray(at(grid, np.full((361, 1), x), k))[:, 0] for x in (0.0, 1.0)] for k in ("velocity", "score")
        }

    def law(t):
        c = interpolant.coefficients(np.float64(t))
        return -c.c0 + 1.5 * c.c1, 0.25 * c.c0**2 + 0.64 * c.c1**2 + c.g**2

    for eps in (0.0, 0.4, 1.5):

        def drift(t, eps=eps):
            i = int(np.argmin(abs(grid - t)))
            offset, one = (
                values["velocity"][j][i] + (-eps if backward else eps) * values["score"][j][i] for j in (0, 1)
            )
            return offset, one - offset

        first, last = (law(t) for t in ((0.95, 0.05) if backward else (0.05, 0.95)))
        errors = []
        for n in (90, 180):
            solver = EulerMaruyama(diffusion=eps, drift="field", backward=backward, last="none")
            found = moments(solver, np.linspace(0.05, 0.95, n + 1), drift, (first[0], np.sqrt(first[1])))
            errors.append(np.abs(np.subtract(found, last)).max())
        assert errors[1] < 0.02
        assert 0.8 < np.log2(errors[0] / errors[1]) < 1.3
    heun = StochasticHeun(diffusion=1.5, drift="field", backward=backward, last="none")
    np.testing.assert_allclose(moments(heun, grid[::2], drift, (first[0], np.sqrt(first[1]))), last, atol=0.01)


def test_bridge_from_a_point_to_the_law_given_it():
    """x1 | x0 ~ N(0.4 + x0, 0.3^2) from x0 = 0.7: dX = u dt + sqrt(2 a) dW with u = E[d_t I + (g' - a / g) z | x_t].

    Along x_t = (1 - t) x0 + t x1 + g z, g^2 = 2 a t (1 - t), all is jointly Gaussian, so u is affine.
    """
    a, x0, mean, std = 0.5, 0.7, 1.1, 0.3

    def drift(t):  # by the regression of x1 - x0 - sqrt(2 a t / (1 - t)) z on x_t
        slope = (t * std**2 - 2 * a * t) / (t**2 * std**2 + 2 * a * t * (1 - t)) if t else (std**2 - 2 * a) / (2 * a)
        return mean - x0 - slope * ((1 - t) * x0 + t * mean), slope

    solver = EulerMaruyama(diffusion=a, drift="field", last="none")
    found = moments(solver, fj.times.uniform(400), drift, (x0, 0.0))
    np.testing.assert_allclose(found, (mean, std**2), atol=0.005)


@pytest.mark.slow
def test_diffrax_takes_the_same_steps():
    """Euler of diffrax on `sde_terms` against the steps written out, with the increments of its Brownian motion."""
    path, eps, key = Linear(), 0.3, jax.random.key(0)
    field = DriftPlusScore(fj.Flow(lambda x, t, cond: jnp.sin(x) + t[:, None], path=path), diffusion=eps)
    x, times = jnp.asarray([[0.3, -1.0], [0.7, 0.2]]), np.linspace(0.0, 0.9, 4)
    terms = sde_terms(field, x, key, start=0.0, end=0.9, index=5)
    with jax.debug_key_reuse(False):  # diffrax's tree splits keys in a loop
        found = diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 0.9, 0.3, x, throw=False).ys[-1]
        motion = SampleBrownian(key, x, 0.0, 0.9, 1e-3, 5, diffrax.BrownianIncrement)
        step = jax.jit(lambda s, t: motion.evaluate(s, t))
        increments = [np.asarray(step(s, t)) for s, t in itertools.pairwise(times)]
        np.testing.assert_allclose(sum(increments), step(0.0, 0.9), atol=1e-5)
    y = np.asarray(x, np.float64)
    for (s, t), dw in zip(itertools.pairwise(times), increments, strict=True):
        v = np.sin(y) + s
        noise = y - s * v  # on straight lines: x = t m + (1 - t) e, v = m - e
        y = y + (t - s) * (v - eps * noise / (1 - s)) + np.sqrt(2 * eps) * dw
    np.testing.assert_allclose(found, y, atol=1e-5)
    assert abs(increments[0]).min() > 1e-4


def test_one_network_gives_no_score():
    """An interpolant's field without second network gives its velocity and refuses the score."""
    field = InterpolantFlow(lambda x, t, cond: 2 * x, path=Interpolant())
    np.testing.assert_array_equal(field.velocity(0.5, jnp.ones((1, 1))), [[2.0]])
    with pytest.raises(ValueError, match="pass second="):
        field.score(0.5, jnp.ones((1, 1)))
