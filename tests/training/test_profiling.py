import pytest

from flowjax.training import Profile


def run(profile, steps):
    with profile:
        for step in steps:
            profile.before(step)
            profile.after(step, None)


@pytest.fixture
def calls(monkeypatch):
    """The calls of the profiler of JAX."""
    seen = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: seen.append(f"start {folder}"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: seen.append("stop"))
    return seen


@pytest.mark.parametrize(
    ("span", "steps", "expected"),
    [
        ("2:3", range(1, 6), ["start here", "stop"]),
        ("2:9", range(1, 6), ["start here", "stop"]),
        ("2:3", range(4, 6), []),
        (None, range(1, 6), []),
    ],
)
def test_traces_the_steps_asked_for(calls, span, steps, expected):
    run(Profile(span, "here"), steps)
    assert calls == expected


@pytest.mark.parametrize("span", ["3", "0:2", "3:2", "a:b", ""])
def test_other_spans_are_refused(span):
    with pytest.raises(ValueError, match="FIRST:LAST"):
        Profile(span, "here")
