"""A network of one path along another; networks that count training steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.fields import Converted, DiscreteTime
from flowjax.oracles import Mixture
from flowjax.paths import EDM, VP, Cosine, Linear, Tabulated, Trig, scaled_linear_betas

TABLE = Tabulated(alphas_cumprod=scaled_linear_betas())
CASES = [(VP(), Linear(), prediction) for prediction in ("velocity", "noise", "data")]
CASES += [(Linear(), VP(), "velocity"), (Trig(), Linear(), "noise"), (EDM(), Linear(), "data")]
CASES += [(Linear(), EDM(), "velocity"), (TABLE, Trig(), "noise")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "wanted", "prediction"), CASES, ids=lambda c: c if isinstance(c, str) else type(c).__name__
)
def test_predictions_are_those_of_the_other_path(trained, wanted, prediction):
    """Exact network on one path, exact oracle on the other; scalar and per-sample times."""
    flow = fj.Flow(Mixture.default(trained).network(prediction), path=trained, prediction=prediction)
    field, oracle = Converted(flow, path=wanted), Mixture.default(wanted)
    t = jnp.array([0.35, 0.5, 0.65, 0.8])
    x = jnp.array([[-1.1], [0.1], [0.7], [1.4]]) * jnp.sqrt(wanted.alpha(t) ** 2 + wanted.sigma(t) ** 2)[:, None]
    kinds = ("velocity", "noise", "data", "score")
    ours = jax.jit(lambda f, t, x: [getattr(f, k)(t, x) for k in kinds])
    for kind, each, one in zip(kinds, ours(field, t, x), ours(field, t[1], x[1:2]), strict=True):
        exact = np.asarray(oracle.predict(kind, t, x))
        np.testing.assert_allclose(each, exact, atol=2e-3 * (1 + np.abs(exact).max()), err_msg=kind)
        np.testing.assert_allclose(one[0], each[1], atol=1e-4 * (1 + np.abs(exact).max()))


@pytest.mark.slow
def test_ends():
    """From pure noise to pure data along straight lines, on a network of VP, whose ends lie elsewhere."""
    target = Mixture.default(VP())
    field = Converted(fj.Flow(target.network("noise"), path=VP(), prediction="noise"), path=Linear())
    x0 = fj.noise(jax.random.key(0), (256, 1))
    x = fj.solve(field, fj.solvers.DDIM(), x0, fj.times.uniform(80)).x
    exact = Mixture.default(Linear()).flow_map(x0, 0.0, 1.0)
    assert float(jnp.mean(jnp.abs(x - exact))) < 0.02
    for t in (0.0, 1.0):
        assert bool(jnp.all(jnp.isfinite(field.velocity(t, x0))))
    assert float(field.time(1.0)) == 1
    assert float(field.time(0.0)) == 0


def test_it_is_the_field_itself_on_its_own_path():
    flow = fj.Flow(lambda x, t, cond: jnp.sin(x) * t[:, None], path=Trig())
    x = jnp.linspace(-1, 1, 6).reshape(3, 2)
    np.testing.assert_allclose(Converted(flow, path=Trig()).velocity(0.4, x), flow.velocity(0.4, x), atol=1e-5)


def test_undefined_predictions_are_refused():
    flow = fj.Flow(lambda x, t, cond: x, path=Linear(), prediction="data")
    with pytest.raises(ValueError, match="move the end"):
        Converted(flow, path=Cosine()).check([1.0], "velocity")
    with pytest.raises(ValueError, match="move the"):
        Converted(fj.Flow(lambda x, t, cond: x, path=Linear(), prediction="noise"), path=Trig()).check([0.0], "data")


def test_discrete_time():
    """The network sees N (1 - t) - 1: 999 at t = 0, 0 from t = 1 - 1/N on."""
    seen = DiscreteTime(lambda x, k, cond: k, path=TABLE)
    t = jnp.array([0.0, 0.5, 0.999, 1.0])
    np.testing.assert_allclose(seen(jnp.zeros((4, 1)), t), [999, 499, 0, 0], atol=1e-3)
    rounded = DiscreteTime(lambda x, k, cond, end: jnp.stack([k, end]), path=TABLE, rounded=True)
    steps = rounded(jnp.zeros((1, 1)), jnp.array([0.5003]), end=jnp.array([0.75]))
    assert steps.dtype == jnp.int32
    np.testing.assert_array_equal(steps[:, 0], [499, 249])
