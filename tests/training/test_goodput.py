import json

import pytest

from flowjax.training.goodput import Clock, goodput


def write(folder, *lines):
    (folder / "clock.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("lines", "share"),
    [
        # 20 of 40 seconds were steps: the rest compiled, saved and pictured.
        ([{"start": 0, "time": 100}, {"step": 10, "seconds": 20, "time": 140}], 0.5),
        # Killed after step 20, gone on with from 15: of the second ten steps a half was done in vain.
        (
            [
                {"start": 0, "time": 0},
                {"step": 10, "seconds": 10, "time": 20},
                {"step": 20, "seconds": 10, "time": 30},
                {"start": 15, "time": 1000},
                {"step": 30, "seconds": 15, "time": 1020},
            ],
            (10 + 5 + 15) / (30 + 20),
        ),
        # The third start goes back behind the second.
        (
            [
                {"start": 0, "time": 0},
                {"step": 10, "seconds": 10, "time": 10},
                {"start": 10, "time": 10},
                {"step": 20, "seconds": 10, "time": 20},
                {"start": 5, "time": 20},
                {"step": 20, "seconds": 15, "time": 35},
            ],
            (5 + 0 + 15) / 35,
        ),
        ([], None),
        ([{"step": 10, "seconds": 20, "time": 140}], None),
        ([{"start": 0, "time": 5}], 0.0),
    ],
)
def test_share_of_kept_steps(tmp_path, lines, share):
    write(tmp_path, *lines)
    assert goodput(tmp_path) == (share if share is None else pytest.approx(share))


def test_the_end_of_the_process_that_runs(tmp_path):
    write(tmp_path, {"start": 0, "time": 100}, {"step": 10, "seconds": 20, "time": 140})
    assert goodput(tmp_path, now=180) == pytest.approx(0.25)
    assert goodput(tmp_path / "none") is None
    (tmp_path / "clock.jsonl").write_text("{")
    assert goodput(tmp_path) is None


def test_a_clock_goes_on_where_it_was(tmp_path):
    for start in (0, 10):
        clock = Clock(tmp_path, start, since=50.0)
        clock.add(start + 10, 1.0)
        clock.close()
    lines = [json.loads(line) for line in (tmp_path / "clock.jsonl").read_text().splitlines()]
    assert [line.get("start", line.get("step")) for line in lines] == [0, 10, 10, 20]
    assert lines[0]["time"] == 50.0
    Clock(tmp_path / "other", 0, active=False).add(1, 1.0)
    assert not (tmp_path / "other").exists()
