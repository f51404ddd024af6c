"""Latents as a data set: exact statistics, laws to draw from, what lies in the folder."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from flowjax.data import Batches, Records, Source, cache_latents, latents, store


def source(count=40):
    x = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)
    return Source(x=x, shift=127.5, scale=127.5)


def encode(x):
    """Mean and deviation of every entry by itself: far from zero, where one pass over squares would cancel."""
    z = x.reshape(-1, 2, 2, 4)
    return 1000 + np.arange(1, 17, dtype=np.float32).reshape(2, 2, 4) * z


def test_two_passes_are_exact_where_one_cancels():
    rng = np.random.default_rng(0)
    small = rng.normal(size=(1000, 3))
    x = small + np.array([0.0, 1e6, -1e9])
    mean, variance = latents.measure(x)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-9)
    squares = (x**2).mean(0) - x.mean(0) ** 2  # what one pass makes of the last column
    assert abs(squares[2] - variance[2]) > 0.5


def test_blocks_of_large_examples_are_read_one_after_the_other():
    """No more than a mebi of numbers at once, and each example twice."""
    x, most = np.random.default_rng(0).normal(size=(7, 600_000)).astype(np.float32), []

    class Rows(Records):
        def __getitem__(self, rows):
            found = super().__getitem__(rows)
            most.append(found.size)
            return found

    mean, variance = latents.measure(Rows(x.shape, x.dtype, lambda row: x[row]))
    assert max(most) <= 2**20
    assert sum(most) == 2 * x.size
    np.testing.assert_allclose(variance, x.astype(np.float64).var(0), rtol=1e-12)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-12, atol=1e-15)


def test_numbers_of_all_entries_follow_from_those_of_each():
    x = np.random.default_rng(0).normal(size=(50, 2, 3)) * np.arange(1, 7).reshape(2, 3) + np.arange(6).reshape(2, 3)
    np.testing.assert_allclose(latents.overall(*latents.measure(x)), (x.mean(), x.std()), rtol=1e-12)
    with pytest.raises(ValueError, match="not all equal"):
        latents.overall(*latents.measure(np.ones((3, 2))))


def test_normalised_latents_have_mean_0_and_deviation_1_and_come_back(tmp_path):
    cache_latents(encode, source(), tmp_path / "set", block=8)
    found = latents.read_latents(tmp_path / "set")
    mean, variance = latents.statistics(tmp_path / "set", found)
    z = encode(source().normalize(source().x.astype(np.float32)))
    np.testing.assert_allclose(mean, z.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance, z.astype(np.float64).var(0), rtol=1e-9)
    np.testing.assert_allclose([found.shift, found.scale], [z.mean(dtype=float), z.astype(float).std()], rtol=1e-9)
    shift, scale = mean.astype(np.float32), np.sqrt(variance + 1e-5).astype(np.float32)
    by_entry = Source(x=found.x, shift=shift, scale=scale)
    normal = by_entry.normalize(found.x)
    np.testing.assert_allclose(normal.astype(float).mean(0), 0, atol=2e-4)
    np.testing.assert_allclose(normal.astype(float).std(0), 1, atol=2e-4)
    back = by_entry.denormalize(normal)
    np.testing.assert_allclose(back, found.x, rtol=1e-5)


def test_statistics_of_an_older_folder_are_made_and_broken_ones_refused(tmp_path):
    folder = tmp_path / "set"
    cache_latents(encode, source(), folder, block=8)
    found, file = latents.read_latents(folder), folder / latents.STATISTICS
    known = latents.statistics(folder, found)
    file.unlink()
    for a, b in zip(latents.statistics(folder, found), known, strict=True):
        np.testing.assert_array_equal(a, b)
    assert file.exists()
    mean, variance = known
    for arrays in ({"mean": mean}, {"mean": mean, "variance": -variance}, {"mean": mean[0], "variance": variance[0]}):
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match="remove it, and it is made again"):
            latents.statistics(folder, found)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        latents.statistics(folder, found)


def without_digests(folder, **changes):
    """Metadata as older versions wrote them."""
    file = folder / "metadata.json"
    record = {**json.loads(file.read_text()), **changes}
    del record["digests"]
    file.write_text(json.dumps(record))


def other(count=40):
    """Darker pictures of the same shape."""
    return dataclasses.replace(source(count), x=source(count).x // 2)


@pytest.mark.parametrize("law", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_statistics_of_another_set_are_refused(tmp_path, law, old):
    for name, examples in (("set", source()), ("other", other())):
        cache_latents(posterior if law else encode, examples, tmp_path / name, block=8, posterior=law)
        if old:
            without_digests(tmp_path / name)
    folder, file = tmp_path / "set", tmp_path / "set" / latents.STATISTICS
    found = latents.read_latents(folder, posterior=law)
    known = latents.statistics(folder, found)
    shutil.copy(tmp_path / "other" / latents.STATISTICS, file)
    with pytest.raises(ValueError, match="arrays are those of other latents; remove it, and it is made again") as error:
        latents.statistics(folder, found)
    assert "\n" not in str(error.value)
    file.unlink()
    for _ in range(2):  # measured, then read
        for a, b in zip(latents.statistics(folder, found), known, strict=True):
            np.testing.assert_array_equal(a, b)
    assert "statistics" in json.loads((folder / "metadata.json").read_text())["digests"]


@pytest.mark.parametrize("old", [False, True])
def test_another_scale_than_that_of_the_latents_is_refused(tmp_path, old):
    cache_latents(encode, source(), tmp_path / "set", block=8)
    cache_latents(encode, other(), tmp_path / "other", block=8)
    file = tmp_path / "set" / "metadata.json"
    there, own = (json.loads((tmp_path / name / "metadata.json").read_text()) for name in ("other", "set"))
    if old:
        without_digests(tmp_path / "set")
        latents.read_latents(tmp_path / "set")
        own.pop("digests")
    for changes in ({"shift": there["shift"], "scale": there["scale"]}, {"scale": 3 * own["scale"]}):
        file.write_text(json.dumps(own | changes))
        with pytest.raises(ValueError, match=r"not those of its latents; remove .*set, and it is made again") as error:
            latents.read_latents(tmp_path / "set")
        assert "\n" not in str(error.value)


def posterior(x):
    z = x.reshape(-1, 2, 2, 4)
    return np.concatenate([3 * z + 2, 0.5 + np.abs(z)], axis=-1)


def test_batches_draw_anew_by_example_and_step(tmp_path):
    cache_latents(posterior, source(), tmp_path / "set", block=8, posterior=True)
    found = latents.read_latents(tmp_path / "set", posterior=True)
    z = posterior(source().normalize(source().x.astype(np.float32)))
    mean, deviation = z[..., :4], z[..., 4:]
    np.testing.assert_allclose(found.x, mean, rtol=1e-6)
    np.testing.assert_allclose(found.deviation, deviation, rtol=1e-6)
    total = mean.astype(float).var() + (deviation.astype(float) ** 2).mean()  # what is drawn has, not the means
    np.testing.assert_allclose([found.shift, found.scale], [mean.mean(dtype=float), np.sqrt(total)], rtol=1e-5)

    batches = Batches(found, 20)
    first, rows = batches.batch(3)["x1"], batches.indices(3)
    np.testing.assert_array_equal(first, batches.batch(3)["x1"])
    drawn = (first * found.scale + found.shift - mean[rows]) / deviation[rows]
    assert 0.9 < drawn.std() < 1.1
    assert abs(drawn.mean()) < 0.2
    assert not np.allclose(drawn, np.roll(drawn, 1, axis=0))
    # The same rows, whoever reads them, and other numbers in the next epoch.
    halves = [Batches(found, 20, process_index=i, process_count=2).batch(3)["x1"] for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), first)
    later = Batches(found, 40).batch(1)["x1"]
    again = Batches(found, 40).batch(0)["x1"]
    order = [np.argsort(Batches(found, 40).indices(step)) for step in (0, 1)]
    assert np.abs(again[order[0]] - later[order[1]]).min(axis=(1, 2, 3)).max() > 0


def test_drawn_latents_have_the_measured_scale(tmp_path):
    cache_latents(posterior, source(), tmp_path / "set", block=8, posterior=True)
    found = latents.read_latents(tmp_path / "set", posterior=True)
    mean, variance = latents.statistics(tmp_path / "set", found)
    drawn = np.concatenate([Batches(found, 40, seed=seed).batch(0)["x1"] for seed in range(50)])
    z = drawn * found.scale + found.shift
    np.testing.assert_allclose(z.mean(0), mean, atol=0.3)
    np.testing.assert_allclose(z.var(0), variance, rtol=0.15)


def test_parts_of_a_set_keep_their_deviations(tmp_path):
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    whole = Source(x=x, deviation=np.abs(x))
    few = whole.take(4)
    np.testing.assert_array_equal(np.abs(few.x), few.deviation)
    with pytest.raises(ValueError, match="deviation must have the shape"):
        Source(x=x, deviation=x[:, :2])
    with pytest.raises(ValueError, match="shift is a number or has the shape"):
        Source(x=x, shift=np.zeros(2))
    with pytest.raises(ValueError, match="scale positive"):
        Source(x=x, scale=np.array([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="not laws of them"):
        store(whole, tmp_path / "set")
