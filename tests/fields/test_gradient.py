import jax
import jax.numpy as jnp
import pytest
from problem import PATHS, relative

import flowjax as fj
from flowjax.fields import Gradient
from flowjax.oracles import Mixture

X = fj.noise(jax.random.key(0), (6, 2))
LABELS = jnp.arange(6) % 3


def classifier(target):
    """log p(class | x_t) of the mixture, by Bayes' rule from its densities."""

    def log_density(x, t, cond):
        return target.log_density(t, x, cond) - target.log_density(t, x)

    return log_density


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "linear", "ve"])
@pytest.mark.parametrize("to", ["velocity", "noise", "data", "score", "v"])
def test_a_classifier_adds_what_turns_a_prediction_into_that_of_the_class(to, name):
    target = Mixture.default(PATHS[name], dim=2)
    field = Gradient(classifier(target), path=PATHS[name])
    for t in (0.3, 0.8):
        added, counts = field.evaluate(t, X, LABELS, field.init(X), to=to)
        expected = target.predict(to, t, X, LABELS)
        assert relative(target.predict(to, t, X) + added, expected) < 2e-4
        assert counts.evaluations == 1


def test_scale_is_a_number_or_one_per_sample():
    target = Mixture.default(PATHS["vp"], dim=2)
    one, three, each = (
        Gradient(classifier(target), path=PATHS["vp"], scale=scale).noise(0.5, X, LABELS)
        for scale in (1.0, 3.0, jnp.arange(6.0))
    )
    assert relative(three, 3 * one) < 1e-6
    assert relative(each, jnp.arange(6.0)[:, None] * one) < 1e-6


def test_times_without_data_are_refused():
    with pytest.raises(ValueError, match="does not determine the velocity at t = 0"):
        Gradient(lambda x, t, cond: x[:, 0], path=PATHS["linear"]).check([0.0, 0.5], "velocity")
