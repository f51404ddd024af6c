import json

import pytest

from flowjax.training import writers
from flowjax.training.writers import Writer, write_json


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_interrupted_reports_are_removed_on_resume(tmp_path, capsys):
    writer = Writer(tmp_path, steps=6, batch=4)
    for step in (1, 2, 3):
        writer.report(step, {"loss": 1.0 / step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    again = Writer(tmp_path, steps=6, batch=4, start=2)
    assert again.last == {"step": 2, "loss": 0.5}
    assert again.speed == 0
    again.report(3, {"loss": 7.0})
    again.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert "step 3/6  loss 7.0000" in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["\0\0\0\0", "{", "\udcff", "[]", "7", '{"step": 2}', '{"step": "two", "loss": 1}'])
def test_lines_that_cannot_be_read_are_left_out(tmp_path, capsys, bad):
    good = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2)]
    lines_ = [good[0], bad, good[1], ""]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines_).encode(errors="surrogateescape"))
    Writer(tmp_path, steps=6, batch=4, start=2).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert "metrics.jsonl: 1 line(s) that cannot be read were left out" in capsys.readouterr().out


def test_pauses_do_not_count(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    writer = Writer(tmp_path, steps=10, batch=8)
    now[0] = 2.0
    with writer.paused(None):
        now[0] = 100.0
    now[0] = 102.0
    writer.report(5, {"loss": 0.0})
    writer.close()
    assert writer.speed == 8 * 5 / 4


def test_other_processes_are_silent(tmp_path, capsys):
    writer = Writer(tmp_path, steps=2, batch=1, active=False)
    writer.report(1, {"loss": 1.0})
    writer.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_json_is_replaced_whole(tmp_path):
    for value in ({"b": 1, "a": [1, 2]}, {"c": None}):
        write_json(tmp_path / "x.json", value)
        assert json.loads((tmp_path / "x.json").read_text()) == value
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.fixture(autouse=True)
def without_board(monkeypatch):
    monkeypatch.setattr(writers, "SummaryWriter", None)


def test_tensorboard_is_used_if_installed_and_missed_once(tmp_path, monkeypatch, capsys):
    writer = Writer(tmp_path, steps=4, batch=1)
    writer.report(1, {"loss": 1.0})
    writer.close()
    assert capsys.readouterr().out.count("tensorboardX is not installed") == 1

    class Board:
        def __init__(self, folder, purge_step):
            self.seen = [(folder, purge_step)]
            boards.append(self)

        def add_scalar(self, name, value, step):
            self.seen.append((name, value, step))

        def close(self):
            self.seen.append("closed")

    boards = []
    monkeypatch.setattr(writers, "SummaryWriter", Board)
    writer = Writer(tmp_path, steps=4, batch=1, start=2)
    writer.report(3, {"loss": 2.0})
    writer.close()
    Writer(tmp_path, steps=4, batch=1, active=False).close()
    assert len(boards) == 1
    first, loss, speed, end = boards[0].seen
    assert first == (str(tmp_path / "tensorboard"), 3)
    assert loss == ("loss", 2.0, 3)
    assert speed[0] == "examples_per_second"
    assert end == "closed"
    assert "tensorboardX" not in capsys.readouterr().out
