"""Edits on flows whose answer is known, under every kind of solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.editing import inpaint, interpolate, invert, restore, sdedit, slerp, translate
from flowjax.oracles import Gaussian, Mixture

LINEAR = fj.paths.Linear()
LAW = Gaussian(mean=np.array([1.0, -1.0, 0.5]), std=np.array([0.5, 0.2, 1.0]), path=LINEAR)
FLOW = fj.Flow(LAW.network(), path=LINEAR)
PICTURE = jnp.array([[2.0, 0.0, -1.0], [0.5, -1.5, 1.0]])
NOISE = fj.noise(jax.random.key(0), (2, 3))
TIMES = fj.times.uniform(20, 0.0, 0.999)
SOLVERS = [
    fj.solvers.Euler(),
    fj.solvers.DPMSolver(),
    fj.solvers.UniPC(),
    fj.solvers.FlowTurbo(blocks="H2P18", refiner=None),
    fj.solvers.HeavyBall(solver=fj.solvers.AdamsBashforth(order=2), beta=0.9),
    fj.solvers.EulerMaruyama(),
]
EVERY = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
KEY = jax.random.key(1)


@EVERY
def test_what_a_mask_keeps_is_kept_exactly_with_any_solver(solver):
    mask = jnp.array([[1.0, 0.0, 1.0]])
    found = inpaint(FLOW, solver, PICTURE, mask, TIMES, noise=NOISE, key=KEY)
    np.testing.assert_array_equal(found.x[:, [0, 2]], PICTURE[:, [0, 2]])
    free = fj.solve(FLOW, solver, LINEAR.start(NOISE, 0.0), TIMES, key=KEY)
    # The dimensions of this law are independent: what is filled in is what it would have been.
    np.testing.assert_allclose(found.x[:, 1], free.x[:, 1], rtol=1e-4, atol=1e-4)
    assert int(found.evaluations) == int(free.evaluations)
    nothing = inpaint(FLOW, solver, PICTURE, np.zeros((2, 3), bool), TIMES, noise=NOISE, key=KEY)
    np.testing.assert_allclose(nothing.x, free.x, rtol=1e-4, atol=1e-5)
    whole = inpaint(FLOW, solver, PICTURE, True, TIMES, noise=NOISE, key=KEY)
    np.testing.assert_array_equal(whole.x, PICTURE)


def test_new_masks_and_pictures_are_not_compiled_again():
    traces = []

    def network(x, t, cond):
        traces.append(1)
        return -x

    flow, counts = fj.Flow(network, path=LINEAR), []
    for mask, picture in (([1, 0, 0], PICTURE), ([0, 0, 1], 2 * PICTURE)):
        inpaint(flow, fj.solvers.Euler(), picture, np.array(mask), TIMES, noise=NOISE)
        counts.append(len(traces))
    assert counts[0] == counts[1]


def test_a_function_of_a_partial_that_changes_is_noticed():
    """As for a plain function: what it captures is compiled in, and looked at again."""
    step = {"size": 1.0}

    def shift(by, t, x):
        return x + by * step["size"]

    def run():
        flow, hook = fj.Flow(lambda x, t, cond: 0 * x, path=LINEAR), jax.tree_util.Partial(shift, jnp.ones(()))
        return fj.solve(flow, fj.solvers.Euler(), jnp.zeros((1, 1)), fj.times.uniform(2), after_step=hook).x

    assert float(run()[0, 0]) == 2
    step["size"] = 3.0
    assert float(run()[0, 0]) == 6


@EVERY
def test_sdedit_starts_on_the_path_and_runs_to_its_end(solver):
    strength = 0.6
    found = sdedit(FLOW, solver, PICTURE, TIMES, noise=NOISE, strength=strength, key=KEY)
    if type(solver) is fj.solvers.EulerMaruyama:
        assert np.all(np.isfinite(found.x))
        return
    expected = LAW.flow_map(LINEAR.interpolate(0.4, NOISE, PICTURE), 0.4, 0.999)
    np.testing.assert_allclose(found.x, expected, atol=0.15)
    plain = fj.solve(FLOW, solver, NOISE, TIMES)
    assert int(found.evaluations) == int(plain.evaluations)  # as many steps as the times have


def test_sdedit_of_no_strength_changes_little_and_of_full_strength_all():
    solver = fj.solvers.Heun()
    little = sdedit(FLOW, solver, PICTURE, TIMES, noise=NOISE, strength=1e-2).x
    np.testing.assert_allclose(little, PICTURE, atol=0.05)
    whole = sdedit(FLOW, solver, PICTURE, TIMES, noise=NOISE, strength=1.0).x
    np.testing.assert_allclose(whole, fj.solve(FLOW, solver, NOISE, TIMES).x, rtol=1e-6)


@pytest.mark.parametrize("path", [LINEAR, fj.paths.VP(), fj.paths.VE(sigma_min=0.05, sigma_max=6.0)], ids=str)
def test_inversion_is_the_flow_map_and_its_way_back_the_picture(path):
    law = Gaussian(mean=LAW.mean, std=LAW.std, path=path)
    flow, times = fj.Flow(law.network(), path=path), fj.times.uniform(100, 0.01, 0.99)
    back = invert(flow, fj.solvers.RK4(), PICTURE, times)
    np.testing.assert_allclose(back.x, law.flow_map(PICTURE, 0.99, 0.01), rtol=2e-2, atol=2e-2)
    again = fj.solve(flow, fj.solvers.RK4(), back.x, times)
    np.testing.assert_allclose(again.x, PICTURE, rtol=1e-3, atol=1e-3)


def test_slerp_goes_along_the_sphere():
    a, b = fj.noise(jax.random.key(3), (2, 5, 4, 4))
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-6)
    a, b = (v / jnp.linalg.norm(v.reshape(5, -1), axis=1)[:, None, None] for v in (a, b))
    for w in (0.25, jnp.linspace(0, 1, 5)):
        np.testing.assert_allclose(jnp.linalg.norm(slerp(a, b, w).reshape(5, -1), axis=1), 1, rtol=1e-5)
    angle = lambda u, v: np.arccos(np.clip(np.sum(u * v, (1, 2)), -1, 1))  # noqa: E731
    np.testing.assert_allclose(angle(a, slerp(a, b, 0.3)), 0.3 * angle(a, b), rtol=1e-3)
    np.testing.assert_allclose(slerp(a, 2 * a, 0.5), 1.5 * a, rtol=1e-4, atol=1e-5)  # parallel: straight


def test_interpolation_ends_in_its_pictures_and_counts_all_runs():
    solver, times = fj.solvers.RK4(), fj.times.uniform(20, 0.0, 0.99)
    ends = interpolate(FLOW, solver, PICTURE, PICTURE[::-1], times, weight=jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(ends.x, PICTURE[jnp.array([0, 0])], rtol=1e-3, atol=1e-3)
    assert int(ends.evaluations) == 3 * 80
    turn = interpolate(FLOW, solver, PICTURE, PICTURE[::-1], times, weight=fj.guidance.Each(values=[0.0, 0.5]), index=1)
    np.testing.assert_allclose(turn.x[1], PICTURE[1], rtol=1e-3, atol=1e-3)
    half = interpolate(FLOW, solver, PICTURE, PICTURE[::-1], times, weight=0.5)
    np.testing.assert_allclose(turn.x[0], half.x[0], rtol=1e-4, atol=1e-4)
    noise = [LAW.flow_map(p, 0.99, 0.0) for p in (PICTURE, PICTURE[::-1])]
    np.testing.assert_allclose(half.x, LAW.flow_map(slerp(*noise, 0.5), 0.0, 0.99), rtol=1e-2, atol=1e-2)


def test_translation_keeps_the_quantile_within_the_class():
    """In one dimension the flow keeps quantiles: z standard deviations above one mean become z above the other."""
    law = Mixture.default(LINEAR)
    flow = fj.Flow(law.network(), path=LINEAR, null=3)
    z = jnp.array([[-1.0], [0.0], [1.5]])
    picture = float(law.means[0, 0]) + float(law.stds[0]) * z
    first, last = jnp.zeros(3, jnp.int32), jnp.full(3, 2)
    times = fj.times.uniform(40, 0.0, 0.999)
    found = translate(flow, fj.solvers.RK4(), picture, times, cond=last, second_cond=first)
    np.testing.assert_allclose(found.x, float(law.means[2, 0]) + float(law.stds[2]) * z, atol=0.02)
    assert int(found.evaluations) == 320


def test_guided_edits_and_labels():
    law = Mixture.default(LINEAR)
    field = fj.guide(fj.Flow(law.network(), path=LINEAR, null=3), fj.guidance.CFG(scale=1.5))
    picture, cond = jnp.full((4, 1), -1.4), jnp.full(4, 2)
    noise = fj.noise(jax.random.key(0), (4, 1))
    found = sdedit(field, fj.solvers.DPMSolver(), picture, TIMES, noise=noise, strength=0.9, cond=cond)
    assert np.all(np.abs(np.asarray(found.x) - 1.3) < 1.2)
    assert int(found.network_calls) == 2 * int(found.evaluations)


def test_refusals():
    heun = fj.solvers.Heun()
    between = fj.fields.InterpolantFlow(lambda x, t, cond: x, path=fj.paths.Interpolant())
    for make, words in (
        (lambda: sdedit(FLOW, heun, PICTURE, TIMES, noise=NOISE, strength=0.0), "strength must be"),
        (lambda: sdedit(FLOW, heun, PICTURE, TIMES, noise=NOISE, strength=1.5), "strength must be"),
        (lambda: sdedit(FLOW, heun, PICTURE, TIMES, noise=NOISE[:1], strength=0.5), "noise must be like picture"),
        (lambda: sdedit(FLOW, heun, PICTURE, TIMES[::-1], noise=NOISE, strength=0.5), "rises from noise to data"),
        (lambda: sdedit(FLOW, heun, PICTURE, TIMES * 0.4, noise=NOISE, strength=0.5), "nothing is left to do"),
        (lambda: sdedit(between, heun, PICTURE, TIMES, noise=NOISE, strength=0.5), "flows from noise"),
        (lambda: inpaint(FLOW, heun, PICTURE, np.ones(4), TIMES, noise=NOISE), "mask must broadcast"),
        (lambda: inpaint(FLOW, heun, PICTURE, 2 * np.ones(3), TIMES, noise=NOISE), "mask must be"),
        (lambda: inpaint(FLOW, fj.solvers.Adaptive(), PICTURE, 1, [0.0, 0.9], noise=NOISE), "after_step"),
        (lambda: interpolate(FLOW, heun, PICTURE, PICTURE, TIMES, weight=1.1), "weight must be"),
        (lambda: interpolate(FLOW, heun, PICTURE, PICTURE[:1], TIMES, weight=0.5), "second must be like picture"),
        (lambda: invert(FLOW, fj.solvers.EulerMaruyama(), PICTURE, TIMES), "deterministic|stochastic|noise"),
        (lambda: translate(FLOW, heun, PICTURE, TIMES, cond=jnp.ones(2), second_cond=None), "needs second_cond"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            make()
        assert "\n" not in str(error.value)


def test_what_is_filled_in_may_hold_anything():
    mask = jnp.array([[1.0, 0.0, 1.0]])
    blank = jnp.where(mask == 0, jnp.nan, PICTURE)
    found, expected = (
        inpaint(FLOW, fj.solvers.Euler(), picture, mask, TIMES, noise=NOISE).x for picture in (blank, PICTURE)
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", ["mmps", "pgdm", "dps(scale=0.2)"])
@pytest.mark.parametrize("operator", ["masked", "pooled(factor=2)", "blurred(std=0.7)"])
def test_restored_pictures_give_what_was_measured(method, operator):
    law = Gaussian(mean=0.0, std=1.0, path=LINEAR)
    flow = fj.Flow(law.network(), path=LINEAR)
    picture = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 1)), jnp.float32)
    mask = jnp.zeros((4, 4, 1)).at[:2].set(1.0) if operator == "masked" else None
    measure = fj.specs.build("operator", operator, **({} if mask is None else {"mask": mask}))
    options = dict(noise=fj.noise(KEY, picture.shape), method=method, noise_std=0.05)
    given = [(picture, False)]
    if operator == "masked":
        given.append((jnp.where(mask == 0, jnp.nan, picture), True))
    elif operator.startswith("blurred"):  # as large as the picture
        given.append((measure(picture), True))
    for shown, measured in given:
        found = restore(
            flow,
            fj.solvers.Euler(),
            shown,
            fj.times.uniform(60),
            operator=operator,
            mask=mask,
            measured=measured,
            start=2e-3,
            **options,
        ).x
        error = float(jnp.sqrt(jnp.mean((measure(found) - measure(picture)) ** 2)))
        assert error < (0.35 if method.startswith("dps") else 0.15), error


def test_a_mask_beside_a_ready_operator_is_refused():
    picture = jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match="a mask is given, and this Pooled does not use it"):
        restore(
            FLOW,
            fj.solvers.Euler(),
            picture,
            TIMES,
            noise=picture,
            operator=fj.fields.Pooled(factor=2),
            mask=jnp.ones((4, 4, 1)),
        )


def test_a_spec_of_masked_gets_the_mask_of_the_request():
    known = {"field": FLOW, "solver": fj.solvers.Euler(), "picture": PICTURE, "noise": NOISE, "times": TIMES}
    mask = jnp.array([[1.0, 0.0, 1.0]])
    found = fj.specs.build("edit", "restore(operator=masked)", **known, mask=mask).x
    np.testing.assert_allclose(found[:, [0, 2]], PICTURE[:, [0, 2]], atol=0.2)
    with pytest.raises(ValueError, match="this Blurred does not use it"):
        fj.specs.build("edit", "restore(operator=blurred(std=1))", **known, mask=mask)
