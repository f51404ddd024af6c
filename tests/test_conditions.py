"""Conditions by name: learned from data, read from command lines, dropped, guided; texts from data to pictures."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from runs import task_of

import flowjax as fj
from flowjax import _cli, calibrate, data, evaluate, sample, specs, train
from flowjax.conditions import EXAMPLES, Label, Text, Vector, of_data, with_conditions
from flowjax.data import captions
from flowjax.data.texts import FILE
from flowjax.objectives import FlowMatching
from flowjax.recipe import Recipe
from flowjax.tasks import make_task
from flowjax.training import make_mesh

TEXTS = np.array(["a red circle", "a blue circle", "A red  square!", ""])


def source(**changes):
    fields = {
        "text": TEXTS,
        "pose": np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]]),
        "turn": np.array([0.5, 1, 2, 3], np.float32),
        "colour": np.array([0, 2, 0, 1]),
    }
    made = data.Source(x=np.zeros((4, 2), np.float32), cond=np.array([1, 0, 1, 1]), num_classes=2, names=("u", "v"))
    return dataclasses.replace(made, fields=fields, **changes)


# ------------------------------------------------------------------------------------------------------------- texts


def test_a_text_is_learned_read_and_shown():
    text = Text.learn(TEXTS)
    assert (text.length, text.examples) == (4, ("a red circle", "a blue circle", "a red square !"))
    tokens = text.encode(TEXTS)
    np.testing.assert_array_equal(text.null, tokens[3])  # the empty text
    assert text.struct.shape == tokens.shape[1:]
    assert text.decode(tokens).tolist() == ["a red circle", "a blue circle", "a red square !", ""]
    np.testing.assert_array_equal(text.read("A RED circle", 2), [tokens[0]] * 2)
    np.testing.assert_array_equal(text.default(5), tokens[[0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(dataclasses.replace(text, examples=()).default(2), [text.null] * 2)
    spelled = text.read("a fox", 1)[0]
    assert spelled.tolist() == [tokens[0, 0], *(1 + byte for byte in b"fox")]  # what it has never seen, in bytes
    assert text.encoder == {"vocabulary": 257 + 6, "length": 4}
    assert tokens.max() < text.encoder["vocabulary"]


def test_examples_are_spread_over_the_data_and_never_too_long():
    many = np.array([f"body {i} of a long list of bodies" for i in range(1000)])
    text = Text.learn(many, length=3)
    assert len(text.examples) == EXAMPLES
    assert text.examples[0] != text.examples[-1]
    assert text.default(200).shape == (200, 3)
    assert (text.encode(many) > 0).all()  # cut to the three tokens that were asked for


def test_texts_of_a_file(tmp_path):
    text, file = Text.learn(TEXTS), tmp_path / "texts.txt"
    file.write_text("a blue circle\na red circle\n")
    found = text.read(f"@{file}", 3)
    np.testing.assert_array_equal(found, text.encode(TEXTS[[1, 0, 1]]))
    for content, message in ((b"", "it has no line"), (b"\xff", "it is no text in UTF-8")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            text.read(f"@{file}", 3)
    with file.open("wb") as large:
        large.truncate(FILE + 1)
    with pytest.raises(ValueError, match=r"texts\.txt: it has more than 16 MiB"):
        text.read(f"@{file}", 3)
    for place, message in (("missing.txt", "No such file"), ("", "Is a directory")):
        with pytest.raises(ValueError, match=f"cannot read texts from .*: {message}"):
            text.read(f"@{tmp_path / place}", 3)
    with pytest.raises(ValueError, match="text 0 has 11 tokens, at most 4 are allowed; shorten 'an elephant'"):
        text.read("an elephant", 1)


# ------------------------------------------------------------------------------------------------------ from the data


def test_conditions_are_learned_from_the_data():
    asked = {
        "label": "label",
        "text": "text(length=6)",
        "pose": "vector",
        "turn": "vector",
        "colour": specs.parse("label"),
    }
    found = of_data(source(), asked)
    assert found["label"] == Label(classes=2, names=("u", "v"))
    assert found["colour"] == Label(classes=3)
    assert (found["pose"], found["turn"], found["text"].length) == (Vector(dim=2), Vector(dim=1), 6)
    batch = data.Batches(with_conditions(source(), found), 4, 0).batch(0)
    rows = np.argsort(batch["cond"]["turn"][:, 0])
    assert set(batch) == {"x1", "cond"}
    assert batch["cond"]["label"][rows].tolist() == [1, 0, 1, 1]
    assert batch["cond"]["colour"][rows].tolist() == [0, 2, 0, 1]
    np.testing.assert_array_equal(batch["cond"]["pose"][rows], source().fields["pose"])
    np.testing.assert_array_equal(batch["cond"]["text"][rows], found["text"].encode(TEXTS))
    assert {name: rows.dtype.kind for name, rows in batch["cond"].items()} == {
        "label": "i", "text": "i", "pose": "f", "turn": "f", "colour": "i"
    }  # fmt: skip
    for name, condition in found.items():
        assert specs.build("condition", specs.spec_of("condition", condition)) == condition, name
    # Without names: bare labels, as ever; fields that are no conditions stay beside them, and texts are nobody's.
    bare = data.Batches(with_conditions(source(), {}), 4, 0).batch(0)
    assert set(bare) == {"x1", "cond", "pose", "turn", "colour"}
    assert bare["cond"].shape == (4,)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"txt": "text"}, "the data has no condition 'txt'; it has label, text, pose, turn, colour"),
        ({"text": "txt"}, "unknown condition 'txt'; did you mean 'text'"),
        ({"text": "text(lenght=3)"}, "condition text has no option lenght; it has length, vocabulary"),
        ({"text": "label"}, "integer labels, got <U"),
        ({"text": "vector"}, "vectors are numbers"),
        ({"pose": "text"}, r"texts are expected, got float64 \(4, 2\)"),
        ({"pose": "vector(dim=3)"}, r"vectors are numbers \(N, 3\), got float64"),
        ({"turn": "label"}, "integer labels, got float32"),
        ({"colour": "label(classes=2)"}, r"labels must be 0\.\.1, got 0\.\.2"),
        ({"text": "text(length=0)"}, "length must be at least 1"),
        ({"text": 5}, "a spec is a text such as"),
    ],
)
def test_what_the_data_has_not_is_one_line(asked, message):
    with pytest.raises(ValueError, match=message):
        of_data(source(), asked)


def test_an_npz_file_brings_texts_and_labels(tmp_path):
    """Two labels and a text, from the file to the dict that a network gets."""
    rng = np.random.default_rng(0)
    arrays = {"images": rng.random((4, 2)), "labels": np.array([0, 1, 1, 0]), "colour": np.array([2, 0, 1, 2])}
    np.savez(tmp_path / "data.npz", **arrays, text=TEXTS)
    found = data.load("npz", path=str(tmp_path / "data.npz"), fields=("text", "colour"))
    asked = {"label": "label", "colour": "label", "text": "text"}
    made = with_conditions(found, of_data(found, asked))
    cond = data.Batches(made, 4, 0).batch(0)["cond"]
    assert {name: rows.shape for name, rows in cond.items()} == {"label": (4,), "colour": (4,), "text": (4, 4)}


def test_labels_by_name_may_be_augmented_and_texts_may_not():
    pictures = data.Source(x=np.zeros((4, 4, 4, 1), np.float32), cond=np.arange(4) % 2, num_classes=2)
    flip = data.Augment(flip=True)
    labelled = with_conditions(pictures, of_data(pictures, {"label": "label"}))
    assert data.Batches(labelled, 2, 0, augment=flip).batch(0)["cond"]["label"].shape == (2,)
    texts = dataclasses.replace(pictures, fields={"text": np.array(["left", "right"] * 2)})
    with pytest.raises(ValueError, match="images with the fields text are not augmented"):
        data.Batches(with_conditions(texts, of_data(texts, {"text": "text"})), 2, 0, augment=flip)


# ------------------------------------------------------------------------------------------------ dropout and guidance

NULL = {"label": np.int32(3), "text": np.zeros(4, np.int32), "pose": np.zeros(2, np.float32)}


def conditions(size):
    return {
        "label": jnp.zeros(size, jnp.int32),
        "text": jnp.ones((size, 4), jnp.int32),
        "pose": jnp.ones((size, 2)),
    }


@pytest.mark.slow
def test_dropout_takes_all_conditions_of_an_example_or_none():
    batch = {"x1": jnp.zeros((4096, 1)), "cond": conditions(4096)}
    draws = FlowMatching(path=fj.paths.Linear(), label_dropout=0.25, null=NULL).draw(jax.random.key(0), batch)
    dropped = {
        name: np.all(np.asarray(rows) == NULL[name], axis=tuple(range(1, rows.ndim)))
        for name, rows in draws.cond.items()
    }
    np.testing.assert_array_equal(dropped["label"], dropped["text"])
    np.testing.assert_array_equal(dropped["label"], dropped["pose"])
    assert abs(dropped["label"].mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4096)
    kept = ~dropped["label"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[kept], b[kept]), draws.cond, batch["cond"])
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), draws.cond, batch["cond"])
    for rate, expected in ((0.0, batch["cond"]), (1.0, NULL)):
        all_ = FlowMatching(path=fj.paths.Linear(), label_dropout=rate, null=NULL).draw(jax.random.key(0), batch)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.broadcast_to(b, a.shape)), all_.cond, expected)


def test_guidance_extrapolates_from_the_null_of_every_condition():
    """v = (label, sum of tokens) + pose, so that v(c) = (0, 4) + 1 and v(null) = (3, 0) + 0."""

    def network(x, t, cond):
        first = cond["label"].astype(x.dtype)
        return jnp.stack([first, jnp.sum(cond["text"], 1).astype(x.dtype)], 1) + cond["pose"]

    flow = fj.Flow(network, path=fj.paths.Linear(), null=NULL)
    x = jnp.zeros((5, 2))
    for scale in (1.0, 0.0, 2.5):
        found = fj.guide(flow, fj.guidance.CFG(scale=scale)).velocity(0.5, x, conditions(5))
        c, u = np.array([1.0, 5.0]), np.array([3.0, 0.0])
        np.testing.assert_allclose(found, np.broadcast_to(u + scale * (c - u), (5, 2)), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ the task


@pytest.mark.standard_promotion
def test_samples_are_compared_under_the_conditions_of_the_data(task):
    """Spread over all examples, of which those of a class may lie together."""
    texts = [f"a {colour} circle" for colour in captions.COLOURS for _ in range(25)]
    made = dataclasses.replace(task.source, x=np.zeros((100, 16, 16, 3), np.uint8), fields={"text": np.array(texts)})
    for num, among in ((8, 100), (300, 100), (4, 50)):
        cond = task.recipe.matching(made, num, among)
        seen = task.recipe.inputs["text"].decode(cond["text"]).tolist()
        assert [seen.count(text) for text in dict.fromkeys(texts)] == [num // (among // 25)] * (among // 25) + [0] * (
            4 - among // 25
        )


def config(**changes):
    found = _cli.load_config("captions:smoke")
    with found.unlocked():
        found.update(changes)
    return found


@pytest.fixture(scope="module")
def task():
    return task_of(config())


@pytest.mark.standard_promotion
def test_encoders_get_the_sizes_of_the_data(task):
    encoder = task.recipe.network["options"]["encoders"]["text"]["options"]
    known = task.recipe.inputs["text"]
    assert {name: encoder[name] for name in ("vocabulary", "length")} == known.encoder
    assert "a" in known.words
    np.testing.assert_array_equal(task.objective.null["text"], known.null)
    made = config()
    with made.unlocked():
        made.network.options.encoders.text.options.length = 5
    with pytest.raises(ValueError, match="the encoder text has length=5, the data 16: leave length out"):
        task_of(made)
    with made.unlocked():
        made.network.options.encoders.text.options = {"dim": 96}
        made.task.options, made.objective.options.label_dropout = {}, 0.0
    with pytest.raises(ValueError, match=r"encoders for text, and config\.task\.options\.conditions has none"):
        task_of(made)
    for name, message in (
        ("label", "the data has no condition 'label'; it has text"),
        ("text", "with the conditions text, as conditioned"),
    ):
        with made.unlocked():
            made.task.options = {"conditions": {name: {"name": name, "options": {}}}}
            made.network = specs_of_dit()
        with pytest.raises(ValueError, match=message):
            task_of(made)


STEPS = 200


def specs_of_dit():
    return {"name": "dit", "options": {"image_shape": (16, 16, 3), "patch": 4, "width": 8, "depth": 1, "heads": 1}}


@pytest.mark.standard_promotion
def test_recipes_with_texts_survive_json_and_other_data_is_refused(task, tmp_path):
    task.save(tmp_path)
    assert Recipe.load(tmp_path) == task.recipe
    task.check(tmp_path)
    stored = json.loads((tmp_path / "recipe.json").read_text())
    stored["conditions"]["text"]["options"]["words"][0] = "another"
    (tmp_path / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"the data changed since .* began: the condition text is another one"):
        task.check(tmp_path)


def run(capsys, main, *arguments):
    with pytest.raises(SystemExit) as exit_:
        _cli.run(main.main, main.define, ["main", *map(str, arguments)])
    output = capsys.readouterr()
    assert exit_.value.code in (0, 2)
    return output.out if exit_.value.code == 0 else output.err


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_a_run_with_texts_from_training_to_numbers(capsys, tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "x.npz"
    assert "FD" in run(capsys, train, "--config=captions:smoke", f"--workdir={workdir}", "--config.train.batch=8")
    shared = (f"--workdir={workdir}", "--num=24", "--batch=24")
    assert "24 samples" in run(capsys, sample, *shared, f"--out={out}", "--cond.text=A red circle", "--guidance=3")
    assert np.load(out)["cond_text"].tolist() == ["a red circle"] * 24
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "24 samples" in run(capsys, sample, *shared, f"--out={out}", "--overwrite")
    assert len(set(np.load(out)["cond_text"].tolist())) > 5  # texts of the data
    for flag, message in (
        ("--cond.text=@missing.txt", "cannot read texts from missing.txt: No such file or directory"),
        ("--cond.text=" + "elephants " * 9, "at most 16 are allowed"),
        ("--cond.pose=1", "unknown condition of this run 'pose'"),
    ):
        found = run(capsys, sample, *shared, f"--out={tmp_path / 'y.npz'}", flag)
        assert found.count("\n") == 1
        assert message in found
    run(capsys, evaluate, *shared, "--steps=1", "--guidance=1,2")
    rows = json.loads((workdir / "evaluation.json").read_text())["runs"][0]["rows"]
    assert [row["guidance"] for row in rows] == [1.0, 2.0]
    for what in (["ems", "--points=4", "--num=8", "--mode=scalar"], ["compensation", "--steps=3", "--num=4"]):
        assert "use it with flowjax.sample" in run(capsys, calibrate, *what, shared[0], "--start=0.1", "--end=0.9")
    assert "this run has text by name" in run(capsys, calibrate, "transport", shared[0])


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_a_trained_model_follows_the_colour_that_its_text_names():
    """Points: the mean colours of pictures, from the texts of these."""
    made = config()
    with made.unlocked():
        made.network.options.network = {"name": "mlp", "options": {"dim": 3, "width": 64, "depth": 2, "cond_dim": 96}}
        made.train.steps, made.optimizer.options.rate = STEPS, 5e-3
    pictures = data.load("captions", size=2048, resolution=8)
    x = pictures.x.mean((1, 2), dtype=np.float32)
    task = make_task(
        made,
        data.Source(x=x, shift=float(x.mean()), scale=float(x.std()), fields=pictures.fields),
        make_mesh(),
        jax.random.key(0),
    )
    network = task.networks()["network"].build(nnx.Rngs(0))
    optimizer, objective, batches = task.optimizer(), task.objective, data.Batches(task.training, 128, 0)
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *(batches.batch(i) for i in range(STEPS)))

    @jax.jit
    def trained(network, batches):
        def step(carry, batch):
            network, state, key = carry
            key, own = jax.random.split(key)
            draws = objective.draw(own, batch)
            gradient = jax.grad(lambda network: jnp.mean(objective.loss(network, draws)[0]))(network)
            updates, state = optimizer.update(gradient, state, network)
            return (optax.apply_updates(network, updates), state, key), None

        return jax.lax.scan(step, (network, optimizer.init(network), jax.random.key(0)), batches)[0][0]

    network, recipe, names = trained(network, stacked), task.recipe, list(captions.COLOURS)
    text = recipe.inputs["text"]
    cond = {"text": np.concatenate([text.read(f"a big {names[i % 4]} circle", 1) for i in range(200)])}
    field, alone = recipe.field(recipe.flow(network), 2.0), make_mesh(devices=jax.devices()[:1])
    samples = recipe.generate(field, 200, key=jax.random.key(0), cond=cond, steps=8, batch=200, mesh=alone)
    assert samples.cond["text"][1] == "a big green circle"
    palette = np.array(list(captions.COLOURS.values()), float)
    tint, palette = (rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (samples.x, palette))
    right = np.mean((tint @ palette.T).argmax(1) == np.arange(200) % 4)
    assert right > 0.7, right  # chance 0.25
