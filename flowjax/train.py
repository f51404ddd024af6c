"""Trains a flow (or a classifier of clouds), then measures and pictures what it does.

    python -m flowjax.train --config=digits --workdir=runs/digits
    python -m flowjax.train --config=configs/digits.py --workdir=runs/wide --config.network.options.width=256
    python -m flowjax.train --config=digits:smoke --workdir=runs/smoke
    python -m flowjax.train --config=clouds --workdir=runs/clouds

The config is a Python file with `get_config(argument)`, or the bare name of one that comes with flowjax; any of its
values can be overridden. Started again with the same config, an interrupted run resumes from its newest checkpoint and
ends with the same parameters; a finished run says that it is complete. SIGTERM and Ctrl-C save after the step under way
and exit with 0; a second Ctrl-C stops at once. With --allow_config_change a run goes on with other values, for example
more steps. A workdir in which another process trains is refused, and so is one where files of something else than a run
would be replaced.

The workdir receives config.json and recipe.json (what was asked for), metrics.jsonl (one line per report),
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
import optax
from absl import flags
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict

import flowjax.objectives
from flowjax import _checks, _cli, data, specs
from flowjax.evaluation import table
from flowjax.geometry import CloudClassification
from flowjax.paths import PREDICTIONS
from flowjax.recipe import Recipe
from flowjax.training import (
    Checkpoints,
    Preemption,
    Profile,
    Store,
    check_size,
    compile_step,
    create_state,
    ema,
    local_part,
    make_mesh,
    make_step,
    put_batch,
)
from flowjax.training.report import METRICS, score
from flowjax.training.tasks import Generation, Task
from flowjax.training.workdir import Lock, check_ours, read_report
from flowjax.training.writers import Writer, write_json


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    _cli.define_config(values, argv)
    flags.DEFINE_string("workdir", None, "Folder of the run; made if needed.", flag_values=values)
    flags.DEFINE_bool("distributed", False, "One of several processes of a run.", flag_values=values)
    flags.DEFINE_bool("allow_config_change", False, "Resumes with another config.", flag_values=values)
    flags.DEFINE_string("profile", None, "FIRST:LAST, steps traced into WORKDIR/profile.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Stops where a NaN is made; no compilation cache.", flag_values=values)


# ------------------------------------------------------------------------------------------------------------
# From the config to objects
# ------------------------------------------------------------------------------------------------------------


_COUNT, _SPEC = (_checks.whole, _checks.COUNT), ("name", "options")
# Every key of a config, and where its number must lie. The other values, and what is below `options`, `averages`,
# `mesh` and `augment`, are checked by the constructors that get them.
KEYS: dict[str, tuple[Callable[..., None], str] | None] = {
    "seed": (_checks.whole, _checks.SEED),
    **dict.fromkeys(("data.name", "data.options", "network.name", "network.options", "mesh", "train.averages")),
    **{f"train.{name}": _COUNT for name in ("steps", "accumulate", "max_skipped", "keep")},
    **{f"train.{name}": _COUNT for name in ("report_every", "sample_every", "checkpoint_every")},
    "train.batch": (_checks.whole, "[1, inf)"),  # what the memory holds
    "train.snapshot_every": (_checks.whole, "[0, 2147483647]"),
    "train.rate": (_checks.real, "(0, inf)"),
    "train.warmup": (_checks.real, "[0, 1]"),
    "train.b2": (_checks.real, "[0, 1)"),
    "train.weight_decay": (_checks.real, "[0, inf)"),
    "train.clip": (_checks.real, "(0, inf)"),
    "train.ema": (_checks.real, "(-inf, inf)"),
    "train.best": None,
}
GENERATION: dict[str, tuple[Callable[..., None], str] | None] = {
    **dict.fromkeys(f"{spec}.{part}" for spec in ("path", "objective.times", "sample.solver") for part in _SPEC),
    "objective.prediction": None,
    **{f"sample.{name}": _COUNT for name in ("num", "batch")},
    "sample.steps": (_checks.whole, _checks.STEPS),
    "sample.guidance": (_checks.real, "[0, inf)"),
    "objective.label_dropout": (_checks.real, "[0, 1]"),
}
CLASSIFICATION: dict[str, tuple[Callable[..., None], str] | None] = {
    **dict.fromkeys(("objective.protocol", "test.levels")),
    "objective.key_points": _COUNT,
    "objective.smoothing": (_checks.real, "[0, 1)"),
    "test.size": _COUNT,
}


def check(config: ConfigDict) -> None:
    """Refuses missing and unknown keys, names and numbers that are not allowed.

    Raises:
        UsageError: One line with the key, its value and what is allowed.
    """
    generates = "path" in config
    keys = KEYS | (GENERATION if generates else CLASSIFICATION)
    found = _cli.check_keys(config, keys, optional=("data.augment",))
    train = config.train
    with _cli.usage_errors():
        for key, number in keys.items():
            if number is not None:
                number[0](number[1], **{f"config.{key}": found[key]})
        if train.batch % train.accumulate:
            raise ValueError(f"config.train.accumulate={train.accumulate} must divide batch={train.batch}")
        powers = [law for law in ema.from_config(train.averages).values() if isinstance(law, ema.Power)]
        if train.snapshot_every and not powers:
            raise ValueError("config.train.snapshot_every must be 0 unless config.train.averages has a Power one")
        _checks.choose("metric of config.train.best", train.best, METRICS)
        networks = [name for name in _offered("network") if (name == "PointNet") != generates]
        _checks.choose("network", config.network.name, networks)
        if generates:
            _checks.choose("path", config.path.name, _offered("path"))
            _checks.choose("distribution of times", config.objective.times.name, _offered("time_law"))
            _checks.choose("prediction", config.objective.prediction, PREDICTIONS)


def _offered(kind: str) -> list[str]:
    """The names of the classes of a kind."""
    return sorted(entry.make.__name__ for entry in specs.table_of(kind).values())


def make_recipe(config: ConfigDict, source: data.Source) -> Recipe:
    """What sampling needs to know about this run."""
    return Recipe(
        network=config.network.to_dict(),
        path=config.path.to_dict(),
        prediction=config.objective.prediction,
        data=config.data.to_dict(),
        shape=source.x.shape[1:],
        shift=source.shift,
        scale=source.scale,
        low=source.low,
        high=source.high,
        num_classes=source.num_classes,
        solver=config.sample.solver.to_dict(),
        steps=config.sample.steps,
        guidance=config.sample.guidance,
    )


def make_objective(config: ConfigDict, recipe: Recipe) -> flowjax.objectives.FlowMatching:
    """The training loss."""
    return flowjax.objectives.FlowMatching(
        path=recipe.build_path(),
        prediction=config.objective.prediction,
        times=specs.build("time_law", config.objective.times.to_dict()),
        label_dropout=config.objective.label_dropout,
        null=recipe.null,
    )


def make_task(config: ConfigDict, source: data.Source, mesh: Mesh, key: Key[Array, ""]) -> Task:
    """What is trained: a flow, or for a config without a path a classifier of clouds."""
    if "path" not in config:
        network, options = config.network.options.to_dict(), {**config.objective, **config.test}
        return _checks.call("config", CloudClassification, options, source=source, network=network, mesh=mesh)
    recipe = make_recipe(config, source)
    recipe.check_sizes(config.sample.num, config.sample.batch)
    recipe.check_network(jax.eval_shape(lambda: recipe.build_network(nnx.Rngs(0))))
    return Generation(
        recipe=recipe,
        objective=make_objective(config, recipe),
        source=source,
        num=config.sample.num,
        batch=config.sample.batch,
        key=key,
        mesh=mesh,
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW on the clipped gradient; the rate rises linearly, then falls to a hundredth as a cosine."""
    steps, warmup = config.steps, max(1, round(config.warmup * config.steps))
    rate = optax.warmup_cosine_decay_schedule(0.0, config.rate, warmup, max(steps, warmup + 1), config.rate / 100)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay),
    )


# ------------------------------------------------------------------------------------------------------------
# The run
# ------------------------------------------------------------------------------------------------------------


def run(values: flags.FlagValues, held: contextlib.ExitStack) -> None:
    """Trains, then reports; what is put on `held` ends with the run."""
    config, began = values.config, time.perf_counter()
    check(config)
    workdir, train = Path(values.workdir), config.train
    if values.distributed:
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise _cli.UsageError(f"--distributed: {error}") from error
    if values.debug:
        _cli.use_debug_checks()
    else:
        _cli.use_compilation_cache()

    # Everything is built and checked before anything is written.
    with _cli.usage_errors():
        mesh = _checks.call("mesh", make_mesh, config.mesh, devices=None)
        with _checks.value_errors("data"):
            source = data.load(config.data.name, **config.data.options)
        init_key, train_key, sample_key = jax.random.split(jax.random.key(config.seed), 3)
        task = make_task(config, source, mesh, sample_key)
        if train.best == "accuracy" and source.num_classes is None:
            raise ValueError("config.train.best='accuracy' needs data with classes")
        objective = task.objective
        optimizer = make_optimizer(train)
        averages = {"average": ema.Warmup(decay=train.ema), **ema.from_config(train.averages, objective)}
        step = make_step(optimizer, averages, accumulate=train.accumulate)
        part = local_part(mesh, train.batch)  # each process reads the rows of its own devices
        augment = _checks.call("augment", data.Augment, config.data.get("augment", {}))
        batches = data.Batches(source, train.batch, config.seed, *part, augment=augment)
        batch = put_batch(batches.batch(0), mesh, part)
        network = jax.eval_shape(lambda: task.build_network(nnx.Rngs(init_key)))
        check_size(network, mesh, 4 + len(averages))  # weights, their gradient, two moments
        jax.eval_shape(lambda n, b: objective.loss(n, objective.draw(train_key, b))[0], network, batch)
        profile = Profile(values.profile, workdir / "profile")
        check_ours(workdir)
        held.enter_context(Lock(workdir))
        changed = _cli.check_frozen(config, workdir, values.allow_config_change)
        complete = read_report(workdir) is not None and not changed
    if complete:
        print(f"training is complete: {workdir / 'report.json'}")
        return
    first = jax.process_index() == 0

    # State, born sharded, and the program of one step.
    build = lambda: task.build_network(nnx.Rngs(init_key))  # noqa: E731
    state = create_state(build, optimizer, mesh, averages=averages, objective=objective, batch=batch)
    clock = time.perf_counter()
    step = jax.jit(step) if values.debug else compile_step(step, state, objective, batch, train_key)
    compile_seconds = time.perf_counter() - clock

    def rank() -> float:
        """The score of a checkpoint; the loss is the mean of the reports since the last one."""
        losses = [loss for loss in writer.losses if math.isfinite(loss)]
        writer.losses.clear()
        loss = sum(losses) / len(losses) if losses else float(metrics["loss"])
        return score(train.best, {"loss": loss} if train.best == "loss" else task.assess(state.average))

    # The loop. Data, noise and dropped labels are functions of (seed, step).
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", train.keep))
        snapshots = stack.enter_context(Store(workdir / "snapshots")) if train.snapshot_every else None
        if checkpoints.latest is not None:
            try:
                state = checkpoints.restore(state)
            except (FileNotFoundError, ValueError) as error:
                raise _cli.UsageError(str(error)) from error
        start, skipped = int(state.step), int(jax.device_get(state.counts)["network"][2])
        if start > train.steps:
            raise _cli.UsageError(f"config.train.steps={train.steps}, but {start} steps are done")
        if first:
            # In this order: a run that is stopped in between is not complete.
            (workdir / "report.json").unlink(missing_ok=True)
            write_json(workdir / "config.json", config.to_dict())
            task.save(workdir)
        writer = stack.enter_context(contextlib.closing(Writer(workdir, train.steps, train.batch, start, active=first)))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.network))
        writer.note(f"{parameters:,} parameters on {mesh.size} device(s), compiled in {compile_seconds:.1f} s")
        if checkpoints.damaged:
            writer.note(f"damaged checkpoints were removed: {checkpoints.damaged}; {checkpoints.damage}")
        if checkpoints.index_lost:
            writer.note("checkpoints/index.json cannot be read: the scores of earlier checkpoints are lost")
        if start:
            writer.note(f"resumed after step {start}")
        preemption = stack.enter_context(Preemption())
        stack.enter_context(profile)
        stream = batches.iterator(start)
        stack.callback(stream.close)
        for done in range(start + 1, train.steps + 1):
            profile.before(done)
            state, metrics = step(state, objective, put_batch(next(stream), mesh, part), train_key)
            profile.after(done, state)
            last, stop = done == train.steps, preemption.reached(done)
            if last or done % train.report_every == 0:
                writer.report(done, {name: float(value) for name, value in metrics.items()})
                _, row, skips = map(int, jax.device_get(state.counts)["network"])
                if row >= min(train.max_skipped, train.steps):
                    raise _cli.UsageError(
                        f"loss, gradient or update was not finite in the last {row} steps, up to step {done}; "
                        "lower config.train.rate, or find the operation with --debug"
                    )
                if skips > skipped:
                    writer.note(f"{skips - skipped} step(s) skipped: loss, gradient or update was not finite")
                    skipped = skips
            if not (last or stop) and done % train.sample_every == 0:
                with writer.paused(state):
                    task.show(state.average, workdir / f"samples/{done:06d}.png")
                    task.show(state.network, workdir / f"samples/{done:06d}-raw.png")
            if snapshots is not None and (last or done % train.snapshot_every == 0):
                with writer.paused(state):
                    snapshots.put(done, ema.snapshot_items(averages, state.averages))
            if last or done % train.checkpoint_every == 0:
                with writer.paused(state):
                    checkpoints.save(state, rank())
            elif stop:
                checkpoints.save(state)
            if stop and not last:
                writer.note(
                    f"stopped by {preemption.cause}; saved after step {done}, the same command goes on from there"
                )
                return

    # What it can do.
    task.show(state.average, workdir / "samples.png")
    task.finish(state.average, workdir)
    loss = {"loss": writer.last["loss"]} if writer.last else {}  # none where metrics.jsonl was lost after the last step
    numbers = task.assess(state.average)
    if bad := numbers.get("bad_samples"):
        raise _cli.UsageError(
            f"{bad} samples of the trained network have NaN or infinite values; {workdir} keeps its checkpoints, and "
            "no report is written. Try a lower config.train.rate or other config.sample values"
        )
    report = {**loss, **numbers, "steps": train.steps, "skipped": skipped}
    report |= {"compile_seconds": compile_seconds, "train_images_per_second": writer.speed}
    report["wall_seconds"] = time.perf_counter() - began
    if first:
        writer.console.print(table(report, title=str(workdir)))
        write_json(workdir / "report.json", report)


def main(values: flags.FlagValues) -> None:
    """Trains, then reports; a full disk is one line."""
    if not values.workdir:
        raise _cli.UsageError("--workdir=FOLDER is required")
    with _cli.disk_errors(Path(values.workdir)), contextlib.ExitStack() as held:
        run(values, held)


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()
