"""Grids of times."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from flowjax import times
from flowjax.paths import VE, VP, Cosine, Linear, Trig

PATHS = [Linear(), Trig(), VP(), Cosine(), VE(), VE(sigma_min=0.002, sigma_max=80.0)]
GRIDS = {
    "uniform": times.uniform,
    "quadratic": times.quadratic,
    "shifted": lambda n, start, end: times.shifted(times.uniform(n, start, end), 3.0),
    **{f"log_snr-{i}": lambda n, start, end, p=p: times.log_snr(p, n, start, end) for i, p in enumerate(PATHS)},
    **{f"karras-{i}": lambda n, start, end, p=p: times.karras(p, n, start=start, end=end) for i, p in enumerate(PATHS)},
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_has_n_steps_and_its_ends(name):
    for n in (1, 2, 7, 30):
        for start, end in ((0.02, 0.98), (0.1, 0.7)):
            grid = GRIDS[name](n, start, end)
            assert grid.shape == (n + 1,)
            assert grid.dtype == np.float64
            assert isinstance(grid, np.ndarray)
            assert np.all(np.diff(grid) > 0)
            assert grid[-1] == (end if name != "shifted" else grid[-1])
            if name.startswith(("uniform", "quadratic", "log_snr")):
                assert grid[0] == start


@pytest.mark.parametrize("make", [times.uniform, times.quadratic])
def test_default_ends_are_exact(make):
    for n in (1, 3, 10, 49):
        grid = make(n)
        assert (grid[0], grid[-1]) == (0, 1)


def test_known_values():
    np.testing.assert_allclose(times.uniform(4), [0, 0.25, 0.5, 0.75, 1], rtol=1e-15)
    np.testing.assert_allclose(times.quadratic(4), [0, 7 / 16, 3 / 4, 15 / 16, 1], rtol=1e-15)
    np.testing.assert_allclose(times.shifted([0, 0.25, 0.5, 1], 3.0), [0, 0.1, 0.25, 1], rtol=1e-14)


def test_skipping_takes_the_published_times():
    """Of latent consistency models, on a table of 1,000 steps."""
    published = {1: [999], 2: [999, 499], 4: [999, 759, 499, 259], 8: [999, 879, 759, 639, 499, 379, 259, 139]}
    for n, steps in published.items():
        grid = times.skipping(n)
        np.testing.assert_allclose(1000 * (1 - grid[:-1]) - 1, steps, rtol=1e-12)
        assert grid[-1] == 1
    np.testing.assert_array_equal(times.skipping(50), times.uniform(50))
    np.testing.assert_allclose(times.skipping(2, of=5, start=0.5), [0.5, 0.7, 1.0], rtol=1e-12)
    with pytest.raises(ValueError, match="at most of=50 steps, got 51"):
        times.skipping(51)


def test_quadratic_is_uniform_in_the_root():
    root = np.sqrt(1 - times.quadratic(9, 0.1, 0.9))
    np.testing.assert_allclose(np.diff(root), np.diff(root)[0], rtol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_log_snr_is_uniform_in_lam(path):
    steps = np.diff(path.lam(times.log_snr(path, 12)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-8)


def edm_levels(n, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """Equation 5 of 2206.00364, written as there."""
    i = np.arange(n)
    return (sigma_max ** (1 / rho) + i / (n - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def test_karras_is_the_grid_of_edm():
    """18 levels from 80 to 0.002 and then no noise; some of them as printed by NVIDIA's EDM code."""
    grid = times.karras(Linear(), 18)
    with np.errstate(divide="ignore"):
        levels = np.exp(-Linear().lam(grid))
    np.testing.assert_allclose(levels[:-1], edm_levels(18), rtol=1e-10)
    np.testing.assert_allclose(levels[[0, 1, 2, 17, 18]], [80, 57.5860, 40.7856, 0.002, 0], rtol=1e-5)
    assert grid[-1] == 1
    np.testing.assert_allclose(grid[0], 1 / 81, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 18])
@pytest.mark.parametrize(
    ("low", "high"), [(0.002, 80.0), (0.01, 50.0), (0.02, 5.0), (0.003, 7.0), (0.005, 33.0), (0.07, 3.3)]
)
def test_karras_on_a_path_that_ends_at_sigma_min(low, high, n):
    """Rounding in k(end) must not decide whether a step of zero length is added."""
    path = VE(sigma_min=low, sigma_max=high)
    grid = times.karras(path, n, sigma_min=low, sigma_max=high)
    np.testing.assert_allclose(path.sigma(grid), edm_levels(n + 1, low, high), rtol=1e-9)
    assert (grid[0], grid[-1]) == (0, 1)


def test_karras_between_levels_of_the_path():
    path = VE(sigma_min=0.1, sigma_max=10.0)
    np.testing.assert_allclose(path.sigma(times.karras(path, 6)), edm_levels(7, 0.1, 10.0), rtol=1e-9)
    inner = times.karras(path, 6, sigma_min=0.2, sigma_max=4.0, rho=3.0)
    np.testing.assert_allclose(path.sigma(inner)[:-1], edm_levels(6, 0.2, 4.0, 3.0), rtol=1e-9)
    assert inner[-1] == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"rho": 0.0},
        {"rho": np.inf},
        {"rho": np.nan},
        {"sigma_min": 0.0},
        {"sigma_min": 90.0},
        {"sigma_max": np.inf},
        {"sigma_max": np.nan},
        {"start": 0.9999},
    ],
)
def test_karras_refuses(bad):
    with pytest.raises(ValueError, match=r"karras|increase"):
        times.karras(Linear(), 5, **bad)


def test_shifts_compose_and_undo_each_other():
    grid = times.uniform(11)
    np.testing.assert_allclose(times.shifted(times.shifted(grid, 2.0), 1.7), times.shifted(grid, 3.4), rtol=1e-13)
    np.testing.assert_allclose(times.shifted(times.shifted(grid, 4.0), 0.25), grid, atol=1e-14)
    np.testing.assert_allclose(times.shifted(grid, 1.0), grid, atol=1e-16)
    assert np.all(times.shifted(grid, 3.0)[1:-1] < grid[1:-1])


def test_shift_of_many_dimensions():
    """Noise times of the published table, for latents (16, 16, 768) and those of 512 pixels."""
    shift = times.dimension_shift((16, 16, 768))
    np.testing.assert_allclose([shift, times.dimension_shift((32, 32, 768))], [6.928, 13.856], atol=5e-4)
    noise = 1 - times.shifted(1 - np.array([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])[::-1], shift)[::-1]
    np.testing.assert_allclose(noise, [0, 0.4350, 0.6978, 0.8739, 0.9541, 0.9842, 1], atol=5e-5)
    assert np.all(np.diff(times.shifted(np.linspace(0, 1, 1001), shift)) > 0)
    assert (times.dimension_shift((8, 8, 1)), times.dimension_shift((4, 4), reference=4)) == (1.0, 2.0)


def test_shift_multiplies_the_noise_level_of_the_linear_path():
    grid = times.uniform(9, 0.05, 0.95)
    level = np.exp(-Linear().lam(times.shifted(grid, 3.0)))
    np.testing.assert_allclose(level, 3.0 * np.exp(-Linear().lam(grid)), rtol=1e-12)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_shifts_are_refused(shift):
    with pytest.raises(ValueError, match="shift"):
        times.shifted(times.uniform(3), shift)


@pytest.mark.parametrize("n", [0, -3, True, 2.5, 3.0, "4"])
@pytest.mark.parametrize("make", [times.uniform, times.quadratic, lambda n: times.log_snr(Linear(), n)])
def test_bad_numbers_of_steps_are_refused(make, n):
    """The annotations, checked in tests, refuse what is not an int; without them it is a ValueError as well."""
    with pytest.raises((ValueError, TypeCheckError)):
        make(n)


@pytest.mark.parametrize("n", [0, True, 2.5, 3.0])
def test_the_number_of_steps_is_a_positive_integer(n):
    with pytest.raises(ValueError, match="positive integer"):
        times._check(n, 0.0, 1.0)


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.7, 0.2), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
@pytest.mark.parametrize("name", ["uniform", "quadratic", "log_snr-0", "karras-0"])
def test_bad_ends_are_refused(name, start, end):
    with pytest.raises(ValueError, match="0 <= start < end <= 1"):
        GRIDS[name](5, start, end)


def test_infinite_lam_names_the_end():
    with pytest.raises(ValueError, match="move start above 0"):
        times.log_snr(Linear(), 5, start=0.0)
    with pytest.raises(ValueError, match="move end below 1"):
        times.log_snr(VP(), 5, start=0.0, end=1.0)
    assert times.log_snr(VE(), 5, start=0.0, end=1.0)[-1] == 1


@pytest.mark.parametrize("bad", [[0.5], 0.5, [[0, 1]], [0, 0.6, 0.5, 1], [-0.1, 1], [0, 1.01], [0, float("nan"), 1]])
def test_lists_that_are_no_grids_are_refused(bad):
    with pytest.raises(ValueError, match="times must"):
        times.check_times(bad)


def test_a_grid_may_rest():
    assert times.check_times([0, 0.5, 0.5, 1]).dtype == np.float64
