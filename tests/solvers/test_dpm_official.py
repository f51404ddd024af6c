"""Recorded runs of the authors' program on the shared mixture: numbers and evaluation counts."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import ENDS, GRIDS, PATHS, Problem, relative

import flowjax as fj
from flowjax.solvers import DPMAdaptive, DPMSolver, run_on_arrays

RECORDED = json.loads((pathlib.Path(__file__).parent / "dpm_solver_official.json").read_text())
X = np.array(RECORDED["start"])[:, None]
END = 1 - 1e-3
FORMS = {"dpmsolver++": "data", "dpmsolver": "noise"}


def groups_of_equal_length(path, order, steps):
    """The authors' grid: their groups, whatever their size, have equal lengths in lam."""
    rest = {0: [2, 1] if order == 3 else [], 1: [1], 2: [2]}[steps % order]
    sizes = [order] * ((steps - sum(rest)) // order) + rest
    edges = np.linspace(0, 1, len(sizes) + 1)
    parts = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(edges, edges[1:], sizes)]
    low, high = float(path.lam(0.0)), float(path.lam(END))
    return np.clip(path.time(low + (high - low) * np.append(np.concatenate(parts), 1.0)), 0.0, END)


@pytest.mark.parametrize("name", [name for name in RECORDED["runs"] if not name.startswith("adaptive")])
def test_fixed_grids(name):
    scheme, algorithm, order, *kind, steps, grid = name.removesuffix(" lower").split()
    solver = DPMSolver(
        order=int(order),
        scheme=scheme,
        form=FORMS[algorithm],
        solver_type="taylor" if kind == ["taylor"] else "midpoint",
        lower_order_final=name.endswith(" lower"),
        compat="official",
    )
    problem, times = Problem(PATHS["vp"]), GRIDS[grid](PATHS["vp"], int(steps), *ENDS["vp"])
    if (scheme, grid) == ("singlestep", "logSNR"):
        times = groups_of_equal_length(problem.path, int(order), int(steps))
    assert solver.bind(problem.path, times).pattern.rows == RECORDED["runs"][name]["evaluations"]
    end = run_on_arrays(solver, problem.path, times, X, problem)[-1]
    assert relative(end[:, 0], RECORDED["runs"][name]["x"]) < 1e-8


@pytest.mark.parametrize("name", [name for name in RECORDED["runs"] if name.startswith("adaptive")])
def test_adaptive(name):
    """In double precision: the first error, of 1e-8, decides the second step."""
    _, algorithm, order = name.split()
    path = PATHS["vp"]
    solver = DPMAdaptive(order=int(order), form=FORMS[algorithm])
    with jax.enable_x64(True):
        flow = fj.Flow(fj.oracles.Mixture.default(path).network("noise"), path=path, prediction="noise")
        result = fj.solve(flow, solver, jnp.asarray(X), [0.0, END])
        assert int(result.evaluations) == RECORDED["runs"][name]["evaluations"]
        assert relative(result.x[:, 0], RECORDED["runs"][name]["x"]) < 1e-7
