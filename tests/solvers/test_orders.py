"""Orders of whole runs with default settings, as the catalogue states them."""

import numpy as np
import pytest
from problem import PATHS, Problem

from flowjax.catalogue import solvers

CHEAP = ("unipc", "dc_solver", "dpm_solver_v3")  # other tests measure most of the rest
ORDERS = [name for name, entry in solvers.items() if entry.order is not None]


CASES = [
    pytest.param(name, path, marks=() if name in CHEAP and path == "vp" else pytest.mark.slow)
    for name in ORDERS
    for path in ("vp", "linear", "ve")
]


@pytest.mark.parametrize(("name", "path"), CASES)
def test_order_of_a_whole_run(name, path):
    entry, problem = solvers[name], Problem(PATHS[path])
    errors = []
    for n in (160, 320):
        options = entry.example() | ({"blocks": f"H1P{n - 1}"} if name == "flowturbo" else {})
        grid = np.asarray(problem.path.time(np.linspace(-1.0, 2.0, n + 1)))
        errors.append(problem.error(entry.make(**options), grid))
    assert float(np.log2(errors[0] / errors[1])) == pytest.approx(entry.order, abs=0.2)
