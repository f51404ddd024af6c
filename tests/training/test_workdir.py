import json
import os
import socket

import pytest

from flowjax.training.workdir import OUTPUTS, Lock, check_ours, read_report


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path):
    folder = tmp_path / "new"
    with Lock(folder):
        holder = json.loads((folder / "train.lock").read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
        who = f"in use by process {os.getpid()} on {holder['host']} since {holder['start']}"
        with pytest.raises(ValueError, match=who.replace("+", r"\+")), Lock(folder):
            pass
        with Lock(folder, "other"):
            pass
    assert not list(folder.iterdir())


@pytest.mark.parametrize("content", ["", "{", json.dumps({"pid": 1, "host": "elsewhere", "start": "2020-01-01"})])
def test_a_lock_that_was_left_behind_is_taken_over(tmp_path, content):
    (tmp_path / "train.lock").write_text(content)
    with Lock(tmp_path):
        assert json.loads((tmp_path / "train.lock").read_text())["pid"] == os.getpid()


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write .*train\.lock: "), Lock(tmp_path / "file" / "below"):
        pass


@pytest.mark.parametrize("name", OUTPUTS)
def test_foreign_files_are_not_replaced(tmp_path, name):
    check_ours(tmp_path / "missing")
    (tmp_path / "slurm-1.out").touch()
    check_ours(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} would be replaced, but is not of a training run"):
        check_ours(tmp_path)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    check_ours(tmp_path)


def test_reports_of_runs_only(tmp_path):
    assert read_report(tmp_path) is None
    path = tmp_path / "report.json"
    for content in ("", "{", "\0"):
        path.write_text(content)
        assert read_report(tmp_path) is None
    for content in ("[]", '{"title": "annual"}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="is not the report of a training run; move it away"):
            read_report(tmp_path)
    path.write_text('{"steps": 3}')
    assert read_report(tmp_path) == {"steps": 3}
