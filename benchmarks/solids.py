"""Claim: solids in 1 + 1 evaluations, by velocity matching and distillation, at the quality of 25 + 25 or near it.

    python benchmarks/solids.py --runs=runs/solids --students vm vd

Trains the autoencoder and both flows of `configs/solids.py`, and three seeds of each student of both by
`configs/mdt.py`: velocity matching alone (`vm`), with velocity distillation (`vd`), and for as many steps latent
consistency (`lcm`, of the structure; of the details velocity matching compares end points, which is consistency too).
More steps than one have fresh noise; two that keep it, as the authors' Euler steps, are measured on the first seed.
Runs that are complete are taken as they are; with --students those named are measured, and others keep their numbers.
Measured on 128 bodies of another seed, under their views: IoU of occupancy and chamfer distance of its surface; chamfer
distance and colour error of details on the true structure; chamfer distance of both stages in a chain, over the bodies
whose structure has room. The true occupancy has a chamfer distance from its surface itself. Distances are in units of
the cube [-1, 1]^3. Times are those of 128 samples, in alternation.
"""

import argparse
import functools
import json
from pathlib import Path

import jax
import numpy as np
from measure import RESULTS, alternate, ratio, store
from one_evaluation import SEEDS, train

from flowjax.evaluation import pictures
from flowjax.geometry.solids import Solids, Voxels, meshes, solids
from flowjax.recipe import Samples, load_run

NUM, GUIDANCE, STAGES = 128, 2.0, ("structure", "details")
MATCHING = "--config.objective=velocity_matching(normalized=False, gap=0.1{})"
STUDENTS = {
    "vm": {"structure": [MATCHING.format("")], "details": [MATCHING.format(", mode=consistency")]},
    "vd": {"structure": [], "details": []},
    "lcm": {"structure": ["--config.objective=latent_consistency"]},  # it has no masks
}


def trained(runs, students):
    """Seconds of all runs, by name and seed."""
    train(runs / "voxels", "--config=solids")
    codec = f"--config.codec.options.workdir={runs / 'voxels'}"
    train(runs / "structure", "--config=solids:structure", codec)
    train(runs / "details", "--config=solids:details")
    seconds = {}
    for seed in SEEDS:
        for student in students:
            for stage, own in STUDENTS[student].items():
                teacher = f"--config.teacher.options.workdir={runs / stage}"
                flags = [f"--config=mdt:{stage}", teacher, f"--config.seed={seed}", *own]
                workdir = runs / f"{stage}_{student}_{seed}"
                seconds.setdefault(f"seed {seed}", {})[f"{stage}, {student}: seconds"] = train(workdir, *flags)
    return seconds


class Held:
    """Bodies that nobody has trained on, and what is measured of samples under their views."""

    def __init__(self):
        self.full = solids(size=NUM, seed=1)
        self.details = solids(size=NUM, seed=1, part="details")
        self.surfaces = [meshes.surface(*grid) for grid in self._grids(self.details.x, self.full.x)]

    def _grids(self, details, structures):
        cond = {"structure": structures}
        return Solids().grids(Samples(x=details, cond=cond, evaluations=0, network_calls=0))

    def sampled(self, workdir, steps, guidance=1.0, structures=None, solver=None):
        """Samples of a run under the views, the structures given or those of the bodies, and which rows there are."""
        networks, recipe = load_run(workdir)
        cond, rows = {"image": recipe.inputs["image"].encode(self.full.fields["image"])}, np.arange(NUM)
        if recipe.padded is not None:
            given = self.full.x if structures is None else structures
            fits = []
            for row in range(NUM):
                try:
                    recipe.inputs["structure"].encode(given[row : row + 1])
                    fits.append(row)
                except ValueError:
                    continue
            rows = np.array(fits, int)
            chosen = recipe.inputs["structure"].encode(given[np.resize(rows, NUM)])
            cond = {"image": cond["image"][np.resize(rows, NUM)], "structure": chosen}
        field = recipe.field(recipe.flow(networks["network"]), guidance)
        solver = solver or recipe.solver
        options = dict(key=jax.random.key(7), cond=cond, solver=recipe.build_solver(solver), steps=steps, batch=64)
        found = recipe.generate(field, NUM, codec=networks.get("codec"), **options)
        return found, rows

    def chamfer(self, grids, rows):
        """Mean distance of surfaces from those of the bodies of these rows."""
        found = [meshes.apart(meshes.surface(*grid), self.surfaces[row]) for grid, row in zip(grids, rows)]
        return float(np.mean(found))

    def of_structure(self, name, samples):
        """Numbers of the first stage."""
        iou = Voxels().compare(samples, self.full.x)["iou"]
        return {f"{name}: IoU": iou, f"{name}: chamfer": self.chamfer(Voxels().grids(samples), range(NUM))}

    def of_details(self, name, samples, rows):
        """Numbers of the second stage."""
        cut = Samples(
            x=samples.x[: len(rows)],
            cond={key: value[: len(rows)] for key, value in samples.cond.items()},
            evaluations=0,
            network_calls=0,
        )
        if len(rows) < NUM:
            return {f"{name}: chamfer": self.chamfer(Solids().grids(cut), rows)}
        found = Solids().compare(cut, self.details.x, self.full.x)
        return {f"{name}: chamfer": found["chamfer"], f"{name}: colour error": found["colour_error"]}


def of_pair(held, name, first, second, steps, guidance=1.0):
    """Numbers of two runs, each alone and both in a chain, and pictures of the chain."""
    numbers = {}
    if first is not None:
        structure, _ = held.sampled(first, steps, guidance)
        numbers |= held.of_structure(f"structure, {name}", structure)
    if second is not None:
        details, rows = held.sampled(second, steps, guidance)
        numbers |= held.of_details(f"details, {name}", details, rows)
    if first is None or second is None:
        return numbers, None
    chained, rows = held.sampled(second, steps, guidance, structure.x)
    numbers |= held.of_details(f"chain, {name}", chained, rows)
    return numbers | {f"chain, {name}: bodies": len(rows)}, chained


def times(runs):
    """Seconds of the chain in 1 + 1 evaluations over those in 25 + 25."""
    held = Held()
    calls = {
        "teacher": lambda: [held.sampled(runs / stage, 25, GUIDANCE) for stage in STAGES],
        "student": lambda: [held.sampled(runs / f"{stage}_vd_0", 1) for stage in STAGES],
    }
    return {"time of 25 + 25 / 1 + 1 evaluations": ratio(alternate(calls, rounds=5), "teacher", "student")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--students", nargs="*", choices=STUDENTS, help="those to measure; others keep their numbers")
    args = parser.parse_args()
    runs, claim = args.runs.resolve(), __doc__.splitlines()[0].removeprefix("Claim: ")
    path = RESULTS / f"solids-{jax.default_backend()}.json"
    known = {} if args.students is None or not path.exists() else json.loads(path.read_text())["numbers"]
    students = list(STUDENTS) if args.students is None else args.students
    seconds, held = trained(runs, students), Held()
    true = Samples(x=held.full.x, cond=None, evaluations=0, network_calls=0)
    known["structure, true: chamfer"] = held.of_structure("structure, true", true)["structure, true: chamfer"]
    sheets = []
    for steps in (1, 2, 25):
        numbers, chained = of_pair(held, f"teacher, {steps}", runs / "structure", runs / "details", steps, GUIDANCE)
        known |= numbers
        if steps != 2:
            sheets.append(chained)
    for seed in SEEDS:
        of_seed = seconds[f"seed {seed}"]
        for student in students:
            pair = [runs / f"{s}_{student}_{seed}" if s in STUDENTS[student] else None for s in STAGES]
            for steps in (1, 2):
                numbers, chained = of_pair(held, f"{student}, {steps}", *pair, steps)
                of_seed |= numbers
                if (seed, steps, student) == (SEEDS[0], 1, "vd"):
                    sheets.insert(1, chained)
        known[f"seed {seed}"] = known.get(f"seed {seed}", {}) | of_seed
        store("solids", claim, known)
    for stage in STAGES:  # as the authors sample
        samples, rows = held.sampled(runs / f"{stage}_vd_0", 2, solver="euler")
        of_stage = held.of_structure if stage == "structure" else functools.partial(held.of_details, rows=rows)
        known["seed 0"] |= of_stage(f"{stage}, vd, 2 Euler steps", samples)
    store("solids", claim, known | times(runs))
    form, shown = Solids(size=64), 12
    rows = [np.asarray(view) for view in held.full.fields["image"][:shown].repeat(2, 1).repeat(2, 2) / 255]
    for sheet in sheets:
        cut = Samples(
            x=sheet.x[:shown], cond={k: v[:shown] for k, v in sheet.cond.items()}, evaluations=0, network_calls=0
        )
        rows += list(form.seen(form.grids(cut)))
    figure = RESULTS.parent.parent / "docs" / "figures" / "solids.png"
    pictures.grid(np.stack(rows), figure, low=0.0, high=1.0, columns=shown, zoom=1)


if __name__ == "__main__":
    main()
