"""The converter between predictions, against closed-form Gaussian targets, inside and at the ends."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.oracles import Gaussian
from flowjax.paths import EDM, PREDICTIONS, SBDM, VE, VP, Cosine, Linear, SubVP, Tabulated, Trig

PATHS = [Linear(), Trig(), VP(), Cosine(), VE(sigma_min=0.02, sigma_max=5.0)]
by_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
PAIRS = list(itertools.product(PREDICTIONS, PREDICTIONS))
X = np.random.default_rng(0).normal(size=(5, 2))
TIMES = np.array([0.02, 0.3, 0.5, 0.8, 0.98])


def truth(path, t, x=X, mean=0.7, std=0.6):
    """Every prediction in float64, as NumPy arrays."""
    with jax.enable_x64(True):
        target = Gaussian(mean=mean, std=std, path=path)
        return {name: np.asarray(target.predict(name, t, jnp.asarray(x))) for name in PREDICTIONS}


@by_path
def test_every_pair_inside(path):
    exact = truth(path, TIMES)
    for given, to in PAIRS:
        value = path.convert(exact[given], given=given, to=to, t=TIMES, x=X)
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, exact[to], rtol=1e-9, atol=1e-11, err_msg=f"{given} to {to}")
        for i, t in enumerate(TIMES):
            assert path.determines(given, to, float(t))
            alone = path.convert(exact[given], given=given, to=to, t=float(t), x=X)
            np.testing.assert_allclose(alone[i], value[i], rtol=1e-12, atol=1e-13)


@by_path
def test_every_pair_at_the_ends(path):
    for t in (0.0, 1.0):
        exact = truth(path, t)
        for given, to in PAIRS:
            if path.determines(given, to, t):
                value = path.convert(exact[given], given=given, to=to, t=t, x=X)
                np.testing.assert_allclose(value, exact[to], rtol=1e-9, atol=1e-9, err_msg=f"{given} to {to} at {t}")


MORE = [SubVP(), SBDM(), EDM(sigma_min=0.02, sigma_max=5.0), Tabulated(alphas_cumprod=np.linspace(0.99, 0.01, 20))]


@pytest.mark.parametrize("path", [*PATHS, *MORE], ids=lambda p: type(p).__name__)
def test_weights_of_every_pair(path):
    """The value asked for is a x + b value, inside and in the limits at the ends; for (B,) times one pair for each."""
    times = np.array([0.0, *TIMES[1:-1], 1.0])
    inside, ends = truth(path, times), [truth(path, t) for t in (0.0, 1.0)]
    for given, to in PAIRS:
        a, b = path.weights(given, to, times)
        assert (a.shape, b.shape, a.dtype, b.dtype) == ((5,), (5,), np.float64, np.float64)
        value = a[:, None] * X + b[:, None] * inside[given]
        np.testing.assert_array_equal(value, path.convert(inside[given], given=given, to=to, t=times, x=X))
        known = [i for i, t in enumerate(times) if path.determines(given, to, float(t))]
        assert set(known) >= {1, 2, 3}
        np.testing.assert_allclose(value[known], inside[to][known], rtol=1e-9, atol=1e-9, err_msg=f"{given} to {to}")
        for i, t in enumerate(times.tolist()):
            single = path.weights(given, to, t)
            assert [np.shape(weight) for weight in single] == [(), ()]
            np.testing.assert_allclose(single, (a[i], b[i]), rtol=1e-13)
        for t, exact in zip((0.0, 1.0), ends, strict=True):
            a, b = path.weights(given, to, t)
            value = a * X + b * exact[given]
            np.testing.assert_array_equal(value, path.convert(exact[given], given=given, to=to, t=t, x=X))
    with pytest.raises(ValueError, match="'epsilon' elsewhere is 'noise' here"):
        path.weights("epsilon", "data", 0.5)


@by_path
def test_float32_at_all_times_in_one_program(path):
    """Also where the time is traced: ends and inside in one batch."""
    t = np.array([0.0, 0.0625, 0.5, 0.875, 1.0])
    exact = truth(path, t)

    @jax.jit
    def convert(exact, t, x):
        return {pair: path.convert(exact[pair[0]], given=pair[0], to=pair[1], t=t, x=x) for pair in PAIRS}

    singles = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (exact, t, X))
    for (given, to), value in convert(*singles).items():
        assert value.dtype == jnp.float32
        known = [i for i in range(5) if path.determines(given, to, float(t[i]))]
        assert set(known) >= {1, 2, 3}
        scale = np.abs(exact[to]).max() + np.abs(exact[given]).max()
        np.testing.assert_allclose(
            np.asarray(value)[known], exact[to][known], rtol=1e-3, atol=3e-5 * scale, err_msg=f"{given} to {to}"
        )


@by_path
def test_total_and_finite_with_gradients(path):
    """Also where nothing is determined, so that a masked-out end cannot poison a gradient."""
    t = jnp.array([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0])
    x = jnp.asarray(X, jnp.float32)

    @jax.jit
    def both(value):
        def out(value):
            return tuple(path.convert(value, given=given, to=to, t=t, x=x) for given, to in PAIRS)

        outs, pull = jax.vjp(out, value)
        ones, zeros = jnp.ones_like(value), jnp.zeros_like(value)
        return outs, [pull(tuple(ones if i == j else zeros for j in range(len(outs))))[0] for i in range(len(outs))]

    for (given, to), value, slope in zip(PAIRS, *both(x + 1), strict=True):
        assert np.all(np.isfinite(value)), (given, to)
        assert np.all(np.isfinite(slope)), (given, to)


@by_path
def test_undetermined_values_depend_on_more_than_the_given_one(path):
    """Two laws of (x1, x0) that agree in x and in the given prediction but not in the other one.

    The member that the given prediction leaves open is moved: at alpha = 0 the data, at sigma = 0 the noise. So
    `determines` is false wherever it must be; the score at sigma = 0 is open for another reason (0/0).
    """
    for t in (0.0, 1.0):
        alpha, sigma = path.alpha(t), path.sigma(t)
        if alpha != 0 and sigma != 0:
            assert all(path.determines(given, to, t) for given, to in PAIRS)
            continue
        x1, x0, other = 0.3, -1.2, 0.8
        pairs = [(x1, x0), (other, x0) if alpha == 0 else (x1, other)]
        kinds = ["velocity", "noise", "data", "v"] + (["score"] if sigma else [])
        kinds = [k for k in kinds if k != "velocity" or path.has_velocity(t)]
        first, second = ({k: float(path.target(k, t, np.array(b), np.array(a))) for k in kinds} for a, b in pairs)
        for given, to in itertools.product(kinds, kinds):
            if first[given] == second[given] and first[to] != second[to]:
                assert not path.determines(given, to, t), (given, to, t)


@by_path
def test_velocity_at_the_data_is_refused_where_it_is_infinite(path):
    for given in ("noise", "data", "v"):
        if not path.has_velocity(1.0):
            assert not path.determines(given, "velocity", 1.0)


@by_path
def test_round_trips_for_any_value(path):
    value = np.random.default_rng(1).normal(size=X.shape)
    for given, to in PAIRS:
        there = path.convert(value, given=given, to=to, t=TIMES, x=X)
        back = path.convert(there, given=to, to=given, t=TIMES, x=X)
        np.testing.assert_allclose(back, value, rtol=1e-8, atol=1e-8, err_msg=f"{given} to {to}")


@by_path
def test_targets_of_one_pair_of_noise_and_data_convert_into_each_other(path):
    x0, x1 = np.random.default_rng(2).normal(size=(2, 5, 2))
    x = path.interpolate(TIMES, x0, x1)
    target = {name: path.target(name, TIMES, x0, x1) for name in PREDICTIONS}
    np.testing.assert_array_equal(target["noise"], x0)
    np.testing.assert_array_equal(target["data"], x1)
    np.testing.assert_allclose(target["score"], -x0 / path.sigma(TIMES)[:, None])
    for given, to in PAIRS:
        value = path.convert(target[given], given=given, to=to, t=TIMES, x=x)
        np.testing.assert_allclose(value, target[to], rtol=1e-8, atol=1e-9, err_msg=f"{given} to {to}")


def test_scalars_are_converted():
    """x = 0.45, m = 0.9, e = 0.3 at t = 1/4 of the linear path, by hand: v = m - e, s = -e / 0.75."""
    path = Linear()
    numbers = {"data": 0.9, "noise": 0.3, "velocity": 0.6, "score": -0.4, "v": 0.25 * 0.3 - 0.75 * 0.9}
    for given, to in PAIRS:
        value = path.convert(np.array([numbers[given]]), given=given, to=to, t=0.25, x=np.array([0.45]))
        np.testing.assert_allclose(value, [numbers[to]], rtol=1e-13, err_msg=f"{given} to {to}")


def test_v_is_not_the_velocity_but_proportional_to_it_where_variance_is_preserved():
    """With alpha = sin(theta), sigma = cos(theta) the velocity is -theta' v; on other paths no factor will do."""
    h = 1e-6
    for path in (Trig(), VP(), Cosine()):
        angle = [np.arctan2(path.alpha(t), path.sigma(t)) for t in (TIMES - h, TIMES + h)]
        rate = (angle[1] - angle[0]) / (2 * h)
        exact = truth(path, TIMES)
        np.testing.assert_allclose(exact["velocity"], -rate[:, None] * exact["v"], rtol=1e-6)
    np.testing.assert_allclose(truth(Trig(), 0.3)["velocity"], -math.pi / 2 * truth(Trig(), 0.3)["v"], rtol=1e-12)
    for path in (Linear(), VE(sigma_min=0.02, sigma_max=5.0)):
        ratio = truth(path, 0.3)["velocity"] / truth(path, 0.3)["v"]
        assert np.ptp(ratio) > 0.01


def test_unknown_predictions_are_named():
    x = np.ones((2, 1))
    for names in ({"given": "epsilon", "to": "data"}, {"given": "data", "to": "flow"}):
        with pytest.raises(ValueError, match="velocity, noise, data, score, v"):
            Linear().convert(x, t=0.5, x=x, **names)
    with pytest.raises(ValueError, match="'raw'"):
        Linear().target("raw", 0.5, x, x)
