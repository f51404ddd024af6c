"""Claim: settings of MeanFlow on the digits without guidance: distances in 1 and 2 evaluations, one seed each.

    python benchmarks/mean_flow_ways.py --runs=runs/ways

What was tried before `benchmarks/one_evaluation.py`, with a smaller network (width 96, four blocks). Runs that are
complete are taken as they are.
"""

import argparse
from pathlib import Path

from measure import store
from one_evaluation import measured, train

SMALL = ["--config.network.options.width=96", "--config.network.options.depth=4"]
PLAIN = ["--config.objective.options.kappa=0.0"]
OBJECTIVE = "--config.objective.options."
WAYS = {  # by folder: what it is, and options of the objective
    "base": ("power 1", ["power=1.0"]),
    "power05": ("power 0.5", ["power=0.5"]),
    "power0": ("power 0", ["power=0.0"]),
    "frac25": ("power 1, a quarter of the rows are flow matching", ["power=1.0", "frac_flow_matching=0.25"]),
    "frac50": ("power 1, half of the rows", ["power=1.0", "frac_flow_matching=0.5"]),
    "frac50_power05": ("power 0.5, half of the rows", ["power=0.5", "frac_flow_matching=0.5"]),
    "uniform": ("power 1, uniform times", ["power=1.0", "times=uniform"]),
    "mean0std2": ("power 1, times twice as wide", ["power=1.0", "times=logit_normal(mean=0.4,std=2.0)"]),
    "own07": ("power 0.5, 0.7 of the velocity from the network", ["power=0.5", "omega=0.3", "kappa=0.7"]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    runs = parser.parse_args().runs
    long = ["--config.train.steps=5400", "--config.train.ema=0.998"]
    ways = {
        name: (text, [*SMALL, *PLAIN, *(OBJECTIVE + option for option in options)])
        for name, (text, options) in WAYS.items()
    }
    alpha = "--config.objective=alpha_flow(label_dropout=0.1, curriculum=(0, 1400), power=0.5)"
    ways |= {
        "alpha": ("alpha-Flow, power 0.5", [*SMALL, alpha]),
        "long_power05": ("power 0.5, three times the steps", [*SMALL, *PLAIN, *long]),
        "big": ("power 0.5, width 128, six blocks", PLAIN),
    }
    numbers = {}
    for name, (text, options) in ways.items():
        train(runs / name, "--config=meanflow", *options)
        (first, _), (second, _) = measured(runs / name, "jump", 1.0, 1, 2)
        numbers[text] = {"1 evaluation": first, "2 evaluations": second}
    flows = {
        "flow": ["--config.train.steps=2520"],
        "long_flow": ["--config.train.steps=7560", "--config.train.ema=0.998"],
    }
    for name, more in flows.items():
        train(runs / name, "--config=meanflow:flow", *SMALL, *more)
        (one, _), (fifty, _) = measured(runs / name, "euler", 1.0, 1, 50)
        numbers["flow" if name == "flow" else "flow, three times the steps"] = {"1 step": one, "50 steps": fifty}
    store("mean_flow_ways", __doc__.splitlines()[0].removeprefix("Claim: "), numbers)


if __name__ == "__main__":
    main()
