"""The transformer with conditions as tokens and two heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flowjax as fj
from flowjax.models import TokenDiT
from flowjax.models.token_dit import rotate

SMALL = {"image_shape": (4, 4, 1), "patch": 2, "width": 16, "depth": 2, "head_depth": 2, "heads": 2}


def build(**options):
    """A network whose gates and last layers say something, in any layout."""
    network = TokenDiT(**SMALL, num_classes=3, guidance=True, rngs=nnx.Rngs(0), **options)
    for part in (network.u, network.v):
        part.unembed.kernel[...] = jax.random.normal(jax.random.key(1), part.unembed.kernel.shape)

    def open_gates(path, leaf):
        return jnp.full_like(leaf, 0.5) if "gates" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(open_gates, network)


def inputs(n=3):
    return jax.random.normal(jax.random.key(2), (n, 4, 4, 1)), jnp.linspace(0.1, 0.6, n), jnp.arange(n)


@pytest.fixture(scope="module")
def network():
    return build()


@pytest.mark.slow
def test_scan_and_remat_change_nothing(network):
    x, t, cond = inputs()
    expected = network(x, t, cond, end=t + 0.3)
    found = build(scan=True, remat=True)(x, t, cond, end=t + 0.3)
    for name in ("u", "v"):
        assert float(jnp.abs(expected[name]).mean()) > 0.1
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_it_is_asked_matters_and_the_defaults_are_neutral(network):
    x, t, cond = inputs()
    plain = network(x, t, cond)
    neutral = {"end": t, "guidance": jnp.ones(3), "interval": jnp.tile(jnp.array([[0.0, 1.0]]), (3, 1))}
    np.testing.assert_array_equal(plain["u"], network(x, t, cond, **neutral)["u"])
    np.testing.assert_array_equal(network(x, t)["u"], network(x, t, jnp.full(3, 3))["u"])
    changes = {"end": t + 0.3, "guidance": jnp.full(3, 4.0), "interval": neutral["interval"] / 2}
    for name, value in changes.items():
        for head in ("u", "v"):
            assert float(jnp.abs(network(x, t, cond, **neutral | {name: value})[head] - plain[head]).max()) > 1e-4
    assert bool(jnp.isnan(network(x, t, jnp.array([0, 1, 4]))["u"][2]).all())
    with pytest.raises(ValueError, match="guidance= and interval= need a network built with guidance=True"):
        TokenDiT(**SMALL, rngs=nnx.Rngs(0))(x, t, guidance=t)


@pytest.mark.slow
def test_times_are_seen_in_the_image_alone(network):
    x, t, cond = inputs()
    np.testing.assert_array_equal(network(x, t, cond, end=t)["u"], network(x, t / 2, cond, end=t / 2)["u"])


def test_scores_of_rotated_tokens_depend_on_their_distance():
    q, k = (jnp.tile(jax.random.normal(jax.random.key(i), (1, 1, 1, 8)), (1, 6, 1, 1)) for i in (0, 1))
    scores = jnp.einsum("bnhd,bmhd->nm", rotate(q), rotate(k))
    for offset in (-2, 0, 3):
        np.testing.assert_allclose(np.diag(scores, offset), np.diag(scores, offset)[0], rtol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(rotate(q), axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5)
    assert float(jnp.abs(scores[0, 0] - scores[0, 3])) > 1e-2


def test_a_compiled_sampler_has_no_trace_of_the_other_head(network):
    """The blocks of v, a third of the network, cost nothing where u is asked."""
    x, _, cond = inputs()

    def sample(x):
        flow = fj.Flow(network, path=fj.paths.Linear(), null=3, head="u")
        return fj.solve(flow, fj.solvers.Jump(), x, fj.times.uniform(1), cond=cond).x

    def answer(x):
        return network(x, jnp.zeros(3), cond, end=jnp.ones(3))

    sampler, both = (jax.jit(f).lower(x).compile().cost_analysis()["flops"] for f in (sample, answer))
    assert 0.6 < sampler / both < 0.72


def test_sampling_with_a_scale_and_its_interval(network):
    """`Embedded` asks what a call by hand asks."""
    x, _, cond = inputs()
    flow = fj.Flow(network, path=fj.paths.Linear(), null=3, head="u")
    field = fj.fields.Embedded(flow, guidance=3.0, interval=(0.2, 0.7))
    found = fj.solve(field, fj.solvers.Jump(), x, fj.times.uniform(1), cond=cond)
    asked = {"guidance": jnp.full(3, 3.0), "interval": jnp.tile(jnp.array([[0.2, 0.7]]), (3, 1))}
    expected = x + network(x, jnp.zeros(3), cond, end=jnp.ones(3), **asked)["u"]
    np.testing.assert_allclose(found.x, expected, rtol=1e-4, atol=1e-5)
    assert int(found.evaluations) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 18, "heads": 4}, "width=18 must be a multiple of 2 x heads=8"),
        ({"patch": 3}, "patch=3 does not divide an image of 4 x 4 pixels"),
        ({"head_depth": 0}, "head_depth"),
        ({"mlp_ratio": 0.01}, "without units"),
        ({"time_tokens": 0}, "time_tokens"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        TokenDiT(**SMALL | options, rngs=nnx.Rngs(0))
