"""What a second request to one recipe costs."""

import jax
import numpy as np
import pytest
import small

from flowjax.recipe import Request, sampling


@pytest.mark.slow
def test_another_request_compiles_nothing_anew(caplog):
    recipe = small.recipe()
    networks = {"network": small.network(recipe)}
    first = recipe.sample(networks, Request(num=8, batch=8, seed=1))
    made = sampling._beginning.cache_info().misses
    with jax.log_compiles():
        second = recipe.sample(networks, Request(num=16, batch=8, seed=2))
    said = [record.getMessage() for record in caplog.records]
    assert not [line for line in said if line.startswith("Compiling")], said
    assert sampling._beginning.cache_info().misses == made
    assert first.x.shape == (8, 8, 8, 1)
    assert np.any(second.x[:8] != first.x)
