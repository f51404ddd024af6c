import numpy as np
import pytest

from flowjax import data


def source(size):
    return data.Source(
        x=np.arange(size, dtype=np.float32)[:, None],
        cond=np.arange(size, dtype=np.int32) % 2,
        num_classes=2,
        shift=1.0,
        scale=2.0,
    )


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (7, 20), (8, 8), (5, 1)])
def test_every_epoch_has_every_example_once_in_its_own_order(size, batch):
    batches = data.Batches(source(size), batch, seed=3)
    stream = np.concatenate([batches.indices(step) for step in range(3 * size)])
    epochs = stream[: 3 * size].reshape(3, size)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(size), (3, 1)))
    assert len({tuple(e) for e in epochs}) == 3


def test_a_batch_depends_on_seed_and_step_only():
    a, b = (data.Batches(source(50), 16, seed=5) for _ in range(2))
    later = a.batch(7)
    for step in range(7):
        b.batch(step)
    again = b.batch(7)
    np.testing.assert_array_equal(later["x1"], again["x1"])
    np.testing.assert_array_equal(later["cond"], again["cond"])
    assert not np.array_equal(later["x1"], data.Batches(source(50), 16, seed=6).batch(7)["x1"])


def test_rows_are_normalised_and_keep_their_labels():
    batches = data.Batches(source(50), 16)
    rows, batch = batches.indices(2), batches.batch(2)
    np.testing.assert_array_equal(batch["x1"], (rows[:, None] - 1) / 2)
    np.testing.assert_array_equal(batch["cond"], rows % 2)
    assert (batch["x1"].dtype, batch["cond"].dtype) == (np.float32, np.int32)
    assert data.Batches(data.toy2d("spiral", size=9), 4).batch(0)["cond"] is None


@pytest.mark.parametrize("count", [2, 4])
def test_processes_read_consecutive_parts_of_the_global_batch(count):
    whole = data.Batches(source(10), 8, seed=1)
    parts = [data.Batches(source(10), 8, seed=1, process_index=i, process_count=count) for i in range(count)]
    for step in range(6):
        np.testing.assert_array_equal(whole.indices(step), np.concatenate([p.indices(step) for p in parts]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size=0), "at least 1"),
        (dict(batch_size=4, seed=-1), "negative"),
        (dict(batch_size=4, process_index=2, process_count=2), r"0\.\.1, got 2"),
        (dict(batch_size=5, process_count=2), "not divisible"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        data.Batches(source(10), **options)
    with pytest.raises(ValueError, match="negative"):
        data.Batches(source(10), 2).batch(-1)
