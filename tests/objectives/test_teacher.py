"""Regression on a teacher: its minimiser, its times, where its weights live."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax import oracles
from flowjax._pytree import pytree
from flowjax.objectives import FlowMatching, TeacherRegression
from flowjax.objectives.times import LogitNormal
from flowjax.paths import VP, Linear

ORACLE = oracles.Mixture.default(Linear(), dim=2)
TEACHER = fj.Flow(ORACLE.network("noise"), path=Linear(), prediction="noise")
LABELLED = fj.Flow(lambda x, t, cond: (cond[:, None] - x) * t[:, None], path=Linear(), null=0.0)
BATCH = {"x1": ORACLE.sample(jax.random.key(0), 64), "cond": jnp.arange(64.0) % 4}


@pytest.mark.parametrize("prediction", ["velocity", "data", "noise", "score", "v"])
def test_the_minimiser_is_the_teacher_in_any_prediction(prediction):
    objective = TeacherRegression(teacher=TEACHER, prediction=prediction)
    draws = objective.draw(jax.random.key(1), BATCH)
    right = ORACLE.network(prediction)
    loss, metrics = objective.loss(right, draws)
    x = Linear().interpolate(draws.t, draws.x0, draws.x1)
    size = float(jnp.mean(right(x, draws.t, None) ** 2))
    assert float(loss.mean()) < 1e-6 * size
    np.testing.assert_array_equal(metrics["mse"], loss)
    assert float(objective.loss(lambda x, t, cond: 0.9 * right(x, t, cond), draws)[0].mean()) > 5e-3 * size


def test_the_minimiser_is_the_guided_field_of_a_guided_teacher():
    objective = TeacherRegression(teacher=fj.guide(LABELLED, fj.guidance.CFG(scale=3.0)))
    draws = objective.draw(jax.random.key(1), BATCH)
    # conditional field t (c - x) against t (0 - x): three times the difference
    loss, _ = objective.loss(lambda x, t, cond: (3 * cond[:, None] - x) * t[:, None], draws)
    np.testing.assert_allclose(loss, 0, atol=1e-9)


def test_weight_times_and_dropped_labels_are_those_of_flow_matching():
    options = {"times": LogitNormal(), "label_dropout": 0.5, "null": 7.0, "weight": lambda t: 2 * t}
    objective = TeacherRegression(teacher=LABELLED, **options)
    draws = objective.draw(jax.random.key(1), BATCH)
    plain = FlowMatching(path=Linear(), **options).draw(jax.random.key(1), BATCH)
    for a, b in zip(jax.tree.leaves(draws), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(a, b)
    loss, metrics = objective.loss(lambda x, t, cond: x, draws)
    np.testing.assert_allclose(loss, 2 * draws.t * metrics["mse"], rtol=1e-6)
    x = Linear().interpolate(draws.t, draws.x0, draws.x1)
    by_hand = (x - (draws.cond[:, None] - x) * draws.t[:, None]) ** 2
    np.testing.assert_allclose(metrics["mse"], by_hand.mean(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "prediction", "path", "span"),
    [
        ("velocity", "velocity", Linear(), (0.0, 1.0)),
        ("velocity", "velocity", VP(), (0.0, 1.0)),
        ("noise", "velocity", Linear(), (1e-3, 1.0)),  # at t = 0 a noise says nothing of the data
        ("data", "noise", Linear(), (0.0, 1 - 1e-3)),
        ("noise", "score", Linear(), (0.0, 1 - 1e-3)),
    ],
)
def test_times_stop_short_of_an_end_where_the_teacher_knows_nothing(given, prediction, path, span):
    teacher = fj.Flow(lambda x, t, cond: x, path=path, prediction=given)
    ends = [fj.objectives.times.Uniform(start=t, end=t) for t in (0.0, 1.0)]
    draw = jax.jit(lambda objective, batch: objective.draw(jax.random.key(0), batch))
    for law, end in zip(ends, span, strict=True):
        objective = TeacherRegression(teacher=teacher, prediction=prediction, times=law)
        draws = draw(objective, {"x1": jnp.ones((3, 2))})
        np.testing.assert_allclose(draws.t, end, rtol=1e-6)
        assert jnp.isfinite(objective.loss(lambda x, t, cond: x, draws)[0]).all()


def test_a_teacher_of_another_path_is_converted():
    teacher = fj.fields.Converted(TEACHER, path=VP())
    objective = TeacherRegression(teacher=teacher, prediction="data")
    assert objective.path == VP()
    draws = dataclasses.replace(objective.draw(jax.random.key(1), BATCH), t=jnp.linspace(0.1, 0.9, 64))
    right = oracles.Mixture.default(VP(), dim=2).network("data")
    np.testing.assert_allclose(objective.loss(right, draws)[0], 0, atol=1e-6)


@pytree
class Affine:
    """A network with weights: x @ kernel + t bias."""

    kernel: jax.Array
    bias: jax.Array

    def __call__(self, x, t, cond):
        return x @ self.kernel + t[:, None] * self.bias[None]


def affine(seed):
    return Affine(kernel=jax.random.normal(jax.random.key(seed), (2, 2)), bias=jnp.ones(2))


def test_weights_of_the_teacher_are_arguments_and_get_no_gradient():
    objective = TeacherRegression(teacher=fj.Flow(affine(0), path=Linear()))
    loss = jax.jit(lambda objective, student, draws: objective.loss(student, draws)[0].mean())
    draws = objective.draw(jax.random.key(1), BATCH)
    first = loss(objective, affine(1), draws)
    changed = loss(jax.tree.map(lambda leaf: 2 * leaf, objective), affine(1), draws)
    assert changed != first
    assert loss._cache_size() == 1
    np.testing.assert_array_equal(loss(objective, affine(0), draws), 0.0)
    gradient = jax.grad(lambda teacher: loss(dataclasses.replace(objective, teacher=teacher), affine(1), draws))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient(objective.teacher)))


def test_a_student_learns_its_teacher():
    """Gauss-Newton on the linear student, whose loss is quadratic, ends at the teacher."""
    objective = TeacherRegression(teacher=fj.Flow(affine(0), path=Linear()))
    draws = objective.draw(jax.random.key(1), BATCH)
    start, rebuild = jax.flatten_util.ravel_pytree(affine(1))

    @jax.jit
    def step(weights):
        loss = lambda weights: objective.loss(rebuild(weights), draws)[0].mean()  # noqa: E731
        return weights - jnp.linalg.solve(jax.hessian(loss)(weights), jax.grad(loss)(weights))

    for a, b in zip(jax.tree.leaves(rebuild(step(start))), jax.tree.leaves(affine(0)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_what_does_not_fit_is_refused():
    for options, message in (
        ({"teacher": lambda x, t, cond: x}, "expected a field|Expected type: <class 'flowjax.flow.Field'>"),
        ({"teacher": TEACHER, "prediction": "velocty"}, "not a prediction"),
        ({"teacher": TEACHER, "label_dropout": 1.5}, r"must be in \[0, 1\]"),
        ({"teacher": TEACHER, "label_dropout": 0.5}, "needs null="),
        ({"teacher": fj.guide(LABELLED, fj.guidance.APG(scale=2.0))}, "Guided has a memory"),
        (
            {"teacher": fj.fields.InterpolantFlow(lambda x, t, cond: x, path=fj.paths.Interpolant())},
            "path from noise to data, got Interpolant",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            TeacherRegression(**options)
    objective = TeacherRegression(teacher=TEACHER)
    with pytest.raises(ValueError, match=r"answers with shape \(64, 1\)"):
        objective.loss(lambda x, t, cond: x[:, :1], objective.draw(jax.random.key(0), BATCH))


def test_from_a_spec():
    spec = "teacher_regression(teacher=guided(rule=cfg(scale=2)), prediction=noise, times=logit_normal)"
    objective = fj.build("objective", spec, field=LABELLED, against=0.0)
    assert objective.teacher.rule.scale == 2
    assert fj.build("objective", "teacher_regression", teacher=TEACHER).teacher is TEACHER
