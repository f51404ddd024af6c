"""The calibrate main on an untrained run, its files, and sampling with them."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from runs import recipe_of

import flowjax as fj
from flowjax import _cli, calibrate
from flowjax import sample as sample_main
from flowjax.calibration import store
from flowjax.calibration.schedules import to_json
from flowjax.calibration.use import calibrated, record
from flowjax.recipe import load
from flowjax.solvers import Decision, Schedule
from flowjax.training import Checkpoints
from flowjax.training.state import TrainState

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = recipe_of("digits:smoke")
    network = jax.tree.map(lambda leaf: leaf + 0.01, jax.jit(lambda: recipe.build_network(nnx.Rngs(0)))())
    recipe.save(folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        one = jax.numpy.int32(1)
        checkpoints.save(TrainState(step=one, networks=network, averages={"average": network}, optimizer=one))
    return folder


def run(capsys, main, *arguments):
    """Exit code, stdout, stderr of a main."""
    with pytest.raises(SystemExit) as exit_:
        _cli.run(main.main, main.define, ["main", *map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


@pytest.mark.parametrize(
    ("what", "options", "steps"),
    [
        ("ems", ["--points=20", "--num=128", "--mode=scalar", "--start=0.1", "--end=0.9"], 3),
        ("compensation", ["--steps=3", "--num=8"], None),
        ("grid", ["--steps=3", "--num=8", "--fine=20", "--solver=euler"], None),
        pytest.param(
            "learn",
            ["--steps=3", "--num=16", "--held=8", "--fine=20", "--iterations=2", "--solver=euler"],
            None,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "learn",
            ["--steps=4", "--points=2", "--num=16", "--held=8", "--fine=20", "--iterations=2"],
            None,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_calibrates_once_and_samples_with_the_file(capsys, tmp_path, workdir, what, options, steps):
    code, text, err = run(capsys, calibrate, what, f"--workdir={workdir}", "--guidance=1.0", *options)
    assert (code, err) == (0, "")
    file = text.split(" in ")[0].splitlines()[-1]
    code, text, _ = run(capsys, calibrate, what, f"--workdir={workdir}", "--guidance=1.0", *options)
    assert (code, text.strip()) == (0, f"{file} exists")
    out = tmp_path / "samples.npz"
    chosen = [f"--workdir={workdir}", "--num=8", f"--calibration={file}", *([f"--steps={steps}"] if steps else [])]
    code, text, err = run(capsys, sample_main, *chosen, "--guidance=1.0", f"--out={out}")
    assert (code, err) == (0, "")
    assert f"{4 if '--points=2' in options else 3} evaluations" in text
    with np.load(out) as samples:
        assert np.isfinite(samples["x"]).all()
    code, _, err = run(capsys, sample_main, *chosen, "--guidance=2.0", f"--out={tmp_path / 'other.npz'}")
    assert code == 2
    assert "calibrated for guidance=1.0, not 2.0" in err
    assert not (tmp_path / "other.npz").exists()


def test_samples_start_where_a_map_says(capsys, tmp_path, workdir):
    """From one target per class, with no noise left at t* near 1: the samples are close to the targets."""
    flow, recipe = load(workdir)
    targets = np.random.default_rng(0).uniform(-1, 1, (20, *recipe.shape)).astype(np.float32)
    labels = np.arange(20, dtype=np.int32) % 10
    belongs = record("transport", flow, guidance=1.0, start=0.999, end=1.0)
    store.save(tmp_path / "map.npz", {"targets": targets, "heights": np.zeros(20), "labels": labels}, belongs)
    out, options = tmp_path / "samples.npz", ["--num=12", "--guidance=1.0", f"--calibration={tmp_path / 'map.npz'}"]
    code, _, err = run(capsys, sample_main, f"--workdir={workdir}", *options, "--steps=1", f"--out={out}")
    assert (code, err) == (0, "")
    with np.load(out) as samples:
        x, cond = (samples["x"] - recipe.shift) / recipe.scale, samples["cond"]
    distance = np.abs(x[:, None] - targets[None]).max(axis=(2, 3, 4))
    assert np.all(distance.min(axis=1) < 0.1)
    assert np.array_equal(labels[distance.argmin(axis=1)], cond)
    code, _, err = run(capsys, sample_main, f"--workdir={workdir}", *options, f"--out={tmp_path / 'other.npz'}")
    assert (code, "say how many" in err) == (2, True)
    other = dataclasses.replace(flow, path=fj.paths.Trig())
    with pytest.raises(ValueError, match="was calibrated for path="):
        calibrated(tmp_path / "map.npz", other, 1.0, 1)


def test_a_schedule_may_start_from_the_mean_of_the_data(tmp_path, workdir):
    """Its file brings the number; an old file without it, nor a choice of the first output, is read as it was meant."""
    flow, _ = load(workdir)
    steps = (Decision(), Decision(prediction="noise", order=2))
    schedule = Schedule(times=(0.001, 0.4, 0.999), decisions=steps, first="mean")
    belongs, values = record("schedule", flow, guidance=1.0, start=0.001, end=0.999, steps=1), to_json(schedule)
    found = []
    old_values = {name: value for name, value in values.items() if name != "first"}
    for name, written, mean in (("new", values, {"mean": np.array(-0.25)}), ("old", old_values, {})):
        store.save(tmp_path / f"{name}.npz", {"schedule": np.array(json.dumps(written)), **mean}, belongs)
        found.append(calibrated(tmp_path / f"{name}.npz", flow, 1.0))
        assert found[-1].times.tolist() == [0.001, 0.4, 0.999]
    new, old = (each.solver for each in found)
    assert (new.schedule, new.mean) == (schedule, -0.25)
    assert old.schedule == dataclasses.replace(schedule, first="network")


@pytest.mark.slow
def test_a_map_and_a_schedule_from_the_command_line(capsys, tmp_path, workdir):
    """With the warning that starts derive from the data; the schedule in two parts, as after an interruption."""
    common = [f"--workdir={workdir}", "--guidance=1.0"]
    with pytest.warns(UserWarning, match="training samples, noised to t = 0.6"):
        code, text, _ = run(capsys, calibrate, "transport", *common, "--num=60", "--start=0.6")
    assert code == 0
    map_file = text.split(" in ")[0].splitlines()[-1]
    results = workdir / "calibration" / "schedule-g1-3steps.jsonl"
    results.write_text('{"record": {}, "times": [0.001, 0.5, 0.999], "seed": 0, "population": 32}\n')
    code, _, err = run(capsys, calibrate, "schedule", *common, "--steps=3", "--num=16", "--rounds=1")
    assert (code, err.count("\n"), "another search, remove it" in err) == (2, 1, True)
    results.unlink()
    for rounds in (1, 2):
        code, text, _ = run(capsys, calibrate, "schedule", *common, "--steps=3", "--num=16", f"--rounds={rounds}")
        assert code == 0
        schedule_file = pathlib.Path(text.split(" in ")[0].splitlines()[-1])
        assert len(schedule_file.with_suffix(".jsonl").read_text().splitlines()) == 1 + 32 * rounds
        if rounds == 1:
            schedule_file.unlink()
    for file, steps in ((map_file, ["--steps=3"]), (schedule_file, [])):
        out = [f"--calibration={file}", "--num=8", f"--out={tmp_path / 'samples.npz'}", "--overwrite"]
        code, text, _ = run(capsys, sample_main, *common, *out, *steps)
        assert code == 0
        assert ("6 evaluations" if steps else "3 evaluations") in text  # the recipe's Heun; a schedule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to calibrate"),
        (["emx"], "did you mean 'ems'"),
        (["ems"], "--workdir=FOLDER is required"),
        (["ems", "--workdir=nowhere"], "is not the workdir"),
        (["schedule", "--workdir=nowhere", "--steps=0"], "--steps must be at least 1"),
        (["ems", "--workdir=nowhere", "--start=0.9", "--end=0.1"], "start"),
        (["ems", "--point=3"], "did you mean '--points'"),
        (["ems", "--workdir=nowhere", "--times=karras"], "unknown flag '--times'"),
        (["schedule", "--workdir=nowhere", "--solver=heun"], "unknown flag '--solver'"),
        (["compensation", "--workdir=nowhere", "--times=karras", "--end=0.9"], "--times and --end are given"),
        (["compensation", "--workdir=nowhere", "--solver=dc_solver", "--order=2"], "--solver and --order are given"),
        (["compensation", "--workdir=nowhere", "--solver=dc_solvr"], "did you mean 'dc_solver'"),
        (["compensation", "--workdir=nowhere", "--solver=unipc"], "the ratios of dc_solver, got --solver=unipc"),
        (["compensation", "--workdir=nowhere", "--fields=thresholded("], "at character"),
        (["compensation", "--workdir=nowhere", "--fields=2"], "a field is a name"),
        (["ems", "--workdir=nowhere", "--guidance=-1"], "guidance must be at least 0"),
        (["learn", "--workdir=nowhere", "--scales=1"], "scales=(1,) are at least two"),
        (["learn", "--workdir=nowhere", "--scales=1,no"], "scales"),
        (["learn", "--workdir=nowhere", "--times=karras"], "name a solver too"),
        (["learn", "--workdir=nowhere", "--points=2"], "points=2 divide steps=5 evaluations"),
        (["learn", "--workdir=nowhere", "--distance=l1"], "unknown distance 'l1'"),
        (["learn", "--workdir=nowhere", "--batch=0"], "batch must be"),
        (["grid", "--workdir=nowhere", "--steps=20", "--fine=10"], "steps=20 are chosen of fine=10"),
        (["best", "--workdir=nowhere", "--budget=5"], "budget=5 must be a time such as"),
        (["best", "--workdir=nowhere", "--steps=5,0"], "steps must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capsys, arguments, message):
    code, out, err = run(capsys, calibrate, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compensation", "--times=karas"], "unknown times 'karas'; did you mean 'karras'?"),
        (["compensation", "--fields=tresholded"], "unknown field 'tresholded'; did you mean 'thresholded'?"),
        (["ems", "--guidance=apg(scale=4)"], "calibrations are for plain guidance, not apg(scale=4): pass a scale"),
    ],
)
def test_specs_that_are_none_are_one_line(capsys, workdir, arguments, message):
    code, out, err = run(capsys, calibrate, *arguments, f"--workdir={workdir}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.slow
def test_grids_solvers_and_fields_are_specs_and_part_of_the_record(capsys, tmp_path, workdir):
    specs = ["--times=quadratic(start=0.01, end=0.95)", "--solver=dc_solver(order=2, variant=bh1)"]
    field = "--fields=thresholded(max=1.5)"
    common = [f"--workdir={workdir}", "--guidance=1.25"]
    code, text, err = run(capsys, calibrate, "compensation", *common, *specs, field, "--steps=3", "--num=4")
    assert (code, err) == (0, "")
    file = text.split(" in ")[0].splitlines()[-1]
    with np.load(file) as found:
        np.testing.assert_allclose(found["times"], fj.times.quadratic(3, 0.01, 0.95))
    flow, _ = load(workdir)
    made = calibrated(file, flow, 1.25, fields=["thresholded(max=1.5)"])
    assert (made.solver.order, made.solver.variant, len(made.solver.ratios)) == (2, "bh1", 3)
    for missing in (specs[0], specs[1], field):
        kept = [argument for argument in (*specs, field) if argument != missing]
        code, _, err = run(capsys, calibrate, "compensation", *common, *kept, "--steps=3", "--num=4")
        assert (code, "was calibrated for" in err) == (2, True), missing
    sampled = [*common, f"--calibration={file}", "--num=8", "--batch=8", f"--out={tmp_path / 'x.npz'}"]
    code, _, err = run(capsys, sample_main, *sampled)
    assert (code, "was calibrated for fields=['thresholded(max=1.5)'], not None" in err) == (2, True)
    code, _, err = run(capsys, sample_main, *sampled, field)
    assert (code, err) == (0, "")


@pytest.mark.slow
def test_advice_for_several_numbers_of_steps(capsys, tmp_path, workdir):
    """The winner of each is found by its number of steps."""
    common = [f"--workdir={workdir}", "--guidance=1.0"]
    code, _, err = run(capsys, sample_main, *common, "--calibration=auto", f"--out={tmp_path / 'a.npz'}")
    assert (code, "has no advice for guidance 1" in err) == (2, True)
    options = ["--steps=2,3", "--budget=40s", "--num=16", "--fine=20"]
    code, text, err = run(capsys, calibrate, "best", *common, *options)
    assert (code, err) == (0, "")
    assert text.count("95 % over noise") == 2
    assert "fine solution" in text
    for steps in (2, 3):
        file = workdir / "calibration" / f"best-g1-{steps}steps.npz"
        table = json.loads(str(store.load(file, {})[0]["table"]))
        assert len(table) == 8
        assert all(line["low"] <= line["error"] <= line["high"] for line in table)
        out = [f"--out={tmp_path / f'{steps}.npz'}", "--num=8", f"--steps={steps}", "--calibration=auto"]
        code, text, err = run(capsys, sample_main, *common, *out)
        assert (code, err) == (0, "")
        assert f"{steps} evaluations" in text
    code, _, err = run(capsys, sample_main, *common, "--calibration=auto", f"--out={tmp_path / 'b.npz'}")
    assert (code, "say which: best-g1-2steps, best-g1-3steps" in err) == (2, True)


@pytest.mark.slow
def test_samples_are_compared_in_the_features_of_a_network(capsys, workdir):
    """One that is trained on the data; its file belongs to that."""
    options = ["--steps=2", "--num=32", "--held=16", "--fine=20", "--iterations=3", "--solver=euler", "--guidance=1"]
    code, text, err = run(capsys, calibrate, "learn", f"--workdir={workdir}", *options, "--features")
    assert (code, err) == (0, "")
    arrays, record = store.load(text.split(" in ")[0].splitlines()[-1], {})
    assert record["features"]
    assert arrays["error_best"] < arrays["error_start"]
    code, _, err = run(capsys, calibrate, "learn", f"--workdir={workdir}", *options)
    assert (code, "was calibrated for features=True, not False" in err) == (2, True)


@pytest.mark.slow
def test_one_file_for_a_range_of_scales(capsys, tmp_path, workdir):
    options = [
        "--steps=3",
        "--num=32",
        "--held=16",
        "--fine=20",
        "--iterations=2",
        "--solver=euler",
        "--scales=1,1.5,2",
    ]
    code, text, err = run(capsys, calibrate, "learn", f"--workdir={workdir}", *options)
    assert (code, err) == (0, "")
    file = text.split(" in ")[0].splitlines()[-1]
    assert file.endswith("learn-g1to2-3steps.npz")
    sampled = [f"--workdir={workdir}", "--num=4", f"--calibration={file}", f"--out={tmp_path / 'x.npz'}", "--overwrite"]
    for scale, expected in ((1.0, 0), (1.25, 0), (2.0, 0), (2.5, 2)):
        code, _, err = run(capsys, sample_main, *sampled, f"--guidance={scale}")
        assert code == expected, err
    assert "calibrated for guidance from 1 to 2, not 2.5" in err
