"""Two-sided interpolants: coefficients, identities, forms, the published reference values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import multivariate_normal

from flowjax import paths
from flowjax.oracles import Gaussian, TwoSidedMixture
from flowjax.paths import Interpolant

GAMMAS = ("brownian", "quadratic", "sine_squared", "sigmoid", "zero")
ALL = [Interpolant(form=form, gamma=gamma) for form, gamma in itertools.product(("linear", "trig", "mirror"), GAMMAS)]
ALL += [Interpolant(form="linear", scale=2.0), Interpolant(form="encoding_decoding")]
ALL += [Interpolant(form="one_sided", path=p) for p in (paths.Linear(), paths.Trig(), paths.SBDM(), paths.VP())]
INSIDE = np.array([0.013, 0.2, 0.37, 0.49, 0.63, 0.81, 0.96])


def name(i):
    return f"{i.form}-{i.gamma}-{i.scale}-{type(i.path).__name__}"


def mixture(interpolant):
    """The one-dimensional example of Stochastic Interpolants: two components at the source, three at the data."""
    return TwoSidedMixture(
        weights0=np.array([0.5, 0.5]),
        means0=np.array([[-3.0], [3.0]]),
        stds0=np.sqrt([[0.25], [0.25]]),
        weights1=np.array([0.25, 0.5, 0.25]),
        means1=np.array([[-6.0], [0.0], [6.0]]),
        stds1=np.sqrt([[0.5], [0.33], [0.5]]),
        interpolant=interpolant,
    )


@pytest.mark.parametrize("interpolant", ALL, ids=name)
def test_derivatives_and_ends(interpolant):
    """Central differences inside; the identity at both ends; g g' consistent with g and g'."""
    h = 1e-6
    c = interpolant.coefficients(INSIDE)
    for value, slope in (("c0", "dc0"), ("c1", "dc1"), ("g", "dg")):
        up, down = (getattr(interpolant.coefficients(INSIDE + d), value) for d in (h, -h))
        np.testing.assert_allclose(getattr(c, slope), (up - down) / (2 * h), atol=1e-7, rtol=1e-7)
    np.testing.assert_allclose(c.gdg, c.g * c.dg, atol=1e-14)
    first, last = (interpolant.coefficients(np.float64(t)) for t in (0.0, 1.0))
    assert last.c1 == 1
    assert last.g == 0
    assert last.c0 == 0
    if interpolant.form in ("linear", "trig", "encoding_decoding"):
        assert (first.c0, first.c1, first.g) == (1, 0, 0)
    for t in (0.0, 0.25, 0.5, 1.0):
        assert np.all(np.isfinite(interpolant.coefficients(np.float64(t))))


@pytest.mark.parametrize("interpolant", ALL, ids=name)
def test_jax_and_numpy_agree(interpolant):
    times = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    compiled = jax.jit(interpolant.coefficients)(times.astype(np.float32))
    for ours, theirs in zip(compiled, interpolant.coefficients(times), strict=True):
        np.testing.assert_allclose(np.clip(ours, -50, 50), np.clip(theirs, -50, 50), atol=2e-5)


def test_slope_of_gamma_may_be_infinite_and_the_product_is_not():
    first, last = (Interpolant().coefficients(np.float64(t)) for t in (0.0, 1.0))
    assert (first.dg, last.dg) == (1e12, -1e12)
    assert (first.gdg, last.gdg) == (0.5, -0.5)


def test_values_of_gamma():
    """As the papers write them; the sigmoid bump with f = 10, and the constant of I-CFM, which blurs both ends."""
    t, f = INSIDE, 10.0
    bump = expit(f * (t - 0.5) + 1) - expit(f * (t - 0.5) - 1) - expit(1 - f / 2) + expit(-1 - f / 2)
    expected = {
        "brownian": np.sqrt(t * (1 - t)),
        "quadratic": t * (1 - t),
        "sine_squared": np.sin(np.pi * t) ** 2,
        "sigmoid": bump,
        "constant": np.ones(7),
    }
    for gamma, values in expected.items():
        np.testing.assert_allclose(Interpolant(gamma=gamma, scale=0.25).coefficients(t).g, values / 2, rtol=1e-12)
    c = Interpolant(gamma="constant", scale=0.01).coefficients(np.array([0.0, 1.0]))
    np.testing.assert_allclose(c.g, 0.1)
    assert not np.any([c.dg, c.gdg])


def test_special_cases():
    """Without gamma the two-sided forms are the one-sided paths; unit covariance where the table says so."""
    x0, x1, z = np.random.default_rng(0).standard_normal((3, len(INSIDE), 2))
    for form, path in (("linear", paths.Linear()), ("trig", paths.Trig())):
        two = Interpolant(form=form, gamma="zero")
        np.testing.assert_allclose(two.interpolate(INSIDE, x0, x1, z), path.interpolate(INSIDE, x0, x1), atol=1e-15)
        np.testing.assert_allclose(
            two.conditional_velocity(INSIDE, x0, x1, z), path.conditional_velocity(INSIDE, x0, x1), atol=1e-14
        )
        one = Interpolant(form="one_sided", path=path)
        np.testing.assert_allclose(one.interpolate(INSIDE, None, x1, x0), path.interpolate(INSIDE, x0, x1), atol=1e-15)
    for unit in (Interpolant(scale=2.0), Interpolant(form="trig"), Interpolant(form="one_sided", path=paths.SBDM())):
        c = unit.coefficients(INSIDE)
        np.testing.assert_allclose(c.c0**2 + c.c1**2 + c.g**2, 1, atol=1e-14)


@pytest.mark.slow
def test_reference_values_of_the_mixture():
    """Numbers published with the code of Stochastic Interpolants (appendix A; linear, sqrt(t (1 - t)), t = 1/4)."""
    with jax.enable_x64(True):
        target, x = mixture(Interpolant()), np.array([[-0.7808288]])
        assert float(target.predict("velocity", 0.25, x)[0, 0]) == pytest.approx(7.9078279, abs=2e-7)
        assert float(target.predict("score", 0.25, x)[0, 0]) == pytest.approx(-0.12247201, abs=1e-8)
        assert float(np.exp(target.log_density(0.25, x)[0])) == pytest.approx(0.0939175440, abs=1e-10)


MOVING = [i for i in ALL if i.form != "one_sided" and (i.form, i.gamma) != ("mirror", "zero")]


@pytest.mark.parametrize("interpolant", MOVING, ids=name)
def test_identities_between_fields(interpolant):
    """c0 eta0 + c1 eta1 + g etaz = x, b - v = -g g' s, s = d/dx log rho, and d/dt rho = -d/dx (b rho)."""
    with jax.enable_x64(True):
        target, t = mixture(interpolant), 0.37
        x = np.linspace(-4.0, 4.0, 7)[:, None]
        predict = jax.jit(target.predict, static_argnums=(0, 1))
        density = jax.jit(target.log_density, static_argnums=0)
        get = {k: np.asarray(predict(k, t, x)) for k in ("velocity", "drift", "score", "denoiser")}
        source, data = (np.asarray(predict(k, t, x)) for k in ("source", "data"))
        np.testing.assert_allclose(interpolant.velocity(t, get["drift"], get["score"]), get["velocity"], atol=1e-9)
        np.testing.assert_allclose(interpolant.drift(t, get["velocity"], get["score"]), get["drift"], atol=1e-9)
        c = interpolant.coefficients(np.float64(t))
        if c.c0 > 0:
            np.testing.assert_allclose(
                interpolant.third(t, x, data=data, noise=get["denoiser"]), source, atol=1e-7 / c.c0
            )
        if c.g > 0:
            np.testing.assert_allclose(interpolant.score(t, get["denoiser"]), get["score"], atol=1e-12)
        h = 1e-5

        def rho(t, x):
            return np.exp(np.asarray(density(t, x)))[:, None]

        def flux(x):
            return np.asarray(predict("velocity", t, x)) * rho(t, x)

        log_slope = (np.log(rho(t, x + h)) - np.log(rho(t, x - h))) / (2 * h)
        np.testing.assert_allclose(log_slope, get["score"], atol=1e-5 * (1 + abs(get["score"]).max()))
        change, spread = (rho(t + h, x) - rho(t - h, x)) / (2 * h), (flux(x + h) - flux(x - h)) / (2 * h)
        np.testing.assert_allclose(change, -spread, atol=1e-6)


def correlated(interpolant, turn=None):
    """Two components to two in the plane, with full covariances at both ends, perhaps seen in a rotated frame."""
    turn = np.eye(2) if turn is None else turn
    roots = np.array([[[0.9, 0.0], [0.5, 0.4]], [[0.3, 0.2], [-0.4, 0.7]], [[0.6, 0.1], [0.0, 0.5]]])
    covariances = turn @ (roots @ np.swapaxes(roots, 1, 2)) @ turn.T
    means = np.array([[-1.0, 0.5], [1.2, 0.3], [0.4, -0.8]]) @ turn.T
    return TwoSidedMixture(
        weights0=np.array([0.4, 0.6]),
        means0=means[:2],
        covariances0=covariances[:2],
        weights1=np.array([0.7, 0.3]),
        means1=means[1:],
        covariances1=covariances[1:],
        interpolant=interpolant,
    )


PLANE = np.random.default_rng(0).normal(size=(5, 2))


def everything(target, t, x):
    names = ("velocity", "drift", "score", "denoiser", "source", "data")
    both = jax.jit(lambda t, x: (target.log_density(t, x), {k: target.predict(k, t, x) for k in names}))
    return jax.tree.map(np.asarray, both(t, x))


def test_diagonal_covariances_are_deviations():
    """Also with deviations at one end and covariances at the other, and times per sample."""
    with jax.enable_x64(True):
        rng, ends = np.random.default_rng(1), []
        laws = {"weights0": np.array([0.3, 0.7]), "weights1": np.array([0.5, 0.2, 0.3])}
        laws |= {"means0": rng.normal(size=(2, 2)), "means1": rng.normal(size=(3, 2)), "interpolant": Interpolant()}
        stds0, stds1 = rng.uniform(0.3, 1.0, (2, 2)), rng.uniform(0.3, 1.0, (3, 2))
        full0, full1 = ([np.diag(s**2) for s in stds] for stds in (stds0, stds1))
        for spread in (
            {"stds0": stds0, "stds1": stds1},
            {"covariances0": full0, "covariances1": full1},
            {"stds0": stds0, "covariances1": full1},
        ):
            t = np.array([0.0, 0.2, 0.5, 0.9, 1.0])
            ends.append(everything(TwoSidedMixture(**laws, **spread), t, PLANE))
        for other in ends[1:]:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), ends[0], other)


@pytest.mark.parametrize("interpolant", [Interpolant(), Interpolant(form="trig", gamma="quadratic")], ids=["a", "b"])
def test_full_covariances(interpolant):
    """The density by SciPy, the score as its slope, the continuity equation, and turning the plane."""
    weights, means, covariances = np.array([0.28, 0.12, 0.42, 0.18]), [], []
    target, t, h = correlated(interpolant), 0.37, 1e-5
    c = interpolant.coefficients(np.float64(t))
    for i, j in itertools.product(range(2), range(2)):
        means.append(c.c0 * target.means0[i] + c.c1 * target.means1[j])
        parts = c.c0**2 * target.covariances0[i] + c.c1**2 * target.covariances1[j]
        covariances.append(parts + c.g**2 * np.eye(2))
    density = sum(w * multivariate_normal.pdf(PLANE, m, v) for w, m, v in zip(weights, means, covariances, strict=True))
    with jax.enable_x64(True):
        log_density, values = everything(target, t, PLANE)
        np.testing.assert_allclose(np.exp(log_density), density, rtol=1e-12)
        rho = jax.jit(lambda t, x: jnp.exp(target.log_density(t, x)))
        velocity = jax.jit(lambda t, x: target.predict("velocity", t, x))
        outflow = np.zeros(len(PLANE))
        for axis in np.eye(2):
            slope = (np.log(rho(t, PLANE + h * axis)) - np.log(rho(t, PLANE - h * axis))) / (2 * h)
            np.testing.assert_allclose(values["score"] @ axis, slope, atol=1e-6)
            flux = [
                np.asarray(velocity(t, x)) @ axis * np.asarray(rho(t, x)) for x in (PLANE + h * axis, PLANE - h * axis)
            ]
            outflow += (flux[0] - flux[1]) / (2 * h)
        change = (np.asarray(rho(t + h, PLANE)) - np.asarray(rho(t - h, PLANE))) / (2 * h)
        np.testing.assert_allclose(change, -outflow, atol=1e-7)
        np.testing.assert_allclose(
            interpolant.velocity(t, values["drift"], values["score"]), values["velocity"], atol=1e-12
        )
        third = interpolant.third(t, PLANE, source=values["source"], data=values["data"])
        np.testing.assert_allclose(third, values["denoiser"], atol=1e-10)
        angle = 0.7
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned = everything(correlated(interpolant, turn), t, PLANE @ turn.T)[1]
        for kind, value in values.items():
            np.testing.assert_allclose(turned[kind], value @ turn.T, rtol=1e-9, atol=1e-12, err_msg=kind)


def test_laws_that_do_not_fit_are_refused():
    good = vars(correlated(Interpolant())).copy()
    for change, message in (
        ({"stds0": np.ones((2, 2))}, "give one of stds0 and covariances0"),
        ({"covariances1": None}, "give one of stds1 and covariances1"),
        ({"covariances0": np.ones((2, 2))}, r"covariances0 \(K, d, d\)"),
        ({"covariances0": None, "stds0": np.ones(2)}, "stds0 like the means"),
        ({"weights1": np.ones(3)}, r"expected weights1 \(K,\)"),
        ({"covariances0": np.array([[[1.0, 0.5], [0.2, 1.0]]] * 2)}, "covariances0 must be finite, symmetric"),
        ({"covariances1": np.array([[[1.0, 2.0], [2.0, 1.0]]] * 2)}, "positive definite"),
        ({"covariances1": np.full((2, 2, 2), np.nan)}, "positive definite"),
    ):
        with pytest.raises(ValueError, match=message):
            TwoSidedMixture(**(good | change))


def test_gaussian_source_absorbs_the_latent_noise():
    """Two-sided with x0 ~ N(0, 1) has the density of the one-sided path with sigma^2 = c0^2 + g^2."""
    with jax.enable_x64(True):
        two, t, x = Interpolant(scale=2.0), 0.3, np.linspace(-2, 2, 5)[:, None]
        laws = {"weights1": np.array([0.4, 0.6]), "means1": np.array([[-1.0], [0.8]]), "stds1": np.full((2, 1), 0.3)}
        standard = {"weights0": np.ones(1), "means0": np.zeros((1, 1)), "stds0": np.ones((1, 1))}
        double = TwoSidedMixture(**standard, **laws, interpolant=two).log_density(t, x)
        single = TwoSidedMixture(
            **standard, **laws, interpolant=Interpolant(form="one_sided", path=paths.SBDM())
        ).log_density(t, x)
        np.testing.assert_allclose(double, single, rtol=1e-12)


def test_one_sided_agrees_with_the_gaussian_oracle():
    with jax.enable_x64(True):
        path, x = paths.Trig(), np.linspace(-2, 2, 5)[:, None]
        one = TwoSidedMixture(
            weights0=np.ones(1),
            means0=np.zeros((1, 1)),
            stds0=np.ones((1, 1)),
            weights1=np.ones(1),
            means1=np.full((1, 1), 0.4),
            stds1=np.full((1, 1), 0.7),
            interpolant=Interpolant(form="one_sided", path=path),
        )
        target = Gaussian(mean=0.4, std=0.7, path=path)
        for ours, theirs in (("velocity", "velocity"), ("score", "score"), ("denoiser", "noise"), ("data", "data")):
            np.testing.assert_allclose(one.predict(ours, 0.6, x), target.predict(theirs, 0.6, x), rtol=1e-12)


def test_encoding_decoding_passes_through_noise():
    with jax.enable_x64(True):
        x = np.linspace(-2, 2, 5)[:, None]
        target = mixture(Interpolant(form="encoding_decoding"))
        normal = -(x[:, 0] ** 2 + np.log(2 * np.pi)) / 2
        np.testing.assert_allclose(target.log_density(0.5, x), normal, atol=1e-12)


def test_mirror_ode_is_the_identity_and_keeps_the_density():
    """Midpoint steps from 0 to 1 with b = -g g' s (the other sign would move the state)."""
    with jax.enable_x64(True):
        target = mixture(Interpolant(form="mirror", gamma="quadratic"))
        x = start = np.array([[-6.4], [-0.3], [0.5], [5.2]])
        predict = jax.jit(lambda t, x: target.predict("velocity", t, x))
        n = 200
        for k in range(n):
            middle = x + 0.5 / n * np.asarray(predict(np.float64(k / n), x))
            x = x + 1 / n * np.asarray(predict(np.float64((k + 0.5) / n), middle))
        np.testing.assert_allclose(x, start, atol=1e-4)
        away = np.asarray(predict(np.float64(0.3), start))
        assert np.abs(away).max() > 0.05  # it does move in between


def test_third_refuses_anything_but_two():
    with pytest.raises(ValueError, match="exactly two"):
        Interpolant().third(0.5, np.zeros((1, 1)), data=np.zeros((1, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "spline"}, "not one of"),
        ({"gamma": "cosine"}, "not one of"),
        ({"scale": 0.0}, "positive"),
        ({"form": "one_sided"}, "needs it"),
        ({"path": paths.Linear()}, "belongs to"),
        ({"form": "one_sided", "path": paths.Linear(), "gamma": "zero"}, "leave gamma out"),
        ({"form": "encoding_decoding", "gamma": "brownian"}, "sine_squared"),
        ({"form": "trig", "scale": 5.0}, "up to 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Interpolant(**options)
