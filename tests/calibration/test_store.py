import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.calibration import load, model_hash, save

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2])}
RECORD = {"path": "VP", "points": 120, "range": [0.1, 0.9], "guidance": None}


def test_round_trip(tmp_path):
    file = tmp_path / "deep" / "er" / "ems.npz"
    save(file, ARRAYS, RECORD)
    arrays, record = load(file, {"points": 120, "range": (0.1, 0.9)})
    assert record == RECORD
    assert arrays.keys() == ARRAYS.keys()
    assert all(np.array_equal(arrays[k], v) and arrays[k].dtype == v.dtype for k, v in ARRAYS.items())
    assert [f.name for f in file.parent.iterdir()] == ["ems.npz"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "ems.npz"
    save(file, ARRAYS, RECORD)
    with pytest.raises(TypeError):
        save(file, ARRAYS, {"points": object()})
    assert load(file, RECORD)[1] == RECORD


@pytest.mark.parametrize(("name", "value"), [("points", 60), ("range", [0.1, 0.8]), ("model", "abc")])
def test_a_file_of_something_else_is_refused(tmp_path, name, value):
    file = tmp_path / "ems.npz"
    save(file, ARRAYS, RECORD)
    with pytest.raises(ValueError, match=f"was calibrated for {name}=.*: remove it and calibrate again"):
        load(file, {name: value})
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "other.npz", {})


def test_model_hash():
    """Depends on every number, shape and dtype, not on where the arrays are."""
    model = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    assert model_hash(model) == model_hash({"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)})
    assert len(model_hash(model)) == 12
    others = [
        {"w": jnp.ones((2, 3)).at[1, 2].set(1.5), "b": jnp.zeros(3)},
        {"w": jnp.ones((3, 2)), "b": jnp.zeros(3)},
        {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.zeros(3)},
    ]
    assert len({model_hash(m) for m in [model, *others]}) == 4
