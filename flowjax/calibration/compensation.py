"""Compensation ratios of DC-Solver (Zhao et al., 2409.03755), and their regression over steps and guidance.

The ratios of a grid are found one after the other: with the states and outputs of the steps before fixed, rho_i
minimises the mean squared distance of x_{i+1} to a fine solution with the same noise at the same time. An iteration
costs one evaluation; the derivative in one number is taken forward, so no activations are stored.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from flowjax import _checks, specs
from flowjax.calibration import store
from flowjax.calibration.base import Calibrated, Calibration, Stored, Work, option
from flowjax.calibration.reference import reference
from flowjax.flow import Field
from flowjax.solvers.dc_solver import DCSolver
from flowjax.solvers.requests import Evaluate, Request, interpret, own_answer
from flowjax.times import check_times


def search(
    field: Field,
    solver: DCSolver,
    x: Float[Array, "batch ..."],
    times: Any,
    cond: Any = None,
    *,
    iterations: int = 40,
    rate: float = 0.1,
    bound: bool = False,
    reference_steps: int = 200,
    partial: str | Path | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[np.ndarray, " steps"]:
    """One ratio per step of the grid, by a greedy search (AdamW, as published).

    Args:
        field: the field that will be sampled, guidance included.
        solver: the solver whose ratios are sought; its own are ignored.
        x: a few start states at times[0], (B, ...); 10 are enough.
        times: the grid.
        cond: their conditions.
        iterations: of the optimiser, per step; 0 leaves the ratios at 1.
        rate: its learning rate.
        bound: keep the ratios in (0.5, 1.5) by rho = 1 + tanh(u)/2.
        reference_steps: steps of the fine solution.
        partial: file that holds the ratios found so far; an interrupted search continues from it.
        record: what that file belongs to, beside the grid (model hash, guidance, ...): JSON values.
        progress: called with (done, total) steps.

    Returns:
        The ratios; those of the first two steps are 1.

    Raises:
        ValueError: a number out of its range, or a partial file of something else.
    """
    times = check_times(times)
    _checks.whole("[0, 2147483647]", iterations=iterations)
    _checks.whole(_checks.COUNT, reference_steps=reference_steps)
    _checks.real("(0, inf)", rate=rate)
    steps = len(times) - 1
    file = None if partial is None else Path(f"{partial}.ratios.npz")
    belongs = {"times": times.tolist(), "iterations": iterations, "rate": rate, "bound": bound} | dict(record or {})
    target = reference(field, x, times, cond, steps=reference_steps)
    found, done = store.resume(file, belongs)
    ratios, done = found.get("ratios", np.ones(steps)), max(done, 2)  # the first two are not searched
    values: list[Array] = [field.evaluate(times[0], x, cond, field.init(x, times), to=solver.form)[0]]
    optimizer = optax.adamw(rate, weight_decay=0.01)

    def after(
        ratio: Any, number: int, values: Sequence[Array], field: Field, x: Array, cond: Any
    ) -> tuple[Array, Array]:
        """x_{number + 1} and the output at its predicted point, with the earlier outputs replayed."""
        used = DCSolver(**{**vars(solver), "ratios": [*ratios[:number].tolist(), ratio, *[1.0] * (steps - number - 1)]})
        known, new = iter(values), values[-1]

        def answer(request: Request) -> Any:
            nonlocal new
            if not isinstance(request, Evaluate):
                return own_answer(request)
            if (value := next(known, None)) is None:
                value = new = field.evaluate(request.t, request.x, cond, field.init(x, times), to=request.to)[0]
            return value

        solutions = interpret(used.updates(field.path, times.tolist(), x), answer)
        return next(itertools.islice(solutions, number, None)), new

    def ratio_of(u: Array) -> Array:
        return 1 + 0.5 * jnp.tanh(u) if bound else u

    for number in range(steps):
        if number >= done:

            @jax.jit
            def best(
                values: list[Array], field: Field, x: Array, cond: Any, goal: Array, number: int = number
            ) -> Array:
                def loss(u: Array) -> Array:
                    return jnp.mean((after(ratio_of(u), number, values, field, x, cond)[0] - goal) ** 2)

                def iterate(carry: Any, _: Any) -> tuple[Any, None]:
                    u, state = carry
                    _, slope = jax.jvp(loss, (u,), (jnp.ones_like(u),))
                    update, state = optimizer.update(slope, state, u)
                    return (optax.apply_updates(u, update), state), None

                start = jnp.asarray(0.0 if bound else 1.0, float)  # a ratio of 1; the decay of AdamW acts on u
                (u, _), _ = jax.lax.scan(iterate, (start, optimizer.init(start)), length=iterations)
                return ratio_of(u)

            ratios[number] = float(best(values, field, x, cond, target[number + 1]))
            if file is not None:
                store.save(file, {"ratios": ratios}, belongs | {"done": number + 1})
        if number < steps - 1:
            values.append(after(float(ratios[number]), number, values, field, x, cond)[1])
        progress(number + 1, steps)
    if file is not None:
        file.unlink(missing_ok=True)
    return ratios


def features(steps: int, guidance: float) -> Float[np.ndarray, "steps 36"]:
    """The 36 products u^d c^a n^b of the cascade regression for every step of a run.

    u = step/steps (step = 1, ..., steps), c = guidance/12, n = steps/50; d = 0..3, a and b from 2 down to 0, flattened
    in the order (d, a, b).
    """
    u = np.arange(1, steps + 1) / steps
    c, n = guidance / 12, steps / 50
    return np.stack([u**d * c**a * n**b for d in range(4) for a in (2, 1, 0) for b in (2, 1, 0)], axis=1)


def fit(runs: Sequence[tuple[int, float, Any]]) -> Float[np.ndarray, " 36"]:
    """Cascade polynomial regression: coefficients that predict ratios for unseen numbers of steps and guidance scales.

    Args:
        runs: (steps, guidance, ratios) of searched runs; the first two ratios of each are left out.

    Returns:
        36 coefficients for `predict`, the least-squares solution of smallest norm.

    Raises:
        ValueError: no runs, ratios of another number of steps, or no numbers.
    """
    if not runs:
        raise ValueError("a regression needs one run or more, got none")
    for steps, guidance, ratios in runs:
        _checks.whole(_checks.COUNT, steps=steps)
        _checks.real("(-inf, inf)", guidance=guidance)
        if np.shape(ratios) != (steps,) or not np.all(np.isfinite(ratios)):
            raise ValueError(f"a run of {steps} steps has as many finite ratios, got {np.asarray(ratios).tolist()}")
    rows = np.concatenate([features(steps, guidance)[2:] for steps, guidance, _ in runs])
    goals = np.concatenate([np.asarray(ratios, np.float64)[2:] for _, _, ratios in runs])
    return np.linalg.lstsq(rows, goals, rcond=None)[0]


def predict(coefficients: Any, steps: int, guidance: float) -> Float[np.ndarray, " steps"]:
    """Ratios of a run by the regression; 1 for the first two steps. Do not extrapolate far beyond the fitted runs.

    Raises:
        ValueError: other than 36 finite coefficients, or numbers out of their range.
    """
    _checks.whole(_checks.COUNT, steps=steps)
    _checks.real("(-inf, inf)", guidance=guidance)
    if np.shape(coefficients) != (36,) or not np.all(np.isfinite(coefficients)):
        raise ValueError(f"the regression has 36 finite coefficients, got an array of shape {np.shape(coefficients)}")
    ratios = features(steps, guidance) @ np.asarray(coefficients, np.float64)
    ratios[:2] = 1.0
    return ratios


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compensation(Calibration):
    """The ratios of DC-Solver for one number of steps.

    Attributes:
        start: See `Calibration`.
        end: Likewise.
        num: Samples of the search.
        steps: Solver steps.
        order: Of DC-Solver.
        solver: Spec of one, in place of the order.
        times: Spec of a grid, in place of equal steps between the ends.

    Raises:
        ValueError: Another solver than DC-Solver.

    Example:
        >>> from flowjax.calibration.compensation import Compensation
        >>> Compensation(steps=8, order=2).dc.order
        2
    """

    num: int = option(10, "Samples of the search.")
    steps: int = option(5, "Solver steps.")
    order: int = option(3, "Order of DC-Solver.")
    solver: str | None = option(None, "Solver, such as dc_solver(order=2, variant=bh1), in place of --order.")
    times: str | None = option(None, "Grid, such as quadratic(start=1e-3), in place of --start and --end.")

    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {"times": ("start", "end"), "solver": ("order",)}

    def __post_init__(self) -> None:
        """Checks the options."""
        _checks.whole("[1, 10]", order=self.order)
        if not isinstance(self.dc, DCSolver):
            raise ValueError(f"compensation finds the ratios of dc_solver, got --solver={self.solver}")

    @property
    def dc(self) -> Any:
        """The solver whose ratios are sought."""
        return DCSolver(order=self.order) if self.solver is None else specs.build("solver", self.solver)

    def sizes(self) -> dict[str, Any]:
        """As in all versions: the order is that of the solver."""
        return super().sizes() | {"order": self.dc.order}

    def compute(self, work: Work) -> dict[str, np.ndarray]:
        """The ratios and their times."""
        x, cond = work.states()
        ratios = search(
            work.field,
            self.dc,
            x,
            work.grid,
            cond,
            partial=work.file.with_suffix(""),
            record=work.record,
            progress=lambda done, total: work.progress(done, total, ""),
        )
        return {"ratios": ratios, "times": work.grid}

    @classmethod
    def use(cls, stored: Stored) -> Calibrated:
        """DC-Solver with the ratios."""
        solver = specs.build("solver", stored.record.get("solver") or f"dc_solver(order={stored.record['order']})")
        return Calibrated(dataclasses.replace(solver, ratios=stored.arrays["ratios"].tolist()), stored.arrays["times"])
