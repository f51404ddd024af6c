"""Multistep consistency sampling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import gaussian_variance
from problem import PATHS

import flowjax as fj
from flowjax.solvers import Consistency, run_on_arrays

TARGET = fj.oracles.Gaussian(mean=2.0, std=0.5, path=fj.paths.Linear())
FLOW = fj.Flow(lambda x, t, cond: TARGET.flow_map(x, t, 1.0), path=TARGET.path, prediction="data")


@pytest.mark.parametrize("name", ["linear", "vp", "trig"])
@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_an_exact_function_gives_the_exact_law_in_any_number_of_steps(name, steps):
    """A state is the row of its coefficients in the first noise and all later ones."""
    path, std, grid = PATHS[name], 0.7, fj.times.quadratic(steps)
    basis = iter(np.eye(steps + 1)[:, None, :])

    def function(request):  # of data N(0, std^2)
        assert request.to == "data"
        return std * request.x / np.sqrt(gaussian_variance(path, request.t, std))

    x = np.sqrt(gaussian_variance(path, grid[0], std)) * next(basis)
    states = run_on_arrays(Consistency(), path, grid, x, function, lambda: next(basis))
    expected = [gaussian_variance(path, t, std) for t in grid[:-1]] + [std**2]
    np.testing.assert_allclose([np.sum(state**2) for state in states], expected, rtol=1e-12)
    assert len(list(basis)) == 1  # the last step draws no noise


def test_the_published_four_steps():
    """At steps 999, 759, 499 and 259 of the table, by its alpha_bar."""
    table = fj.paths.scaled_linear_betas()
    path, times, rng = fj.paths.Tabulated(alphas_cumprod=table), fj.times.skipping(4), np.random.default_rng(0)
    x, *noises = rng.standard_normal((4, 5))
    function = lambda request: np.tanh(request.x + request.t)  # noqa: E731
    *_, found = run_on_arrays(Consistency(), path, times, x, function, iter(noises).__next__)
    steps = [999, 759, 499, 259]
    for (k, after), z in zip(itertools.pairwise(steps), noises, strict=True):
        x = np.sqrt(table[after]) * np.tanh(x + 1 - (k + 1) / 1000) + np.sqrt(1 - table[after]) * z
    np.testing.assert_allclose(found, np.tanh(x + 1 - 260 / 1000), rtol=1e-12)


def test_one_step_is_the_function_and_needs_no_key():
    x = jnp.array([[0.3], [-1.0]])
    result = fj.solve(FLOW, Consistency(), x, fj.times.uniform(1))
    np.testing.assert_allclose(result.x, 2 + 0.5 * x, rtol=1e-6)
    for end in (0.6, 1.0):  # the last step says where the trajectory leads, not where the grid ends
        found = fj.solve(FLOW, Consistency(), x, [0.0, end]).x
        np.testing.assert_array_equal(found, result.x)
    with pytest.raises(ValueError, match="this solver is stochastic: pass key="):
        fj.solve(FLOW, Consistency(), x, fj.times.uniform(2))


def test_samples_of_many_steps_have_the_law():
    x = fj.noise(jax.random.key(0), (4000, 1))
    result = fj.solve(FLOW, Consistency(), x, fj.times.uniform(8), key=jax.random.key(1))
    assert int(result.evaluations) == 8
    assert float(result.x.mean()) == pytest.approx(2, abs=0.04)  # five standard errors of 0.5 / sqrt(4000)
    assert float(result.x.std()) == pytest.approx(0.5, abs=0.03)


def test_it_has_no_way_back():
    with pytest.raises(ValueError, match="draws noise, which no run back from the data can undo"):
        fj.solve(FLOW, Consistency(), jnp.ones((1, 1)), fj.times.uniform(1)[::-1], invert=True)
