import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flowjax as fj
from flowjax import recipe as recipes
from flowjax.models import MLP
from flowjax.weights import read, write

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def network():
    return MLP(2, width=16, depth=1, num_classes=3, rngs=nnx.Rngs(0))


def test_what_is_written_is_read(network, tmp_path):
    write(tmp_path / "whole.safetensors", network)
    write(tmp_path / "half.safetensors", network, "float16")
    whole = read(tmp_path / "whole.safetensors", network)
    half = read(tmp_path / "half.safetensors", jax.tree.map(lambda leaf: 0 * leaf, network))
    jax.tree.map(np.testing.assert_array_equal, whole, network)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float16)), half, network)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {leaf.dtype for leaf in jax.tree.leaves(network)}


def test_bad_files_are_refused(network, tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(FileNotFoundError):
        read(path, network)
    write(path, network)
    with pytest.raises(FileExistsError, match="exists; move it away"):
        write(path, network)
    other = MLP(2, width=24, depth=1, num_classes=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"does not fit: .* is .* there and .* here"):
        read(path, other)
    with pytest.raises(ValueError, match="float16 cannot hold"):
        write(tmp_path / "large.safetensors", jax.tree.map(lambda leaf: leaf + 1e6, network), "float16")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read(path, network)


def test_an_exported_flow_is_loaded_like_a_run(network, tmp_path):
    recipe = recipes.Recipe(
        network={"name": "MLP", "options": {"dim": 2, "width": 16, "depth": 1, "num_classes": 3}},
        path={"name": "Linear", "options": {}},
        prediction="velocity",
        data={"name": "toy2d", "options": {"law": "spiral"}},
        shape=(2,),
        shift=0.0,
        scale=1.0,
        low=None,
        high=None,
        num_classes=3,
        solver={"name": "heun", "options": {}},
        steps=2,
    )
    fj.export(recipe.flow(network), recipe, tmp_path / "model")
    flow, found = fj.load(tmp_path / "model")
    assert found == recipe
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(flow.network), jax.device_get(network))
    with pytest.raises(ValueError, match="has one set of weights"):
        fj.load(tmp_path / "model", which="best")
    with pytest.raises(FileExistsError):
        fj.export(flow, found, tmp_path / "model")
