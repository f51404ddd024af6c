"""Trains a flow, then measures and pictures what it generates.

    python -m flowjax.train --config=digits --workdir=runs/digits
    python -m flowjax.train --config=configs/digits.py --workdir=runs/wide --config.network.options.width=256
    python -m flowjax.train --config=digits:smoke --workdir=runs/smoke

The config is a Python file with `get_config(argument)`, or the bare name of one that comes with flowjax; any
of its values can be overridden. Started again with the same config, an interrupted run resumes from its
newest checkpoint and ends with the same parameters; a finished run says that it is complete.

The workdir receives config.json and recipe.json (what was asked for), metrics.jsonl (one line per report),
checkpoints/, samples/ (pictures on the way, always from the same noise and labels), and at the end
samples.png and report.json.
"""

import time
from pathlib import Path

import jax
import optax
from absl import flags
from flax import nnx
from ml_collections import ConfigDict

import flowjax.models
import flowjax.objectives
import flowjax.paths
from flowjax import _cli, catalogue, data
from flowjax.evaluation import table
from flowjax.recipe import Recipe
from flowjax.training import Checkpoints, compile_step, create_state, make_mesh, make_step, put_batch
from flowjax.training.report import measure, picture, picture_ways
from flowjax.training.writers import Writer, write_json


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    _cli.define_config(values, argv)
    flags.DEFINE_string("workdir", None, "Folder of the run; made if needed.", flag_values=values)
    flags.DEFINE_bool("distributed", False, "One of several processes of a run.", flag_values=values)


# ------------------------------------------------------------------------------------------------------------
# From the config to objects
# ------------------------------------------------------------------------------------------------------------


def check(config: ConfigDict) -> None:
    """Refuses names and numbers that are not allowed.

    Raises:
        UsageError: One line with the key, its value and what is allowed.
    """
    for group, name in (
        *(("train", name) for name in ("steps", "batch", "report_every", "sample_every", "checkpoint_every", "keep")),
        *(("sample", name) for name in ("steps", "num", "batch")),
    ):
        if config[group][name] < 1:
            raise _cli.UsageError(f"config.{group}.{name} must be at least 1, got {config[group][name]}")
    _cli.choose("network", config.network.name, _cli.class_names(flowjax.models))
    _cli.choose("path", config.path.name, _cli.class_names(flowjax.paths))
    _cli.choose("solver", config.sample.solver.name, sorted(catalogue.solvers))


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
    times = config.objective.times
    name = _cli.choose("distribution of times", times.name, _cli.class_names(flowjax.objectives.times))
    return flowjax.objectives.FlowMatching(
        path=recipe.build_path(),
        prediction=config.objective.prediction,
        times=getattr(flowjax.objectives.times, name)(**times.options),
        label_dropout=config.objective.label_dropout,
        null=recipe.null,
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


def main(values: flags.FlagValues) -> None:
    """Trains, then reports."""
    config, began = values.config, time.perf_counter()
    if values.workdir is None:
        raise _cli.UsageError("--workdir=FOLDER is required")
    workdir = Path(values.workdir)
    if values.distributed:
        jax.distributed.initialize()
    _cli.use_compilation_cache()

    # Everything is built and checked before anything is written.
    check(config)
    with _cli.usage_errors():
        mesh = make_mesh(**config.mesh)
        source = data.load(config.data.name, **config.data.options)
        recipe = make_recipe(config, source)
        objective = make_objective(config, recipe)
        optimizer = make_optimizer(config.train)
        step = make_step(optimizer, config.train.ema)
        # Optional in a config: augment = {"flip": ..., "crop": ...}.
        augment = data.Augment(**config.data.augment) if config.data.get("augment") else None
        batches = data.Batches(source, config.train.batch, config.seed, augment=augment)
        recipe.build_solver()
        init_key, train_key, sample_key = jax.random.split(jax.random.key(config.seed), 3)
        batch = put_batch(batches.batch(0), mesh)
        jax.eval_shape(lambda: recipe.build_network(nnx.Rngs(init_key)))
    _cli.check_frozen(config, workdir)
    if (workdir / "report.json").exists():
        print(f"training is complete: {workdir / 'report.json'}")
        return
    first = jax.process_index() == 0
    if first:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", config.to_dict())
        recipe.save(workdir)

    # State, born sharded, and the program of one step.
    state = create_state(lambda: recipe.build_network(nnx.Rngs(init_key)), optimizer, mesh)
    clock = time.perf_counter()
    step = compile_step(step, state, objective, batch, train_key)
    compile_seconds = time.perf_counter() - clock
    sampling = dict(batch=config.sample.batch, mesh=mesh)

    def show(name: str) -> None:
        """Ten samples per class, or up to 10,000 points, from the same noise every time."""
        num = min(config.sample.num, 10 * (recipe.num_classes or 1000))
        field = recipe.field(recipe.flow(state.average))
        samples = recipe.sample(field, num, cond=recipe.balanced(num), key=jax.random.clone(sample_key), **sampling)
        if first:
            picture(recipe, samples, workdir / name)

    # The loop. Data, noise and dropped labels are functions of (seed, step), so a resumed run repeats nothing
    # else.
    steps = config.train.steps
    with Checkpoints(workdir / "checkpoints", config.train.keep) as checkpoints:
        if checkpoints.latest is not None:
            state = checkpoints.restore(state)
        start = int(state.step)
        writer = Writer(workdir, steps, config.train.batch, start, active=first)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.network))
        writer.note(f"{parameters:,} parameters on {mesh.size} device(s), compiled in {compile_seconds:.1f} s")
        if start:
            writer.note(f"resumed after step {start}")
        stream = batches.iterator(start)
        for done in range(start + 1, steps + 1):
            with _cli.usage_errors():  # a broken file is named
                batch = put_batch(next(stream), mesh)
            state, metrics = step(state, objective, batch, train_key)
            last = done == steps
            if last or done % config.train.report_every == 0:
                writer.report(done, {name: float(value) for name, value in metrics.items()})
            if not last and done % config.train.sample_every == 0:
                with writer.paused(state):
                    show(f"samples/{done:06d}.png")
            if last or done % config.train.checkpoint_every == 0:
                with writer.paused(state):
                    checkpoints.save(state)
        stream.close()
        writer.close()

    # What it generates.
    show("samples.png")
    flow = recipe.flow(state.average)
    if first and recipe.shape == (2,):
        picture_ways(recipe, flow, workdir / "ways.png", jax.random.clone(sample_key))
    numbers = measure(recipe, flow, source, config.sample.num, key=sample_key, **sampling)
    report = {"loss": writer.last["loss"], **numbers, "steps": steps, "compile_seconds": compile_seconds}
    report["train_images_per_second"] = writer.speed
    report["wall_seconds"] = time.perf_counter() - began
    if first:
        writer.console.print(table(report, title=f"{config.sample.num} samples of {workdir}"))
        write_json(workdir / "report.json", report)


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()
