"""Consistency functions: the published scalings, and the state itself where the data are reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.fields import Bounded

TABLE = fj.paths.Tabulated(alphas_cumprod=fj.paths.scaled_linear_betas())
PUBLISHED = {"scale": 1e4, "end": 0.999}  # s = 10 k at step k of 1,000


def weights(k):
    """c_skip and c_out at step k, of a network that says 0 and 1."""
    t, found = TABLE.at_step(jnp.float64(k)), []
    for x, m in ((1.0, 0.0), (0.0, 1.0)):
        flow = fj.Flow(lambda x, t, cond, m=m: jnp.full_like(x, m), path=TABLE, prediction="data")
        found.append(float(Bounded(flow, **PUBLISHED).data(t, jnp.full((1, 1), x))[0, 0]))
    return found


def test_the_published_table(x64):
    """c_skip = 0.25 / (s^2 + 0.25) and c_out = s / sqrt(s^2 + 0.25), as their authors' program prints them."""
    for k, skip, out in ((0, 1.0, 0.0), (19, 6.92516e-6, 0.99999654), (999, 2.505e-9, 1.0)):
        np.testing.assert_allclose(weights(k), (skip, out), rtol=2e-4 if k == 999 else 1e-6)
    for k in (0, 1, 7, 500):
        skip, out = weights(k)
        assert skip + out**2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "data", "v"])
def test_at_the_end_it_is_the_state_and_the_network_has_no_gradient(prediction):
    x = jax.random.normal(jax.random.key(0), (3, 2))

    def answer(weight, t):
        flow = fj.Flow(lambda x, t, cond: weight * jnp.tanh(x), path=TABLE, prediction=prediction)
        return Bounded(flow, **PUBLISHED).data(t, x)

    for t in (0.999, 0.9995):  # step 0 and behind
        np.testing.assert_array_equal(answer(5.0, jnp.float32(t)), x)
        assert not np.any(jax.jacobian(answer)(5.0, jnp.float32(t)))
    assert np.all(jax.jacobian(answer)(5.0, jnp.float32(0.98)) != 0)


@pytest.mark.parametrize("to", ["velocity", "noise", "data", "score", "v"])
def test_all_predictions_belong_to_it(to):
    path, x = fj.paths.Linear(), jax.random.normal(jax.random.key(0), (3, 2))
    field = Bounded(fj.Flow(lambda x, t, cond: jnp.sin(x), path=path), scale=2.0, data_std=0.7)
    value, memory = field.evaluate(0.4, x, None, field.init(x), to=to)
    s = 2 * 0.6  # by hand
    expected = 0.49 / (s**2 + 0.49) * x + s / np.sqrt(s**2 + 0.49) * (x + 0.6 * jnp.sin(x))
    np.testing.assert_allclose(path.convert(value, given=to, to="data", t=0.4, x=x), expected, rtol=1e-5)
    assert int(memory.evaluations) == 1


def test_refusals():
    flow = fj.Flow(lambda x, t, cond: x, path=fj.paths.Linear(), prediction="data")
    for options, message in (({"scale": 0.0}, "scale"), ({"data_std": -1.0}, "data_std"), ({"end": 1.5}, "end")):
        with pytest.raises(ValueError, match=message):
            Bounded(flow, **options)
    with pytest.raises(ValueError, match="not on the raw network output"):
        Bounded(flow).check([0.5], "raw")
