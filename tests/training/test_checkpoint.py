import dataclasses
import json

import jax
import numpy as np
import pytest

from flowjax._trees import flatten, unflatten
from flowjax.training import store
from flowjax.training.checkpoint import Checkpoints, reconstruct, restore_average
from flowjax.training.ema import Constant, Power, snapshot_items
from flowjax.training.store import Store

pytestmark = pytest.mark.standard_promotion


def equal(a, b):
    return all(
        np.array_equal(jax.device_get(x), jax.device_get(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


@pytest.mark.slow
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


@pytest.mark.slow
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


def saved(problem, folder, scores=(None, None, None), **options):
    """Three checkpoints, and the states they hold."""
    p, states = problem(**options), []
    state = p.state
    with Checkpoints(folder, keep=3) as checkpoints:
        for score in scores:
            state, _ = p.run(state, 1)
            states.append(jax.device_get(state))
            checkpoints.save(state, score)
    return p, states


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# Where the sizes of the files are unknown, Orbax meets the damage itself; its abandoned reads complain when collected.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [halve, flip, lambda path: path.unlink()], ids=["truncated", "flipped", "missing"])
@pytest.mark.parametrize("item", ["state", "average"])
def test_damaged_newest_is_passed_over(problem, tmp_path, item, damage):
    _, states = saved(problem, tmp_path)
    damage(largest(tmp_path / "3" / item))
    q = problem()
    if item == "average":
        with pytest.warns(UserWarning, match=r"damaged checkpoints in .*: \[3\]; step 2 is used"):
            assert equal(restore_average(tmp_path, q.state.average), states[1].average)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        state = checkpoints.restore(q.state)
        assert equal(state, states[1])
        assert checkpoints.damaged == [3]
        assert checkpoints.latest == 2
        checkpoints.save(q.run(state, 1)[0])
    assert equal(restore_average(tmp_path, q.state.average), states[2].average)


@pytest.mark.slow
def test_checksum_knows_the_order_and_every_bit(problem):
    x = jax.random.normal(jax.random.key(0), (8, 3, 2))

    def checksum(x):
        manifest, bad = store._manifest({"average": {"x": x}})
        assert bad is None
        return manifest["average"]["x"][2]

    known = checksum(x)
    others = [x[::-1], x.at[0].set(x[1]).at[1].set(x[0]), x[:, ::-1], x.at[2, 1, 0].multiply(-1)]
    others.append(x.at[3].set(-x[4]).at[4].set(-x[3]))
    bits = jax.lax.bitcast_convert_type(x, jax.numpy.uint32)
    others += [jax.lax.bitcast_convert_type(bits.at[5, 2, 1].set(bits[5, 2, 1] ^ 1 << i), "float32") for i in range(23)]
    found = [checksum(other) for other in others]
    assert known not in found
    assert len(set(found)) == len(found)
    mesh = problem(devices=8).batch["x1"].sharding.mesh
    assert checksum(jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))) == known


def test_checkpoints_with_the_older_checksum_are_read(problem, tmp_path, monkeypatch):
    """Those were numbers, the sums of the bit patterns, and the manifest had no checksum of its own."""
    new, save = store._manifest, store.ocp.args.JsonSave
    monkeypatch.setattr(store, "_manifest", lambda items, ordered=False: new(items, False))
    monkeypatch.setattr(
        store.ocp.args, "JsonSave", lambda value: save({k: v for k, v in value.items() if k != "sha256"})
    )
    p, states = saved(problem, tmp_path)
    monkeypatch.undo()
    manifest = json.loads((tmp_path / "3" / "manifest" / "metadata").read_text())
    assert set(manifest) == {"average", "state"}
    assert isinstance(manifest["state"]["step"][2], int)
    with Checkpoints(tmp_path) as checkpoints:
        assert equal(checkpoints.restore(p.state), states[2])
        assert checkpoints.damaged == []


def spoiled(state):
    """One parameter and its average are NaN."""
    return jax.tree.map(lambda leaf: leaf.at[..., 0].set(np.nan) if leaf.ndim == 2 else leaf, state)


def test_networks_that_are_not_finite_are_neither_written_nor_read(problem, tmp_path, monkeypatch):
    p, states = saved(problem, tmp_path)
    state, _ = p.run(jax.device_put(states[2]), 1)
    bad = dataclasses.replace(state, averages={"average": spoiled(state.average)})
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        with pytest.raises(ValueError, match=r"4 is not written: average/\S+ has values that are NaN or infinite"):
            checkpoints.save(bad)
        with pytest.raises(ValueError, match=r"4 is not written: state/network\S+ has values"):
            checkpoints.save(dataclasses.replace(state, networks=spoiled(state.networks)))
        assert checkpoints.steps == [1, 2, 3]
        # As they were written before.
        whole = store._manifest
        monkeypatch.setattr(store, "_manifest", lambda *arguments: (whole(*arguments)[0], None))
        checkpoints.save(bad)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"\[4\]; step 3 is used; .*4 is of no use: average/\S+ has values"):
        assert equal(restore_average(tmp_path, p.state.average), states[2].average)
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        assert equal(checkpoints.restore(p.state), states[2])
        assert "is of no use" in checkpoints.damage


def test_readers_write_nothing(problem, tmp_path):
    """Also while the run that they read from is between the end of a write and its entry in the index."""
    p, states = saved(problem, tmp_path)
    index = tmp_path / "index.json"
    entries = json.loads(index.read_text())
    del entries["3"]["sizes"]
    index.write_text(json.dumps(entries))
    (tmp_path / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert equal(restore_average(tmp_path, p.state.average), states[2].average)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", ["", "\0\0\0", "[]", "{", '{"3": 1}', '{"x": {}}', '{"3": {"score": 1.0, "sizes": 2}}']
)
def test_a_broken_index_loses_the_scores_only(problem, tmp_path, content):
    p, states = saved(problem, tmp_path, (1.0, 2.0, 3.0))
    (tmp_path / "index.json").write_text(content)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.index_lost
        assert equal(checkpoints.restore(p.state), states[2])
        checkpoints.save(p.run(jax.device_put(states[2]), 1)[0], 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.index_lost
        assert checkpoints.ranked(checkpoints.steps) == [4]


def test_a_changed_manifest_is_damage(problem, tmp_path):
    p, states = saved(problem, tmp_path)
    path = tmp_path / "3" / "manifest" / "metadata"
    path.write_text(path.read_text().replace("float32", "float64", 1))
    with Checkpoints(tmp_path) as checkpoints:
        assert equal(checkpoints.restore(p.state), states[1])
        assert "the manifest has changed" in checkpoints.damage


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damage_is_found_without_the_index(problem, tmp_path):
    """A run killed between the end of a write and its entry in the index."""
    p, states = saved(problem, tmp_path)
    (tmp_path / "index.json").write_text("{")
    halve(largest(tmp_path / "3"))
    with Checkpoints(tmp_path) as checkpoints:
        assert equal(checkpoints.restore(p.state), states[1])


def test_nothing_but_damage(problem, tmp_path):
    p, _ = saved(problem, tmp_path)
    for step in "123":
        largest(tmp_path / step).unlink()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(FileNotFoundError, match=r"damaged: \[3, 2, 1\]"):
        checkpoints.restore(p.state)


@pytest.mark.slow
def test_another_structure_is_not_damage(problem, tmp_path):
    saved(problem, tmp_path)
    q = problem(averages={"slow": Constant(decay=0.9)})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"checkpoint 3 does not fit: average-slow/\S+ is absent there"):
            checkpoints.restore(q.state)
        assert checkpoints.steps == [1, 2, 3]


def test_best_is_kept_and_loaded(problem, tmp_path):
    p = problem()
    state, averages = p.state, {}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, score in enumerate((3.0, 1.0, float("nan"), 2.0, 4.0), 1):
            state, _ = p.run(state, 1)
            averages[step] = jax.device_get(state.average)
            checkpoints.save(state, score)
        assert checkpoints.ranked(checkpoints.steps)[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "5"]
    assert equal(restore_average(tmp_path, p.state.average, "best"), averages[2])
    assert equal(restore_average(tmp_path, p.state.average), averages[5])
    with pytest.raises(ValueError, match="'latest' or 'best', got 'first'"):
        restore_average(tmp_path, p.state.average, "first")


@pytest.mark.slow
def test_further_averages_and_reconstruction(problem, tmp_path):
    laws = {"a": Power(std=0.05), "b": Power(std=0.1), "c": Constant(decay=0.5)}
    p, states = saved(problem, tmp_path / "checkpoints", averages=laws)
    assert equal(restore_average(tmp_path / "checkpoints", p.state.average, name="c"), states[2].averages["c"])
    with Store(tmp_path / "snapshots") as snapshots:
        for step, state in enumerate(states, 1):
            snapshots.put(step, snapshot_items(laws, state.averages))
    found = reconstruct(tmp_path / "snapshots", p.state.average, 0.1, step=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, states[1].averages["b"])
    with pytest.raises(FileNotFoundError, match="no snapshots"):
        reconstruct(tmp_path / "checkpoints", p.state.average, 0.1)


def test_average_of_nothing(problem, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="checkpoint"):
            restore_average(folder, problem().state.average)
