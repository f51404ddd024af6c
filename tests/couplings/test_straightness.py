"""Optimal-transport pairs straighten a learned flow from two moons to eight Gaussians."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.standard_promotion  # optax


@pytest.mark.slow
def test_learned_flow_takes_fewer_steps(monkeypatch):
    """The benchmark `straightness`, shortened."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import straightness

    found = straightness.compare(0, steps=300, batch=64)
    plain, paired = found["independent"], found["transport"]
    assert paired["dopri5 steps"] < 0.8 * plain["dopri5 steps"]
    assert paired["curvature"] < 0.3 * plain["curvature"]
    assert max(plain["energy distance"], paired["energy distance"]) < 0.1
