import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.flax import save_file

import flowjax as fj
from flowjax import recipe as recipes
from flowjax._trees import flatten
from flowjax.models import MLP
from flowjax.weights import read, write

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def network():
    return MLP(2, width=16, depth=1, num_classes=3, rngs=nnx.Rngs(0))


@pytest.mark.slow
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


def test_every_flipped_bit_is_noticed(tmp_path):
    """Or changes nothing: the padding and the names of other metadata."""
    small = {"a": jnp.arange(3.0), "b": jnp.arange(4, dtype=jnp.int32), "c": jnp.ones((2, 1), jnp.float16)}
    path, other = tmp_path / "whole.safetensors", tmp_path / "flipped.safetensors"
    write(path, small)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        other.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            jax.tree.map(np.testing.assert_array_equal, read(other, small), small)
        except ValueError:
            refused += 1
    assert refused > len(content) - 40


@pytest.mark.parametrize("change", ["swapped", "exchanged", "other type"])
def test_changed_content_is_refused(tmp_path, change):
    small = {"a": jnp.arange(3, dtype=jnp.float16), "b": jnp.ones(3, jnp.float16)}
    path = tmp_path / "weights.safetensors"
    write(path, small)
    content = path.read_bytes()
    if change == "swapped":  # 0, 1, 2 to 0, 2, 1
        one, two = (np.float16(value).tobytes() for value in (1, 2))
        changed = content.replace(one + two, two + one, 1)
    elif change == "exchanged":
        changed = content.replace(b'"a":', b'"x":').replace(b'"b":', b'"a":').replace(b'"x":', b'"b":')
    else:
        changed = content.replace(b'"F16"', b'"I16"')
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="has changed since it was written"):
        read(path, small)


def test_files_without_a_checksum_are_read_if_they_fit(network, tmp_path):
    path = tmp_path / "foreign.safetensors"
    flat = flatten(network)
    save_file(dict(flat), path)
    jax.tree.map(np.testing.assert_array_equal, read(path, network), network)
    name = next(iter(flat))
    save_file({**flat, name: jax.lax.bitcast_convert_type(flat[name], jnp.int32)}, path)
    with pytest.raises(ValueError, match=f"does not fit: {name} is int32 there and float32 here"):
        read(path, network)
    save_file({**flat, name: flat[name].at[0].set(jnp.inf)}, path)
    with pytest.raises(ValueError, match=f"is refused: {name} has values that are NaN or infinite in float32"):
        read(path, network)


def test_values_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="b has NaN or infinite values"):
        write(tmp_path / "x.safetensors", {"a": jnp.ones(2), "b": jnp.array([1.0, jnp.nan])})
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(FileExistsError, match=r"holds a recipe\.json; export to another folder"):
        fj.export(flow, found, tmp_path / "model")
    recipe.save(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds a recipe\.json"):  # a run would have two sets of weights
        fj.export(flow, found, tmp_path)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, network)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fj.export(recipe.flow(broken), recipe, tmp_path / "broken")
