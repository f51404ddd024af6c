"""Grids as the cheapest ways through local errors."""

import itertools

import numpy as np
import pytest
from pools import LINEAR, mixture, pool

import flowjax as fj
from flowjax.calibration import least_squares
from flowjax.calibration.grids import cheapest, local_errors


def test_grids_are_the_cheapest_ways():
    rng = np.random.default_rng(0)
    errors = np.triu(rng.uniform(size=(9, 9)), 1)
    errors[errors == 0] = np.inf
    way = cheapest(errors, 3)
    assert (way[0], way[-1], len(way)) == (0, 8, 4)
    cost = sum(errors[i, j] for i, j in itertools.pairwise(way))
    every = [(0, i, j, 8) for i in range(1, 7) for j in range(i + 1, 8)]
    assert cost == min(sum(errors[a, b] for a, b in itertools.pairwise(w)) for w in every)
    with pytest.raises(ValueError, match="9 steps need more than 9 fine times"):
        cheapest(errors, 9)


@pytest.mark.slow
@pytest.mark.parametrize("path", [LINEAR, fj.paths.VP()], ids=["linear", "vp"])
def test_found_grids_beat_equal_steps(path):
    flow, to = mixture(path), "velocity" if isinstance(path, fj.paths.Linear) else "data"
    start, end = 1e-3, 1 - 1e-3
    train, held = (pool(flow, seed, 64, start, end) for seed in (1, 2))
    fine = np.linspace(start, end, 61)
    errors = local_errors(flow, train.x, fine, to)
    grid = fine[cheapest(errors, 5)]
    solver = fj.solvers.Euler() if to == "velocity" else fj.solvers.DDIM()
    found, equal = (
        least_squares.error([held], lambda _, t=t: fj.solvers.rows_of(solver.bind(path, t)))
        for t in (grid, fj.times.uniform(5, start, end))
    )
    assert found < equal
