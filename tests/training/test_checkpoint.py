import jax
import numpy as np
import pytest

from flowjax.training.checkpoint import Checkpoints, flatten, restore_average, unflatten

pytestmark = pytest.mark.standard_promotion


def equal(a, b):
    return all(
        np.array_equal(jax.device_get(x), jax.device_get(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


def test_names_are_readable_and_invertible(problem):
    network = problem().state.network
    flat = flatten(network)
    assert "layers.0.inner.kernel" in flat
    assert equal(unflatten(dict(reversed(flat.items())), network), network)


def test_resumed_training_is_bit_identical(problem, tmp_path):
    p = problem()
    through, _ = p.run(p.state, 7)
    q = problem()
    half, _ = q.run(q.state, 4)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(half)
        # The step donates its state while the checkpoint may still be on its way to the disk.
        half, _ = q.run(half, 1)
    r = problem()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 4
        resumed, _ = r.run(checkpoints.restore(r.state), 3)
    assert equal(resumed, through)


def test_restored_into_another_mesh(problem, tmp_path):
    p, q = problem(), problem(devices=8, fsdp=4)
    state, _ = p.run(p.state, 2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(q.state)
    assert equal(restored, state)
    assert restored.network.layers[0].inner.kernel.sharding == q.state.network.layers[0].inner.kernel.sharding


def test_only_the_newest_are_kept_and_the_average_is_read_alone(problem, tmp_path):
    p = problem()
    state = p.state
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for _ in range(4):
            state, _ = p.run(state, 1)
            checkpoints.save(state)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["3", "4"]
    assert equal(restore_average(tmp_path, state.average), state.average)


def test_average_of_nothing(problem, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="checkpoint"):
            restore_average(folder, problem().state.average)
