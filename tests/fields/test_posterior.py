"""Posterior guidance on problems whose posterior is known in closed form, under every kind of solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.fields import DPS, MMPS, PGDM, Blurred, Masked, Pooled
from flowjax.oracles import Gaussian, Mixture

LINEAR = fj.paths.Linear()
RNG = np.random.default_rng(0)
MEAN = np.array([0.5, -1.0, 0.2])
MIX = np.array([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.4, 0.6]])  # of x1 = MEAN + MIX z: correlated
COVARIANCE = MIX @ MIX.T
MATRIX = np.array([[1.0, 0.5, 0.0], [0.0, -0.3, 1.0]])
Y, NOISE_STD = np.array([1.2, 0.4]), 0.4
X = fj.noise(jax.random.key(1), (4, 3))


def operator(x):
    return x @ jnp.asarray(MATRIX.T, x.dtype)


def network(path):
    """The data prediction of the correlated Gaussian."""

    def data(x, t, cond):
        alpha, sigma = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
        covariance = jnp.asarray(COVARIANCE, x.dtype)[None]
        total = alpha**2 * covariance + sigma**2 * jnp.eye(3)[None]
        residual = x - alpha[..., 0] * jnp.asarray(MEAN, x.dtype)[None]
        return jnp.asarray(MEAN, x.dtype)[None] + (
            alpha * covariance @ jnp.linalg.solve(total, residual[..., None])
        ).squeeze(-1)

    return data


def posterior():
    """Mean and covariance of x1 given y."""
    gain = COVARIANCE @ MATRIX.T @ np.linalg.inv(MATRIX @ COVARIANCE @ MATRIX.T + NOISE_STD**2 * np.eye(2))
    return MEAN + gain @ (Y - MATRIX @ MEAN), COVARIANCE - gain @ MATRIX @ COVARIANCE


def conditional_data(path, t, x):
    """E[x1 | x_t, y], by conditioning on both at once."""
    a, s = float(path.alpha(t)), float(path.sigma(t))
    both = np.concatenate([a * np.eye(3), MATRIX])
    noise = np.diag([s**2] * 3 + [NOISE_STD**2] * 2)
    gain = COVARIANCE @ both.T @ np.linalg.inv(both @ COVARIANCE @ both.T + noise)
    seen = np.concatenate([np.asarray(x), np.broadcast_to(Y, (len(x), 2))], axis=1)
    return MEAN + (seen - both @ MEAN) @ gain.T


def flow(path):
    return fj.Flow(network(path), path=path, prediction="data")


def measured(n):
    return jnp.broadcast_to(jnp.asarray(Y, jnp.float32), (n, 2))


@pytest.mark.parametrize("path", [LINEAR, fj.paths.VP(), fj.paths.VE(sigma_min=0.05, sigma_max=6.0)], ids=str)
def test_mmps_is_exact_for_gaussian_data(path):
    field = MMPS(flow(path), operator=operator, measured=measured(4), noise_std=NOISE_STD, iterations=2)
    for t in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(field.data(t, X), conditional_data(path, t, X), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "solver", [fj.solvers.Euler(), fj.solvers.DPMSolver(), fj.solvers.UniPC()], ids=lambda s: type(s).__name__
)
def test_a_linear_gaussian_problem_has_the_posteriors_mean_and_covariance(solver):
    """Margins: three standard errors of 4,000 samples for the mean, 0.05 of entries of order 1 for the covariance."""
    n, steps = 4000, 200 if type(solver) is fj.solvers.Euler else 40
    field = MMPS(flow(LINEAR), operator=operator, measured=measured(n), noise_std=NOISE_STD, iterations=2)
    x = LINEAR.start(fj.noise(jax.random.key(0), (n, 3)), 1e-3)
    found = fj.solve(field, solver, x, fj.times.uniform(steps, 1e-3, 1.0)).x
    mean, covariance = posterior()
    error = 3 * np.sqrt(np.diag(covariance) / n)
    assert np.all(np.abs(np.mean(found, 0) - mean) < error + 0.01)
    np.testing.assert_allclose(np.cov(np.asarray(found).T), covariance, atol=0.05)
    prior = fj.solve(flow(LINEAR), solver, x, fj.times.uniform(steps, 1e-3, 1.0)).x
    assert np.abs(np.cov(np.asarray(prior).T) - covariance).max() > 0.4  # the measurement matters


def test_pgdm_is_exact_for_data_of_one_variance_and_dps_overrates_the_measurement():
    law = Gaussian(mean=MEAN, std=0.7, path=LINEAR)
    base = fj.Flow(law.network(), path=LINEAR)
    y = jnp.asarray([[1.2], [0.3], [-2.0], [0.5]])

    def first(x):
        return x[:, :1]

    options = {"operator": first, "measured": y, "noise_std": 0.3}
    for t in (0.2, 0.6, 0.95):
        m, v = law.data(t, X), (1 - t) ** 2 * 0.49 / ((1 - t) ** 2 + t**2 * 0.49)
        expected = m.at[:, :1].add(v / (v + 0.09) * (y - m[:, :1]))
        np.testing.assert_allclose(PGDM(base, data_std=0.7, **options).data(t, X), expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(MMPS(base, iterations=1, **options).data(t, X), expected, rtol=1e-3, atol=1e-3)
        over = m.at[:, :1].add(v / 0.09 * (y - m[:, :1]))
        np.testing.assert_allclose(DPS(base, **options).data(t, X), over, rtol=1e-3, atol=1e-3)
        half = DPS(base, scale=lambda t: 0.5 + 0 * jnp.asarray(t), **options).data(t, X)
        np.testing.assert_allclose(half, (m + over) / 2, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_form_of_the_published_program_moves_the_velocity_by_the_gradient_of_the_norm():
    law = Mixture.default(LINEAR, dim=2)
    base, y = fj.Flow(law.network(), path=LINEAR), jnp.full((4, 2), 0.3)
    field = DPS(base, operator=jnp.tanh, measured=y, scale=2.0, form="norm")
    x = X[:, :2]
    slope = jax.grad(lambda x: jnp.sum(jnp.linalg.norm(y - jnp.tanh(base.data(0.6, x)), axis=1)))(x)
    np.testing.assert_allclose(field.velocity(0.6, x), base.velocity(0.6, x) - 2 * slope, rtol=1e-3, atol=1e-3)


def test_a_mixture_given_a_precise_measurement_is_the_class_that_fits():
    """Of two classes at (-1, -1) and (1, 1), the first number says which: not so without."""
    law = Mixture(weights=np.array([0.5, 0.5]), means=np.array([[-1.0, -1.0], [1.0, 1.0]]), stds=0.3, path=LINEAR)
    base, x = fj.Flow(law.network(), path=LINEAR), LINEAR.start(fj.noise(jax.random.key(0), (200, 2)), 0.01)
    times = fj.times.uniform(60, 0.01, 1.0)
    y = jnp.full((200, 1), 0.9)
    shares = {}
    for make in (MMPS, PGDM):
        field = make(base, operator=lambda x: x[:, :1], measured=y, noise_std=0.1)
        found = np.asarray(fj.solve(field, fj.solvers.Euler(), x, times).x)
        shares[make.__name__] = np.mean(found[:, 1] > 0)
        assert abs(found[:, 0].mean() - 0.9) < 0.1
    free = np.asarray(fj.solve(base, fj.solvers.Euler(), x, times).x)
    assert abs(np.mean(free[:, 1] > 0) - 0.5) < 0.15
    assert min(shares.values()) > 0.95


def test_operators_are_linear_and_measure_what_they_say():
    x = jnp.asarray(RNG.normal(size=(2, 8, 6, 3)), jnp.float32)
    mask = jnp.asarray(RNG.random((8, 6, 1)) < 0.5, jnp.float32)
    for op in (Masked(mask=mask), Pooled(factor=2), Blurred(std=1.0)):
        a, b = op(x), op(2 * x + 1)
        np.testing.assert_allclose(b, 2 * a + op(jnp.ones_like(x)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Pooled(factor=2)(x)[0, 1, 2, 0], np.mean(x[0, 2:4, 4:6, 0]), rtol=1e-5)
    np.testing.assert_allclose(Blurred(std=2.0)(jnp.ones_like(x)), 1, rtol=1e-5)
    assert np.std(Blurred(std=1.0)(x)) < 0.5 * np.std(x)
    np.testing.assert_array_equal(Masked(mask=mask)(x), mask[None] * x)
    for make, words in (
        (lambda: Pooled(factor=4)(x), "does not divide"),
        (lambda: Pooled(factor=2)(X), "pictures have the shape"),
        (lambda: Blurred(std=0.0), "std must be"),
        (lambda: Masked(mask=2.0), "mask must be"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


@pytest.mark.parametrize("make", [MMPS, PGDM, DPS])
def test_one_evaluation_each_and_refusals(make):
    field = make(flow(LINEAR), operator=operator, measured=measured(4), noise_std=NOISE_STD)
    result = fj.solve(field, fj.solvers.Euler(), X, fj.times.uniform(5, 0.01, 1.0))
    assert (int(result.evaluations), int(result.network_calls)) == (5, 5)
    with pytest.raises(ValueError, match="at t = 0, where alpha = 0: move the start"):
        fj.solve(field, fj.solvers.Euler(), X, fj.times.uniform(5))
    with pytest.raises(ValueError, match="at t = 1"):
        fj.solve(field, fj.solvers.Heun(), X, fj.times.uniform(5, 0.01, 1.0))
    for options, words in (
        ({"operator": 3.0}, "operator must be a function"),
        ({"noise_std": 0.0}, "noise_std must be"),
        ({"scale": float("nan")}, "scale must be finite"),
    ):
        with pytest.raises(ValueError, match=words):
            make(flow(LINEAR), **({"operator": operator, "measured": measured(4), "noise_std": 1.0} | options))
    with pytest.raises(ValueError, match=r"the operator answers \(4, 2\)"):
        make(flow(LINEAR), operator=operator, measured=measured(3)).data(0.5, X)


def test_samples_are_measured_each_by_itself():
    y = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
    whole = MMPS(flow(LINEAR), operator=operator, measured=y, noise_std=0.3).data(0.5, X)
    for i in range(4):
        one = MMPS(flow(LINEAR), operator=operator, measured=y[i : i + 1], noise_std=0.3).data(0.5, X[i : i + 1])
        np.testing.assert_allclose(one[0], whole[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "solver", [fj.solvers.Euler(), fj.solvers.DPMSolver(), fj.solvers.UniPC()], ids=lambda s: type(s).__name__
)
def test_a_classifier_is_added_under_every_solver(solver):
    """The unconditional field of a mixture plus the gradient of its exact classifier is the field of the class."""
    law = Mixture.default(fj.paths.VP(), dim=2)
    base = fj.Flow(lambda x, t, cond: law.predict("noise", t, x), path=law.path, prediction="noise")
    of_class = fj.Flow(law.network("noise"), path=law.path, prediction="noise")
    pull = fj.fields.Gradient(lambda x, t, cond: law.log_density(t, x, cond) - law.log_density(t, x), path=law.path)
    x, times, cond = X[:, :2], fj.times.uniform(12, 0.0, 0.99), jnp.array([0, 1, 2, 0])
    got = fj.solve(fj.fields.Added(base, added=pull), solver, x, times, cond=cond)
    expected = fj.solve(of_class, solver, x, times, cond=cond)
    np.testing.assert_allclose(got.x, expected.x, rtol=1e-2, atol=1e-2)
    assert (int(got.evaluations), int(got.network_calls)) == (int(expected.evaluations), 2 * int(expected.evaluations))


def test_what_is_added_has_the_same_path():
    pull = fj.fields.Gradient(lambda x, t, cond: x[:, 0], path=fj.paths.Trig())
    with pytest.raises(ValueError, match="one path"):
        fj.fields.Added(flow(LINEAR), added=pull)
