"""Rules that ask for more than a pair: several conditions, negative ones, scales by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flowjax as fj
from flowjax.guidance import (
    CFG,
    MAMBOG,
    RAAG,
    Composed,
    FrequencyDecoupled,
    Interval,
    Nested,
    PerturbedAttention,
    Ramp,
    Rescaled,
    Separate,
    Table,
    Tangential,
    in_turn,
)
from flowjax.oracles import Mixture

LINEAR = fj.paths.Linear()
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
Y = jnp.array([0, 1, 2, 0])
SOLVERS = [fj.solvers.Euler(), fj.solvers.DPMSolver(), fj.solvers.UniPC()]
TWO = {"image": jnp.arange(4.0), "text": 2.0 - jnp.arange(4.0)}
NULL = {"image": -1.0, "text": -2.0}


def one(x, t, cond):
    """Something of a label."""
    return jnp.sin(x + cond[:, None].astype(x.dtype)) + t[:, None]


def two(x, t, cond):
    """Something of two conditions, in which they do not simply add up."""
    return jnp.sin(x + cond["image"][:, None]) * jnp.cos(cond["text"])[:, None] + t[:, None]


def counting(rows, network):
    def counted(x, t, cond):
        jax.debug.callback(lambda: rows.append(x.shape[0]), ordered=False)
        return network(x, t, cond)

    return counted


def of(x, **changes):
    """The prediction with some conditions replaced, at t = 0.5."""
    return two(x, jnp.full(4, 0.5), TWO | {k: jnp.full(4, v) for k, v in changes.items()})


@pytest.mark.parametrize("wrap", [lambda rule: rule, lambda rule: Separate(rule=rule)])
def test_two_conditions_have_a_scale_each(wrap):
    flow = fj.Flow(two, path=LINEAR, null=NULL)
    rule = Nested(names=("image", "text"), scales=(1.5, 4.0))
    f0, f1, f2 = of(X, **NULL), of(X, text=-2.0), of(X)
    value = jax.jit(lambda rule: fj.guide(flow, wrap(rule)).velocity(0.5, X, TWO))(rule)
    np.testing.assert_allclose(value, f0 + 1.5 * (f1 - f0) + 4 * (f2 - f1), rtol=1e-4, atol=1e-5)
    equal = fj.guide(flow, wrap(Nested(names=("text", "image"), scales=(3.0, 3.0)))).velocity(0.5, X, TWO)
    np.testing.assert_allclose(equal, fj.guide(flow, CFG(scale=3.0)).velocity(0.5, X, TWO), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda rule: rule, lambda rule: Separate(rule=rule)])
def test_conditions_side_by_side_and_negative(wrap):
    flow, field = fj.Flow(one, path=LINEAR, null=9), None
    c, u, a, b = (one(X, jnp.full(4, 0.5), jnp.broadcast_to(jnp.asarray(y), 4)) for y in (Y, 9, 3, 5))
    field = fj.guide(flow, wrap(Composed(scales=(2.0, 1.5, -1.0))), also=(3, 5))
    expected = u + 2 * (c - u) + 1.5 * (a - u) - (b - u)
    np.testing.assert_allclose(field.velocity(0.5, X, Y), expected, rtol=1e-4, atol=1e-5)
    alone = fj.guide(flow, wrap(Composed(scales=(2.0, 0.0))), also=(3,)).velocity(0.5, X, Y)
    np.testing.assert_allclose(alone, u + 2 * (c - u), rtol=1e-5, atol=1e-6)
    # A negative condition in the place of the null: away from it.
    away = fj.guide(flow, wrap(CFG(scale=3.0)), against=jnp.array([3, 4, 5, 6])).velocity(0.5, X, Y)
    n = one(X, jnp.full(4, 0.5), jnp.array([3, 4, 5, 6]))
    np.testing.assert_allclose(away, n + 3 * (c - n), rtol=1e-4, atol=1e-5)


def calls(flow, rows, rule, cond, also=(), solver=None):
    """Rows of each call really executed, and the counts."""
    rows.clear()
    field = fj.guide(flow, rule, also=also)
    result = fj.solve(field, solver or fj.solvers.Euler(), X, fj.times.uniform(4), cond=cond)
    jax.block_until_ready(result)
    jax.effects_barrier()
    return sorted(rows), int(result.evaluations), int(result.network_calls)


def test_predictions_of_weight_zero_are_saved_and_the_counts_show_it():
    rows = []
    flow = fj.Flow(counting(rows, two), path=LINEAR, null=NULL)

    def nested(first, second):
        return Nested(names=("image", "text"), scales=(first, second))

    assert calls(flow, rows, nested(1.5, 4.0), TWO) == ([12] * 4, 4, 12)
    assert calls(flow, rows, nested(1.0, 4.0), TWO) == ([8] * 4, 4, 8)
    assert calls(flow, rows, nested(4.0, 4.0), TWO) == ([8] * 4, 4, 8)
    assert calls(flow, rows, nested(1.0, 1.0), TWO) == ([4] * 4, 4, 4)
    assert calls(flow, rows, Separate(rule=nested(1.5, 4.0)), TWO) == ([4] * 12, 4, 12)
    assert calls(flow, rows, Separate(rule=nested(1.0, 4.0)), TWO) == ([4] * 8, 4, 8)
    assert calls(flow, rows, Separate(rule=nested(1.0, 1.0)), TWO) == ([4] * 4, 4, 4)
    gate = Interval(rule=nested(1.5, 4.0), start=0.2, end=0.6)  # asked at 0, 0.25, 0.5, 0.75
    assert calls(flow, rows, gate, TWO) == ([4, 4, 12, 12], 4, 8)
    single = fj.Flow(counting(rows, one), path=LINEAR, null=9)
    assert calls(single, rows, Separate(rule=CFG(scale=2.0)), Y) == ([4] * 8, 4, 8)
    assert calls(single, rows, Separate(rule=Interval(rule=CFG(scale=2.0), start=0.2, end=0.6)), Y) == ([4] * 6, 4, 6)
    assert calls(single, rows, Composed(scales=(3.0, 0.0)), Y, also=(3,)) == ([8] * 4, 4, 8)
    assert calls(single, rows, Composed(scales=(2.0, -1.0)), Y, also=(3,)) == ([8] * 4, 4, 8)  # no u in it
    assert calls(single, rows, CFG(scale=Table(times=[0.4, 0.5], scales=[1.0, 2.0])), Y) == ([4, 4, 8, 8], 4, 6)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_one_call_and_separate_calls_give_equal_numbers_under_every_solver(solver):
    times = fj.times.uniform(5, 0.05, 0.95)
    flow = fj.Flow(two, path=LINEAR, null=NULL)
    for rule in (
        CFG(scale=Ramp(scale=3.0)),
        Rescaled(rule=Nested(names=("image", "text"), scales=(1.5, Ramp(scale=2.0)))),
        Interval(rule=RAAG(w_max=jnp.array([1.0, 3.0, 5.0, 9.0]), ratio="batch"), start=0.3, end=0.8),
    ):
        whole, apart = (fj.solve(fj.guide(flow, r), solver, X, times, cond=TWO) for r in (rule, Separate(rule=rule)))
        np.testing.assert_allclose(whole.x, apart.x, rtol=1e-4, atol=1e-5)
        assert int(whole.network_calls) == int(apart.network_calls)


def test_scales_by_name_keep_their_mean_and_give_samples_theirs():
    t = np.linspace(0, 1, 1001)
    for scale in (Ramp(scale=4.0), Ramp(scale=4.0, power=2.0), fj.guidance.RaisedCosine(scale=4.0)):
        values = np.asarray(scale(jnp.asarray(t)))
        assert abs(np.trapezoid(values, t) - 4) < 1e-3
        assert values[0] == 1
        assert np.all(np.diff(values) > -1e-5)
    rule = fj.build("rule", "interval(rule=cfg(scale=each(values=[1, 2, 5])), start=0.2)")
    assert in_turn(rule, 4, 4).rule.scale.tolist() == [2, 5, 1, 2]
    with pytest.raises(ValueError, match="one value per sample"):
        rule.active(0.5)
    built = fj.build("rule", "cfg(scale=table(times=[0, 0.5], scales=[1, 3]))")
    assert float(built.scale(0.25)) == 2
    assert fj.specs.text(fj.specs.spec_of("rule", built)) == "cfg(scale=table(times=[0.0, 0.5], scales=[1, 3]))"
    for bad in (
        "table(times=[0.5, 0.2], scales=[1, 2])",
        "table(times=[0.5], scales=[1, 2])",
        "ramp(scale=nan)",
        "fast",
    ):
        with pytest.raises(ValueError, match=r"increase|must be|finite|unknown scale") as error:
            fj.build("rule", f"cfg(scale={bad})")
        assert "\n" not in str(error.value)


def test_mambo_g_by_hand():
    """rho = 0.5 for the first sample, 0.1 for the second; both formulations, ratio per sample and of the batch."""
    c, u = jnp.array([[1.5, 0.0], [0.0, 1.1]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])

    def scales(**options):
        rule = MAMBOG(**options)
        value, report = rule.combine(0.5, c, u, rule.init(u))
        np.testing.assert_allclose(value, u + report["scale"][:, None] * (c - u), rtol=1e-5)
        return np.asarray(report["scale"])

    rho = np.array([0.5, 0.1])
    np.testing.assert_allclose(scales(), 1 + 9 * np.exp(-8 * rho), rtol=1e-5)
    np.testing.assert_allclose(scales(form="original"), 1 + 10 * np.exp(-8 * rho), rtol=1e-5)
    np.testing.assert_allclose(scales(ratio="batch"), 1 + 9 * np.exp(-8 * 0.3), rtol=1e-5)
    np.testing.assert_allclose(scales(ratio="batch", form="original"), 1 + 10 * np.exp(-8 * 0.3), rtol=1e-5)
    np.testing.assert_allclose(scales(w_max=jnp.array([1.0, 3.0])), 1 + [0, 2] * np.exp(-8 * rho), rtol=1e-5)
    assert (MAMBOG(ratio="batch").couples_batch, MAMBOG().couples_batch) == (True, False)
    assert Rescaled(rule=MAMBOG(ratio="batch")).couples_batch
    for options, words in (({"form": "old"}, "form"), ({"ratio": "row"}, "ratio")):
        with pytest.raises(ValueError, match=f"unknown {words}"):
            MAMBOG(**options)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_large_scale_stays_bounded_in_few_steps_where_the_constant_one_explodes(seed):
    """Two classes of a mixture in 16 dimensions, w = 100, 5 Euler steps from pure noise, exact velocities."""
    mean = np.ones(16)
    law = Mixture(weights=np.array([0.5, 0.5]), means=np.stack([mean, -mean]), stds=0.5, path=LINEAR)
    flow = fj.Flow(law.network(), path=LINEAR, null=2)
    x, cond = fj.noise(jax.random.key(seed), (64, 16)), jnp.zeros(64, jnp.int32)
    sizes = {}
    for name, rule in (("constant", CFG(scale=100.0)), ("raag", RAAG(w_max=100.0)), ("mambo", MAMBOG(w_max=100.0))):
        found = fj.solve(fj.guide(flow, rule), fj.solvers.Euler(), x, fj.times.uniform(5), cond=cond)
        sizes[name] = float(jnp.linalg.norm(found.x, axis=1).max())
    data = float(jnp.linalg.norm(law.sample(jax.random.key(seed), 1000), axis=1).max())
    assert sizes["raag"] < 1.5 * data
    assert sizes["mambo"] < 1.5 * data
    assert sizes["constant"] > 4 * data


def test_refusals():
    flow = fj.Flow(two, path=LINEAR, null=NULL)
    for make, words in (
        (lambda: Nested(names=("image",), scales=(1.0,)), "2 or more"),
        (lambda: Nested(names=("image", "image"), scales=(1.0, 2.0)), "one scale"),
        (lambda: Composed(scales=(1.0,)), "2 or more"),
        (lambda: Composed(scales=(1.0, float("nan"))), "finite"),
        (lambda: fj.guide(flow, Composed(scales=(1.0, 2.0))).velocity(0.5, X, TWO), "further conditions"),
        (lambda: fj.guide(flow, CFG(scale=2.0), also=(NULL,)).velocity(0.5, X, TWO), "knows one condition"),
        (
            lambda: fj.guide(flow, Nested(names=("image", "txt"), scales=(2.0, 3.0))).velocity(0.5, X, TWO),
            "did you mean 'text'",
        ),
        (
            lambda: fj.guide(fj.Flow(one, path=LINEAR, null=9), Nested(names=("a", "b"), scales=(2.0, 3.0))).velocity(
                0.5, X, Y
            ),
            "by name",
        ),
    ):
        with pytest.raises(ValueError, match=words) as error:
            make()
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------ rules on what the predictions look like

IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 8, 6, 2)), jnp.float32)


@pytest.mark.slow
def test_tangential_damping_is_that_of_the_singular_vectors():
    """Against NumPy's decomposition of the two rows; c = u, u = 0 and orthogonal rows of one length are no holes."""
    c, u = IMAGES.reshape(2, 3, -1)
    value, _ = Tangential(scale=3.0).combine(0.5, c, u, ())
    for i in range(3):
        rows = np.stack([c[i], u[i]]).astype(np.float64)
        first = np.linalg.svd(rows, full_matrices=False)[2][0]
        common = (rows[1] @ first) * first
        np.testing.assert_allclose(value[i], common + 3 * (rows[0] - common), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(Tangential(scale=1.0).combine(0.5, c, u, ())[0], c, rtol=1e-5, atol=1e-6)
    round_ = (jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]))
    for a, b in ((c, c), (c, 0 * c), (0 * c, 0 * c), round_):
        loss = lambda a, b: jnp.sum(Tangential(scale=3.0).combine(0.5, a, b, ())[0] ** 2)  # noqa: E731
        value, slopes = jax.value_and_grad(loss, (0, 1))(a, b)
        assert all(np.all(np.isfinite(s)) for s in (value, *slopes))
    np.testing.assert_allclose(Tangential(scale=3.0).combine(0.5, c, c, ())[0], c, rtol=1e-4, atol=1e-5)


def test_equal_scales_of_all_frequencies_are_plain_guidance_and_levels_are_apart():
    c, u = IMAGES
    for scales in ((3.0, 3.0), (3.0, 3.0, 3.0)):
        value, _ = FrequencyDecoupled(scales=scales).combine(0.5, c, u, ())
        np.testing.assert_allclose(value, u + 3 * (c - u), rtol=1e-4, atol=1e-4)
    flat = jnp.ones_like(c)
    np.testing.assert_allclose(FrequencyDecoupled(scales=(9.0, 2.0)).combine(0.5, flat, 0 * u, ())[0], 2, rtol=1e-5)
    board = jnp.asarray(np.indices((16, 16)).sum(0) % 2 * 2.0 - 1, jnp.float32)[None, ..., None]
    fine, _ = FrequencyDecoupled(scales=(9.0, 2.0)).combine(0.5, board, 0 * board, ())
    np.testing.assert_allclose(fine[:, 4:-4, 4:-4], 9 * board[:, 4:-4, 4:-4], rtol=1e-4)  # inside: all of it is fine
    odd = jnp.ones((1, 7, 5, 1))
    assert FrequencyDecoupled(scales=(2.0, 1.5, 1.0)).combine(0.5, odd, 0 * odd, ())[0].shape == odd.shape
    with pytest.raises(ValueError, match="is for images"):
        FrequencyDecoupled(scales=(9.0, 2.0)).combine(0.5, X, X, ())


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("rule", [Tangential(scale=3.0), FrequencyDecoupled(scales=(3.0, 1.5))], ids=["tcfg", "fdg"])
def test_they_run_under_every_solver_in_one_call_or_two(rule, solver):
    def image(x, t, cond):
        return jnp.sin(x + cond[:, None, None, None].astype(x.dtype)) + t[:, None, None, None]

    flow, x = fj.Flow(image, path=LINEAR, null=9), IMAGES[0]
    times, cond = fj.times.uniform(4, 0.05, 0.95), jnp.array([0, 1, 2])
    whole, apart = (fj.solve(fj.guide(flow, r), solver, x, times, cond=cond) for r in (rule, Separate(rule=rule)))
    np.testing.assert_allclose(whole.x, apart.x, rtol=1e-4, atol=1e-4)
    assert int(whole.network_calls) == 2 * int(whole.evaluations)


def random_dit(scan):
    """A small transformer whose every parameter matters."""
    options = {"patch": 2, "width": 16, "depth": 3, "heads": 2, "num_classes": 3}

    @jax.jit
    def build():
        network = fj.models.DiT((4, 4, 1), **options, rngs=nnx.Rngs(0))
        keys = iter(jax.random.split(jax.random.key(5), 100))
        return jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(next(keys), leaf.shape), network)

    return build().with_scan(scan)


NOISE, TIMES, LABELS = fj.noise(jax.random.key(0), (3, 4, 4, 1)), jnp.full(3, 0.5), jnp.array([0, 1, 2])


@jax.jit
def dit(network, x, y, cut):
    return network(x, TIMES, y, perturbed=cut)


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_attention_is_cut_in_the_blocks_and_rows_that_are_asked_for(scan):
    network = random_dit(scan)
    plain, none = dit(network, NOISE, LABELS, None), dit(network, NOISE, LABELS, jnp.zeros((3, 2)))
    np.testing.assert_allclose(none, plain, rtol=1e-4, atol=1e-5)
    one = dit(network, NOISE, LABELS, jnp.zeros((3, 2)).at[1, 1].set(1.0))
    np.testing.assert_allclose(one[::2], plain[::2], rtol=1e-4, atol=1e-5)
    assert np.abs(one[1] - plain[1]).max() > 1e-3
    # With all of its attention cut, a token knows nothing of the others.
    cut, moved = jnp.ones((3, 3)), NOISE.at[:, 0, 0].add(1.0)
    alone, after = (dit(network, x, LABELS, cut)[:, 2:] for x in (NOISE, moved))
    np.testing.assert_allclose(after, alone, rtol=1e-5, atol=1e-6)
    assert np.abs(dit(network, moved, LABELS, None)[:, 2:] - plain[:, 2:]).max() > 1e-4
    with pytest.raises(ValueError, match="block 4 is perturbed"):
        dit(network, NOISE, LABELS, jnp.ones((3, 5)))


def cut_by_hand(x, t, cond, perturbed=None):
    """A network with the hook, whose attention adds the cosine."""
    cut = jnp.zeros((len(x), 2)) if perturbed is None else jnp.pad(perturbed, ((0, 0), (0, 1)))
    attention = jnp.where(cut[:, 1:2] > 0, 0 * x, jnp.cos(x))
    return one(x, t, cond) + attention


def test_perturbed_attention_guides_alone_and_beside_a_rule():
    flow, t = fj.Flow(cut_by_hand, path=LINEAR, null=9), jnp.full(4, 0.5)
    c, u, p = cut_by_hand(X, t, Y), cut_by_hand(X, t, jnp.full(4, 9)), one(X, t, Y)
    alone = PerturbedAttention(scale=3.0, blocks=(1,))
    both = PerturbedAttention(scale=3.0, blocks=(1,), rule=CFG(scale=2.0))
    for wrap in (lambda r: r, lambda r: Separate(rule=r)):
        np.testing.assert_allclose(fj.guide(flow, wrap(alone)).velocity(0.5, X, Y), c + 2 * (c - p), rtol=1e-4)
        expected = u + 2 * (c - u) + 2 * (c - p)
        np.testing.assert_allclose(fj.guide(flow, wrap(both)).velocity(0.5, X, Y), expected, rtol=1e-4, atol=1e-5)
    for rule, times in (
        (both, 3),
        (PerturbedAttention(scale=1.0, blocks=(1,), rule=CFG(scale=2.0)), 2),
        (PerturbedAttention(scale=2.0, blocks=(1,), rule=CFG(scale=1.0)), 2),
        (PerturbedAttention(scale=1.0, blocks=(1,), rule=CFG(scale=1.0)), 1),
        (alone, 2),
    ):
        result = fj.solve(fj.guide(flow, rule), fj.solvers.Euler(), X, fj.times.uniform(2), cond=Y)
        assert (int(result.evaluations), int(result.network_calls)) == (2, 2 * times)
    other = PerturbedAttention(scale=3.0, blocks=(0,))  # a block without attention
    np.testing.assert_allclose(fj.guide(flow, other).velocity(0.5, X, Y), c, rtol=1e-5)
    unconditional = fj.Flow(lambda x, t, cond, perturbed=None: x if perturbed is None else 0 * x, path=LINEAR)
    assert fj.guide(unconditional, alone).velocity(0.5, X).shape == X.shape  # no null is needed
    for options in ({"against": 3}, {"also": (3,)}):
        with pytest.raises(ValueError, match="leave out"):
            fj.guide(flow, alone, **options).velocity(0.5, X, Y)
    with pytest.raises(ValueError, match="no perturbed=, as networks like that do"):
        fj.guide(fj.Flow(one, path=LINEAR, null=9), alone).velocity(0.5, X, Y)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_perturbed_attention_of_a_transformer_runs_under_every_solver(solver):
    flow = fj.Flow(random_dit(True), path=LINEAR, null=3)
    rule, times = PerturbedAttention(scale=3.0, blocks=(1,), rule=CFG(scale=2.0)), fj.times.uniform(3, 0.05, 0.95)
    whole, apart = (fj.solve(fj.guide(flow, r), solver, NOISE, times, cond=LABELS) for r in (rule, Separate(rule=rule)))
    np.testing.assert_allclose(whole.x, apart.x, rtol=1e-3, atol=1e-3)
    assert int(whole.network_calls) == 3 * int(whole.evaluations)
