import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import order_from_exact_history
from problem import PATHS, Problem, relative

import flowjax as fj
from flowjax.solvers import DDIM, USF, DPMSolver, DPMSolverV3, Statistics, UniPC, run_on_arrays
from flowjax.solvers.usf import Decision, Schedule, baselines
from flowjax.times import log_snr, uniform

THREE = ["vp", "linear", "ve"]
RECORDED = json.loads((pathlib.Path(__file__).parent / "usf_official.json").read_text())
# Paths, ends of the statistics, scale of the start.
RANGES = {
    "vp": (PATHS["vp"], (0.0, 1 - 1e-4), 1),
    "linear": (PATHS["linear"], (0.02, 0.995), 1),
    "ve": (fj.paths.VE(sigma_min=0.002, sigma_max=80.0), (0.0, 1.0), 80),
}


@pytest.mark.parametrize("name", RECORDED["runs"])
def test_recorded_runs_of_the_authors_program(name):
    """Published solvers, schedules of all ingredients, and released ones.

    On vp their own guess of a zero first output is e = x, where sigma is 1 up to 2e-5: m is 0.003 x then, not 0.
    """
    recorded = RECORDED["runs"][name]
    path, ends, scale = RANGES[recorded["path"]]
    lam = np.linspace(*path.lam(np.array(ends)), 481)
    statistics = Statistics(lam=lam, l=1 / (1 + np.exp(-lam)), s=-0.5 - 0.3 * np.tanh(lam / 2), b=0.2 * np.sin(lam))
    grid = path.time(lam[recorded["points"]])
    solver = USF(
        schedule=Schedule(
            times=tuple(map(float, grid)),
            decisions=tuple(
                Decision(**{key: tuple(v) if isinstance(v, list) else v for key, v in decision.items()})
                for decision in recorded["decisions"]
            ),
            first=recorded.get("first", "network"),
        ),
        statistics=statistics,
        mean=0.215,
    )
    x = scale * np.array(RECORDED["start"])[:, None]
    end = run_on_arrays(solver, path, grid, x, Problem(path))[-1][:, 0]
    assert relative(end, recorded["x"]) < 1e-8
    assert relative(end, recorded.get("x of their guess", recorded["x"])) < 1e-3
    assert solver.bind(path, grid).pattern.rows == solver.schedule.evaluations == recorded["evaluations"]


def ends(problem, grid, *solvers):
    x = problem.state(grid[0])
    return [run_on_arrays(s, problem.path, grid, x, problem)[-1] for s in solvers]


def usf(grid, decisions, **options):
    return USF(schedule=Schedule(times=tuple(map(float, grid)), decisions=tuple(decisions)), **options)


@pytest.mark.parametrize("name", THREE)
def test_published_solvers(name):
    problem = Problem(PATHS[name])
    grid = log_snr(problem.path, 10, 0.1, 0.9)
    solvers = {
        "ddim": DDIM(),
        "dpm_solver++_2m": DPMSolver(lower_order_final=True),
        "dpm_solver++_3m": DPMSolver(order=3, lower_order_final=True),
        "dpm_solver_2m": DPMSolver(form="noise", lower_order_final=True),
        "unipc_2_bh1": UniPC(order=2, variant="bh1"),
        "unipc_2_bh2": UniPC(order=2),
        "unipc_3_bh1": UniPC(variant="bh1"),
        "unipc_3_bh2": UniPC(),
    }
    schedules = baselines(grid)
    assert schedules.keys() == solvers.keys()
    for key, schedule in schedules.items():
        mine, known = ends(problem, grid, USF(schedule=schedule), solvers[key])
        assert relative(mine, known) < 1e-11
        assert schedule.evaluations == 10


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_singlestep_methods(prediction, name):
    problem = Problem(PATHS[name])
    grid = log_snr(problem.path, 6, 0.1, 0.9)
    first = Decision(prediction=prediction)
    second = [first, dataclasses.replace(first, order=2, start=-2, points=(-1,), relaxation="midpoint")] * 3
    inner = dataclasses.replace(first, order=2, start=-2, points=(-1,))
    third = [first, inner, dataclasses.replace(inner, start=-3)] * 2
    for order, decisions in ((2, second), (3, third)):
        known = DPMSolver(order=order, scheme="singlestep_fixed", form=prediction)
        assert relative(*ends(problem, grid, usf(grid, decisions), known)) < 1e-11


def curves(path):
    lam = np.linspace(float(path.lam(0.05)), float(path.lam(0.95)), 1201)
    t = path.time(lam)
    return Statistics(lam=lam, l=t**2, s=-0.4 * t, b=0.2 * np.cos(3 * t))


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("corrector", [False, "v3", "v3_pseudo"])
def test_v3_steps(corrector, name):
    """Predictors with plain and with pseudo derivatives, and both correctors."""
    problem = Problem(PATHS[name])
    grid, statistics = log_snr(problem.path, 7, 0.1, 0.9), curves(problem.path)
    orders = [min(3, i + 1, 7 - i) for i in range(7)]
    for pseudo in (False, True):
        known = DPMSolverV3(
            statistics=statistics,
            order=3,
            corrector=bool(corrector),
            p_pseudo=pseudo,
            c_pseudo=corrector == "v3_pseudo",
        )
        decisions = [
            Decision(
                prediction="v3",
                order=k,
                estimation=tuple(range(1, k)) if pseudo else (),
                corrector=corrector if i < 6 else False,
            )
            for i, k in enumerate(orders)
        ]
        assert relative(*ends(problem, grid, usf(grid, decisions, statistics=statistics), known)) < 1e-11


def test_mixed_predictions_run_compiled():
    path = PATHS["linear"]
    grid = log_snr(path, 5, 0.1, 0.9)
    decisions = [
        Decision(corrector=True, corrector_relaxation="bh1"),
        Decision(prediction="noise", order=2, relaxation=0.1, corrector=True),
        Decision(prediction="v3", order=3, estimation=(1, 2), corrector=True),
        Decision(prediction="data", order=2, start=-2, points=(-3,), relaxation="+exp"),
        Decision(prediction="noise", order=4, relaxation="-exp"),
    ]
    solver = usf(grid, decisions, statistics=curves(path))
    flow = fj.Flow(lambda x, t, cond: jnp.tanh(x) + t[:, None], path=path, prediction="data")
    x = np.random.default_rng(0).standard_normal((4, 2))
    result = fj.solve(flow, solver, jnp.asarray(x, jnp.float32), grid)
    expected = run_on_arrays(solver, path, grid, x, lambda r: np.tanh(r.x) + r.t)[-1]
    assert relative(result.x, expected) < 1e-5
    assert int(result.evaluations) == 5


@pytest.mark.parametrize("first", ["zero", "mean"])
def test_a_guessed_first_output_saves_an_evaluation(first):
    path, grid = PATHS["vp"], tuple(uniform(6))
    mean = np.array([0.3, -0.2, 0.1])
    schedule = Schedule(times=grid, decisions=(Decision(), *[Decision(order=2)] * 5), first=first)
    solver = USF(schedule=schedule, mean=mean)
    flow = fj.Flow(lambda x, t, cond: jnp.tanh(x), path=path, prediction="data")
    x = fj.noise(jax.random.key(0), (2, 3))
    result = fj.solve(flow, solver, x, grid, trajectory=True)
    assert int(result.evaluations) == schedule.evaluations == 5
    assert result.trajectory.shape == (7, 2, 3)
    guess = mean.astype(np.float32)[None] if first == "mean" else 0.0
    alpha, sigma = float(path.alpha(grid[1])), float(path.sigma(grid[1]))
    k = sigma / float(path.sigma(0.0))
    expected = k * x + (alpha - k * float(path.alpha(0.0))) * guess
    assert relative(result.trajectory[1], expected) < 1e-5
    assert np.all(np.isfinite(result.x))


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize(("order", "corrector"), [(1, False), (2, False), (3, False), (2, True)])
def test_orders(order, corrector, prediction):
    """From an exact history; the corrector adds one."""
    found = order_from_exact_history(
        Problem(PATHS["vp"]), Constant(order=order, corrector=corrector, prediction=prediction), (80, 160), known=4
    )
    assert order + corrector - 0.35 < found < order + corrector + 0.6


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same decision everywhere, on any grid."""

    order: int
    prediction: str = "data"
    corrector: bool = False
    relaxation: str | float | None = None

    def updates(self, path, times, x):
        decisions = [
            Decision(
                order=min(self.order, i + 1),
                prediction=self.prediction,
                corrector=self.corrector and i < len(times) - 2,
                relaxation=self.relaxation,
            )
            for i in range(len(times) - 1)
        ]
        return usf(times, decisions).updates(path, times, x)


@pytest.mark.parametrize("relaxation", ["midpoint", "bh1", "+exp", "-exp", 0.5, -0.3])
def test_a_relaxed_first_derivative_keeps_order_two(relaxation):
    found = order_from_exact_history(Problem(PATHS["vp"]), Constant(2, relaxation=relaxation), (80, 160), known=2)
    assert found > 1.7


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_relaxations(prediction):
    """Factors of the first derivative's weight, and names for the same one."""
    problem = Problem(PATHS["vp"])
    grid = np.asarray(problem.path.time(np.array([0.0, 0.3, 0.8])))
    h = 0.5

    def weight(relaxation):
        """Contribution of the derivative, from outputs 0 and 1, whose slope is known."""
        outputs = iter([np.zeros((1, 1)), np.ones((1, 1))])
        options = {"prediction": prediction, "order": 2, "relaxation": relaxation}
        solver = usf(grid, [Decision(prediction=prediction), Decision(**options)])
        plain = usf(grid, [Decision(prediction=prediction), Decision(prediction=prediction)])

        def network(request):  # data that make the noise prediction this output too
            value = next(outputs)
            sigma, alpha = problem.path.sigma(request.t), problem.path.alpha(request.t)
            return value if prediction == "data" else (request.x - sigma * value) / alpha

        x = np.ones((1, 1))
        one = run_on_arrays(solver, problem.path, grid, x, network)[-1]
        outputs = iter([np.zeros((1, 1)), np.ones((1, 1))])
        return float((one - run_on_arrays(plain, problem.path, grid, x, network)[-1])[0, 0])

    z = -h if prediction == "data" else h
    half = np.expm1(z) / 2 / ((np.expm1(z) - z) / z)
    assert weight("midpoint") == pytest.approx(weight("bh2"), rel=1e-14)
    assert weight("midpoint") / weight(None) == pytest.approx(half, rel=1e-10)
    assert weight("bh1") / weight(None) == pytest.approx(half * z / np.expm1(z), rel=1e-10)
    assert weight("+exp") / weight(None) == pytest.approx(1 + np.expm1(z) / 2, rel=1e-10)
    assert weight("-exp") / weight(None) == pytest.approx(1 - np.expm1(z) / 2, rel=1e-10)
    assert weight(0.4) / weight(None) == pytest.approx(1 + 0.4 * h, rel=1e-10)


def test_the_order_of_the_points_does_not_matter():
    problem = Problem(PATHS["vp"])
    grid = log_snr(problem.path, 5, 0.1, 0.9)

    def solver(points, estimation=()):
        warm_up = [Decision(order=k) for k in (1, 2, 3)]
        return usf(grid, [*warm_up, *[Decision(order=3, points=points, estimation=estimation)] * 2])

    a, b, more, other = ends(
        problem, grid, solver((-2, -3)), solver((-3, -2)), solver((-4, -2, -3), (3, 3)), solver((-2, -4))
    )
    assert relative(a, b) < 1e-12
    assert relative(more, a) > 1e-6
    assert relative(other, a) > 1e-6


def test_more_points_than_the_order_needs_are_no_worse():
    """The derivative of a cubic from three other points is exact, from one it is not."""
    path = PATHS["vp"]
    grid = np.asarray(path.time(np.array([-0.5, 0.1, 0.5, 0.8, 1.3])))

    def end(estimation):
        decisions = [*[Decision()] * 3, Decision(order=2, estimation=estimation)]
        values = lambda r: np.full((1, 1), float(path.lam(r.t)) ** 3)  # noqa: E731
        return run_on_arrays(usf(grid, decisions), path, grid, np.ones((1, 1)), values)[-2:]

    before = end((3,))[0]
    slope = 3 * 0.8**2
    lam = np.linspace(0.8, 1.3, 100001)
    y = np.exp(lam - 1.3) * (0.8**3 + slope * (lam - 0.8))
    integral = float(np.sum((y[1:] + y[:-1]) / 2) * (lam[1] - lam[0]))
    exact = float(path.sigma(grid[4]) / path.sigma(grid[3])) * before + float(path.alpha(grid[4])) * integral
    assert relative(end((3,))[1], exact) < 1e-9
    assert relative(end((1,))[1], exact) > 1e-3


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "ve"])
def test_baselines_from_end_to_end(name):
    path, grid, m = PATHS[name], uniform(6), np.array([[0.4], [-0.9]])
    e = np.array([[1.0], [0.3]])
    x = path.alpha(0.0) * m + path.sigma(0.0) * e
    for schedule in baselines(grid).values():
        solutions = run_on_arrays(USF(schedule=schedule), path, grid, x, lambda r: m)
        assert np.allclose(solutions[-1], path.alpha(1.0) * m + path.sigma(1.0) * e, atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Decision(prediction="velocity"),
        lambda: Decision(order=5),
        lambda: Decision(corrector="implicit"),
        lambda: Decision(order=2, relaxation="half"),
        lambda: Decision(start=0),
        lambda: Decision(order=3, estimation=(1,)),
        lambda: Decision(order=3, estimation=(1, 1)),
        lambda: Schedule(times=(0.0, 1.0), decisions=(Decision(), Decision())),
        lambda: Schedule(times=(0.0, 0.5, 1.0), decisions=(Decision(order=2), Decision())),
        lambda: Schedule(times=(0.0, 0.5, 1.0), decisions=(Decision(), Decision(order=2, points=(-1,)))),
        lambda: Schedule(times=(0.0, 1.0), decisions=(Decision(),), first="guess"),
        lambda: usf((0.0, 1.0), [Decision(prediction="v3")]),
        lambda: usf((0.0, 0.5), [Decision()]).bind(PATHS["vp"], (0.0, 0.6)),
    ],
)
def test_refusals(make):
    with pytest.raises(ValueError, match=r"[a-z]"):
        make()


def test_one_program_serves_all_schedules():
    """Padded to the same number of registers, schedules differ in numbers only."""
    path, grid = PATHS["linear"], uniform(5)
    bound = [USF(schedule=s).bind(path, grid, registers=10) for s in baselines(grid).values()]
    assert len({b.pattern for b in bound}) == 1
