"""Settings of fields that save evaluations: the error that they keep, and fits that are refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import small

import flowjax as fj
from flowjax import _cli, calibrate
from flowjax import sample as sample_main
from flowjax.calibration import caches, store
from flowjax.calibration.use import best_file, fields_of
from flowjax.fields import EveryNth, MagCache, TeaCache
from flowjax.recipe import Request, load_run
from flowjax.solvers import DPMSolver
from flowjax.times import uniform

pytestmark = pytest.mark.standard_promotion
LAW = fj.oracles.Mixture.default(fj.paths.Linear())
FLOW = fj.Flow(LAW.network("velocity"), path=LAW.path)
TIMES = uniform(12, 1e-3, 1 - 1e-3)


def run(capsys, main, *arguments):
    """Exit code, stdout, stderr of a main."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(main.main, main.define, ["main", *map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


@pytest.fixture(scope="module")
def noises():
    keys = jax.random.split(jax.random.key(0))
    return [caches.look(FLOW, DPMSolver(), fj.noise(key, (16, 1)), TIMES, None) for key in keys]


def test_looks_at_what_changes(noises):
    """By hand for the third step of the first run."""
    states = fj.solve(FLOW, DPMSolver(), noises[0].x, TIMES, trajectory=True).trajectory
    v, w = (np.asarray(FLOW.velocity(TIMES[k], states[k])) for k in (2, 3))
    np.testing.assert_allclose(noises[0].changes["velocity"][2], np.abs(w - v)[:, 0] / np.abs(v)[:, 0], rtol=1e-4)
    np.testing.assert_allclose(noises[0].changes["ratio"][2], np.abs(w / v)[:, 0], rtol=1e-4)
    x, y = np.asarray(states[2]), np.asarray(states[3])
    np.testing.assert_allclose(noises[0].changes["input"][2], np.abs(y - x)[:, 0] / np.abs(x)[:, 0], rtol=1e-3)
    assert noises[0].changes["velocity"].shape == (11, 16)


def test_fits_say_how_much_they_explain():
    """A polynomial comes back; noise explains nothing, though the fit on its own points looks better."""
    rng = np.random.default_rng(0)
    change = rng.uniform(0, 0.3, (2, 11, 16))
    answers = 0.1 + 2 * change - 3 * change**2
    good = [caches.Noises(None, None, None, {"input": c, "velocity": a}) for c, a in zip(change, answers, strict=True)]
    field, quality = caches.fitted(TeaCache(FLOW, indicator="input"), *good)
    assert quality > 0.999
    np.testing.assert_allclose(field.coefficients, [0, 0, -3, 2, 0.1], atol=1e-3)
    bad = [caches.Noises(None, None, None, {"input": c, "velocity": rng.uniform(size=c.shape)}) for c in change]
    assert caches.fitted(TeaCache(FLOW, indicator="input"), *bad)[1] < 0.1
    ratios = np.linspace(1.1, 0.7, 11)[:, None] * (1 + 0.01 * rng.standard_normal((2, 11, 16)))
    sizes = [caches.Noises(None, None, None, {"ratio": r}) for r in ratios]
    field, quality = caches.fitted(MagCache(FLOW, ratios=[1.0] * 12), *sizes)
    assert quality > 0.95
    assert field.ratios[0] == 1.0
    np.testing.assert_allclose(field.ratios[1:], np.linspace(1.1, 0.7, 11), rtol=0.01)
    assert caches.fitted(EveryNth(FLOW), *good) == (EveryNth(FLOW), None)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    small.write(folder, guidance=1.0)
    return folder


@pytest.fixture
def fresh(workdir, tmp_path):
    """The same run without a calibration."""
    return shutil.copytree(workdir, tmp_path / "fresh", ignore=shutil.ignore_patterns("calibration"))


COMMON = ("--steps=12", "--num=8", "--held=8", "--guidance=1.0")


@pytest.mark.slow
def test_finds_a_setting_that_keeps_its_error_and_samples_with_it(capsys, tmp_path, workdir):
    options = [f"--workdir={workdir}", *COMMON, "--error=0.2", "--fit=-5"]
    code, text, err = run(capsys, calibrate, "cache", *options)
    assert err == ""
    assert code == 0
    assert "of 12 calls, on noises that nothing was fitted to" in text
    file = workdir / "calibration" / "cache-g1-12steps.npz"
    arrays, _ = store.load(file, {"error": 0.2, "what": "cache"})
    table = json.loads(str(arrays["table"]))
    assert [line["name"] for line in table] == list(caches.FIELDS)
    good = [line for line in table if "refused" not in line]
    assert all(line["error"] <= 0.2 and line["evaluations"] < 12 for line in good)
    assert {line["name"]: line["fit"] is not None for line in good}.items() <= {
        "sada": False,
        "teacache": True,
        "teacache(indicator=input)": True,
        "first_block": False,
        "magcache": True,
        "every_nth": False,
    }.items()
    least = min(line["evaluations"] for line in good)
    out, sampled = tmp_path / "samples.npz", [f"--workdir={workdir}", "--num=8", "--guidance=1.0", "--batch=8"]
    code, text, err = run(capsys, sample_main, *sampled, "--calibration=auto", "--steps=12", f"--out={out}")
    assert (code, err) == (0, "")
    evaluations = int(text.split(" evaluations")[0].split()[-1])
    assert least - 2 <= evaluations <= 11
    assert best_file(workdir, 1.0, 12) == file
    # The samples are those of all calls, up to the error that was allowed.
    code, _, _ = run(
        capsys, sample_main, *sampled, "--solver=dpm_solver", "--steps=12", f"--out={tmp_path / 'all.npz'}",
        "--times=uniform(start=1e-3, end=0.999)",
    )  # fmt: skip
    assert code == 0
    with np.load(out) as some, np.load(tmp_path / "all.npz") as every:
        a, b = ((each["x"] - 8) / 8 for each in (some, every))
    assert 0 < np.linalg.norm(a - b) / np.linalg.norm(b) < 0.3
    networks, recipe = load_run(workdir)
    request = Request(num=8, batch=8, calibration=str(file))
    name = fields_of(file)[0].partition("(")[0]
    assert recipe.couples(request) == fj.catalogue.fields[name].couples_batch
    assert type(recipe.prepared(networks, request)[0]) is fj.catalogue.fields[name].make


def test_a_fit_that_explains_nothing_is_refused(capsys, fresh):
    options = [f"--workdir={fresh}", *COMMON, "--error=0.05", "--fit=1", "--seed=1"]
    code, _, err = run(capsys, calibrate, "cache", *options, "--field=teacache(indicator=input)")
    assert code == 2
    assert "explains R^2 = " in err
    assert "less than fit=1" in err
    assert "\n" not in err.strip()


def test_refusals(capsys, fresh):
    for flag, message in (
        ("--field=thresholded", "saves no evaluations"),
        ("--field=tecache", "unknown field 'tecache'; did you mean 'teacache'"),
        ("--error=0", "error must be"),
        ("--fit=2", "fit must be"),
        ("--steps=3", "nothing is skipped in fewer than 5 steps"),
        ("--solver=heun", "one evaluation per step"),
    ):
        chosen = [*COMMON, "--error=0.05", "--seed=2", "--field=every_nth"]
        kept = [option for option in chosen if option.split("=")[0] != flag.split("=")[0]]
        code, _, err = run(capsys, calibrate, "cache", f"--workdir={fresh}", *kept, flag)
        assert code == 2, flag
        assert message in err, flag
