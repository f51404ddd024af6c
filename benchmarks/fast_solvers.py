"""Claim: below 10 evaluations the fast solvers beat Euler and Heun on trained models; calibrated ones lead at 5.

    python benchmarks/fast_solvers.py --workdir=runs/digits

Error (root mean square distance to a 1,000-step solution from the same noise) and Frechet distance to the data at 4 to
20 evaluations, for every solver with its calibration (statistics, ratios, a schedule searched for 5 evaluations) where
it has one. Guided by the recipe's scale. Also a picture of both.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from measure import RESULTS, store

import flowjax as fj
from flowjax import data, evaluation
from flowjax.calibration import compensation, ems, schedules
from flowjax.calibration.reference import reference

COUNTS = (4, 5, 6, 8, 10, 15, 20)
START, END = 1e-3, 1 - 1e-3
S = fj.solvers
FIXED = {  # name: (solver, steps for n evaluations or None, times)
    "euler": (S.Euler(), lambda n: n),
    "heun": (S.Heun(), lambda n: n // 2 if n % 2 == 0 else None),
    "midpoint": (S.Midpoint(), lambda n: n // 2 if n % 2 == 0 else None),
    "ab2": (S.AdamsBashforth(order=2), lambda n: n),
    "plms4": (S.AdamsBashforth(order=4, form="noise", weights="fixed"), lambda n: n),
    "deis3": (S.DEIS(), lambda n: n),
    "dpm_solver++_2m": (S.DPMSolver(), lambda n: n),
    "dpm_solver++_3m": (S.DPMSolver(order=3), lambda n: n),
    "dpm_solver++_3s": (S.DPMSolver(order=3, scheme="singlestep"), lambda n: n),
    "dpm_solver_2m": (S.DPMSolver(form="noise"), lambda n: n),
    "unipc2": (S.UniPC(order=2), lambda n: n),
    "unipc3": (S.UniPC(order=3), lambda n: n),
    "ghvb2": (S.GHVB(), lambda n: n),
    "ghvb4": (S.GHVB(order=4, form="noise", weights="fixed"), lambda n: n),
    "2m + heavy ball": (S.HeavyBall(solver=S.DPMSolver()), lambda n: n),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=6, help="rounds of the schedule search")
    args = parser.parse_args()
    flow, recipe = fj.load(args.workdir)
    field = recipe.field(flow)
    source = data.load(recipe.data["name"], **recipe.data["options"])
    extractor = evaluation.default_extractor(source)
    real = extractor.features(np.asarray(source.take(2000, 0).x))
    grid_of = lambda n: fj.times.uniform(n, START, END)  # noqa: E731
    x0 = flow.path.start(fj.noise(jax.random.key(1), (args.num, *recipe.shape)), START)
    cond = jnp.asarray(recipe.balanced(args.num))
    exact = reference(field, x0, [START, END], cond, steps=1000)[-1]

    def judge(x):
        error = float(jnp.sqrt(jnp.mean((x - exact) ** 2)))
        samples = np.asarray(x) * np.float32(recipe.scale) + np.float32(recipe.shift)
        finite = bool(np.isfinite(samples).all())
        return error, evaluation.frechet_distance(extractor.features(samples), real) if finite else float("nan")

    rows = []

    def add(name, solver, grid, expected):
        result = fj.solve(field, solver, x0, grid, cond=cond)
        assert int(result.evaluations) == expected, (name, int(result.evaluations), expected)
        error, distance = judge(result.x)
        rows.append({"solver": name, "evaluations": expected, "error": error, "frechet": distance})
        print(f"{name:20s} {expected:3d} evaluations  error {error:.4f}  FD {distance:.4f}", flush=True)

    began = time.perf_counter()
    batches = data.Batches(source, 128, 0)
    drawn = [batches.batch(i) for i in range(4)]
    statistics = ems.estimate(
        field,
        lambda i: (jnp.asarray(drawn[i]["x1"]), jnp.asarray(drawn[i]["cond"])),
        jax.random.key(2),
        start=START,
        end=END,
        points=40,
        batches=2,
        mode="channel",
    )
    costs = {"seconds to measure the statistics": time.perf_counter() - began}
    for n in COUNTS:
        for name, (solver, steps) in FIXED.items():
            if steps(n) is not None:
                add(name, solver, grid_of(steps(n)), n)
        add("dpm_solver_v3", S.DPMSolverV3(statistics=statistics, order=2), grid_of(n), n)
        if n in (5, 10):
            began = time.perf_counter()
            few = flow.path.start(fj.noise(jax.random.key(3), (10, *recipe.shape)), START)
            labels = jnp.asarray(recipe.balanced(10))
            solver = S.DCSolver(order=3)
            ratios = compensation.search(field, solver, few, grid_of(n), labels, iterations=20)
            costs[f"seconds to search the ratios for {n} evaluations"] = time.perf_counter() - began
            add("dc_solver", S.DCSolver(order=3, ratios=ratios.tolist()), grid_of(n), n)
        if n == 5:
            began = time.perf_counter()
            best = search(field, recipe, grid_of(n), args.rounds)
            costs["seconds to search the schedule for 5 evaluations"] = time.perf_counter() - began
            add("searched schedule", S.USF(schedule=best), best.times, n)

    name = Path(args.workdir).name
    numbers = {"model": name, "guidance": recipe.guidance, "samples": args.num, "rows": rows, "costs": costs}
    store(f"fast_solvers_{name}", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)
    plot(rows, RESULTS.parent.parent / "docs" / "figures" / f"fast_solvers_{name}.png")


def search(field, recipe, grid, rounds):
    """The best schedule of as many steps as `grid`, on noises of its own."""
    x = field.path.start(fj.noise(jax.random.key(4), (40, *recipe.shape)), grid[0])
    cond = jnp.asarray(recipe.balanced(40))
    goal = reference(field, x, [START, END], cond, steps=200)[-1]
    return schedules.search(lambda c: schedules.errors(field, c, x, goal, cond), grid, rounds=rounds)[0][1]


def plot(rows, path):
    """Error and Frechet distance against evaluations."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, key, label in zip(
        figure.subplots(1, 2), ("error", "frechet"), ("error to 1,000 steps", "Frechet distance"), strict=True
    ):
        for number, name in enumerate(dict.fromkeys(row["solver"] for row in rows)):
            points = [(row["evaluations"], row[key]) for row in rows if row["solver"] == name]
            style = "-" if number < 10 else "--"
            axis.plot(*zip(*points, strict=True), style, marker="o" if len(points) > 2 else "*", ms=4, label=name)
        axis.set(xscale="log", yscale="log", xlabel="evaluations", ylabel=label)
        axis.set_xticks(COUNTS, labels=[str(n) for n in COUNTS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
