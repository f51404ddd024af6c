"""Trains what a config says (a flow, a student, a classifier, ...), then measures and pictures what it does.

    python -m flowjax.train --config=digits --workdir=runs/digits
    python -m flowjax.train --config=configs/digits.py --workdir=runs/wide --config.network.options.width=256
    python -m flowjax.train --config=digits:smoke --workdir=runs/smoke
    python -m flowjax.train --config=clouds --workdir=runs/clouds
    python -m flowjax.train --config=digits --show
    python -m flowjax.train --config=digits --workdir=runs/sit --config.objective="sit(prediction=noise)"

The config is a Python file with `get_config(argument)`, or the bare name of one that comes with flowjax; any of its
values can be overridden, a section such as --config.sample.solver by a spec, name(option=value, ...); see docs/specs.md
and `python -m flowjax.doctor --list`. --show prints the resolved config, the parameters and the memory they need, and
stops. Started again with the same config, an interrupted run resumes from its newest checkpoint and
ends with the same parameters, on other devices and hosts too; a finished run says that it is complete. SIGTERM and
Ctrl-C save after the step under way and exit with 0; a second Ctrl-C stops at once. With
--config.train.checkpoint_every=0 a checkpoint is begun at the first report after the one before it is written. With
--allow_config_change a run goes on with other values, for example more steps. A workdir in which another process trains
is refused, and so is one where files of something else than a run would be replaced.

Several processes train together, see docs/pods.md: on a TPU pod, under Slurm, Open MPI and Kubernetes by the same
command on every host, elsewhere with --coordinator, --num_processes and --process_id. The first one speaks, the others
write to logs/.

The workdir receives config.json and recipe.json (what was asked for), metrics.jsonl (one line per report),
clock.jsonl (what the time went into, from which report.json has `goodput`, the share that ended up in the parameters),
checkpoints/ (the newest and the best), samples/ (pictures on the way, always from the same noise and labels, of the
average and, -raw, of the trained weights), snapshots/ and tensorboard/ where asked for or installed, and at the end
samples.png and report.json.
"""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from flowjax import _checks, _cli, launch
from flowjax.evaluation import table
from flowjax.launch import everywhere
from flowjax.recipe.report import score
from flowjax.tasks import make_program
from flowjax.training import (
    Checkpoints,
    Preemption,
    Profile,
    Store,
    check_size,
    compile_step,
    ema,
    make_mesh,
    over,
    put_batch,
)
from flowjax.training.goodput import goodput
from flowjax.training.show import show
from flowjax.training.workdir import Lock, check_ours, read_report
from flowjax.training.writers import Writer, write_json


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    _cli.define_config(values, argv)
    flags.DEFINE_string("workdir", None, "Folder of the run; made if needed.", flag_values=values)
    flags.DEFINE_bool("show", False, "Prints config, parameters and memory, and stops.", flag_values=values)
    flags.DEFINE_bool("allow_config_change", False, "Resumes with another config.", flag_values=values)
    flags.DEFINE_string("profile", None, "FIRST:LAST, steps traced into WORKDIR/profile.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Stops where a NaN is made; no compilation cache.", flag_values=values)
    launch.define(values)


# ------------------------------------------------------------------------------------------------------------
# From the config to objects
# ------------------------------------------------------------------------------------------------------------


_COUNT = (_checks.whole, _checks.COUNT)
# The keys of the sections that are no specs, and where their numbers must lie. Specs, `averages`, `mesh` and `augment`
# are checked by the constructors that get them, and the task says which sections there are.
NUMBERS: dict[str, tuple[Callable[..., None], str] | None] = {
    "seed": (_checks.whole, _checks.SEED),
    **{f"train.{name}": _COUNT for name in ("steps", "accumulate", "max_skipped", "keep")},
    **{f"train.{name}": _COUNT for name in ("report_every", "sample_every")},
    **{f"train.{name}": (_checks.whole, "[0, 2147483647]") for name in ("checkpoint_every", "snapshot_every")},
    "train.batch": (_checks.whole, "[1, inf)"),  # what the memory holds
    "train.ema": (_checks.real, "(-inf, inf)"),
    **dict.fromkeys(("train.best", "train.averages")),
}
SAMPLING: dict[str, tuple[Callable[..., None], str] | None] = {
    **{f"sample.{name}": _COUNT for name in ("num", "batch")},
    "sample.steps": (_checks.whole, _checks.STEPS),
    **dict.fromkeys(f"sample.{name}.{part}" for name in ("solver", "times") for part in ("name", "options")),
    **dict.fromkeys(("sample.guidance", "sample.fields")),
}
TEST: dict[str, tuple[Callable[..., None], str] | None] = {"test.size": _COUNT, "test.levels": None}
# Sections that are specs, beside the optimizer, which may be one for each network.
SPECS = (
    "task",
    "data",
    "network",
    "discriminator",
    "encoder",
    "path",
    "objective",
    "coupling",
    "codec",
    "teacher",
    "base",
    "adapters",
)


def check(config: ConfigDict) -> None:
    """Refuses missing and unknown keys, and numbers that are not allowed.

    Raises:
        UsageError: One line with the key, its value and what is allowed.
    """
    numbers = NUMBERS | (SAMPLING if "sample" in config else {})
    numbers |= TEST if "test" in config else {}
    known = [name for name in SPECS if name in config or name in ("task", "data")]
    optimizer = config.get("optimizer", {})
    one = not optimizer or "name" in optimizer or "options" in optimizer
    known += ["optimizer"] if one else [f"optimizer.{label}" for label in optimizer]
    known = [f"{name}.{part}" for name in known for part in ("name", "options")]
    found = _cli.check_keys(config, [*numbers, "mesh", *known], optional=("data.augment", "sample.against"))
    train = config.train
    with _cli.usage_errors():
        for key, number in numbers.items():
            if number is not None:
                number[0](number[1], **{f"config.{key}": found[key]})
        if train.batch % train.accumulate:
            raise ValueError(f"config.train.accumulate={train.accumulate} must divide batch={train.batch}")
        powers = [law for law in ema.from_config(train.averages).values() if isinstance(law, ema.Power)]
        if train.snapshot_every and not powers:
            raise ValueError("config.train.snapshot_every must be 0 unless config.train.averages has a Power one")


# ------------------------------------------------------------------------------------------------------------
# The run
# ------------------------------------------------------------------------------------------------------------


def run(values: flags.FlagValues, held: contextlib.ExitStack) -> None:
    """Trains, then reports; what is put on `held` ends with the run."""
    config, began = values.config, time.perf_counter()
    check(config)
    workdir, train = Path(values.workdir or "."), config.train
    _cli.start(values, makes=True)
    if values.debug:
        _cli.use_debug_checks()
    else:
        _cli.use_compilation_cache()

    # Everything is built and checked before anything is written.
    with _cli.usage_errors():
        mesh = _checks.call("mesh", make_mesh, config.mesh, devices=None)
        held.enter_context(over(mesh))
        program = make_program(config, mesh)
        task, objective, averages, step = program.task, program.objective, program.averages, program.step
        for build in program.builds.values():
            check_size(jax.eval_shape(build), mesh, 4 + len(averages))  # weights, their gradient, two moments
        shapes = program.shapes
        if values.show:
            show(config, shapes, step, objective, program.batch, program.key, mesh)
            return
        profile = Profile(values.profile, workdir / "profile")
        check_ours(workdir)
        held.enter_context(Lock(workdir))
        changed = _cli.check_frozen(config, workdir, values.allow_config_change)
        if not values.allow_config_change:
            task.check(workdir)
        complete = read_report(workdir) is not None and not changed
    if complete:
        print(f"training is complete: {workdir / 'report.json'}")
        return
    first = jax.process_index() == 0

    # State, born sharded, and the program of one step.
    state = program.create()
    clock = time.perf_counter()
    step = jax.jit(step) if values.debug else compile_step(step, state, objective, program.batch, program.key)
    compile_seconds = time.perf_counter() - clock

    def rank() -> float:
        """The score of a checkpoint; the loss is the mean of the reports since the last one."""
        losses = [loss for loss in writer.losses if math.isfinite(loss)]
        writer.losses.clear()
        loss = sum(losses) / len(losses) if losses else float(metrics["loss"])
        numbers = {"loss": loss} if train.best == "loss" else task.assess(task.weights(state))
        return score(train.best, numbers, {"loss": 1, **task.metrics})

    def bad_steps() -> tuple[int, int, str]:
        """Steps that were not finite: the longest row up to now, all of them, and the network of the row."""
        counts = jax.device_get(state.counts)
        label = max(counts, key=lambda label: counts[label][1])
        return int(counts[label][1]), sum(int(count[2]) for count in counts.values()), label

    # The loop. Data, noise and dropped labels are functions of (seed, step).
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", train.keep))
        snapshots = stack.enter_context(Store(workdir / "snapshots")) if train.snapshot_every else None
        if checkpoints.latest is not None:
            try:
                state = checkpoints.restore(state)
            except (FileNotFoundError, ValueError) as error:
                raise _cli.UsageError(str(error)) from error
        start, skipped = int(state.step), bad_steps()[1]
        if start > train.steps:
            raise _cli.UsageError(f"config.train.steps={train.steps}, but {start} steps are done")
        if first:
            # In this order: a run that is stopped in between is not complete.
            (workdir / "report.json").unlink(missing_ok=True)
            write_json(workdir / "config.json", config.to_dict())
            task.save(workdir)
        since = time.time() - (time.perf_counter() - began)
        writer = Writer(workdir, train.steps, train.batch, start, active=first, since=since)
        stack.callback(writer.close)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.networks))
        writer.note(f"{parameters:,} parameters on {mesh.size} device(s), compiled in {compile_seconds:.1f} s")
        if checkpoints.damaged:
            writer.note(f"damaged checkpoints were removed: {checkpoints.damaged}; {checkpoints.damage}")
        if checkpoints.index_lost:
            writer.note("checkpoints/index.json cannot be read: the scores of earlier checkpoints are lost")
        if start:
            writer.note(f"resumed after step {start}")
        preemption = stack.enter_context(Preemption())
        stack.enter_context(profile)
        stream = program.batches.iterator(start)
        stack.callback(stream.close)
        for done in range(start + 1, train.steps + 1):
            profile.before(done)
            state, metrics = step(state, objective, put_batch(next(stream), mesh, program.part), program.key)
            profile.after(done, state)
            last, stop = done == train.steps, preemption.reached(done)
            if reported := last or done % train.report_every == 0:
                writer.report(done, {name: float(value) for name, value in metrics.items()})
                row, skips, label = bad_steps()
                if row >= min(train.max_skipped, train.steps):
                    raise _cli.UsageError(
                        f"loss, gradient or update{'' if len(program.parts) == 1 else f' of {label}'} was not finite "
                        f"in the last {row} steps, up to step {done}; lower config.optimizer.options.rate, or find the "
                        "operation with --debug"
                    )
                if skips > skipped:
                    writer.note(f"{skips - skipped} step(s) skipped: loss, gradient or update was not finite")
                    skipped = skips
            if not (last or stop) and done % train.sample_every == 0:
                with writer.paused(state):
                    task.show(task.weights(state), workdir / f"samples/{done:06d}.png")
                    task.show(task.weights(state, raw=True), workdir / f"samples/{done:06d}-raw.png")
            if snapshots is not None and (last or done % train.snapshot_every == 0):
                with writer.paused(state):
                    snapshots.put(done, ema.snapshot_items(averages, state.averages))
            always = not train.checkpoint_every and reported and everywhere(not checkpoints.writing)
            if last or (train.checkpoint_every and done % train.checkpoint_every == 0):
                with writer.paused(state):
                    checkpoints.save(state, rank())
            elif stop or always:
                checkpoints.save(state)
            if stop and not last:
                writer.note(
                    f"stopped by {preemption.cause}; saved after step {done}, the same command goes on from there"
                )
                return

    # What it can do.
    networks = task.weights(state)
    task.show(networks, workdir / "samples.png")
    task.finish(networks, workdir)
    loss = {"loss": writer.last["loss"]} if writer.last else {}  # none where metrics.jsonl was lost after the last step
    numbers = task.assess(task.weights(state))
    if bad := numbers.get("bad_samples"):
        raise _cli.UsageError(
            f"{bad} samples of the trained network have NaN or infinite values; {workdir} keeps its checkpoints, and "
            "no report is written. Try a lower config.train.rate or other config.sample values"
        )
    report = {**loss, **numbers, "steps": train.steps, "skipped": skipped}
    report |= {"compile_seconds": compile_seconds, "train_images_per_second": writer.speed}
    report["wall_seconds"] = time.perf_counter() - began
    if (share := goodput(workdir, time.time())) is not None:
        report["goodput"] = share
    if first:
        writer.console.print(table(report, title=str(workdir)))
        write_json(workdir / "report.json", report)


def main(values: flags.FlagValues) -> None:
    """Trains, then reports; a full disk is one line."""
    if not values.workdir and not values.show:
        raise _cli.UsageError("--workdir=FOLDER is required")
    with _cli.disk_errors(Path(values.workdir or ".")), contextlib.ExitStack() as held:
        run(values, held)


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()
