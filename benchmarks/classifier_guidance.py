"""Claim: the gradient of a classifier of noisy digits makes a flow draw the class asked for, conditional or not.

    python benchmarks/classifier_guidance.py --runs=runs/classifier_guidance

Three seeds of `configs/digits.py` and of `configs/classifier.py:noisy`. The flow is sampled without its condition
(guidance 0) and with it (guidance 1) under `classifier(of=run(workdir=...), scale=...)`. Accuracy and Frechet distance
of 2,000 samples by a classifier that neither has seen. Runs that are complete are taken as they are.
"""

import argparse
import json
from pathlib import Path

from measure import store
from one_evaluation import SEEDS, main_of, train

SCALES = (0.0, 1.0, 2.0, 4.0)


def compared(runs, seed):
    """The numbers of one seed."""
    flow, judge = runs / f"flow_{seed}", runs / f"noisy_{seed}"
    numbers = {
        "flow: seconds": train(flow, "--config=digits", f"--config.seed={seed}"),
        "classifier: seconds": train(judge, "--config=classifier:noisy", f"--config.seed={seed}"),
    }
    for scale in SCALES:
        field = f"classifier(of=run(workdir='{judge}'), scale={scale})" if scale else "none"
        asked = ["--num=2000", "--seed=1", "--guidance=0,1", "--times=uniform(start=0.02)", "--data=recipe"]
        main_of("evaluate", flow, *asked, f"--fields={field}")
        for row in json.loads((flow / "evaluation.json").read_text())["runs"][-1]["rows"]:
            name = f"guidance {row['guidance']:g}, classifier {scale:g}"
            distance = next(value for key, value in row.items() if key.startswith("FD["))
            numbers |= {f"{name}: accuracy": row["accuracy"], f"{name}: FD": distance}
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    runs, numbers = parser.parse_args().runs.resolve(), {}
    for seed in SEEDS:
        numbers[f"seed {seed}"] = compared(runs, seed)
        store("classifier_guidance", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()
