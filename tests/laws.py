"""What the tests of several solvers share: runs from an exact history, exact covariances, exponential integrals."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from problem import PATHS, Problem

from flowjax.solvers import run_on_arrays
from flowjax.solvers.requests import Evaluate, Step
from flowjax.solvers.solver import Solver


def from_exact_history(problem: Problem, solver: Solver, grid: np.ndarray, known: int) -> np.ndarray:
    """Errors at the end of a run whose first `known` steps, and the evaluations in them, are exact.

    The states are those of `grid[known]`, on the same ways whatever the size of the steps before it: an order compares
    errors of one way.
    """
    x = problem.exact(problem.state(grid[known]), grid[known], grid[0])
    generator, answer, done = solver.updates(problem.path, grid.tolist(), x), None, 0
    while True:
        try:
            request = generator.send(answer)
        except StopIteration:
            return answer - problem.exact(x, grid[0], grid[-1])
        if isinstance(request, Evaluate):
            if request.t <= grid[known]:
                request = dataclasses.replace(request, x=problem.exact(x, grid[0], request.t))
            answer = problem(request)
        elif isinstance(request, Step):
            done += 1
            answer = problem.exact(x, grid[0], grid[done]) if done <= known else request.x
        else:
            answer = request.value


def order_from_exact_history(
    problem: Problem, solver: Solver, counts: tuple[int, ...], known: int, low: float = -1.0, high: float = 2.0
) -> float:
    """Order of convergence in lam from `low` to `high`, from an exact history before `low`."""
    errors = []
    for n in counts:
        grid = np.asarray(problem.path.time(low + (high - low) / n * np.arange(-known, n + 1)))
        errors.append(np.sqrt(np.mean(from_exact_history(problem, solver, grid, known) ** 2)))
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])


def gaussian_network(path: Any, std: float) -> Callable[[Evaluate], np.ndarray]:
    """The exact predictions for data N(0, std^2): linear in x."""

    def network(request: Evaluate) -> np.ndarray:
        alpha, sigma = path.alpha(request.t), path.sigma(request.t)
        factor = {"data": alpha * std**2, "noise": sigma}[request.to]
        return factor / (alpha**2 * std**2 + sigma**2) * request.x

    return network


def gaussian_variances(solver: Solver, path: Any, grid: np.ndarray, std: float) -> np.ndarray:
    """The exact variances of a stochastic run on Gaussian data, from its true marginal at grid[0].

    A state is the row of its coefficients with respect to the initial state and all noises.
    """
    size = 4 * len(grid)
    basis: Iterator[np.ndarray] = iter(np.eye(size)[:, None, :])
    x = np.sqrt(gaussian_variance(path, grid[0], std)) * next(basis)
    solutions = run_on_arrays(solver, path, grid, x, gaussian_network(path, std), lambda: next(basis))
    return np.array([float(np.sum(x**2)) for x in solutions])


def gaussian_variance(path: Any, t: Any, std: float) -> Any:
    """The variance of the true marginal."""
    return path.alpha(t) ** 2 * std**2 + path.sigma(t) ** 2


def same_noises(seed: int = 0, shape: tuple[int, ...] = (16, 1)) -> Callable[[], np.ndarray]:
    """A source of noises, the same sequence for the same seed."""
    rng = np.random.default_rng(seed)
    return lambda: rng.standard_normal(shape)


def exponential_step(path: Any, form: str, x: Any, s: float, t: float, f: Callable[[Any], Any], eta: float = 0) -> Any:
    """The exact mean of the flow (eta = 0) or SDE from s to t where the prediction is a function f of lam alone.

    By Gauss-Legendre quadrature of the variation of constants formula (2211.01095, eq. 8, and its stochastic version).
    """
    nodes, weights = np.polynomial.legendre.leggauss(30)
    low, high = (float(path.lam(u)) for u in (s, t))
    lam, weights = low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2
    if form == "data":
        decay = float(path.sigma(t) / path.sigma(s)) * np.exp(-eta * (high - low))
        kernel = (1 + eta) * float(path.alpha(t)) * np.exp((1 + eta) * (lam - high))
    else:
        decay = float(path.alpha(t) / path.alpha(s))
        kernel = -(1 + eta) * float(path.sigma(t)) * np.exp(high - lam)
    return decay * x + np.sum(weights * kernel * f(lam))


def values_in_each_step(solver: Solver, path: Any, grid: np.ndarray) -> list[int]:
    """How many evaluations enter each solution beyond the one before it, seen with one-hot network outputs."""
    n = 4 * len(grid)
    count = iter(range(n))
    solutions = run_on_arrays(solver, path, grid, np.zeros((1, n)), lambda r: np.eye(n)[next(count)][None])
    a = path.sigma if solver.form == "data" else path.alpha
    scaled = [x / a(t) for x, t in zip(solutions, grid, strict=True)]
    return [int(np.sum(np.abs(new - old) > 1e-12)) for old, new in itertools.pairwise(scaled)]


def ends_by_lam(solver: Solver, names: tuple[str, ...], lams: np.ndarray) -> list[np.ndarray]:
    """x/alpha at the end of a run on each path of `PATHS`, with the same lams, the same x/alpha at the start and a data
    prediction that depends on these alone."""
    ends = []
    for name in names:
        path = PATHS[name]

        def network(request: Evaluate, path: Any = path) -> np.ndarray:
            lam, scaled = path.lam(request.t), request.x / path.alpha(request.t)
            m = np.tanh(scaled + 0.3 * lam)
            return m if request.to == "data" else np.exp(lam) * (scaled - m)

        grid = np.asarray(path.time(lams))
        x = path.alpha(grid[0]) * np.array([[-1.0], [0.2], [3.0]])
        ends.append(run_on_arrays(solver, path, grid, x, network)[-1] / path.alpha(grid[-1]))
    return ends
