"""Cross-entropy with smoothed labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

import flowjax as fj
from flowjax.objectives import Classification
from flowjax.objectives.times import Uniform

X = jax.random.normal(jax.random.key(0), (6, 3))
LABELS = jnp.array([0, 1, 2, 0, 1, 2], jnp.int32)
BATCH = {"x1": X, "cond": LABELS}


def test_is_the_mean_logarithmic_loss():
    objective = Classification()
    loss, metrics = objective.loss(lambda x: x, objective.draw(jax.random.key(1), BATCH))
    np.testing.assert_allclose(loss.mean(), log_loss(LABELS, jax.nn.softmax(X)), rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"], X.argmax(-1) == LABELS)


def test_smoothing_moves_the_minimum_to_the_smoothed_labels():
    eps = 0.3
    objective = Classification(smoothing=eps)
    target = (1 - eps) * jnp.eye(3)[LABELS] + eps / 3
    loss = lambda logits: objective.loss(lambda x: logits, objective.draw(jax.random.key(1), BATCH))[0].sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(jnp.log(target)), 0, atol=1e-6)
    assert loss(jnp.log(target)) < loss(X)


def test_inputs_are_prepared_with_the_key():
    objective = Classification(prepare=lambda key, x: (x, jax.random.normal(key, x.shape)))
    first = objective.draw(jax.random.key(1), BATCH)
    again, other = objective.draw(jax.random.key(1), BATCH), objective.draw(jax.random.key(2), BATCH)
    np.testing.assert_array_equal(first.inputs[1], again.inputs[1])
    assert (first.inputs[1] != other.inputs[1]).any()
    assert objective.loss(lambda x, noise: x + noise, first)[0].shape == (6,)


def test_examples_are_noisy_along_a_path():
    objective = Classification(noise_path=fj.paths.Trig(), times=Uniform(end=0.5))
    draws = objective.draw(jax.random.key(1), BATCH)
    again, other = objective.draw(jax.random.key(1), BATCH), objective.draw(jax.random.key(2), BATCH)
    jax.tree.map(np.testing.assert_array_equal, draws.inputs, again.inputs)
    x, t = draws.inputs
    assert (x != other.inputs[0]).all()
    assert (t < 0.5).all()
    s = np.pi / 2 * np.asarray(t)[:, None]
    noise = (x - np.sin(s) * X) / np.cos(s)
    flow = fj.objectives.FlowMatching(path=fj.paths.Trig(), times=Uniform(end=0.5))
    np.testing.assert_allclose(noise, flow.draw(jax.random.key(1), BATCH).x0, rtol=1e-4, atol=1e-5)
    loss, _ = objective.loss(lambda x, t: x * t[:, None], draws)
    np.testing.assert_allclose(loss.mean(), log_loss(LABELS, jax.nn.softmax(x * t[:, None])), rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="or what prepare makes of them: leave one out"):
        Classification(noise_path=fj.paths.Linear(), prepare=lambda key, x: (x,))
    with pytest.raises(ValueError, match=r"smoothing=1\.0 must be in \[0, 1\)"):
        Classification(smoothing=1.0)
