"""`python -m flowjax.sample --search`: a reward named on the command line."""

import jax
import numpy as np
import pytest
import small

from flowjax import _cli
from flowjax import sample as sample_main
from flowjax.recipe import Request
from flowjax.recipe.parts import Parts
from flowjax.recipe.runs import load_run
from flowjax.search import SearchError

pytestmark = pytest.mark.standard_promotion

JUDGES = """
import jax.numpy as jnp
import numpy as np
from flowjax.search import on_host

def brightness(x):
    return jnp.mean(x, axis=(1, 2, 3))

def top(x, cond):
    return jnp.mean(x[:, :4], axis=(1, 2, 3)) + 0.0 * cond

def dark(x):
    return -x.mean((1, 2, 3))

calls = []

@on_host
def server(x):
    calls.append(len(x))
    if len(calls) > 5:
        raise ConnectionError("the judge is gone")
    return np.mean(x, axis=(1, 2, 3))

def nan(x):
    return brightness(x) * jnp.nan
"""
SEARCH = "svdd(budget=14, searches=1, steps=3, path=None)"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run, and a module of judges beside it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "judges_of_tests.py").write_text(JUDGES)
    small.write(folder)
    return folder


def run(capsys, monkeypatch, workdir, *arguments):
    """Exit code, stdout, stderr."""
    monkeypatch.chdir(workdir)
    with pytest.raises(SystemExit) as exit_:
        _cli.run(sample_main.main, sample_main.define, ["sample", f"--workdir={workdir}", *map(str, arguments)])
    output = capsys.readouterr()
    return exit_.value.code, output.out, output.err


def test_rewards_evaluations_and_history_are_beside_the_samples(capsys, monkeypatch, tmp_path, workdir):
    arrays = {}
    for name, batch in (("whole", 200), ("parts", 12)):
        out = tmp_path / f"{name}.npz"
        code, text, err = run(
            capsys,
            monkeypatch,
            workdir,
            "--num=4",
            "--labels=3,1",
            f"--search={SEARCH}",
            "--reward=judges_of_tests:brightness,judges_of_tests:top",
            "--held_out=judges_of_tests:dark",
            f"--batch={batch}",
            f"--out={out}",
        )
        assert (code, err) == (0, "")
        assert "4 samples, 13 evaluations (26 network calls) each, reward " in text
        assert "held out judges_of_tests:dark -" in text
        with np.load(out) as file:
            arrays[name] = dict(file)
        assert out.with_suffix(".png").exists()
    found = arrays["whole"]
    means = found["x"].mean((1, 2, 3)), found["x"][:, :4].mean((1, 2, 3))
    assert found["x"].shape == (4, 8, 8, 1)
    assert found["cond"].tolist() == [3, 1, 3, 1]
    np.testing.assert_allclose(found["reward"], means[0] + means[1], rtol=1e-4)
    np.testing.assert_allclose(found["reward_judges_of_tests:top"], means[1], rtol=1e-4)
    np.testing.assert_allclose(found["held_out_judges_of_tests:dark"], -means[0], rtol=1e-4)
    assert found["evaluations"].tolist() == [13] * 4
    assert found["history_evaluations"][0].tolist() == [1, 7, 13]
    np.testing.assert_allclose(arrays["parts"]["x"], found["x"], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_judge_that_is_gone_leaves_what_was_found(capsys, monkeypatch, tmp_path, workdir):
    out = tmp_path / "some.npz"
    arguments = ("--num=4", f"--search={SEARCH}", f"--out={out}", "--batch=6")
    code, _, err = run(capsys, monkeypatch, workdir, *arguments, "--reward=judges_of_tests:server")
    assert code == 2
    assert err.count("\n") == 1
    assert "raised ConnectionError: the judge is gone; the 3 samples found until then are in" in err
    with np.load(out) as file:  # two rounds of rewards for each sample, one at a time
        assert file["failed"].tolist() == [False, False, True]
        np.testing.assert_allclose(file["reward"], file["x"].mean((1, 2, 3)), rtol=1e-4)
    nothing = tmp_path / "none.npz"
    code, _, err = run(
        capsys,
        monkeypatch,
        workdir,
        "--num=2",
        f"--search={SEARCH}",
        f"--out={nothing}",
        "--reward=judges_of_tests:nan",
    )
    assert code == 2
    assert "is NaN or infinite for 2 of 2 results" in err
    assert err.rstrip().endswith("nothing was found until then")
    assert not nothing.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search=rbf"], "a search needs a reward, module:function"),
        (["--reward=judges_of_tests:dark"], "a reward is given, but no search"),
        ([f"--search={SEARCH}", "--reward=dark"], "a reward is named module:function"),
        ([f"--search={SEARCH}", "--reward=nobody:dark"], "no module 'nobody'; looked for it in"),
        ([f"--search={SEARCH}", "--reward=judges_of_tests:drak"], "has no attribute 'drak'"),
        (["--search=rfb", "--reward=judges_of_tests:dark"], "unknown search 'rfb'; did you mean 'rbf'?"),
        (["--search=rbf(budget=20)", "--reward=judges_of_tests:dark"], "budget=20 is too small"),
        ([f"--search={SEARCH}", "--reward=judges_of_tests:dark", "--steps=5"], "steps is given, but a search makes"),
        ([f"--search={SEARCH}", "--reward=judges_of_tests:dark", "--pairs=pairs"], "--search is given, but --pairs"),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, tmp_path, workdir, arguments, message):
    code, _, err = run(capsys, monkeypatch, workdir, f"--out={tmp_path / 'x.npz'}", *arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_folders_go_on_and_know_their_judge(capsys, monkeypatch, tmp_path, workdir):
    out = tmp_path / "many"
    arguments = ("--num=3", f"--search={SEARCH}", f"--out={out}", "--batch=18", "--reward=judges_of_tests:dark")
    assert run(capsys, monkeypatch, workdir, *arguments)[0] == 0
    assert Parts(out).samples.x.shape == (3, 8, 8, 1)
    assert len(Parts(out).record["rewards_sha256"]["judges_of_tests:dark"]) == 64
    with np.load(out / "000000.npz") as file:
        np.testing.assert_allclose(file["reward"], -file["x"].mean((1, 2, 3)), rtol=1e-4)
    code, _, err = run(capsys, monkeypatch, workdir, *arguments[:-1], "--reward=judges_of_tests:brightness")
    assert code == 2
    assert "judges_of_tests" in err


@pytest.mark.slow
def test_in_python_rewards_are_functions(workdir):
    networks, recipe = load_run(workdir)
    request = Request(num=1, search=SEARCH, reward=lambda x: x.mean((1, 2, 3)) * jax.numpy.nan)
    with pytest.raises(SearchError, match="is NaN") as error:
        recipe.sample(networks, request)
    assert len(error.value.found.finite().x) == 0
