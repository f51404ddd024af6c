"""Distributions of training times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

import flowjax as fj
from flowjax.objectives import times


def draw(law, n=20_000):
    return np.asarray(jax.vmap(law.sample)(jax.random.split(jax.random.key(0), n)))


def test_uniform_fills_its_interval():
    for start, end in ((0.0, 1.0), (0.2, 0.7)):
        t = draw(times.Uniform(start=start, end=end))
        assert t.dtype == np.float32
        assert t.min() >= start
        assert t.max() <= end
        assert kstest(t, "uniform", (start, end - start)).pvalue > 1e-3


def test_centred_logit_normal_is_symmetric():
    t = draw(times.LogitNormal())
    assert abs(t.mean() - 0.5) < 4 * t.std() / np.sqrt(len(t))
    assert abs((t < 0.5).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(t))


def test_logit_normal_has_the_stated_law():
    """P(t < c) = Phi((logit c - mean) / std); a positive mean moves towards the data."""
    t = draw(times.LogitNormal(mean=0.4, std=1.3))
    for c in (0.1, 0.5, 0.8):
        expected = norm.cdf((np.log(c / (1 - c)) - 0.4) / 1.3)
        assert abs((t < c).mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(t))


def test_parameters_may_be_traced():
    sample = jax.jit(lambda law: law.sample(jax.random.key(3)))
    assert sample(times.Uniform(start=0.5, end=0.5)) == jnp.float32(0.5)
    assert sample(times.LogitNormal(mean=0.0, std=0.0)) == jnp.float32(0.5)
    assert sample._cache_size() == 2


class Late:
    """A law of a user's own: no dataclass, no pytree, nothing inherited or registered."""

    def __init__(self, power=0.5):
        self.power = power

    def sample(self, key):
        return jax.random.uniform(key, (), jnp.float32) ** self.power


# Every objective with a law of times.
WITH_TIMES = {
    "flow_matching": lambda law: fj.objectives.FlowMatching(path=fj.paths.Linear(), times=law),
    "sit": lambda law: fj.objectives.sit(times=law),
    "sd3": fj.objectives.sd3,
    "teacher": lambda law: fj.objectives.TeacherRegression(
        teacher=fj.Flow(lambda x, t, cond: x, path=fj.paths.Linear()), times=law
    ),
    "interpolation": lambda law: fj.objectives.Interpolation(interpolant=fj.paths.Interpolant(), times=law),
    "bridge": lambda law: fj.objectives.SchroedingerBridge(diffusion=0.1, times=law),
}


@pytest.mark.parametrize("name", WITH_TIMES)
def test_a_law_of_your_own_works_wherever_there_is_one(name):
    law = times.Shifted(Late(), shift=3.0)
    objective, plain = WITH_TIMES[name](law), WITH_TIMES[name](Late())
    compiled = jax.jit(lambda objective, key: objective.draw(key, {"x1": jnp.zeros((256, 2))}).t)
    shifted, own = (np.asarray(compiled(o, jax.random.key(0))) for o in (objective, plain))
    assert own.dtype == np.float32
    assert kstest(own**2, "uniform").pvalue > 1e-3
    np.testing.assert_allclose(shifted, 1 - 3 * (1 - own) / (3 - 2 * own), rtol=1e-4, atol=1e-4)


def test_compiled_code_notices_a_change_of_a_law_of_your_own():
    law = Late()
    objective = WITH_TIMES["flow_matching"](law)
    draw_times = jax.jit(lambda objective: objective.draw(jax.random.key(0), {"x1": jnp.zeros((4, 2))}).t)
    before = draw_times(objective)
    assert np.array_equal(before, draw_times(WITH_TIMES["flow_matching"](law)))
    assert draw_times._cache_size() == 1
    law.power = 1.0
    np.testing.assert_allclose(draw_times(objective), before**2, rtol=1e-6)


def test_the_end_of_a_law_of_your_own_counts():
    """The target of a score has no bound at t = 1: draws stay below, unless the law itself does."""
    law = Late(power=1e-6)
    objective = fj.objectives.FlowMatching(path=fj.paths.Linear(), prediction="score", times=law)
    latest = lambda: float(objective.draw(jax.random.key(0), {"x1": jnp.zeros((8, 2))}).t.max())  # noqa: E731
    assert latest() == pytest.approx(0.999)
    law.end = 1 - 1e-6
    assert latest() > 0.9999


REFUSED = r"^times must be a law with sample\(key\), such as Uniform\(\), got .*$"


@pytest.mark.parametrize("law", [0.5, None, Late, times.Uniform, object(), "uniform"])
def test_what_draws_no_times_is_refused_in_one_line(law):
    with pytest.raises(ValueError, match=REFUSED):
        times.check_law(law)


def test_a_class_in_place_of_a_law_is_refused_everywhere():
    """What has no `sample` at all is stopped before by the annotations, here in the tests."""
    for name in WITH_TIMES:
        with pytest.raises(ValueError, match=REFUSED):
            WITH_TIMES[name](Late)
    with pytest.raises(ValueError, match=REFUSED):
        times.Shifted(Late, shift=2.0)


@pytest.mark.parametrize("law", [times.LogitNormal(), times.Uniform()])
def test_shifts_of_a_law_compose_and_keep_its_order(law, x64):
    """Check 3 of `mf_rae`: what is drawn is moved as the grid of sampling is."""
    keys = jax.random.split(jax.random.key(0), 100)
    draw = lambda law: np.asarray(jax.vmap(law.sample)(jax.random.clone(keys)), np.float64)  # noqa: E731
    plain, once, twice = (draw(times.Shifted(law, shift=s)) for s in (1.0, 2.0, 3.4))
    np.testing.assert_allclose(plain, draw(law), atol=1e-6)
    np.testing.assert_allclose(draw(times.Shifted(times.Shifted(law, shift=2.0), shift=1.7)), twice, atol=1e-6)
    np.testing.assert_array_equal(np.argsort(once), np.argsort(draw(law)))
    np.testing.assert_allclose(once, fj.times.shift_times(draw(law), 2.0), atol=1e-6)
