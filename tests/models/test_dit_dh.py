"""The transformer with a wide shallow head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

from flowjax._trees import flatten
from flowjax.models import DiTDH
from flowjax.models.dit_dh import plane_turns
from flowjax.models.embeddings import FourierEmbedding
from flowjax.models.token_dit import rotate
from flowjax.training.trees import trainable

SMALL = {"image_shape": (2, 3, 5), "width": 16, "depth": 2, "heads": 2}
SMALL |= {"head_width": 24, "head_depth": 1, "head_heads": 3, "num_classes": 3}


def build(seed=0, **options):
    """A network, as it starts."""
    return DiTDH(**SMALL | options, rngs=nnx.Rngs(seed))


def loud(**options):
    """A network without zeros, whose numbers depend on their names: one with more parts has those of the other."""

    def moved(path, leaf):
        own = np.random.default_rng([*jax.tree_util.keystr(path).encode()])
        return jnp.asarray(0.3 * own.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(moved, jax.eval_shape(lambda: build(**options)))


@jax.jit
def call(network, x, t, cond, end=None):
    return network(x, t, cond, end)


def inputs():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((3, 2, 3, 5)), jnp.float32)
    return x, jnp.array([0.1, 0.4, 0.9]), jnp.array([0, 2, 3])


@pytest.fixture(scope="module")
def student():
    return loud(second_time=True)


def by_hand(network, x, t, cond, end):
    """The published computation in float64, token by token and head by head, in times that count from the data."""
    w = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(network).items()}
    silu = lambda a: a * expit(a)  # noqa: E731
    dense = lambda name, a: a @ w[f"{name}.kernel"].reshape(a.shape[-1], -1) + w[f"{name}.bias"].ravel()  # noqa: E731
    rms = lambda name, a: a / np.sqrt(np.mean(a**2, -1, keepdims=True) + 1e-6) * w[f"{name}.scale"]  # noqa: E731
    tau, span = 1 - np.asarray(t, np.float64), np.asarray(end, np.float64) - np.asarray(t, np.float64)

    def embedded(name, time):
        phase = np.exp(2j * np.pi * time[:, None] * w[f"{name}.frequencies"])
        return dense(f"{name}.outer", silu(dense(f"{name}.inner", np.concatenate([phase.imag, phase.real], -1))))

    def attention(name, h, heads):
        size = h.shape[-1] // heads
        q, k, v = dense(f"{name}.qkv", h).reshape(len(h), 3, heads, size).transpose(1, 2, 0, 3)
        places = np.array([(row, column) for row in range(2) for column in range(3)])
        angles = np.array(
            [[place * 10_000 ** (-4 * i / size) for place in both for i in range(size // 4)] for both in places]
        )
        q, k = ((a[..., 0::2] + 1j * a[..., 1::2]) * np.exp(1j * angles) for a in (q, k))
        scores = np.real(np.einsum("hnd,hmd->hnm", q, np.conj(k))) / np.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hnm,hmd->nhd", weights / weights.sum(-1, keepdims=True), v)
        return dense(f"{name}.project", mixed.reshape(len(h), -1))

    def block(name, h, c, heads):
        b1, a1, g1, b2, a2, g2 = np.split(dense(f"{name}.modulation", silu(c)), 6, axis=-1)
        h = h + g1 * attention(name, rms(f"{name}.norms.0", h) * (1 + a1) + b1, heads)
        gate, value = np.split(dense(f"{name}.inner", rms(f"{name}.norms.1", h) * (1 + a2) + b2), 2, axis=-1)
        return h + g2 * dense(f"{name}.outer", silu(gate) * value)

    quarter = 10_000 ** (-np.arange(4) / 4)
    codes = [[f(place * q) for place in (column, row) for f in (np.sin, np.cos) for q in quarter] for row, column in
             [(r, c) for r in range(2) for c in range(3)]]  # fmt: skip
    answers = []
    for number in range(len(t)):
        patches = np.asarray(x[number], np.float64).reshape(6, 5)
        asked = embedded("time", 1 - tau[[number]]) + embedded("span", span[[number]])
        c = silu(asked + w["condition.table"][int(cond[number])])
        s = dense("embed", patches) + np.array(codes)
        for i in range(2):
            s = block(f"blocks.{i}", s, c, 2)
        s = dense("widen", silu(asked + s))
        h = block("head_blocks.0", dense("embed_again", patches), s, 3)
        shift, scale = np.split(dense("modulation", silu(s)), 2, axis=-1)
        answers.append(dense("unembed", rms("norm", h) * (1 + scale) + shift).reshape(2, 3, 5))
    return np.array(answers)


def test_the_published_computation(student):
    network, (x, t, cond) = student, inputs()
    end = jnp.array([0.1, 0.7, 1.0])
    found, expected = call(network, x, t, cond, end), by_hand(network, x, t, cond, end)
    assert float(jnp.std(found)) > 0.3
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_it_starts_as_zero_and_a_student_as_its_teacher():
    (x, t, cond), options = inputs(), [{}, {"second_time": True}, {"second_time": True, "zero_span": False}]
    teacher, zero, random = jax.jit(lambda: [build(depth=1, **each) for each in options])()
    np.testing.assert_array_equal(call(teacher, x, t, cond), 0)
    there, trained = flatten(teacher), loud(depth=1)
    expected = call(trained, x, t, cond)
    for network in (zero, random):
        own = flatten(network)
        assert {name.partition(".")[0] for name in own.keys() - there.keys()} == {"span"}
        for name, leaf in there.items():  # all that both have starts alike
            np.testing.assert_array_equal(own[name], leaf)
        begun = jax.tree.unflatten(jax.tree.structure(network), list((own | flatten(trained)).values()))
        change = [float(jnp.abs(call(begun, x, t, cond, end) - expected).max()) for end in (t, jnp.ones(3))]
        assert max(change) == 0 if network is zero else min(change) > 1e-3


def test_times_a_little_outside_are_continued(student):
    """Central differences ask them: the second difference over the ends is as small as that of a smooth function."""
    network, (x, _, cond) = jax.tree.map(lambda leaf: 0.6 * leaf, student), inputs()
    for place in (0.0, 1.0):
        answers = [call(network, x, jnp.full(3, place + d), cond, jnp.full(3, place)) for d in (-0.005, 0.0, 0.005)]
        first = float(jnp.abs(answers[2] - answers[0]).max())
        second = float(jnp.abs(answers[0] + answers[2] - 2 * answers[1]).max())
        assert first > 1e-4
        assert second < 0.1 * first


def test_frequencies_are_kept_and_not_trained(student):
    moved = {name for name, leaf in flatten(trainable(student)).items() if leaf is not None}
    assert flatten(student).keys() - moved == {"time.frequencies", "span.frequencies"}
    embedding = FourierEmbedding(8, scale=1.0, rngs=nnx.Rngs(0))
    gradient = jax.grad(lambda embedding: jnp.sum(embedding(jnp.array([0.3])) ** 2))(embedding)
    assert [name for name, leaf in flatten(gradient).items() if float(jnp.abs(leaf).max()) == 0] == ["frequencies"]
    frequencies = embedding.frequencies[...]
    assert abs(frequencies.std() - 1) < 4 / np.sqrt(2 * frequencies.size)


def test_scores_of_tokens_depend_on_their_offset_in_the_plane():
    rows, columns, angles = 3, 4, plane_turns(3, 4, 8)
    q, k = (jnp.tile(jax.random.normal(jax.random.key(i), (1, 1, 1, 8)), (1, 12, 1, 1)) for i in (0, 1))
    scores = np.asarray(jnp.einsum("bnhd,bmhd->nm", rotate(q, angles), rotate(k, angles)))
    scores = scores.reshape(rows, columns, rows, columns)
    for down, right in ((0, 1), (1, 0), (1, 2)):
        found = [scores[r, c, r + down, c + right] for r in range(rows - down) for c in range(columns - right)]
        np.testing.assert_allclose(found, found[0], rtol=1e-4, atol=1e-5)
    assert abs(scores[0, 0, 0, 1] - scores[0, 0, 1, 0]) > 1e-2


def test_published_size():
    """839 million parameters of the largest one, of which 256 x 1152 are a table of fixed positions there."""
    options = DiTDH.size("XL") | {"num_classes": 1000, "scan": True}
    shapes = jax.eval_shape(lambda: DiTDH((16, 16, 768), **options, rngs=nnx.Rngs(0)))
    assert round((sum(leaf.size for leaf in jax.tree.leaves(shapes)) + 256 * 1152) / 1e6) == 839


@pytest.mark.slow
def test_scan_and_remat_change_nothing():
    x, t, cond = inputs()

    def of(network):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(network(x, t, cond, t + 0.1) ** 2)))(x)

    network, stacked = loud(second_time=True), loud(second_time=True, scan=True, remat=True)
    values = flatten(network)
    for name in flatten(stacked):
        part, is_block, rest = name.partition("blocks.")
        if is_block:
            values[name] = jnp.stack([values[f"{part}blocks.{i}.{rest}"] for i in range(2 if part == "" else 1)])
    stacked = jax.tree.unflatten(jax.tree.structure(stacked), [values[name] for name in flatten(stacked)])
    for other in (stacked, loud(second_time=True, remat=True)):
        for a, b in zip(of(other), of(network), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_equal_widths_need_no_layer_between():
    assert jax.eval_shape(lambda: build(head_width=16, head_heads=2)).widen is None
    x, t, _ = inputs()
    options = {"out_channels": 7, "cond_dim": 4, "num_classes": None}
    assert jax.eval_shape(lambda: build(**options)(x, t, jnp.ones((3, 4)))).shape == (3, 2, 3, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12}, "width=12 must be a multiple of 4 x heads=8"),
        ({"head_width": 16}, "head_width=16 must be a multiple of 4 x head_heads=12"),
        ({"patch": 2}, "patch=2 does not divide an image of 2 x 3 pixels"),
        ({"head_depth": 0}, "head_depth"),
        ({"mlp_ratio": 0.01}, "mlp_ratio=0.01 leaves the feed-forward layers of width=16 empty"),
        ({"time_scale": 0.0}, "time_scale"),
        ({"attention": "flash"}, "attention='flash' is none of"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_ends_are_for_networks_that_are_built_for_them():
    x, t, cond = inputs()
    with pytest.raises(ValueError, match="end= needs a network built with second_time=True"):
        jax.eval_shape(lambda: build()(x, t, cond, t))
    with pytest.raises(ValueError, match="unknown size 'XXL'"):
        DiTDH.size("XXL")
