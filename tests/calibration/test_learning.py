"""Where learning starts, and networks that stop it."""

import jax
import jax.numpy as jnp
import pytest
from pools import LINEAR, euler

import flowjax as fj
from flowjax.calibration import forms, learning, least_squares

OPTIONS = dict(iterations=4, batch=64)


def test_the_best_start_is_the_best(pools):
    rows = forms.starts(LINEAR, 4, 1e-3, 1 - 1e-3)
    assert len(rows) == 3 * len(forms.KNOWN)
    name, error = learning.best_start(rows, [pools[1]])
    assert error == min(least_squares.error([pools[1]], lambda _, one=one: one) for one in rows.values())
    assert name != "euler on uniform"


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_networks_without_numbers_stop_it(dtype):
    """NaN from the start, and an overflow of float16 on the way."""

    def network(x, t, cond):
        return (x.astype(dtype) * (60_000 if dtype == jnp.float16 else jnp.nan) * 2).astype(jnp.float32)

    x = fj.noise(jax.random.key(0), (8, 4))
    spoiled = least_squares.Pool(field=fj.Flow(network, path=LINEAR), x=x, target=x)
    with pytest.raises(ValueError, match="not finite: the network answers with NaN or overflows"):
        least_squares.learn([spoiled], [spoiled], euler(), jax.random.key(0), **OPTIONS)
    with pytest.raises(ValueError, match="not finite"):
        learning.best_start({"euler": euler()}, [spoiled])
