"""SDE solvers: exact weak errors on a Gaussian target, forms of the diffusion, last steps, diffrax."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import PATHS, two_gaussians
from scipy.stats import kstest, norm

import flowjax as fj
from flowjax.fields import DriftPlusScore, InterpolantFlow, sde_terms
from flowjax.oracles import Gaussian, Mixture
from flowjax.paths import Interpolant
from flowjax.paths.sde import as_diffusion
from flowjax.solvers import Diffusion, EulerMaruyama, StochasticHeun, run_on_arrays

MEAN, STD = 0.7, 0.4
FORMS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing_decreasing")


def moments(solver, path, times):
    """Mean and variance of the solver's result when it starts from the exact law: no sampling, no statistics.

    The velocity is affine in x, so a state is kept as its coefficients on (1, start, z_1, z_2, ...).
    """
    width = 2 * len(times) + 2
    used = iter(range(2, width))

    def network(request):  # from the affine flow map: v = m' + V' / (2 V) (x - m)
        t = request.t
        mean, variance = law(path, t)
        slope = (path.alpha(t) * path.dalpha(t) * STD**2 + path.sigma_dsigma(t)) / variance
        value = slope * request.x
        value[0] += path.dalpha(t) * MEAN - slope * mean
        return value

    first = times[-1] if solver.backward else times[0]
    mean, variance = law(path, first)
    start = np.zeros(width)
    start[:2] = mean, np.sqrt(variance)
    end = run_on_arrays(solver, path, times, start, network, lambda: np.eye(width)[next(used)])[-1]
    return end[0], np.sum(end[1:] ** 2)


def law(path, t):
    """Mean and variance of x_t for data N(0.7, 0.4^2)."""
    return path.alpha(t) * MEAN, path.alpha(t) ** 2 * STD**2 + path.sigma(t) ** 2


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", [EulerMaruyama, StochasticHeun])
def test_marginals_for_every_diffusion(solver, form, backward):
    """Mean and variance are those of the flow, whatever eps; the error falls like h."""
    path, steps = PATHS["linear"], (200, 400)
    last = None if backward else "none"
    errors = []
    for n in steps:
        times = fj.times.uniform(n, 0.1, 0.95)
        made = solver(diffusion=Diffusion(form=form, norm=0.6), backward=backward, last=last)
        mean, variance = moments(made, path, times)
        exact = law(path, times[0] if backward else times[-1])
        errors.append(abs(mean - exact[0]) + abs(variance - exact[1]))
    assert errors[-1] < 0.02
    assert 0.8 < np.log2(errors[0] / errors[1]) < 2.3


@pytest.mark.parametrize("variant", ["sit", "interpolants"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_path_to_the_end(path, variant):
    """Up to t = 1, where scores and velocities may be infinite: finite and near the data law."""
    for solver in (EulerMaruyama(), StochasticHeun(variant=variant), StochasticHeun(variant=variant, last="none")):
        mean, variance = moments(solver, path, fj.times.uniform(200, 0.0, 1.0))
        exact = law(path, 1.0)
        assert abs(mean - exact[0]) < 0.03
        assert abs(variance - exact[1]) < 0.03


def test_a_function_and_a_number_as_diffusion():
    path, times = PATHS["trig"], fj.times.uniform(400, 0.0, 0.9)
    for diffusion in (0.3, lambda t: 0.5 * np.sin(np.pi * t)):
        mean, variance = moments(EulerMaruyama(diffusion=diffusion, last="none"), path, times)
        np.testing.assert_allclose((mean, variance), law(path, 0.9), atol=0.01)


def test_forms_are_those_of_sit():
    """Linear: lamv = (1 - t) / t. VP: sbdm is half the diffusion coefficient beta of the forward process."""
    t = np.array([0.2, 0.5, 0.8])
    linear, vp = PATHS["linear"], PATHS["vp"]
    expected = {
        "constant": 0.5 * np.ones(3),
        "sbdm": 0.5 * (1 - t) / t,
        "sigma": 0.5 * (1 - t),
        "linear": 0.5 * (1 - t),
        "decreasing": (0.5 * np.cos(np.pi * t) + 1) ** 2 / 4,
        "increasing_decreasing": 0.5 * np.sin(np.pi * t) ** 2,
    }
    for form, values in expected.items():
        np.testing.assert_allclose(Diffusion(form=form, norm=0.5).value(linear, t), values, rtol=1e-12)
    beta = 0.1 + (1 - t) * 19.9
    np.testing.assert_allclose(Diffusion(form="sbdm").value(vp, t), beta / 2, rtol=1e-12)
    for form in FORMS:
        ratio = Diffusion(form=form, norm=0.5).over_sigma(vp, t)
        np.testing.assert_allclose(ratio * vp.sigma(t), Diffusion(form=form, norm=0.5).value(vp, t), rtol=1e-12)


@pytest.mark.parametrize("last", ["mean", "tweedie", "euler"])
def test_last_steps(last):
    """One step from s to t = 1, against the formulas written with the exact score, without noise."""
    path, s, x = PATHS["trig"], 0.96, np.array([[0.3], [1.1]])
    target = Gaussian(mean=MEAN, std=STD, path=path)
    with jax.enable_x64(True):
        v, score = (np.asarray(target.predict(k, s, x)) for k in ("velocity", "score"))
    eps = float(path.sigma(s))
    expected = {
        "mean": x + 0.04 * (v + eps * score),
        "euler": x + 0.04 * v,
        "tweedie": x / path.alpha(s) + path.sigma(s) ** 2 / path.alpha(s) * score,
    }[last]
    for solver in (EulerMaruyama(last=last), StochasticHeun(last=last)):
        end = run_on_arrays(solver, path, np.array([s, 1.0]), x, lambda request: v)[-1]
        np.testing.assert_allclose(end, expected, rtol=1e-10)


@pytest.mark.parametrize("backward", [False, True])
def test_heun_steps_by_hand(backward):
    """Noise first, then two slopes: both at the new time, or the first at the old one."""
    path, eps, x, z = PATHS["linear"], 0.3, np.array([[0.4]]), np.array([[-0.8]])
    s, t = (0.6, 0.5) if backward else (0.5, 0.6)
    h, sign = t - s, -1 if backward else 1

    def velocity(t, x):
        return np.sin(3 * x + t)

    def drift(t, x):
        e = x - t * velocity(t, x)  # the noise prediction on straight lines: x = t m + (1 - t) e, v = m - e
        return velocity(t, x) - sign * eps * e / (1 - t)

    y = x + np.sqrt(2 * eps * abs(h)) * z
    for variant, first in (("sit", s), ("interpolants", t)):
        k = drift(first, y)
        expected = y + h / 2 * (k + drift(t, y + h * k))
        solver = StochasticHeun(variant=variant, diffusion=eps, backward=backward, last="none")
        end = run_on_arrays(solver, path, np.array([0.5, 0.6]), x, lambda r: velocity(r.t, r.x), lambda: z)[-1]
        np.testing.assert_allclose(end, expected, rtol=1e-12)


def test_without_noise_they_are_the_solvers_of_the_flow():
    path, times, x = PATHS["trig"], fj.times.uniform(7, 0.1, 0.9), np.array([[0.3], [-1.0]])

    def network(request):
        return np.sin(request.x) - request.t

    for ours, theirs in (
        (EulerMaruyama(diffusion=0), fj.solvers.Euler()),
        (StochasticHeun(diffusion=0, last="none"), fj.solvers.Heun()),
    ):
        np.testing.assert_allclose(
            run_on_arrays(ours, path, times, x, network)[-1], run_on_arrays(theirs, path, times, x, network)[-1]
        )


@pytest.mark.slow
def test_samples_of_a_mixture_through_solve():
    """Kolmogorov-Smirnov against the mixture's distribution function, 4,000 samples; keyed by global index."""
    path = PATHS["linear"]
    target = Mixture.default(path)
    flow, key = fj.Flow(target.network(), path=path), jax.random.key(5)
    bound = EulerMaruyama(diffusion=Diffusion(form="sigma", norm=0.5)).bind(path, fj.times.with_last_step(200, 0.01))
    x0 = fj.noise(jax.random.key(4), (4000, 1))
    x = fj.solve(flow, bound, x0, key=key).x

    def cdf(v):
        parts = norm.cdf(np.atleast_1d(v)[:, None], np.asarray(target.means)[:, 0], np.asarray(target.stds))
        return parts @ np.asarray(target.weights)

    assert kstest(np.asarray(x)[:, 0], cdf).pvalue > 1e-3
    part = fj.solve(flow, bound, x0[1000:1010], key=key, index=1000).x
    np.testing.assert_allclose(part, x[1000:1010], atol=1e-5)
    forwards = EulerMaruyama(diffusion=0.5, backward=True).bind(path, fj.times.uniform(200, 0.0, 0.95))
    data = jnp.asarray(path.alpha(0.95), jnp.float32) * target.sample(jax.random.key(6), 4000)
    back = fj.solve(flow, forwards, data + path.sigma(0.95) * fj.noise(jax.random.key(7), (4000, 1)), key=key).x
    assert kstest(np.asarray(back)[:, 0], "norm").pvalue > 1e-3


@pytest.mark.parametrize("eps", [0.0, 0.5, 2.0])
def test_bridge_between_two_laws(eps):
    """Two-sided: drift and denoiser networks, noise chosen afterwards, vanishing towards the ends with gamma."""
    interpolant = Interpolant()
    target = two_gaussians(interpolant)
    field = InterpolantFlow(
        target.network("drift"), path=interpolant, prediction="drift", second=target.network("denoiser")
    )

    def diffusion(t):
        return eps * t * (1 - t)

    x0 = -1 + 0.5 * fj.noise(jax.random.key(0), (4000, 1))
    drift = DriftPlusScore(field, diffusion=diffusion)
    solver = EulerMaruyama(diffusion=diffusion, drift="field")
    solution = fj.solve(drift, solver, x0, fj.times.uniform(150, 1e-3, 1 - 1e-3), key=jax.random.key(1))
    x = np.asarray(solution.x)
    assert abs(x.mean() - 1.5) < 4 * 0.8 / np.sqrt(4000) + 0.01
    assert abs(x.std() - 0.8) < 4 * 0.8 / np.sqrt(8000) + 0.01
    assert (int(solution.evaluations), int(solution.network_calls)) == (150, 300)


def test_mirror_sde_preserves_the_density():
    interpolant = Interpolant(form="mirror", gamma="quadratic")
    target = two_gaussians(interpolant)
    field = InterpolantFlow(target.network("velocity"), path=interpolant, second=target.network("denoiser"))
    x1 = 1.5 + 0.8 * fj.noise(jax.random.key(2), (4000, 1))
    drift = DriftPlusScore(field, diffusion=0.5)
    times = fj.times.uniform(100, 0.05, 0.95)
    start = x1 + float(interpolant.coefficients(np.float64(0.05)).g) * fj.noise(jax.random.key(3), (4000, 1))
    x = np.asarray(
        fj.solve(drift, EulerMaruyama(diffusion=0.5, drift="field", last="none"), start, times, key=jax.random.key(4)).x
    )
    expected = np.sqrt(0.64 + float(interpolant.coefficients(np.float64(0.95)).g) ** 2)
    assert kstest(x[:, 0], norm(1.5, expected).cdf).pvalue > 1e-3
    assert np.corrcoef(x[:, 0], start[:, 0])[0, 1] < 0.6  # it has moved


@pytest.mark.slow
def test_diffrax_solvers_on_the_same_drift():
    """VirtualBrownianTree under Euler and ShARK: the law of the data, per-sample keys, backwards as well."""
    path = PATHS["linear"]
    target = Gaussian(mean=MEAN, std=STD, path=path)
    flow, key, n = fj.Flow(target.network(), path=path), jax.random.key(0), 800
    x0 = fj.noise(jax.random.key(1), (n, 1))
    field = DriftPlusScore(flow, diffusion=Diffusion(form="sigma", norm=0.5))

    def run(field, solver, x, t0, t1, steps, index=0, key=key, levy_area=diffrax.BrownianIncrement):
        terms = sde_terms(field, x, key, start=min(t0, t1), end=max(t0, t1), tol=5e-3, index=index, levy_area=levy_area)
        with jax.debug_key_reuse(False):  # diffrax's tree splits keys in a loop
            solution = diffrax.diffeqsolve(terms, solver, t0, t1, (t1 - t0) / steps, x, throw=False)
        return np.asarray(solution.ys[-1])

    mean, variance = law(path, 0.95)
    x = run(field, diffrax.Euler(), x0, 0.0, 0.95, 64)
    assert kstest(x[:, 0], norm(mean, np.sqrt(variance)).cdf).pvalue > 1e-3
    part = run(field, diffrax.Euler(), x0[100:104], 0.0, 0.95, 64, index=100)
    np.testing.assert_allclose(part, x[100:104], atol=1e-5)
    x = run(field, diffrax.ShARK(), x0, 0.0, 0.95, 32, levy_area=diffrax.SpaceTimeLevyArea)
    assert kstest(x[:, 0], norm(mean, np.sqrt(variance)).cdf).pvalue > 1e-3
    back = run(
        DriftPlusScore(flow, diffusion=field.diffusion, backward=True),
        diffrax.Euler(),
        jnp.asarray(x),
        0.95,
        0.0,
        64,
        key=jax.random.key(8),
    )
    assert kstest(back[:, 0], "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EulerMaruyama(diffusion="cosine"), "not one of"),
        (lambda: EulerMaruyama(diffusion=[1]), "diffusion must be"),
        (lambda: EulerMaruyama(diffusion=-1.0), "negative"),
        (lambda: EulerMaruyama(last="best"), "not one of"),
        (lambda: EulerMaruyama(drift="score"), "not one of"),
        (lambda: EulerMaruyama(backward=True, last="mean"), "backward"),
        (lambda: EulerMaruyama(drift="field", last="euler"), "drift='path'"),
        (lambda: StochasticHeun(variant="ito"), "not one of"),
        (lambda: EulerMaruyama(diffusion="sbdm").bind(fj.paths.Linear(), fj.times.uniform(4)), "start"),
        (lambda: EulerMaruyama(diffusion=lambda t: -1.0).bind(fj.paths.Linear(), fj.times.uniform(4)), "negative"),
        (
            lambda: EulerMaruyama(diffusion=1.0, backward=True).bind(fj.paths.Linear(), fj.times.uniform(4)),
            "score is infinite",
        ),
        (lambda: as_diffusion("sigma").value(Interpolant(), 0.5), "Gaussian path"),
        (lambda: InterpolantFlow(None, path=Interpolant(), prediction="drift"), "needs second"),
        (lambda: InterpolantFlow(None, path=Interpolant(), prediction="data"), "must be"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
