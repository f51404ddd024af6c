import json

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
