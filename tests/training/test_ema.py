import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.training.ema import Constant, Power, Warmup, combination, move, snapshot_items


@pytest.fixture(scope="module")
def trajectory():
    """Parameters (N, 3) after each of N steps: noise around a drift, as in training."""
    steps = np.linspace(0, 1, 2000)[:, None]
    noise = np.random.default_rng(0).normal(size=(2000, 3))
    return (np.exp(-4 * steps) * [3, -2, 1] + np.sin(5 * steps) + 0.3 * noise).astype(np.float32)


def run(law, trajectory, start):
    """The average after each step."""

    def one(average, entry):
        step, theta = entry
        average = move(average, theta, law.weight(step))
        return average, average

    steps = jnp.arange(len(trajectory), dtype=jnp.int32)
    return np.asarray(jax.lax.scan(one, jnp.asarray(start), (steps, trajectory))[1])


def direct(std, trajectory):
    """The weighted mean of all parameters, the weight of step k being the mass of the profile s^g on [k-1, k]."""
    edges = np.arange(len(trajectory) + 1) / len(trajectory)
    mass = np.diff(edges ** (Power(std=std).exponent + 1))
    return mass @ trajectory.astype(np.float64)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.25])
def test_power_average_is_the_weighted_mean_of_the_trajectory(trajectory, std):
    found = run(Power(std=std), trajectory, np.float32([50, 50, 50]))
    np.testing.assert_allclose(found[-1], direct(std, trajectory), atol=2e-5)
    np.testing.assert_allclose(found[299], direct(std, trajectory[:300]), atol=2e-5)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.2886])
def test_std_is_that_of_the_profile(std):
    g = Power(std=std).exponent
    s = (np.arange(2_000_000) + 0.5) / 2_000_000
    mass = (g + 1) * s**g / len(s)
    mean = mass @ s
    np.testing.assert_allclose(np.sqrt(mass @ (s - mean) ** 2), std, rtol=1e-5)


def test_weights_keep_their_digits_late_in_training():
    step, law = 10_000_000, Power(std=0.05)
    exact = -np.expm1((law.exponent + 1) * np.log1p(-1 / (step + 1)))
    np.testing.assert_allclose(law.weight(jnp.int32(step)), exact, rtol=1e-4)


def test_constant_keeps_the_start_and_warmup_forgets_it(trajectory):
    decay, start = 0.99, np.float32([50, 50, 50])
    powers = decay ** np.arange(len(trajectory))[::-1]
    expected = (1 - decay) * powers @ trajectory + decay ** len(trajectory) * start
    np.testing.assert_allclose(run(Constant(decay=decay), trajectory, start)[-1], expected, atol=1e-4)
    early = [
        run(law, trajectory[:50], start)[-1] - trajectory[:50].mean(0)
        for law in (Constant(decay=decay), Warmup(decay=decay))
    ]
    assert np.abs(early[0]).min() > 10
    assert np.abs(early[1]).max() < 1
    weights = [float(Warmup(decay=0.99).weight(jnp.int32(n))) for n in (0, 90, 10_000)]
    np.testing.assert_allclose(weights, [0.9, 0.09, 0.01], rtol=1e-5)


# The long average weighs the first steps, before the first snapshot, where the profiles know least.
@pytest.mark.parametrize(("std", "tolerance"), [(0.04, 0.005), (0.07, 0.001), (0.15, 0.005), (0.25, 0.05)])
@pytest.mark.parametrize("end", [2000, 1500])
def test_any_length_from_snapshots_of_two(trajectory, std, tolerance, end):
    """The reconstruction agrees with direct averaging far better than the nearest stored average does."""
    stored = {s: run(Power(std=s), trajectory, trajectory[0]) for s in (0.05, 0.1)}
    snapshots = [(step, s) for step in range(100, 2001, 100) for s in stored]
    weights = combination(snapshots, end, std)
    found = sum(w * stored[s][step - 1] for w, (step, s) in zip(weights, snapshots))
    expected = direct(std, trajectory[:end])
    nearest = min(np.abs(stored[s][end - 1] - expected).max() for s in stored)
    error = np.abs(found - expected).max()
    assert error < tolerance
    assert error < nearest / 5


def test_a_stored_average_is_found_again_and_weights_sum_to_one():
    snapshots = [(step, std) for step in (100, 200, 300) for std in (0.05, 0.1)]
    weights = combination(snapshots, 200, 0.1)
    np.testing.assert_allclose(weights, np.eye(6)[3], atol=1e-5)
    np.testing.assert_allclose(combination(snapshots, 250, 0.08).sum(), 1, rtol=1e-12)


def test_what_is_refused():
    for law in (Constant, Warmup):
        with pytest.raises(ValueError, match=r"decay of the average must lie in \[0, 1\), got 1.0"):
            law(decay=1.0)
    for std in (0.0, 0.3):
        with pytest.raises(ValueError, match="relative standard deviation"):
            Power(std=std)
    for step in (0, 301):
        with pytest.raises(ValueError, match="not within the 1 snapshots"):
            combination([(300, 0.1)], step, 0.05)


def test_only_power_averages_become_snapshots():
    laws = {"a": (Constant(decay=0.5), ("network",)), "b": (Power(std=0.05), ("network",))}
    assert snapshot_items(laws, {"a": 1, "b": 2, "target": 3}) == {"power-0.05": 2}
