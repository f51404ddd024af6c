import ast
import inspect

import pytest
import small
from PIL import Image
from runs import task_of
from sklearn.datasets import load_sample_images

from flowjax import _cli, data, specs
from flowjax import train as train_main

NAMES = sorted(path.stem for path in _cli.config_folder().glob("*.py") if path.stem not in ("__init__", "base"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A classifier of digits, for configs whose decoder stands on one."""
    folder = tmp_path_factory.mktemp("encoder")
    small.write_encoder(folder)
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A flow of digits, for configs that stand on one."""
    folder = tmp_path_factory.mktemp("trained")
    small.write(folder)
    small.write_pairs(folder)
    return str(folder)


# Of solids, hundreds of bodies are built and rendered.
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "solids" else n for n in NAMES])
def test_config_and_its_smoke_version_are_valid(name, trained, encoder):
    full, smoke = _cli.load_config(name), _cli.load_config(f"{name}:smoke")
    assert full.train.steps > smoke.train.steps
    for config in (full, smoke):
        train_main.check(config)
        options = inspect.signature(specs.table_of("data")[config.data.name].make).parameters
        if set(data.PLACES) & set(options):  # read from disk, so only the smoke version has its data here
            continue
        for section in {"teacher", "base"} & set(config):
            config[section].options.workdir = trained
        if "encoder" in config and config.encoder.name:
            config.encoder.options.workdir = encoder
        if "coupling" in config and "path" in config.coupling.options:
            config.coupling.options.path = f"{trained}/pairs"
        task = task_of(config)
        assert hasattr(task.objective, "draw")
        if "path" in config:
            assert task.recipe.shape == task.source.x.shape[1:]


@pytest.mark.parametrize("name", NAMES)
def test_first_lines_state_the_expected_result(name):
    docstring = ast.get_docstring(ast.parse((_cli.config_folder() / f"{name}.py").read_text()))
    assert "Expected on" in docstring
    assert "seconds" in docstring


@pytest.mark.parametrize("argument", ["", ":classes"])
def test_images_takes_a_folder_of_photographs(tmp_path, argument):
    """Pieces of the two that come with scikit-learn, beside each other or in a folder each."""
    folders = ("china", "flower") if argument else (".", ".")
    for folder, photograph in zip(folders, load_sample_images().images):
        (tmp_path / folder).mkdir(exist_ok=True)
        for i in range(4):
            piece = Image.fromarray(photograph[40 * i : 40 * i + 40, 60 * i : 60 * i + 60])
            piece.save(tmp_path / folder / f"{photograph[0, 0, 0]}-{i}.png")
    config = _cli.load_config(f"images{argument}")
    with config.unlocked():
        config.data.options.folder = str(tmp_path)
    task = task_of(config)
    batch = data.Batches(task.training, 4, 0).batch(0)
    assert batch["x1"].shape == (4, 32, 32, 3)
    if argument:
        assert batch["cond"]["label"].shape == (4,)
        assert task.recipe.read_conditions({"label": "flower"}, 1)["label"].tolist() == [1]
        assert task.recipe.network["options"]["encoders"]["label"]["options"]["num_classes"] == 2
    else:
        assert batch["cond"] is None
