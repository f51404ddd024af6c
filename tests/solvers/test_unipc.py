import json
import pathlib

import numpy as np
import pytest
from laws import ends_by_lam, exponential_step, order_from_exact_history, values_in_each_step
from problem import PATHS, Problem, relative

import flowjax as fj
from flowjax.solvers import DDIM, DPMSolver, UniPC, run_on_arrays
from flowjax.times import log_snr, uniform

FORMS = ["data", "noise"]
THREE = ["vp", "linear", "ve"]
LAMS = np.array([0.1, 0.5, 0.8, 1.3, 1.7])
VARIANTS = ["bh1", "bh2", "vary"]


RECORDED = json.loads((pathlib.Path(__file__).parent / "unipc_official.json").read_text())


@pytest.mark.parametrize("name", RECORDED["runs"])
def test_recorded_runs_of_the_authors_program(name):
    form, variant, order, end = name.split()
    problem, last = Problem(PATHS["vp"]), 1 - 1e-3
    grid = log_snr(problem.path, 9, 0.0, last) if end == "lower" else uniform(9, 0.0, last)
    solver = UniPC(order=int(order), variant=variant, form=form, lower_order_final=end == "lower")
    found = run_on_arrays(solver, problem.path, grid, np.array(RECORDED["start"])[:, None], problem)[-1]
    assert relative(found[:, 0], RECORDED["runs"][name]["x"]) < 1e-8
    assert solver.bind(problem.path, grid).pattern.rows == RECORDED["runs"][name]["evaluations"]


def step_error(solver, path, degree, *, corrected):
    """Error of the step from lam = 0.8 to 1.3 where the prediction is a power of lam."""
    grid = np.asarray(path.time(LAMS if corrected else LAMS[:4]))
    solutions = run_on_arrays(
        solver, path, grid, np.ones((1, 1)), lambda r: np.full((1, 1), float(path.lam(r.t)) ** degree)
    )
    exact = exponential_step(path, solver.form, solutions[2], grid[2], grid[3], lambda lam: lam**degree)
    return abs(float((solutions[3] - exact)[0, 0]))


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_step_is_exact_for_polynomials(variant, form, name):
    path = PATHS[name]
    for order in (1, 2, 3):
        predictor = UniPC(order=order, variant=variant, form=form, corrector=False, lower_order_final=False)
        corrector = UniPC(order=order, variant=variant, form=form, lower_order_final=False)
        shortcut = order == 2 and variant != "vary"  # its one weight is B/2
        for degree in range(order - shortcut):
            assert step_error(predictor, path, degree, corrected=False) < 1e-13
        assert step_error(predictor, path, order - shortcut, corrected=False) > 1e-4
        shortcut = order == 1 and variant != "vary"
        for degree in range(order + 1 - shortcut):
            assert step_error(corrector, path, degree, corrected=True) < 1e-13
        assert step_error(corrector, path, order + 1 - shortcut, corrected=True) > 1e-4


@pytest.mark.parametrize("name", THREE)
def test_predictors_are_the_known_multistep_methods(name):
    problem = Problem(PATHS[name])
    grid = log_snr(problem.path, 9, 0.1, 0.9)
    x = problem.state(grid[0])

    def difference(a, b):
        return relative(*(run_on_arrays(s, problem.path, grid, x, problem)[-1] for s in (a, b)))

    assert difference(UniPC(order=1, corrector=False), DDIM()) < 1e-13
    for form in FORMS:
        for order in (2, 3):
            mine = UniPC(order=order, corrector=False, form=form)
            assert difference(mine, DPMSolver(order=order, form=form, lower_order_final=True)) < 1e-12
    assert difference(UniPC(order=3), DPMSolver(order=3)) > 1e-4


def test_variants_differ_only_in_steps_with_one_term():
    """With outputs that depend on time alone a correction forgets its prediction, so only the first corrector shows."""
    path = PATHS["vp"]
    grid = log_snr(path, 8, 0.1, 0.9)

    def run(variant, disable):
        solver = UniPC(order=3, variant=variant, disable_corrector=disable, lower_order_final=False)
        return run_on_arrays(solver, path, grid, np.ones((1, 1)), lambda r: np.full((1, 1), np.sin(5 * r.t)))[-2]

    for variant in ("bh1", "vary"):
        assert relative(run(variant, (0,)), run("bh2", (0,))) < 1e-13
        assert relative(run(variant, ()), run("bh2", ())) > 1e-5


@pytest.mark.parametrize(("order", "variant", "form"), [(1, "bh2", "noise"), (2, "bh1", "data"), (3, "vary", "noise")])
def test_the_corrector_raises_the_order_by_one(order, variant, form):
    """From an exact history; the same on every path, as only lam matters."""
    found = []
    for corrector in (False, True):
        solver = UniPC(order=order, variant=variant, form=form, corrector=corrector, lower_order_final=False)
        found.append(order_from_exact_history(Problem(PATHS["vp"]), solver, (80, 160), known=4))
    assert order - 0.2 < found[0] < order + 0.5
    assert order + 0.7 < found[1] < order + 1.5


@pytest.mark.parametrize(("order", "low", "high"), [(1, 1.6, 2.4), (2, 2.2, 3.3)])
def test_orders_of_whole_runs(order, low, high):
    def grid(n):
        return log_snr(PATHS["linear"], n, 0.1, 0.9)

    assert low < Problem(PATHS["linear"]).order(UniPC(order=order, lower_order_final=False), (40, 80, 160), grid) < high


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_only_lam_matters(order, form):
    lams = np.sort(np.random.default_rng(0).uniform(-1.5, 2.5, 10))
    first, *others = ends_by_lam(UniPC(order=order, form=form), ("linear", "vp", "ve", "trig"), lams)
    assert all(relative(end, first) < 1e-12 for end in others)


def test_orders_used():
    path = PATHS["vp"]
    grid = log_snr(path, 5, 0.1, 0.9)
    assert values_in_each_step(UniPC(order=3, corrector=False), path, grid) == [1, 2, 3, 2, 1]
    assert values_in_each_step(UniPC(order=3, corrector=False, lower_order_final=False), path, grid) == [1, 2, 3, 3, 3]
    assert values_in_each_step(UniPC(order=3), path, grid) == [2, 3, 4, 3, 1]  # the last step is not corrected
    assert values_in_each_step(UniPC(order=3, disable_corrector=(0, 2)), path, grid) == [1, 3, 3, 3, 1]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", THREE)
def test_constants_are_exact_up_to_sigma_zero(name, variant):
    path, m, e = PATHS[name], np.array([[2.0], [0.7]]), np.array([[0.3], [-1.0]])
    grid = uniform(6)
    states = [path.alpha(t) * m + path.sigma(t) * e for t in grid]
    solutions = run_on_arrays(UniPC(variant=variant), path, grid, states[0], lambda r: m)
    assert all(np.allclose(a, b, atol=1e-12) for a, b in zip(solutions, states, strict=True))


def test_repeated_times():
    """At the start an empty step changes nothing; later it renews the stored output, at the corrected state."""
    problem, solver = Problem(PATHS["vp"]), UniPC(lower_order_final=False)
    grid = log_snr(problem.path, 7, 0.1, 0.9)
    x = problem.state(grid[0])
    plain = run_on_arrays(solver, problem.path, grid, x, problem)[-1]
    for place, tolerance in ((0, 1e-12), (3, 1e-3)):
        twice = run_on_arrays(solver, problem.path, np.insert(grid, place, grid[place]), x, problem)
        assert np.array_equal(twice[place], twice[place + 1])
        assert relative(twice[-1], plain) < tolerance


def test_one_evaluation_per_step_and_none_at_the_end():
    bound = UniPC().bind(PATHS["vp"], uniform(7))
    assert bound.pattern.rows == 7
    assert list(bound.times[list(bound.pattern.stages)]) == list(uniform(7)[:-1])


def test_momentum_acts_on_the_part_that_is_asked_for():
    problem = Problem(PATHS["vp"])
    grid = log_snr(problem.path, 6, 0.1, 0.9)
    x, ends = problem.state(grid[0]), {}
    for which in ("corrector", "predictor", "both"):
        for beta in (1.0, 0.8):
            solver = fj.solvers.HeavyBall(solver=UniPC(order=2, directions=which), beta=beta)
            ends[which, beta] = run_on_arrays(solver, problem.path, grid, x, problem)[-1]
    plain = run_on_arrays(UniPC(order=2), problem.path, grid, x, problem)[-1]
    for which in ("corrector", "predictor", "both"):
        assert relative(ends[which, 1.0], plain) < 1e-12
        assert relative(ends[which, 0.8], plain) > 1e-4
    assert relative(ends["corrector", 0.8], ends["both", 0.8]) > 1e-4
    assert relative(ends["predictor", 0.8], ends["both", 0.8]) > 1e-4


@pytest.mark.parametrize(("options", "word"), [({"order": 0}, "order"), ({"variant": "b"}, "variant")])
def test_options_are_checked(options, word):
    with pytest.raises(ValueError, match=word):
        UniPC(**options)


@pytest.mark.parametrize(("path", "end"), [("linear", "start"), ("vp", "end")])
def test_noise_form_names_the_end_with_infinite_lam(path, end):
    with pytest.raises(ValueError, match=f"noise form of UniPC.*move the {end}"):
        UniPC(form="noise").bind(PATHS[path], uniform(5))
