"""The launchers of train/ and sample/: what they would run, with stand-ins for the programs of a cluster."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def call(tmp_path):
    """Runs a launcher in which python, srun and gcloud print their arguments."""
    for name in ("python", "srun", "gcloud"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    (tmp_path / "bin" / "activate").write_text(f'PATH="{tmp_path / "bin"}:$PATH"\n')

    def run(script, *arguments, **variables):
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VENV": str(tmp_path)}
        done = subprocess.run(
            ["bash", str(ROOT / script), *arguments],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.strip(), done.stderr

    return run


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "expected"),
    [
        (
            "train/local.sh",
            ["digits", "runs/a", "--config.seed=1"],
            {},
            "python -m flowjax.train --config=digits --workdir=runs/a --config.seed=1",
        ),
        (
            "sample/local.sh",
            ["runs/a", "out.npz", "--num=7"],
            {},
            "python -m flowjax.sample --workdir=runs/a --out=out.npz --num=7",
        ),
        (
            "train/slurm.sbatch",
            ["--config.seed=1"],
            {"CONFIG": "fashion", "WORKDIR": "/shared/a"},
            "srun --kill-on-bad-exit=1 python -m flowjax.train --config=fashion --workdir=/shared/a --config.seed=1",
        ),
        (
            "sample/slurm.sbatch",
            ["--steps=5"],
            {"WORKDIR": "/shared/a"},
            "srun --kill-on-bad-exit=1 python -m flowjax.sample --workdir=/shared/a --out=/shared/a/samples-50000 "
            "--num=50000 --steps=5",
        ),
        (
            "train/tpu_pod.sh",
            ["--config.network.options.size=8,1"],
            {"TPU": "pod", "ZONE": "z", "WORKDIR": "/mnt/a b"},
            "gcloud compute tpus tpu-vm ssh pod --zone=z --worker=all --command=cd flowjax && . .venv/bin/activate && "
            "python -m flowjax.train --config=digits --workdir=/mnt/a\\ b --config.network.options.size=8\\,1",
        ),
    ],
)
def test_what_a_launcher_starts(call, script, arguments, variables, expected):
    code, out, err = call(script, *arguments, **variables)
    assert (code, err) == (0, "")
    assert out == expected


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train/local.sh", ["digits"], "usage: "),
        ("sample/local.sh", [], "usage: "),
        ("train/tpu_pod.sh", [], "TPU: name of the TPU VM"),
    ],
)
def test_what_is_missing(call, script, arguments, words):
    code, _, err = call(script, *arguments)
    assert code != 0
    assert words in err


def test_the_job_set_is_one():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((ROOT / "train/gke.yaml").read_text())
    assert (job["kind"], job["apiVersion"]) == ("JobSet", "jobset.x-k8s.io/v1alpha2")
    (slice_,) = job["spec"]["replicatedJobs"]
    pods = slice_["template"]["spec"]
    assert pods["completionMode"] == "Indexed"
    assert pods["parallelism"] == pods["completions"]
    (container,) = pods["template"]["spec"]["containers"]
    assert "python -m flowjax.train" in container["command"][-1]


def staged(folder, program, **variables):
    """Runs train/stages.sh with another python: code, lines, errors."""
    python = folder / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}", "FOLDER": str(folder)} | variables
    command = ["bash", str(ROOT / "train/stages.sh"), "--config.seed=1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


COMPLETES = 'echo "$@"; workdir=${4#--workdir=}; mkdir -p "$workdir"; echo {} > "$workdir/report.json"'


def test_stages_run_in_turn_and_go_on_where_they_stopped(tmp_path):
    code, lines, err = staged(tmp_path, COMPLETES)
    assert (code, err) == (0, "")
    assert lines == [
        line
        for number, stage in enumerate(("teacher", "cmt", "mfd"), 1)
        for line in (
            f"stage {stage} ({number} of 3)",
            f"-m flowjax.train --config=mf_rae:{stage} --workdir=runs/mf_rae/{stage} --config.seed=1",
        )
    ]
    (tmp_path / "runs/mf_rae/cmt/report.json").unlink()
    code, lines, err = staged(tmp_path, COMPLETES, STAGES="teacher cmt mfd mft")
    assert (code, err) == (0, "")
    # Complete ones are asked too: they say so, or that another config or other weights began them.
    assert [line for line in lines if line.startswith("stage")] == [
        f"stage {stage} ({number} of 4)" for number, stage in enumerate(("teacher", "cmt", "mfd", "mft"), 1)
    ]


@pytest.mark.parametrize(
    ("program", "code", "words"), [("exit 3", 3, ""), ("true", 1, "stage first was stopped before its end")]
)
def test_a_stage_that_fails_or_is_stopped_ends_the_chain(tmp_path, program, code, words):
    found, lines, err = staged(tmp_path, program, CONFIG="own", STAGES="first second")
    assert (found, lines) == (code, ["stage first (1 of 2)"])
    assert words in err
    assert (words == "") == (err == "")
