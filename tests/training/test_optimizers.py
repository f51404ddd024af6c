"""Optimisers from specs: schedules, groups, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax import specs
from flowjax.training.optimizers import schedule

pytestmark = pytest.mark.standard_promotion
PARAMS = {"block": {"kernel": jnp.full((4, 4), 0.5), "log_gamma": jnp.ones(4)}}
GRADIENT = jax.tree.map(lambda p: 0.1 * p, PARAMS)


def after(optimizer, updates=3):
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(updates):
        change, state = optimizer.update(GRADIENT, state, params)
        params = optax.apply_updates(params, change)
    return params


def test_the_default_is_clipped_adamw_with_warmup_and_cosine():
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 5, 100, 3e-5)
    expected = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.0))
    built = specs.build("optimizer", "adamw(rate=3e-3, warmup=0.05, b2=0.99, weight_decay=0.0, clip=1.0)", steps=100)
    for a, b in zip(jax.tree.leaves(after(built)), jax.tree.leaves(after(expected)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["adamw", "adam", "adan", "lion", "muon", "sgd"])
def test_groups_multiply_the_rate(name):
    plain = after(specs.build("optimizer", f"{name}(warmup=0.0)", steps=10))
    slow = after(specs.build("optimizer", f"{name}(warmup=0.0, groups=(('*log_gamma', 0.1),))", steps=10))
    np.testing.assert_array_equal(plain["block"]["kernel"], slow["block"]["kernel"])
    moved = plain["block"]["log_gamma"] - 1, slow["block"]["log_gamma"] - 1
    np.testing.assert_allclose(moved[1], 0.1 * moved[0], rtol=0.02)
    assert np.all(np.abs(moved[0]) > 0)


@pytest.mark.parametrize(
    ("decay", "middle", "end"), [("cosine", 0.505, 0.01), ("linear", 0.505, 0.01), ("constant", 1, 1)]
)
def test_schedules(decay, middle, end):
    rate = schedule(2.0, 110, 10 / 110, decay, 0.01)
    assert float(rate(0)) == 0
    assert float(rate(10)) == pytest.approx(2.0)
    assert float(rate(60)) == pytest.approx(2.0 * middle, rel=1e-3)
    assert float(rate(110)) == pytest.approx(2.0 * end, rel=1e-3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adamw(rate=-1)", "rate must be above 0"),
        ("adamw(rate=nan)", "rate must be finite"),
        ("adamw(b2=1.5)", r"b2 must be in \[0, 1\)"),
        ("adamw(warmup=2)", r"warmup must be in \[0, 1\]"),
        ("adamw(clip=-1)", "clip must be above 0"),
        ("adamw(weight_decay=-1)", "weight_decay must be at least 0"),
        ("sgd(momentum=1)", r"momentum must be in \[0, 1\)"),
        ("adamw(decay=cosin)", "did you mean 'cosine'"),
        ("adam(weight_decay=0.1)", r"adam has no option weight_decay .*one of adamw"),
        ("adamw(betas=(0.9, 0.99))", "adamw has no option betas"),
        ("adamw(groups=(('*', -1),))", "factor of"),
    ],
)
def test_refusals(spec, message):
    with pytest.raises(ValueError, match=message):
        specs.build("optimizer", spec, steps=10)


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(ValueError, match=r"no parameter is called 'x\*'; there are block.kernel, block.log_gamma"):
        specs.build("optimizer", "adamw(groups=(('x*', 0.1),))", steps=10).init(PARAMS)
