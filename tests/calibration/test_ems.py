import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, Problem, relative

import flowjax as fj
from flowjax.calibration import ems
from flowjax.oracles import Gaussian, Mixture
from flowjax.solvers import DDIM, DPMSolver, DPMSolverV3, run_on_arrays
from flowjax.times import log_snr, quadratic

KEY = jax.random.key(3)


def flow_of(network, path):
    return fj.Flow(network, path=path, prediction="noise")


def normal_batch(shape):
    return lambda i: (fj.noise(jax.random.key(100 + i), shape), None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "linear", "ve"])
def test_gaussian_data(name):
    """l = sigma^2/V; f does not vary, so s = 0, and one first-order step is the whole flow."""
    path = PATHS[name]
    target = Gaussian(mean=0.7, std=0.5, path=path)
    low, high = 0.1, 0.9
    batch = lambda i: (0.7 + 0.5 * fj.noise(jax.random.key(i), (16, 2)), None)  # noqa: E731
    flow = flow_of(target.network("noise"), path)
    smoothed, exact = (
        ems.estimate(flow, batch, KEY, start=low, end=high, points=150, compat=compat) for compat in (None, "official")
    )
    t = np.asarray(path.time(exact.lam))
    variance = path.alpha(t) ** 2 * 0.5**2 + path.sigma(t) ** 2
    law = np.tile((path.sigma(t) ** 2 / variance)[:, None], 2)
    assert relative(exact.l, law) < 1e-5
    assert relative(smoothed.l, law) < 1e-3
    assert not smoothed.s.any()
    assert not exact.s.any()

    def noise(request):
        alpha, sigma = path.alpha(request.t), path.sigma(request.t)
        return sigma * (request.x - alpha * 0.7) / (alpha**2 * 0.25 + sigma**2)

    x = np.array([[-1.0, 0.5], [2.0, 0.0]])
    expected = path.alpha(high) * 0.7 + np.sqrt(variance[-1] / variance[0]) * (x - path.alpha(low) * 0.7)
    for statistics in (smoothed, exact):
        end = run_on_arrays(DPMSolverV3(statistics=statistics, order=1), path, [low, high], x, noise)[-1]
        assert relative(end, expected) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("mean", [0.0, 20.0])
def test_what_smoothing_and_rounding_make_of_gaussian_data_is_no_variation(mean, double):
    """Whether f is nothing but its error, or a constant beside which the error is small."""
    path = PATHS["ve"]
    with jax.enable_x64(double):
        dtype = jnp.float64 if double else jnp.float32
        batch = lambda i: (mean + 0.5 * fj.noise(jax.random.key(i), (8, 1)).astype(dtype), None)  # noqa: E731
        flow = flow_of(Gaussian(mean=mean, std=0.5, path=path).network("noise"), path)
        for compat in (None, "official"):
            assert not ems.estimate(flow, batch, KEY, start=0.1, end=0.9, points=40, compat=compat).s.any()


@pytest.mark.slow
def test_a_mixture_varies_but_where_noise_is_nearly_all():
    path = PATHS["linear"]
    target = Mixture.default(path)
    flow = flow_of(target.network("noise"), path)
    found = ems.estimate(flow, lambda i: (target.sample(jax.random.key(i), 512), None), KEY, points=60)
    assert found.s[found.lam > -2].all()
    assert not found.s[found.lam < -6].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vp", "ve"))])
def test_first_order_steps_gain_on_the_mixture(name):
    """The error of DDIM falls to 0.30 to 0.41 of it, on three seeds."""
    path = PATHS[name]
    low, high = (-1.7, 2.9) if name == "ve" else (-4.0, 4.0)
    problem, low, high = Problem(path), float(path.time(low)), float(path.time(high))
    target = Mixture.default(path)
    batch = lambda i: (target.sample(jax.random.key(i), 2048), None)  # noqa: E731
    found = ems.estimate(flow_of(target.network("noise"), path), batch, KEY, start=low, end=high, points=120)
    x = path.sigma(low) * np.random.default_rng(0).standard_normal((200, 1))
    exact = problem.exact(x, low, high)
    for n in (5, 10, 20):
        grid = log_snr(path, n, low, high)
        plain, mine = (
            np.sqrt(np.mean((run_on_arrays(s, path, grid, x, problem)[-1] - exact) ** 2))
            for s in (DDIM(), DPMSolverV3(statistics=found, order=1, corrector=False))
        )
        assert mine < 0.5 * plain


@pytest.mark.parametrize(("points", "num"), [(60, 512), (120, 64)])
@pytest.mark.slow
def test_few_points_and_few_samples_suffice(points, num):
    """First-order steps with statistics from them have a third of the error of DPM-Solver++ of order 2.

    On three seeds it was 0.10 to 0.20 of it.
    """
    path, (low, high) = PATHS["linear"], (1e-3, 1 - 1e-3)
    problem, target = Problem(path), Mixture.default(path)
    batch = lambda i: (target.sample(jax.random.key(i), num), None)  # noqa: E731
    found = ems.estimate(flow_of(target.network("noise"), path), batch, KEY, points=points)
    x = path.sigma(low) * np.random.default_rng(0).standard_normal((200, 1))
    exact = problem.exact(x, low, high)
    for n in (8, 12):
        grid = quadratic(n, low, high)
        plain, mine = (
            np.sqrt(np.mean((run_on_arrays(s, path, grid, x, problem)[-1] - exact) ** 2))
            for s in (DPMSolver(), DPMSolverV3(statistics=found, order=1))
        )
        assert mine < plain / 3


@pytest.mark.slow
def test_probes_find_the_diagonal():
    """One probe is exact for a diagonal Jacobian, and right on average for any other."""
    path, rng = PATHS["linear"], np.random.default_rng(0)
    diagonal = jnp.asarray(rng.uniform(0.2, 1.0, 4), jnp.float32)
    full = jnp.asarray(0.3 * rng.standard_normal((4, 4)), jnp.float32)
    options = {"start": 0.2, "end": 0.8, "points": 3}
    one = ems.estimate(flow_of(lambda x, t, cond: x * diagonal[None], path), normal_batch((1, 4)), KEY, **options)
    sigma = path.sigma(path.time(one.lam))[:, None]
    assert relative(one.l, sigma * np.asarray(diagonal)) < 1e-5
    many = ems.estimate(flow_of(lambda x, t, cond: x @ full, path), normal_batch((4096, 4)), KEY, batches=2, **options)
    assert np.abs(many.l / sigma - np.diag(full)).max() < 0.04
    assert np.abs(many.l / sigma - np.diag(full)).max() > 0


def network(x, t, cond):
    return jnp.tanh(x) * t[:, None, None, None] + 0.1 * x


def test_modes():
    """Means over pixels, or over all elements, of the same estimates."""
    path, batch = PATHS["linear"], normal_batch((6, 2, 2, 3))
    found = {
        mode: ems.estimate(flow_of(network, path), batch, KEY, start=0.1, end=0.9, points=6, mode=mode)
        for mode in ("element", "channel", "scalar")
    }
    assert [found[m].l.shape for m in found] == [(7, 2, 2, 3), (7, 1, 1, 3), (7,)]
    assert [found[m].s.shape for m in found] == [(7, 2, 2, 3), (7, 1, 1, 3), (7,)]
    for axes, mode in (((1, 2), "channel"), ((1, 2, 3), "scalar")):
        mean = found["element"].l.mean(axis=axes, keepdims=mode == "channel")
        assert relative(found[mode].l, mean) < 1e-6
        x = fj.noise(jax.random.key(0), (2, 2, 2, 3))
        result = fj.solve(flow_of(network, path), DPMSolverV3(statistics=found[mode]), x, log_snr(path, 4, 0.1, 0.9))
        assert np.all(np.isfinite(result.x))


def test_an_interrupted_estimate_continues(tmp_path):
    path, calls = PATHS["linear"], []

    def batch(i):
        calls.append(i)
        return normal_batch((5, 2))(i)

    flow = flow_of(lambda x, t, cond: jnp.tanh(x), path)
    options = {"start": 0.1, "end": 0.9, "points": 40, "batches": 2}
    whole = ems.estimate(flow, batch, KEY, **options)
    total = len(calls)

    def interrupt(done, of):
        assert of == 82
        if done == 60:
            raise KeyboardInterrupt

    partial = tmp_path / "ems"
    with pytest.raises(KeyboardInterrupt):
        ems.estimate(flow, batch, KEY, partial=partial, progress=interrupt, **options)
    calls.clear()
    continued = ems.estimate(flow, batch, KEY, partial=partial, **options)
    assert len(calls) < total - 2 * 50
    for name in ("lam", "l", "s", "b"):
        assert np.array_equal(getattr(continued, name), getattr(whole, name))
    assert list(tmp_path.iterdir()) == []


def test_partial_results_of_other_sizes_are_refused(tmp_path):
    flow, options = flow_of(lambda x, t, cond: x, PATHS["linear"]), {"start": 0.1, "end": 0.9}

    def interrupt(done, of):
        if done == 17:
            raise KeyboardInterrupt

    file = tmp_path / "ems"
    with pytest.raises(KeyboardInterrupt):
        ems.estimate(flow, normal_batch((2, 1)), KEY, points=20, partial=file, progress=interrupt, **options)
    with pytest.raises(ValueError, match="calibrated for points=20, not 24"):
        ems.estimate(flow, normal_batch((2, 1)), KEY, points=24, partial=file, **options)
    with pytest.raises(ValueError, match=r"calibrated for start=0\.1, not 0\.2"):
        ems.estimate(flow, normal_batch((2, 1)), KEY, points=20, partial=file, start=0.2, end=0.9)
    with pytest.raises(ValueError, match="calibrated for model=None, not 'abc'"):
        ems.estimate(flow, normal_batch((2, 1)), KEY, points=20, partial=file, record={"model": "abc"}, **options)


def test_sharded_batches_give_the_same_statistics():
    path = PATHS["linear"]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    flow = flow_of(lambda x, t, cond: jnp.tanh(x) + 0.1 * t[:, None], path)
    options = {"start": 0.1, "end": 0.9, "points": 3}
    whole = ems.estimate(flow, normal_batch((16, 2)), KEY, **options)
    shards = ems.estimate(flow, lambda i: (jax.device_put(normal_batch((16, 2))(i)[0], sharding), None), KEY, **options)
    for name in ("l", "s", "b"):
        assert relative(getattr(shards, name), getattr(whole, name)) < 1e-4


@pytest.mark.parametrize(("name", "options"), [("linear", {"start": 0.0}), ("vp", {"end": 1.0})])
def test_infinite_ends_are_refused(name, options):
    with pytest.raises(ValueError, match="finite, increasing lam"):
        ems.estimate(flow_of(network, PATHS[name]), normal_batch((1, 1)), KEY, **options)


@pytest.mark.parametrize(
    "option", [{"points": 1}, {"points": 2.5}, {"batches": 0}, {"start": np.nan}, {"start": -0.1}, {"end": 1.5}]
)
def test_numbers_are_checked(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        ems.estimate(flow_of(network, PATHS["vp"]), normal_batch((1, 1)), KEY, **option)


def test_modes_are_checked():
    with pytest.raises(ValueError, match="mode"):
        ems.estimate(flow_of(network, PATHS["vp"]), normal_batch((1, 1)), KEY, mode="pixel")


def test_the_official_slope_is_a_mean_over_eleven_points():
    """Fewer at the ends, where the window is cut."""
    curve = np.random.default_rng(0).standard_normal((30, 2))
    found = ems._moving_average(curve)
    assert found == pytest.approx(np.stack([curve[max(i - 5, 0) : i + 6].mean(0) for i in range(30)]))


def test_noise_of_single_points_is_no_error_of_the_cubics():
    """Else nothing would vary in a network of which few samples were seen, and all of s would be zero."""
    lam = np.linspace(-6, 6, 121)
    curve = 1 / (1 + np.exp(2 * lam))[:, None]
    cubic, error = ems._smoothed(curve, 5)
    assert np.all(np.abs(cubic - curve)[5:-5] <= 1.03 * error[5:-5] + 1e-12)
    noise = 0.05 * np.random.default_rng(0).normal(size=(121, 200))
    _, seen = ems._smoothed(curve + noise, 5)
    assert np.mean(seen == 0) > 0.8
    assert seen.mean() < 0.1 * 0.05
