import importlib.metadata
import json

import jax
import pytest

from flowjax import _cli, doctor


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        _cli.run(doctor.main, doctor.define, ["doctor", *arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture
def cache():
    """Gives the cache folder of the tests back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def fine():
    return [doctor.Finding("this", "works")]


def broken():
    raise RuntimeError("no [device]\nlong trace")


def test_everything_jax_does_is_looked_at_on_all_devices(capsys):
    code, out, _ = run(capsys, "--json")
    report = json.loads(out)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert report["ok"] == (code == 0)
    for name in ("devices", "compilation", "collectives", "matrix product", "compilation cache"):
        assert found[name]["status"] == "ok", found[name]
    assert found["collectives"]["value"] == f"sum over {jax.local_device_count()} device(s) is right"
    assert {"python", "processors", "other flowjax"} < found.keys()


def test_a_failed_check_is_a_problem_and_does_not_hide_the_others(capsys, monkeypatch):
    findings = doctor.examine((broken, fine))
    assert [(f.name, f.status) for f in findings] == [("broken", "problem"), ("this", "ok")]
    assert findings[0].value == "RuntimeError: no [device]"
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    code, out, _ = run(capsys)
    assert code == 1
    assert "[device]" in out
    code, out, _ = run(capsys, "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)
    monkeypatch.setattr(doctor, "examine", fine)
    assert run(capsys)[0] == 0


def test_old_and_missing_dependencies_are_named_with_the_remedy(monkeypatch):
    requires = ["old>=2.0", "gone", "new>=1", "elsewhere>=9; python_version < '3'", "toy>=1; extra == 'play'"]
    installed = {"flowjax-generative": "0.1", "old": "1.9", "new": "1.5rc1"}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "_extras", lambda name: ["play"])
    found = {f.name: f for f in doctor.dependencies()}
    assert found.keys() == {"flowjax-generative", "old", "gone", "new", "extra: play"}
    assert {n: f.status for n, f in found.items() if f.status != "ok"} == {
        "old": "problem",
        "gone": "problem",
        "extra: play": "note",
    }
    assert found["old"].value == "1.9 (needs >=2.0)"
    assert found["old"].advice == "pip install 'old>=2.0'"
    assert found["extra: play"].value == "lacks toy"


def test_a_checkout_that_is_not_installed_is_only_a_note():
    (finding,) = doctor.dependencies("no-such-distribution-anywhere")
    assert finding.status == "note"
    assert "pip install -e ." in finding.advice


def test_another_distribution_with_our_name_is_a_problem(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata, "packages_distributions", lambda: {"flowjax": ["flowjax", doctor.DISTRIBUTION]}
    )
    (finding,) = doctor.other_flowjax()
    assert (finding.status, finding.value, finding.advice) == ("problem", "flowjax", "pip uninstall flowjax")


@pytest.mark.usefixtures("cache")
def test_a_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file" / "cache"))
    (finding,) = doctor.compilation_cache()
    assert finding.status == "note"
    assert "JAX_COMPILATION_CACHE_DIR" in finding.advice


def test_bad_flag_and_help(capsys):
    code, out, err = run(capsys, "--jsn")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--json" in err
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "--json" in out


def test_lists_of_what_there_is(capsys):
    for arguments, expected in (
        (["--list=solvers"], "dpm_solver(order=2, scheme=multistep"),
        (["--list=rule"], "apg(scale=1.0, eta=0.0, beta=-0.5, r=15.0)  adaptive projected guidance"),
        (["--list"], "time_law     uniform, logit_normal"),
    ):
        with pytest.raises(SystemExit) as exit_:
            _cli.run(doctor.main, doctor.define, ["doctor", *arguments])
        assert exit_.value.code == 0
        assert expected in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        _cli.run(doctor.main, doctor.define, ["doctor", "--list=solvrs"])
    assert exit_.value.code == 2
    assert "did you mean 'solver'" in capsys.readouterr().err
