import numpy as np
import pytest
from laws import ends_by_lam, exponential_step, values_in_each_step
from problem import PATHS, Problem, relative

from flowjax.solvers import DPMSolver, run_on_arrays
from flowjax.times import log_snr, uniform

FORMS = ["data", "noise"]
KINDS = ["midpoint", "taylor"]


def single(order, **options):
    return DPMSolver(order=order, scheme="singlestep", **options)


@pytest.mark.parametrize(
    ("order", "n", "groups"),
    [
        (1, 3, [1, 1, 1]),
        (2, 6, [2, 2, 2]),
        (2, 7, [2, 2, 2, 1]),
        (3, 3, [2, 1]),
        (3, 4, [3, 1]),
        (3, 5, [3, 2]),
        (3, 6, [3, 2, 1]),
        (3, 8, [3, 3, 2]),
        (3, 9, [3, 3, 2, 1]),
        (3, 10, [3, 3, 3, 1]),
    ],
)
def test_groups_of_the_fast_driver(order, n, groups):
    """The k-th point of a group uses k values; "taylor" uses all of them."""
    path = PATHS["vp"]
    used = values_in_each_step(single(order, solver_type="taylor"), path, log_snr(path, n, 0.1, 0.9))
    assert used == [k for size in groups for k in range(1, size + 1)]


def test_fixed_groups_must_divide_the_grid():
    path = PATHS["vp"]
    solver = DPMSolver(order=3, scheme="singlestep_fixed", solver_type="taylor")
    assert values_in_each_step(solver, path, log_snr(path, 6, 0.1, 0.9)) == [1, 2, 3, 1, 2, 3]
    with pytest.raises(ValueError, match="multiple of 3 intervals, the grid has 7"):
        solver.bind(path, log_snr(path, 7, 0.1, 0.9))


@pytest.mark.parametrize(
    ("order", "form", "kind", "path"),
    [
        (2, "data", "midpoint", "vp"),
        (2, "noise", "taylor", "linear"),
        (3, "data", "midpoint", "linear"),
        (3, "noise", "taylor", "vp"),
    ],
)
def test_order(order, form, kind, path):
    """No warm-up limits a singlestep method; inner points need not be at 1/3 and 2/3."""
    solver = DPMSolver(order=order, scheme="singlestep_fixed", form=form, solver_type=kind)
    counts = (48, 96, 192) if order == 2 else (48, 96)
    assert Problem(PATHS[path]).order(solver, counts) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("name", ["vp", "linear", "ve"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_group_is_exact_for_polynomials(kind, form, name):
    path = PATHS[name]
    for order in (2, 3):
        for even in (True, False):
            lam = [0.2, 0.6, 1.0, 1.4] if even else [0.2, 0.45, 1.1, 1.4]
            grid = np.asarray(path.time(np.array(lam[: order + 1])))
            solver = DPMSolver(order=order, scheme="singlestep_fixed", form=form, solver_type=kind)
            errors = []
            for degree in range(order + 1):

                def f(lam, degree=degree):
                    return (lam - 0.2) ** degree

                values = lambda r, f=f: np.full((1, 1), f(float(path.lam(r.t))))  # noqa: E731
                end = run_on_arrays(solver, path, grid, np.ones((1, 1)), values)[-1]
                errors.append(abs(float((end - exponential_step(path, form, 1.0, grid[0], grid[-1], f))[0, 0])))
            exact = {("taylor", 2): 2, ("taylor", 3): 3, ("midpoint", 2): 1, ("midpoint", 3): 2}[kind, order]
            assert max(errors[:exact]) < 1e-13
            assert errors[exact] > 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [2, 3])
def test_only_lam_matters(order, form):
    lams = np.sort(np.random.default_rng(0).uniform(-1.5, 2.5, 10))
    first, *others = ends_by_lam(single(order, form=form), ("linear", "vp", "ve"), lams)
    assert all(relative(end, first) < 1e-12 for end in others)


@pytest.mark.parametrize("name", ["vp", "linear", "ve", "cosine"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_constants_are_exact_from_end_to_end(order, name):
    path, m, e = PATHS[name], np.array([[2.0], [0.7]]), np.array([[0.3], [-1.0]])
    grid = uniform(7)
    solutions = run_on_arrays(single(order), path, grid, path.alpha(0.0) * m + path.sigma(0.0) * e, lambda r: m)
    assert all(np.allclose(x, path.alpha(t) * m + path.sigma(t) * e, atol=1e-12) for x, t in zip(solutions, grid))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_evaluation_per_interval(order):
    assert single(order).bind(PATHS["vp"], uniform(8)).pattern.rows == 8


def test_noise_form_names_the_end_with_infinite_lam():
    with pytest.raises(ValueError, match="move the end"):
        single(3, form="noise").bind(PATHS["vp"], uniform(6))
