"""Claim: below 10 evaluations the fast solvers beat Euler and Heun on trained models; calibrated ones lead at 5.

    python benchmarks/fast_solvers.py --workdir=runs/digits --times=quadratic
    python benchmarks/fast_solvers.py --workdir=benchmarks/models/mnist --batch=16 --rounds=6
    python benchmarks/fast_solvers.py --workdir=benchmarks/models/mnist --only=edm_heun,deis3
    python benchmarks/fast_solvers.py --workdir=benchmarks/models/mnist --num=400 --steps=200 --counts 5 8 10 --batch=16

Error (root mean square distance to a 1,000-step solution from the same noise; none for stochastic solvers) and Frechet
distance to the data at 4 to 20 evaluations, for every solver, with its calibration (statistics, ratios, a schedule
searched for 5 evaluations) where it has one. Guided by the recipe's scale. Each solver runs on the same times from
0.001 to 0.999 and, where its authors recommend others, on those as well, with the range that they have there (`OWN`);
multistep solvers lower their order at the end. Also a picture. With --counts, results of their own: ratios and schedule
are those stored for the model. Not here: solvers that choose their steps, whose
evaluations cannot be fixed, and FlowTurbo's refiner steps, which need a trained refiner.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from measure import RESULTS, store

import flowjax as fj
from flowjax import data, evaluation
from flowjax.calibration import compensation, ems, ranking, schedules
from flowjax.calibration.reference import reference

COUNTS = (4, 5, 6, 8, 10, 15, 20)
SEARCHED = (5, 8, 10, 15, 20)  # evaluations for which compensation ratios are searched; the regression gives the others
START, END = 1e-3, 1 - 1e-3
S = fj.solvers
FAMILIES = {
    "Runge-Kutta": {
        "euler": S.Euler(),
        "ddim": S.DDIM(),
        "heun": S.Heun(),
        "midpoint": S.Midpoint(),
        "rk4": S.RK4(),
        "edm_heun": S.EDMHeun(),
        "flowturbo H1P*": None,
    },
    "Adams-Bashforth": {
        "ab2": S.AdamsBashforth(order=2),
        "ab4": S.AdamsBashforth(order=4),
        "plms4": S.AdamsBashforth(order=4, form="noise", weights="fixed"),
        "deis2": S.DEIS(order=2, lower_order_final=True),
        "deis3": S.DEIS(order=3, lower_order_final=True),
    },
    "DPM-Solver": {
        "dpm_solver++_2m": S.DPMSolver(lower_order_final=True),
        "dpm_solver++_3m": S.DPMSolver(order=3, lower_order_final=True),
        "dpm_solver++_2s": S.DPMSolver(scheme="singlestep"),
        "dpm_solver++_3s": S.DPMSolver(order=3, scheme="singlestep"),
        "dpm_solver_2m": S.DPMSolver(form="noise", lower_order_final=True),
        "dpm_solver_3s": S.DPMSolver(order=3, scheme="singlestep", form="noise"),
    },
    "UniPC, calibrated": {
        "unipc2": S.UniPC(order=2),
        "unipc3": S.UniPC(order=3),
        "unipc3 vary": S.UniPC(order=3, variant="vary"),
        "dc_solver": None,
        "dpm_solver_v3 2": None,
        "dpm_solver_v3 3": None,
        "searched schedule": None,
    },
    "momentum": {
        "ghvb2": S.GHVB(),
        "ghvb4": S.GHVB(order=4, form="noise", weights="fixed"),
        "2m + heavy ball": S.HeavyBall(solver=S.DPMSolver(lower_order_final=True)),
        "plms4 + heavy ball": S.HeavyBall(solver=S.AdamsBashforth(order=4, form="noise", weights="fixed")),
        "ab2 + nesterov": S.Nesterov(solver=S.AdamsBashforth(order=2)),
    },
    "stochastic": {
        "ddpm": S.DDIM(eta=1.0),
        "edm_heun churn 5": S.EDMHeun(s_churn=5.0),
        "sde dpm_solver++_2m": S.DPMSolver(eta=1.0, lower_order_final=True),
        "sa_solver": S.SASolver(),
        "er_sde3": S.ERSDE(),
        "euler_maruyama": S.EulerMaruyama(),
        "stochastic_heun": S.StochasticHeun(),
    },
}


# The times that the authors of a solver recommend, or its best known users (EDM's for DPM-Solver++); equal steps for
# all others. Small pictures ask for equal steps in lam, large ones for equal steps in t.
SMALL = ("uniform", "log_snr")
OWN = {
    "edm_heun": ("karras",),
    "edm_heun churn 5": ("karras",),
    "dpm_solver_2m": SMALL,
    "dpm_solver_3s": SMALL,
    "dpm_solver++_2m": (*SMALL, "karras"),
    "dpm_solver++_2s": SMALL,
    "dpm_solver++_3s": SMALL,
    "dpm_solver++_3m": SMALL,
    "sde dpm_solver++_2m": ("uniform", "karras"),
    "unipc2": SMALL,
    "unipc3": SMALL,
    "dpm_solver_v3 2": SMALL,
    "dpm_solver_v3 3": SMALL,
    "deis2": ("quadratic",),
    "deis3": ("quadratic",),
    "er_sde3": ("uniform", "karras"),
    "sa_solver": ("uniform", "karras"),
    "euler_maruyama": ("sit",),
    "stochastic_heun": ("sit",),
}


class Sweep:
    """One trained model, one set of noises, and the numbers found so far."""

    def __init__(self, workdir, num, steps, times, seed=0):
        self.flow, self.recipe = fj.load(workdir)
        self.field = self.recipe.field(self.flow)
        self.source = data.load(self.recipe.data["name"], **self.recipe.data["options"])
        self.extractor = evaluation.default_extractor(self.source)
        self.real = self.extractor.features(np.asarray(self.source.take(2000, 0).x))
        self.seed = seed
        self.x, self.cond = self.states(1, num)
        self.noise = self.x / self.flow.path.sigma(START)
        self.exact = reference(self.field, self.x, [START, END], self.cond, steps=steps)[-1]
        self.rows = []
        self.times, self.other = times, {"uniform": "quadratic", "quadratic": "uniform"}[times]

    def states(self, number, num):
        """Start states and balanced conditions."""
        x = self.flow.path.start(fj.noise(jax.random.key(10 * self.seed + number), (num, *self.recipe.shape)), START)
        return x, jnp.asarray(self.recipe.balanced(num))

    def grid(self, steps, times=None, end=END):
        """The times a solver runs on: those of the sweep, or others by name, in the range that these are made for."""
        path, vp = self.flow.path, fj.paths.VP()
        grids = {
            "quadratic": lambda: fj.times.quadratic(steps, START, end),
            "uniform": lambda: fj.times.uniform(steps, START, end),
            # From sigma/alpha = 80 to 0.002, then on to `end`; the authors' last step is to t = 1.
            "karras": lambda: fj.times.karras(path, steps, end=end),
            # The same lam as the authors' VP diffusion from t = 1 to 1e-3, or 1e-4 with more than 15 evaluations.
            "log_snr": lambda: path.time(
                np.linspace(vp.lam(0.0), vp.lam(1 - (1e-3 if steps <= 15 else 1e-4)), steps + 1)
            ),
            "sit": lambda: fj.times.with_last_step(steps, 0.04) if steps > 1 else fj.times.uniform(1),
        }
        return grids[times or self.times]()

    def grid_of(self, solver, times, count):
        """Times on which a solver makes `count` evaluations, or None."""
        for end in (1.0, END) if times == "karras" else (END,):  # to t = 1 EDM's sampler needs an odd number
            for steps in range(1, count + 1):
                grid = self.grid(steps, times, end)
                try:
                    rows = solver.bind(self.flow.path, grid).pattern.rows
                except ValueError:  # FlowTurbo's schedule has its own number of steps
                    continue
                if rows == count:
                    return grid
        return None

    def mean(self):
        """Mean of the data, from which a schedule may start."""
        return float(self.source.normalize(np.asarray(self.source.take(2000).x, np.float64)).mean())

    def frechet(self, x):
        """Frechet distance of samples to the data."""
        samples = np.asarray(x) * np.float32(self.recipe.scale) + np.float32(self.recipe.shift)
        finite = bool(np.isfinite(samples).all())
        return evaluation.frechet_distance(self.extractor.features(samples), self.real) if finite else None

    def add(self, family, name, solver, times, registers=None):
        """Runs a solver and judges it."""
        # Dense rows: solvers with equally many rows share one compiled program.
        bound = jax.tree.map(jnp.asarray, solver.bind(self.flow.path, times, registers=registers))
        stochastic = bound.pattern.noises > 0
        x = self.flow.path.start(self.noise, times[0])
        result = fj.solve(self.field, bound, x, cond=self.cond, key=jax.random.key(5) if stochastic else None)
        assert int(result.evaluations) == bound.pattern.rows, (name, int(result.evaluations))
        error = None if stochastic else float(jnp.sqrt(jnp.mean((result.x - self.exact) ** 2)))
        row = {"family": family, "solver": name, "evaluations": bound.pattern.rows, "error": error}
        self.rows.append({**row, "frechet": self.frechet(result.x)})
        print(*self.rows[-1].values(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--times", choices=("uniform", "quadratic"), default="uniform", help="which suit the model")
    parser.add_argument("--num", type=int, default=100, help="samples")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the reference")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of the schedule search")
    parser.add_argument("--batch", type=int, default=128, help="samples for the statistics")
    parser.add_argument("--only", help="measure these solvers again, and keep the rest of the stored results")
    parser.add_argument(
        "--counts", nargs="+", type=int, help="evaluations, with ratios and schedule as they are stored"
    )
    args = parser.parse_args()
    name = Path(args.workdir).name
    sweep, costs = Sweep(args.workdir, args.num, args.steps, args.times), {}
    result = f"fast_solvers_{name}" + (f"_{args.num}" if args.counts else "")
    if args.only:
        again(sweep, result, args.only.split(","), args)
        return

    began = time.perf_counter()
    statistics = measure_statistics(sweep, args.batch)
    costs["seconds to measure the statistics of dpm_solver_v3"] = time.perf_counter() - began
    if args.counts:
        known = json.loads((RESULTS / f"fast_solvers_{name}-{jax.default_backend()}.json").read_text())["numbers"]
        ratios = {int(n): np.array(found) for n, found in known["ratios"].items()}
        best, mean, other = schedules.from_json(known["schedule"][0]), sweep.mean(), None
    else:
        began = time.perf_counter()
        ratios, other = find_ratios(sweep)
        costs["seconds to search the ratios of dc_solver"] = time.perf_counter() - began
        began = time.perf_counter()
        best, mean = find_schedule(sweep, args.rounds)
        costs["seconds to search the schedule for 5 evaluations"] = time.perf_counter() - began

    counts = args.counts or COUNTS
    for n in counts:
        calibrated = {"dc_solver": S.DCSolver(order=3, ratios=ratios[n].tolist()), **with_statistics(statistics)}
        for family, members in FAMILIES.items():
            for solver_name, solver in members.items():
                if solver_name == "searched schedule":
                    if n == best.evaluations:
                        sweep.add(family, solver_name, S.USF(schedule=best, mean=mean), best.times)
                    continue
                add_on_times(sweep, family, solver_name, solver or calibrated.get(solver_name), n)
        if n == 5 and other is not None:
            solver = S.DCSolver(order=3, ratios=other.tolist())
            sweep.add("UniPC, calibrated", f"dc_solver, {sweep.other} times", solver, sweep.grid(5, sweep.other), 8)

    numbers = {
        "model": f"{name}, {args.num} samples" if args.counts else name,
        "guidance": sweep.recipe.guidance,
        "times": args.times,
        "samples": args.num,
        "steps of the reference": args.steps,
        "Frechet distance of the reference": sweep.frechet(sweep.exact),
        "rows": sweep.rows,
        "costs": costs,
        "ratios": {n: ratios[n].tolist() for n in counts},
        "schedule": [schedules.to_json(best)],
    }
    store(result, __doc__.splitlines()[0].removeprefix("Claim: "), numbers)
    plot(sweep.rows, numbers["Frechet distance of the reference"], result)


def add_on_times(sweep, family, name, solver, count):
    """Adds a solver on the times of the sweep, and on its own where these are others."""
    if name.startswith("flowturbo"):
        solver = S.FlowTurbo(blocks=f"H1P{count - 2}")
    for times in dict.fromkeys((sweep.times, *OWN.get(name, ("uniform",)))):
        if name == "dc_solver" and times != sweep.times:  # its ratios belong to their times
            continue
        grid = sweep.grid_of(solver, times, count)
        if grid is not None:
            dense = None if name.startswith("dpm_solver_v3") else 8
            sweep.add(family, name + (f", {times} times" if times != sweep.times else ""), solver, grid, dense)


def again(sweep, result, names, args):
    """Measures some solvers again, on the samples of the stored results, whose other rows stay."""
    stored = json.loads((RESULTS / f"{result}-{jax.devices()[0].platform}.json").read_text())
    numbers = stored["numbers"]
    asked = {"times": args.times, "samples": args.num, "steps of the reference": args.steps}
    for key, value in asked.items():
        assert numbers[key] == value, f"the stored results have {key} = {numbers[key]}, not {value}"
    families = {name: (family, solver) for family, members in FAMILIES.items() for name, solver in members.items()}
    measured = {}
    if any(name.startswith("dpm_solver_v3") for name in names):
        measured = with_statistics(measure_statistics(sweep, args.batch))
    for count in args.counts or COUNTS:
        for name in names:
            add_on_times(sweep, families[name][0], name, families[name][1] or measured.get(name), count)
    kept = [row for row in numbers["rows"] if row["solver"].split(", ")[0] not in names]
    order = [name for members in FAMILIES.values() for name in members]
    rows = sorted(kept + sweep.rows, key=lambda row: (row["evaluations"], order.index(row["solver"].split(", ")[0])))
    before = {"rows of other solvers measured at": stored["commit"]} | numbers
    numbers = before | {"measured again": ", ".join(names), "rows": rows}
    store(result, stored["claim"], numbers)
    plot(rows, numbers["Frechet distance of the reference"], result)


def measure_statistics(sweep, batch):
    """Statistics of the guided model for DPM-Solver-v3, element by element."""
    drawn = data.Batches(sweep.source, batch, 0).batch(0)
    return ems.estimate(
        sweep.field,
        lambda i: (jnp.asarray(drawn["x1"]), jnp.asarray(drawn["cond"])),
        jax.random.key(2),
        start=START,
        end=END,
    )


def with_statistics(statistics):
    """DPM-Solver-v3 of both orders."""
    return {f"dpm_solver_v3 {order}": S.DPMSolverV3(statistics=statistics, order=order) for order in (2, 3)}


def find_ratios(sweep):
    """Compensation ratios, searched on 10 samples, for the others by regression; and for 5 other times."""
    x, cond = sweep.states(3, 10)

    def searched(n, times=None):
        return compensation.search(sweep.field, S.DCSolver(order=3), x, sweep.grid(n, times), cond, iterations=20)

    found = {n: searched(n) for n in SEARCHED}
    coefficients = compensation.fit([(n, sweep.recipe.guidance, ratios) for n, ratios in found.items()])
    predicted = {n: compensation.predict(coefficients, n, sweep.recipe.guidance) for n in COUNTS}
    return predicted | found, searched(5, sweep.other)


def find_schedule(sweep, rounds):
    """The best schedule of 5 evaluations on noises of its own, and the mean of the data that it may start from."""
    x, cond = sweep.states(4, 40)
    goal = reference(sweep.field, x, [START, END], cond, steps=200)[-1]
    found = schedules.search(
        lambda candidates: schedules.errors(sweep.field, candidates, x, goal, cond, mean=sweep.mean()),
        [sweep.grid(5, name) for name in ("uniform", "quadratic")],
        rounds=rounds,
        firsts=ranking.FIRSTS,
        seed=sweep.seed,
    )
    return found[0][1], sweep.mean()


STYLES = {"uniform times": "--", "quadratic times": "--", "sit times": "--", "log_snr times": ":", "karras times": "-."}


def plot(rows, floor, name):
    """One column per family, its curves in colour over all others in grey; what is far off is cut.

    Times other than those of the sweep are drawn in other lines: dashed equal, quadratic or SiT's, dotted log-SNR,
    dash-dotted EDM's.
    """
    figure = Figure(figsize=(17, 8.5), layout="constrained")
    axes = figure.subplots(3, len(FAMILIES), sharex=True, sharey="row", height_ratios=(3, 3, 1.3))
    for column, family in enumerate(FAMILIES):
        for axis, key in zip(axes[:2, column], ("error", "frechet"), strict=True):
            for own in (False, True):
                colours = {}
                for solver in dict.fromkeys(row["solver"] for row in rows if (row["family"] == family) == own):
                    base, _, others = solver.partition(", ")
                    points = [(r["evaluations"], r[key] or np.nan) for r in rows if r["solver"] == solver]
                    style = {"label": base if base not in colours else None, "ls": STYLES.get(others, "-")}
                    style |= {"color": colours.setdefault(base, f"C{len(colours)}"), "lw": 1.5}
                    style |= {"marker": "o" if len(points) > 1 else "*", "ms": 4 if len(points) > 1 else 10}
                    grey = {"color": "0.87", "lw": 0.8, "zorder": 0}
                    axis.plot(*zip(*points, strict=True), **(style if own else grey))
            axis.set(xscale="log", yscale="log" if key == "error" else "linear")
            axis.set_xticks(COUNTS, labels=[str(n) for n in COUNTS])
            axis.minorticks_off()
            axis.tick_params(labelbottom=True)
        axes[1, column].axhline(floor, color="0.5", lw=0.8, ls=":")
        axes[0, column].set_title(family)
        axes[1, column].set_xlabel("evaluations")
        axes[2, column].legend(*axes[1, column].get_legend_handles_labels(), fontsize=9, loc="upper center")
        axes[2, column].axis("off")
    errors = [row["error"] for row in rows if row["error"]]
    axes[0, 0].set(ylabel="distance to the reference", ylim=(0.8 * min(errors), 10 * np.median(errors)))
    distances = [row["frechet"] for row in rows if row["frechet"]]
    axes[1, 0].set(ylabel="Frechet distance", ylim=(0, 3 * np.median(distances)))
    path = RESULTS.parent.parent / "docs" / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
