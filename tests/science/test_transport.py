"""Slab transport: recorded iteration counts, Fourier analysis, conservation, derivatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.science import transport

RECORDED = [  # c, length, cells, sweeps and radius of source iteration and of the accelerated iteration (measured, S_8)
    (0.5, 50.0, 100, 34, 0.500, 10, 0.083),
    (0.9, 50.0, 100, 198, 0.899, 13, 0.169),
    (0.99, 50.0, 100, 1656, 0.989, 13, 0.193),
    (0.99, 50.0, 25, 1656, 0.989, 12, 0.187),
    (0.99, 20.0, 40, 1109, 0.983, 13, 0.193),
    (0.999, 20.0, 40, 2248, 0.992, 13, 0.195),
]
solve = jax.jit(transport.solve, static_argnames=("angles", "method", "tolerance", "max_iterations"))


def slab(cells=20, length=10.0, c=0.9, boundary="vacuum", dtype=jnp.float64):
    return transport.uniform(cells=cells, length=length, scattering_ratio=c, boundary=boundary, dtype=dtype)


@pytest.mark.parametrize(("c", "length", "cells", "plain", "plain_radius", "fast", "fast_radius"), RECORDED)
def test_recorded_iterations(x64, c, length, cells, plain, plain_radius, fast, fast_radius):
    problem = slab(cells, length, c)
    accelerated, iterated = (solve(problem, method=method) for method in transport.METHODS)
    assert accelerated.converged
    assert iterated.converged
    assert abs(int(iterated.iterations) - plain) <= 1
    assert abs(int(accelerated.iterations) - fast) <= 1
    assert float(iterated.radius) == pytest.approx(plain_radius, abs=1e-3)
    assert float(accelerated.radius) == pytest.approx(fast_radius, abs=0.02)
    left = 1e-10 * plain_radius / (1 - plain_radius)  # what source iteration still misses when its changes are small
    assert float(jnp.max(jnp.abs(accelerated.phi - iterated.phi)) / jnp.max(accelerated.phi)) < 1.1 * left


def test_recorded_flux_in_the_middle(x64):
    assert float(solve(slab(100, 50.0, 0.9)).phi[50]) == pytest.approx(9.999975, abs=1e-6)
    assert float(solve(slab(100, 50.0, 0.99)).phi[50]) == pytest.approx(97.63124, abs=1e-5)


def test_fourier_analysis():
    for c, radius in ((1.0, 0.22467), (0.99, 0.22139), (0.9, 0.19387), (0.5, 0.09579)):
        assert transport.spectral_radius(c) == pytest.approx(radius, abs=1e-5)
        assert transport.spectral_radius(c) <= 0.2247 * c
    for angles, radius in ((2, 0.0), (4, 0.18484), (8, 0.22239), (16, 0.22466)):
        assert transport.spectral_radius(1.0, angles=angles) == pytest.approx(radius, abs=1e-5)
    assert transport.spectral_radius(0.9, method="source_iteration") == pytest.approx(0.9, abs=1e-4)
    waves = np.linspace(1, 5, 4001)
    assert waves[np.argmax(transport.spectrum(waves, 1.0))] == pytest.approx(2.53, abs=5e-3)


def test_two_directions_are_solved_in_one_iteration(x64):
    assert int(solve(slab(100, 50.0, 0.99), angles=2).iterations) <= 3


@pytest.mark.parametrize("width", [0.1, 2.0, 20.0])
def test_stable_for_every_width(x64, width):
    result = solve(slab(20, 20 * width, 0.999))
    assert result.converged
    assert int(result.iterations) <= 16


def test_reflecting_ends_are_an_infinite_medium(x64):
    result = solve(slab(boundary="reflecting"))
    np.testing.assert_allclose(result.phi, 10.0, rtol=1e-12)
    np.testing.assert_array_equal(result.leakage, 0.0)


def test_reflection_is_symmetry(x64):
    whole = solve(slab(20, 10.0))
    half = dataclasses.replace(slab(10, 5.0), left="reflecting")
    np.testing.assert_allclose(solve(half).phi, whole.phi[10:], rtol=1e-9)
    np.testing.assert_allclose(whole.phi, whole.phi[::-1], rtol=1e-9)


def layers(values):
    """A slab of uneven layers, shifted by four numbers."""
    x = jnp.arange(12, dtype=values.dtype)
    return transport.Slab(
        total=1 + values[0] + x / 12,
        scattering=0.7 + values[1] + x / 24,
        source=jnp.sin(x) ** 2 + values[2],
        width=(0.3 + x / 20) * (1 + values[3]),
        right="reflecting",
    )


def test_balance_and_linearity(x64):
    problem = layers(jnp.zeros(4))
    result = solve(problem)
    absorbed = jnp.sum(problem.width * (problem.total - problem.scattering) * result.phi)
    produced = jnp.sum(problem.width * problem.source)
    assert float(absorbed + jnp.sum(result.leakage)) == pytest.approx(float(produced), rel=1e-9)
    doubled = dataclasses.replace(problem, source=2 * problem.source)
    np.testing.assert_allclose(solve(doubled).phi, 2 * result.phi, rtol=1e-9)


@pytest.mark.slow
def test_derivatives(x64):
    @jax.jit
    def total(values):
        return jnp.sum(transport.solve(layers(values), tolerance=1e-13).phi)

    step = 1e-5
    numeric = [(total(step * e) - total(-step * e)) / (2 * step) for e in jnp.eye(4)]
    np.testing.assert_allclose(jax.grad(total)(jnp.zeros(4)), numeric, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(total, (jnp.zeros(4),), (jnp.eye(4)[1],))[1], numeric[1], rtol=1e-6)


@pytest.mark.slow
def test_batches(x64, on_eight_devices):
    values = jax.random.uniform(jax.random.key(0), (8, 4), maxval=0.1)

    def phi(v):
        return transport.solve(layers(v)).phi

    loop = jnp.stack([jax.jit(phi)(v) for v in values])
    np.testing.assert_allclose(jax.jit(jax.vmap(phi))(values), loop, rtol=1e-9)
    np.testing.assert_allclose(on_eight_devices(phi, values), loop, rtol=1e-9)


def test_single_precision():
    fast = solve(slab(100, 50.0, 0.99, dtype=jnp.float32))
    assert fast.phi.dtype == jnp.float32
    assert fast.converged
    assert float(fast.phi[50]) == pytest.approx(97.63124, rel=1e-5)
    slow = solve(slab(100, 50.0, 0.99, dtype=jnp.float32), method="source_iteration")
    assert slow.converged
    assert 1e-5 < abs(float(slow.phi[50]) / 97.63124 - 1) < 20 * np.finfo(np.float32).eps / 0.01


def test_running_out_and_bad_numbers_are_flagged(x64):
    assert not solve(slab(c=0.99), method="source_iteration", max_iterations=5).converged
    problem = slab()
    object.__setattr__(problem, "source", problem.source.at[3].set(jnp.nan))
    result = solve(problem)
    assert not result.converged
    assert int(result.iterations) <= 2


def test_under_jit_a_slab_outside_its_ranges_has_not_converged(x64):
    @jax.jit
    @jax.vmap
    def converged(total, scattering, source, width):
        one = jnp.ones(12)
        made = transport.Slab(total=total * one, scattering=scattering * one, source=source * one, width=width * one)
        result = transport.solve(made, max_iterations=400)
        return result.converged, jnp.min(result.phi)

    good = [(1.0, c, 1.0, h) for c in (0.0, 0.5, 0.99, 1.0) for h in (0.1, 1.0)]
    # Flux is negative or finite in most of these, without a further sign of trouble.
    bad = [(1.0, c, 1.0, 0.8) for c in (1.05, 1.2, -0.5)] + [(1.0, 0.5, 1.0, -1.0), (-1.0, -2.0, 1.0, 1.0)]
    bad += [(0.0, 0.0, 1.0, 1.0), (1.0, 0.5, np.inf, 1.0), (1.0, np.nan, 0.0, 1.0), (1.0, 1 + 1e-14, 1.0, 0.1)]
    found, flux = converged(*jnp.array(good + bad).T)
    assert found[: len(good)].all()
    assert (flux[: len(good)] > 0).all()
    assert not found[len(good) :].any()


@pytest.mark.parametrize("method", transport.METHODS)
def test_between_two_mirrors_something_must_be_absorbed(x64, method):
    @jax.jit
    @jax.vmap
    def run(ratio, source):
        one = jnp.ones(6)
        made = transport.Slab(
            total=one, scattering=ratio * one, source=source * one, width=one, left="reflecting", right="reflecting"
        )
        return transport.solve(made, method=method, max_iterations=2000).converged

    ratio = jnp.array([0.5, 0.9, 1.0, 1.0, 1 - 1e-15])
    assert run(ratio, jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])).tolist() == [True, True, False, False, False]


def test_errors():
    one = jnp.ones(4)
    with pytest.raises(ValueError, match="even"):
        transport.quadrature(3)
    with pytest.raises(ValueError, match="source_iteration"):
        transport.solve(slab(dtype=jnp.float32), method="sor")
    for tolerance in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="tolerance must be"):
            transport.solve(slab(dtype=jnp.float32), tolerance=tolerance)
    with pytest.raises(ValueError, match="wave numbers positive"):
        transport.spectrum(np.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"scattering_ratio=1.5 must be in \[0, 1\]"):
        transport.spectral_radius(1.5)
    with pytest.raises(ValueError, match="one value per cell"):
        transport.Slab(total=one, scattering=one, source=one, width=0.1)
    with pytest.raises(ValueError, match="between 0 and total"):
        transport.Slab(total=one, scattering=2 * one, source=one, width=one)
    with pytest.raises(ValueError, match="positive"):
        transport.Slab(total=0 * one, scattering=0 * one, source=one, width=one)
    with pytest.raises(ValueError, match="not finite"):
        transport.Slab(total=one, scattering=one, source=one * jnp.nan, width=one)
    with pytest.raises(ValueError, match="vacuum, reflecting"):
        transport.Slab(total=one, scattering=one, source=one, width=one, left="mirror")
