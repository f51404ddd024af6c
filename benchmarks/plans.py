"""Claim: SiT-XL/2 compiled for TPU slices that are not there: memory, exchanges and the best step time of each.

    python benchmarks/plans.py v5e:2x4

Needs libtpu (the extra `tpu-plan`). The step and the sampler of `configs/sit.py` with a batch of 32 for each device of
v5e slices and 64 of v5p, data parallel: from 8 to 256 devices of v5e, what more of them cost. Slices that are not named
keep their numbers.
"""

import argparse
import json
import subprocess
import sys

from measure import RESULTS, store

SLICES = {"v5p:2x2x1": 256}
SLICES |= {f"v5e:{a}x{b}": 32 * a * b for a, b in ((2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))}


def plan(*arguments):
    """The plans of a command line: step and sampler."""
    command = [sys.executable, "-m", "flowjax.plan", "--json", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)["plans"]


def numbers(found):
    """What the table shows of a plan."""
    return {
        "GiB of a device": found["needed"] / 2**30,
        "GiB within the program": found["memory"]["within the program"] / 2**30,
        "fits": found["fits"],
        "seconds at best": max(found["seconds"].values()),
        "bound by": found["bound"],
        "model FLOPs utilisation at most": found["utilisation"],
        "GiB sent by a device": sum(one["sent"] for one in found["exchanges"]) / 2**30,
        "compile seconds": found["compile_seconds"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slices", nargs="+", choices=SLICES)
    path = RESULTS / "plans-cpu.json"
    known = json.loads(path.read_text())["numbers"] if path.exists() else {}
    for topology in parser.parse_args().slices:
        batch = SLICES[topology]
        step, sampler = plan("--config=sit:XL/2", f"--topology={topology}", f"--config.train.batch={batch}")
        known[f"XL/2, {topology}, batch {batch}"] = numbers(step)
        known[f"XL/2, {topology}, sampler"] = numbers(sampler)
        store("plans", __doc__.splitlines()[0].removeprefix("Claim: "), known)


if __name__ == "__main__":
    main()
