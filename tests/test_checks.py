import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax import _checks
from flowjax.models import MLP, DiT, UNet
from flowjax.objectives import times
from flowjax.paths import EDM, VE, VP, Cosine

NAN, INF = float("nan"), float("inf")


def test_names():
    assert _checks.choose("solver", "heun", ["euler", "heun"]) == "heun"
    with pytest.raises(ValueError, match=r"^unknown solver 'huen'; did you mean 'heun'\? \(allowed: euler, heun\)$"):
        _checks.choose("solver", "huen", ["euler", "heun"])
    with pytest.raises(ValueError, match=r"unknown solver .*heun.*did you mean"):
        _checks.choose("solver", ["heun"], {"heun": 1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1.0, 2.0, 8.0), r"interval must be \(smallest, largest\), got \(1.0, 2.0, 8.0\)"),
        (2.0, r"interval must be \(smallest, largest\), got 2.0"),
        ((8.0, 1.0), r"interval=\(8.0, 1.0\) must be \(smallest, largest\)"),
        ((0.5, 1.0), r"interval\[0\] must be at least 1, got 0.5"),
        ((1.0, NAN), r"interval\[1\] must be finite"),
    ],
)
def test_pairs(value, message):
    _checks.pair("[1, inf)", interval=(1.0, 1.0))
    with pytest.raises(ValueError, match=message):
        _checks.pair("[1, inf)", interval=value)


@pytest.mark.parametrize(
    ("interval", "value", "message"),
    [
        ("[1, inf)", 0, "n must be at least 1, got 0"),
        ("(0, inf)", 0, "n must be above 0, got 0"),
        ("[0, 1)", 1, r"n must be in \[0, 1\), got 1"),
        (_checks.COUNT, 2**31, "n must be at most 2147483647, got 2147483648"),
        ("[1, inf)", True, "n must be a whole number, got True"),
        ("[1, inf)", 2.0, "n must be a whole number, got 2.0"),
        ("[1, inf)", "2", "n must be a whole number, got '2'"),
        ("[1, inf)", None, "n must be a whole number, got None"),
    ],
)
def test_whole_numbers(interval, value, message):
    _checks.whole("[0, 3]", a=0, b=np.int64(3))
    with pytest.raises(ValueError, match=f"^{message}$"):
        _checks.whole(interval, n=value)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e39, -1, -1e-9, 1.1, "1", None, True, (1,)])
def test_real_numbers(value):
    _checks.real("[0, 1]", a=0, b=1.0, c=np.float32(0.5), d=jnp.ones(2))
    _checks.real("[0, 1]", a=np.zeros((0, 2)), b=np.array([0.0, 1.0]), c=jnp.array([1], jnp.int32))
    jax.jit(lambda x: _checks.real("[0, 1]", x=x))(2.0)  # a traced number passes
    if isinstance(value, float | int) and not isinstance(value, bool):
        for array in (np.array([0.5, value]), np.array([value, 0.5])):
            with pytest.raises(ValueError, match=r"^x must be "):
                _checks.real("[0, 1]", x=array)
    with pytest.raises(ValueError, match=r"^x must be "):
        _checks.real("[0, 1]", x=value)


@pytest.mark.parametrize("value", [8, (), (8, 8), (8, 8, 0), (8, 8, 1.0), "888", None])
def test_sizes(value):
    _checks.sizes(3, shape=[8, 8, 1])
    with pytest.raises(ValueError, match=r"^shape must "):
        _checks.sizes(3, shape=value)


PIXELS = {"image_shape": (8, 8, 1)}
TRANSFORMER = {**PIXELS, "patch": 2, "width": 16, "depth": 1, "heads": 2}
CONVOLUTIONS = {**PIXELS, "channels": 8, "multipliers": (1,), "attention_at": (8,), "head": 8, "groups": 4}


@pytest.mark.parametrize(
    ("make", "options", "wrong"),
    [
        (
            MLP,
            {"dim": 2},
            [{"dim": 0}, {"width": 0}, {"depth": -1}, {"depth": 0}, {"depth": 10**6}, {"num_classes": 0}],
        ),
        (MLP, {"dim": 2}, [{"cond_dim": -3}, {"time_scale": 0.0}, {"time_scale": NAN}, {"width": 2**40}]),
        (DiT, TRANSFORMER, [{"width": 0}, {"heads": 0}, {"heads": -2}, {"patch": 0}, {"depth": -1}, {"depth": 0}]),
        (DiT, TRANSFORMER, [{"mlp_ratio": v} for v in (0.0, -1.0, NAN, INF, 1e-9)] + [{"out_channels": 0}]),
        (DiT, TRANSFORMER, [{"image_shape": (8, 8, 0)}, {"image_shape": (-8, 8, 1)}, {"num_classes": -1}]),
        (UNet, CONVOLUTIONS, [{"channels": 0}, {"multipliers": ()}, {"multipliers": (0,)}, {"blocks": -1}]),
        (UNet, CONVOLUTIONS, [{"head": 0}, {"groups": 0}, {"groups": -4}, {"out_channels": 0}, {"time_scale": INF}]),
    ],
)
def test_networks_refuse_sizes_that_cannot_be(make, options, wrong):
    jax.eval_shape(lambda: make(**options, rngs=nnx.Rngs(0)))
    for change in wrong:
        with pytest.raises(ValueError, match=f"{next(iter(change))} |{next(iter(change))}="):
            make(**(options | change), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (times.Uniform, [{"start": -0.1}, {"end": 1.1}, {"start": NAN}, {"start": 0.6, "end": 0.4}]),
        (times.LogitNormal, [{"std": -1.0}, {"std": NAN}, {"std": INF}, {"mean": INF}]),
        (times.Mode, [{"scale": -2.0}, {"scale": 2.0}, {"scale": NAN}]),
        (times.Shifted, [{"times": times.Uniform(), "shift": shift} for shift in (0.0, -1.0, NAN)]),
        (VP, [{"beta_max": INF}, {"beta_min": NAN}]),
        (VE, [{"sigma_max": INF}]),
        (EDM, [{"sigma_max": INF}, {"rho": INF}, {"rho": NAN}]),
        (Cosine, [{"offset": INF}]),
    ],
)
def test_laws_and_paths_refuse_numbers_outside_their_range(make, wrong):
    for options in wrong:
        with pytest.raises(ValueError, match=r" must | need"):
            make(**options)
