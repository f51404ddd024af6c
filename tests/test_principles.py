"""Views of one model that must agree: variational, score-based, flow-based and transport (monograph 2510.21890).

The conversions between predictions, Tweedie's formula among them, are tested with the paths; the weights that make the
losses of different predictions one, with the objectives; likelihoods and reverse SDEs with theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS
from scipy.stats import norm

import flowjax as fj
from flowjax.couplings import OptimalTransport
from flowjax.evaluation import energy_distance
from flowjax.oracles import Gaussian, Mixture
from flowjax.paths import VP, Linear, Trig
from flowjax.solvers import DDIM, EulerMaruyama, run_on_arrays

N, T = 20_000, 0.6
PATH = Trig()
TARGET = Mixture.default(PATH)


@pytest.fixture(scope="module")
def pairs():
    """Noise, data, state at time T in float64, and the exact score and velocity there."""
    rng = np.random.default_rng(0)
    which = rng.choice(len(TARGET.weights), size=N, p=np.asarray(TARGET.weights) / np.sum(TARGET.weights))
    x1 = np.asarray(TARGET.means, np.float64)[which] + np.asarray(TARGET.stds, np.float64)[which, None] * rng.normal(
        size=(N, 1)
    )
    x0 = rng.normal(size=(N, 1))
    x = PATH.interpolate(T, x0, x1)
    with jax.enable_x64(True):
        score, velocity = (np.asarray(TARGET.predict(k, T, x)) for k in ("score", "velocity"))
    return x0, x1, x, score, velocity


def zero_in_mean(values):
    """Three standard errors."""
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))


def test_denoising_score_matching_is_score_matching_up_to_a_constant(pairs):
    """E|f - s_cond|^2 - E|f - s|^2 is the same for every f, and so are the gradients by its parameters."""
    x0, _, x, score, _ = pairs
    conditional = -x0 / PATH.sigma(T)
    gaps = [(f - conditional) ** 2 - (f - score) ** 2 for f in (np.sin(2 * x), -x, 0.3 * x**2)]
    for gap in gaps[1:]:
        zero_in_mean(gap - gaps[0])
    assert abs(np.mean((np.sin(2 * x) - score) ** 2) - np.mean((x + score) ** 2)) > 0.1  # the losses differ


def test_conditional_and_marginal_flow_matching_have_the_same_gradient(pairs):
    """Of E|f - u|^2 for f = a x + b sin x by (a, b), with u conditional or marginal."""
    x0, x1, x, _, velocity = pairs
    conditional = PATH.conditional_velocity(T, x0, x1)
    for direction in (x, np.sin(x)):
        zero_in_mean(2 * direction * (velocity - conditional))


def test_noise_loss_is_a_term_of_the_evidence_bound():
    """KL(q(x_s | x_t, x1) || q(x_s | x_t, m)) = (SNR(s) - SNR(t)) |x1 - m|^2 / 2 = (SNR(s) / SNR(t) - 1) |e|^2 / 2.

    The two laws are those of one ancestral step (DDIM with eta = 1) from the true data and from a prediction; that step
    itself is checked by Bayes' rule for three Gaussians.
    """
    for path, t, s in ((VP(), 0.3, 0.5), (PATHS["linear"], 0.4, 0.7)):
        x, x1, m = np.array([[0.3]]), np.array([[0.8]]), np.array([[0.1]])

        def step(data, z, path=path, t=t, s=s, x=x):
            return run_on_arrays(DDIM(eta=1.0), path, [t, s], x, lambda r: data, lambda: np.full((1, 1), z))[-1]

        mean, other, variance = step(x1, 0.0), step(m, 0.0), (step(x1, 1.0) - step(x1, 0.0)) ** 2
        forward = path.alpha(t) / path.alpha(s)  # x_t = forward x_s + noise
        noise = path.sigma(t) ** 2 - forward**2 * path.sigma(s) ** 2
        precision = 1 / path.sigma(s) ** 2 + forward**2 / noise
        bayes = (path.alpha(s) * x1 / path.sigma(s) ** 2 + forward * x / noise) / precision
        np.testing.assert_allclose((mean, variance), (bayes, [[1 / precision]]), rtol=1e-9)
        late, early = (np.exp(2 * path.lam(u)) for u in (s, t))
        divergence = (mean - other) ** 2 / (2 * variance)
        np.testing.assert_allclose(divergence, (late - early) * (x1 - m) ** 2 / 2, rtol=1e-9)
        error = (x - path.alpha(t) * m) / path.sigma(t) - (x - path.alpha(t) * x1) / path.sigma(t)
        np.testing.assert_allclose(divergence, (late / early - 1) * error**2 / 2, rtol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_fokker_planck_for_any_diffusion(sign):
    """d/dt p = -d/dx ((v +- eps s) p) +- eps d^2/dx^2 p, by central differences, forwards and backwards."""
    h, x = 1e-3, np.linspace(-2.5, 2.5, 41)[:, None]
    with jax.enable_x64(True):
        density = jax.jit(lambda t, x: jnp.exp(TARGET.log_density(t, x)))
        both = jax.jit(lambda t, x: (TARGET.predict("velocity", t, x), TARGET.predict("score", t, x)))
        p = {k: np.asarray(density(np.float64(T), x + k * h))[:, None] for k in (-1, 0, 1)}
        change = (np.asarray(density(T + h, x)) - np.asarray(density(T - h, x)))[:, None] / (2 * h)
        fields = {k: [np.asarray(f) for f in both(np.float64(T), x + k * h)] for k in (-1, 1)}
    for eps in (0.0, 0.7, 2.5):
        flux = {k: (v + sign * eps * s) * p[k] for k, (v, s) in fields.items()}
        diffused = sign * eps * (p[1] - 2 * p[0] + p[-1]) / h**2
        np.testing.assert_allclose(change, -(flux[1] - flux[-1]) / (2 * h) + diffused, atol=2e-4)
    assert abs(change).max() > 0.1


def test_energy_of_a_flow_is_at_least_the_transport_cost():
    """Benamou-Brenier, N(0, 1) to N(m, s^2): int E|v|^2 dt >= W2^2 = m^2 + (1 - s)^2.

    Under the independent coupling v is affine, so E|v|^2 follows from its values at the mean and one deviation off.
    """
    m, s = 1.5, 0.4
    cost = m**2 + (1 - s) ** 2
    times = (np.arange(200) + 0.5) / 200
    for path in (Linear(), Trig(), VP()):
        target, energy = Gaussian(mean=m, std=s, path=path), []
        mean, deviation = path.alpha(times) * m, np.sqrt((path.alpha(times) * s) ** 2 + path.sigma(times) ** 2)
        with jax.enable_x64(True):
            middle, off = (
                np.asarray(target.predict("velocity", times, x[:, None]))[:, 0] for x in (mean, mean + deviation)
            )
        energy = np.mean(middle**2 + (off - middle) ** 2)
        assert energy > cost + 0.1
    # Optimal pairs move on straight lines at constant speed: their energy is the cost, here of 64 quantiles.
    z = norm.ppf((np.arange(64) + 0.5) / 64)
    x0 = jnp.asarray(np.random.default_rng(0).permutation(z)[:, None], jnp.float32)
    x1 = jnp.asarray(m + s * z[:, None], jnp.float32)
    paired = OptimalTransport().couple(jax.random.key(0), x0, {"x1": x1})
    speed = Linear().conditional_velocity(0.5, paired, x1)
    assert float(jnp.mean(speed**2)) == pytest.approx(m**2 + (1 - s) ** 2 * np.mean(z**2), rel=1e-5)


@pytest.mark.slow
def test_ode_and_sde_have_the_same_marginals():
    """Energy distance of 20,000 samples of each at the end of both runs, within its noise."""
    target = Mixture.default(Linear(), dim=2)
    flow = fj.Flow(target.network(), path=Linear())
    ode = fj.solve(flow, fj.solvers.Heun(), fj.noise(jax.random.key(0), (N, 2)), fj.times.uniform(100)).x
    times = fj.times.with_last_step(400, 1e-3)
    for seed, diffusion in enumerate(("sigma", 0.5), 1):
        start = fj.noise(jax.random.key(seed), (N, 2))
        sde = fj.solve(flow, EulerMaruyama(diffusion=diffusion), start, times, key=jax.random.key(10 + seed)).x
        # Under equality N times the distance is a few units; a shift by 0.1 alone would make it over 100.
        assert abs(energy_distance(np.asarray(ode), np.asarray(sde))) < 20 / N
