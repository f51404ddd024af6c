"""Gradients through the rows of a solver."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import LINEAR, UNEVEN, answer, corrected, network, states

import flowjax as fj
from flowjax._pytree import pytree
from flowjax.solvers import (
    AdamsBashforth,
    DPMSolver,
    Euler,
    Formula,
    HeavyBall,
    run_on_arrays,
)


@pytest.mark.parametrize("solver", [Euler(), AdamsBashforth(order=2), DPMSolver()], ids=["euler", "ab", "dpm"])
def test_gradient_with_respect_to_a_traced_beta(solver):
    grid, x = UNEVEN[:7], states(np.float32)
    to = solver.bind(LINEAR, grid).pattern.to
    flow = fj.Flow(network, path=LINEAR, prediction=to)

    @jax.jit
    def total(beta):
        return fj.solve(flow, HeavyBall(solver=solver, beta=beta), jnp.asarray(x), grid).x.sum()

    def exact(beta):
        return run_on_arrays(HeavyBall(solver=solver, beta=beta), LINEAR, grid, x.astype(np.float64), answer)[-1].sum()

    expected = (exact(0.6 + 1e-4) - exact(0.6 - 1e-4)) / 2e-4
    assert abs(expected) > 1e-3
    assert jax.grad(total)(jnp.float32(0.6)) == pytest.approx(expected, rel=2e-4)
    assert total(jnp.float32(0.6)) == pytest.approx(exact(0.6), rel=1e-5)


def test_gradient_with_respect_to_network_parameters():
    """Euler on v = -a x: x_n = (1 - a/n)^n x_0, so the derivative is known; checkpoints change nothing."""

    @pytree
    class Decay:
        a: Any

        def __call__(self, x, t, cond=None):
            return -self.a * x

    def end(a, checkpoint):
        flow = fj.Flow(Decay(a=a), path=LINEAR)
        return fj.solve(flow, Euler(), jnp.ones((2, 1)), fj.times.uniform(5), checkpoint=checkpoint).x[0, 0]

    plain, saved = (jax.grad(end)(jnp.float32(0.8), c) for c in (False, True))
    assert plain == pytest.approx(-((1 - 0.8 / 5) ** 4), rel=1e-6)
    assert saved == pytest.approx(float(plain), rel=1e-6)


def test_gradient_through_every_part_of_a_corrector_method():
    flow, x = fj.Flow(network, path=LINEAR), states(np.float32)

    def total(scale):
        return fj.solve(flow, Formula(function=corrected), scale * jnp.asarray(x), UNEVEN[:5], checkpoint=True).x.sum()

    def exact(scale):
        return run_on_arrays(Formula(function=corrected), LINEAR, UNEVEN[:5], scale * x.astype(np.float64), answer)[
            -1
        ].sum()

    assert jax.grad(total)(jnp.float32(1)) == pytest.approx((exact(1 + 1e-4) - exact(1 - 1e-4)) / 2e-4, rel=1e-4)
