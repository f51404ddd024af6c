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


def images(size=9):
    x = np.random.default_rng(0).integers(256, size=(size, 4, 6, 3), dtype=np.uint8)
    return data.Source(x=x, shift=127.5, scale=127.5)


def test_flip_and_crop():
    x = images().x
    u = np.array([[0.4, 0.5, 0.5], [0.6, 0.5, 0.5]])
    flipped = data.Augment(flip=True)(u, x[:2])
    np.testing.assert_array_equal(flipped, np.stack([x[0, :, ::-1], x[1]]))
    # One third each: moved by -1, 0, 1.
    u = np.array([[0.9, 0.1, 0.5], [0.9, 0.5, 0.9]])
    moved = data.Augment(crop=1)(u, x[:2])
    np.testing.assert_array_equal(moved[0], x[0, [0, 0, 1, 2]])
    np.testing.assert_array_equal(moved[1], x[1][:, [1, 2, 3, 4, 5, 5]])
    with pytest.raises(ValueError, match="negative"):
        data.Augment(crop=-1)
    with pytest.raises(ValueError, match="only images"):
        data.Batches(source(10), 2, augment=data.Augment(flip=True))
    assert data.Batches(source(10), 2, augment=data.Augment()).batch(0)["x1"].shape == (2, 1)


def test_augmentation_changes_with_the_step_and_not_with_the_processes():
    augment = data.Augment(flip=True, crop=1)
    one = data.Source(x=images(1).x)
    whole = data.Batches(one, 64, seed=2, augment=augment)
    assert len(np.unique(whole.batch(0)["x1"], axis=0)) > 12
    assert not np.array_equal(whole.batch(0)["x1"], whole.batch(1)["x1"])
    parts = [data.Batches(one, 64, 2, i, 4, augment) for i in range(4)]
    np.testing.assert_array_equal(whole.batch(3)["x1"], np.concatenate([p.batch(3)["x1"] for p in parts]))


@pytest.mark.parametrize("threads", [None, 0, 3])
def test_grain_reads_the_same_batches_and_resumes_exactly(threads):
    batches = data.Batches(images(), 4, seed=1, augment=data.Augment(flip=True, crop=1))
    expected = [batches.batch(step)["x1"] for step in range(12)]
    iterator = batches.iterator(threads=threads)
    for step in range(5):
        np.testing.assert_array_equal(next(iterator)["x1"], expected[step])
    state = iterator.get_state()
    next(iterator)
    iterator.close()
    for resumed in (batches.iterator(threads=threads), batches.iterator(5, threads=threads)):
        if resumed.get_state() != state:
            resumed.set_state(state)
        for step in range(5, 12):
            np.testing.assert_array_equal(next(resumed)["x1"], expected[step])
        resumed.close()


def test_grain_shards_partition_every_epoch():
    numbers = data.Source(x=np.arange(12.0)[:, None])
    streams = [data.Batches(numbers, 4, 0, i, 2).iterator(threads=2) for i in range(2)]
    rows = [np.concatenate([next(s)["x1"] for _ in range(6)]).ravel() for s in streams]
    for epoch in range(2):
        assert sorted(np.concatenate([r[6 * epoch :][:6] for r in rows])) == list(range(12))
    for stream in streams:
        stream.close()
    assert next(iter(data.Batches(numbers, 4).dataset()[3:5]))["x1"].shape == (4, 1)


def test_batches_beyond_the_memory_are_refused():
    source = data.digits()
    with pytest.raises(ValueError, match=r"batch_size=99999999999999 would take .* GiB, more than half of the memory"):
        data.Batches(source, 99_999_999_999_999)
    data.Batches(source, 2**20)


def test_moves_are_smaller_than_the_images():
    with pytest.raises(ValueError, match="crop=8 must be smaller than the images, 8x8"):
        data.Batches(data.digits(), 4, augment=data.Augment(crop=8))
    data.Batches(data.digits(), 4, augment=data.Augment(crop=7)).batch(0)


def test_fields_go_with_their_examples():
    numbers = np.arange(10)
    x = numbers.astype(np.float32)[:, None]
    tokens = data.Records((10, 2), np.dtype(np.int64), lambda row: np.array([row, 2 * row]))
    several = data.Source(
        x=x, shift=3.0, fields={"x0": -x.astype(np.float64), "text": tokens, "seen": numbers % 2 == 0}
    )
    batches = data.Batches(several, 4, seed=1)
    iterator = batches.iterator()  # reads ahead, since the tokens are not in memory
    for step in range(4):
        rows, batch = batches.indices(step), next(iterator)
        np.testing.assert_array_equal(batch["x1"], rows[:, None] - 3)
        np.testing.assert_array_equal(batch["x0"], -rows[:, None])
        np.testing.assert_array_equal(batch["text"], np.stack([rows, 2 * rows], 1))
        np.testing.assert_array_equal(batch["seen"], rows % 2 == 0)
        assert [batch[name].dtype for name in ("x0", "text", "seen")] == [np.float32, np.int32, np.int32]
    iterator.close()


def test_refuses_fields_that_would_be_wrong():
    texts = data.Source(x=images(3).x, fields={"text": np.array(["a", "b", "c"])})
    with pytest.raises(ValueError, match="the field text holds texts; put their tokens in its place"):
        data.Batches(texts, 2)
    pairs = data.Source(x=images(3).x, fields={"x0": images(3).x})
    data.Batches(pairs, 2, augment=data.Augment())
    with pytest.raises(ValueError, match="images with the fields x0 are not augmented"):
        data.Batches(pairs, 2, augment=data.Augment(flip=True))
