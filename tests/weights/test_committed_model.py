"""The committed networks, of MNIST for the benchmarks and of few evaluations: small, readable, working."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import flowjax as fj
from flowjax.recipe import Request, load_run

MODELS = pathlib.Path(__file__).parents[2] / "benchmarks" / "models"
FOLDER = MODELS / "mnist"
FEW = {"digits_one_evaluation": 1, "digits_rectified": 1, "digits_lcm": 4, "digits_flowturbo": 8}


@pytest.mark.parametrize("name", ["mnist", "mnist_lcm_lora", *FEW])
def test_it_is_small_not_tied_to_a_machine_and_has_its_checksum(name):
    files = [path for path in (MODELS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6
    mnist = {"name": "npz", "options": {"path": "mnist.npz"}}
    assert fj.Recipe.load(MODELS / name).data == (mnist if "mnist" in name else {"name": "digits", "options": {}})
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                assert len(file.metadata()["flowjax.sha256"]) == 64
    load_run(MODELS / name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "evaluations"), FEW.items())
def test_few_evaluations_draw_the_digits_asked_for(name, evaluations):
    networks, recipe = load_run(MODELS / name)
    samples = recipe.sample(networks, Request(num=200))
    assert samples.evaluations == evaluations
    digits = load_digits()
    classifier = SVC(gamma=0.001).fit(digits.data, digits.target)
    assert np.mean(classifier.predict(samples.x.reshape(200, -1)) == samples.cond) > 0.9


@pytest.mark.slow
def test_it_draws_the_digits_asked_for():
    """Judged by a classifier of scikit-learn's 8x8 digits, whose strokes look different."""
    flow, recipe = fj.load(FOLDER)
    cond = recipe.balanced(100)
    field = recipe.field(flow)
    samples = recipe.generate(field, 100, key=jax.random.key(0), cond=cond, solver=fj.solvers.DPMSolver(), steps=8)

    def shrink(image):
        rows, columns = np.nonzero(image > 100)
        inside = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        return np.asarray(Image.fromarray(inside).resize((8, 8), Image.Resampling.BOX)) / 16.0

    digits = load_digits()
    classifier = SVC(gamma=0.001).fit(digits.data, digits.target)
    images = samples.x[..., 0].clip(0, 255).astype(np.uint8)
    found = classifier.predict(np.stack([shrink(image) for image in images]).reshape(100, -1))
    accuracy = np.mean(found == cond)
    assert accuracy > 0.3, accuracy  # 0.1 by chance, with a standard deviation of 0.03
