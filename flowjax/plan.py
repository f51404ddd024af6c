"""Says what a run needs of accelerators that are not there: whether it fits, and how fast it can be.

    python -m flowjax.plan --config=sit:XL/2 --topology=v5e:4x4
    python -m flowjax.plan --config=sit:XL/2 --topology=v5p:2x2x1 --config.mesh.fsdp=4 --config.train.batch=512
    python -m flowjax.plan --config=digits --topology=h100x8 --json
    python -m flowjax.plan --config=lcm --config.teacher.options.workdir=runs/digits --topology=v6e:2x4

The real training step of the config, with its teachers, averages and optimiser, and the sampler of its recipe are
compiled for the topology: for TPUs (v4, v5e, v5p, v6e; CHIP:AxB or CHIP:AxBxC) by libtpu, which needs no TPU (pip
install "flowjax-generative[tpu-plan]"); for GPUs (a100, h100, h200, b200; CHIPxN) as many CPU devices stand in, so that
what lies within the program is an estimate. No weights are made, but data and teachers are read: data=synthetic(...)
stands in for what is not at hand.

The table has, for each device, the memory by what lies there; the FLOPs of all matrix products and convolutions (loops
counted as often as they run), what is read and written, what is sent; and the time of the slowest of the three at the
full speed of the data sheets, which runs stay behind. Where the step does not fit, smaller variants are compiled
(recomputation, parameters split over all devices, accumulation), and the flags of the first that fits are printed.

Exit code 0: it fits. 1: it does not. 2: a flag is wrong or libtpu is missing.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from flowjax import _checks, _cli, specs, train
from flowjax.models.remat import POLICIES
from flowjax.planning import Plan, Topology, flops, parse, plan_sampler, plan_step
from flowjax.tasks import Program, make_program
from flowjax.training import make_mesh


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    _cli.define_config(values, argv)
    text = "Where it is to run, such as v5e:4x4, v5p:2x2x1 or h100x8."
    flags.DEFINE_string("topology", None, text, flag_values=values)
    flags.DEFINE_bool("sampler", True, "Whether the sampler is compiled too.", flag_values=values)
    flags.DEFINE_bool("json", False, "Prints JSON instead of tables.", flag_values=values)


def on_this_machine(config: ConfigDict) -> Program:
    """The program of a config, on one CPU device."""
    return make_program(config, make_mesh(devices=jax.devices("cpu")[:1]))


def takes(config: ConfigDict, option: str) -> bool:
    """Whether the network of a config has this option."""
    return bool(config.get("network", {}).get("name")) and option in specs.options_of(
        specs.find("network", config.network.name)
    )


def with_remat(config: ConfigDict, remat: bool | str) -> ConfigDict:
    """A copy whose network recomputes in the backward pass, or not, or some of it."""
    copy = ConfigDict(config.to_dict())
    with copy.ignore_type():
        copy.network.options.remat = remat
    return copy


def variants(config: ConfigDict, count: int) -> Iterator[tuple[list[str], ConfigDict]]:
    """Configs that need less memory, with the flags that make them."""
    split, one = f"--config.mesh.fsdp={count}", dict.fromkeys(config.mesh, 1)
    ways: list[bool | str] = [*POLICIES, True]
    remat = {f"--config.network.options.remat={how}": how for how in ways}
    choices: list[tuple[list[str], int]] = [([], 1)]
    if takes(config, "remat"):  # those that recompute more than this config
        known = config.network.options.get("remat", False)
        choices += [([flag], 1) for flag in list(remat)[[False, *remat.values()].index(known) :]]
    choices += [([*flags, split], 1) for flags, _ in list(choices)] if config.mesh.get("fsdp", 1) != count else []
    parts = config.train.accumulate
    while config.train.batch % (2 * parts * count) == 0 and parts < 64:
        parts *= 2
        choices.append((choices[-1][0], parts // config.train.accumulate))
    for given, times in choices[1:]:
        more_of_it = [remat[flag] for flag in given if flag in remat]
        copy = with_remat(config, more_of_it[0]) if more_of_it else ConfigDict(config.to_dict())
        rest = []
        if split in given:
            rest = [f"--config.mesh.{axis}=1" for axis, size in config.mesh.items() if size != 1 and axis != "fsdp"]
            copy.mesh = ConfigDict(one | {"fsdp": count})
        copy.train.accumulate *= times
        more = [f"--config.train.accumulate={copy.train.accumulate}"] if times > 1 else []
        yield [*rest, *given, *more], copy


def of_config(config: ConfigDict, topology: Topology, devices: list[Any]) -> tuple[Program, Any, Plan]:
    """The program of a config, the mesh that it asks for, and the plan of its step."""
    mesh = _checks.call("mesh", make_mesh, config.mesh, devices=devices)
    program, alone = on_this_machine(config), None
    if takes(config, "remat") and config.network.options.get("remat", False):
        plain = on_this_machine(with_remat(config, False))
        alone = flops(plain.step, plain.shapes, plain.objective, plain.batch, plain.key)
    return program, mesh, plan_step(program, topology, mesh, alone)


# --------------------------------------------------------------------------------------------------------------------
# What is shown
# --------------------------------------------------------------------------------------------------------------------


def size(number: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:,.2f} GiB"


def show(plan: Plan, console: Console) -> None:
    """Tables of a plan."""
    chip, mesh = plan.topology.chip, " x ".join(f"{name} {count}" for name, count in plan.mesh.items() if count > 1)
    verdict = "fits" if plan.fits else "does NOT fit"
    title = f"{plan.what} on {plan.topology.name}, mesh {mesh or 'of one device'}: {verdict}"
    table = Table("memory of a device", "", title=title, show_edge=False)
    table.columns[1].justify = "right"
    for name, number in plan.memory.items():
        table.add_row(name, size(number))
    table.add_row("all", f"{size(plan.needed)} of {size(plan.room)}", style="bold")
    console.print(table)

    seconds = plan.seconds
    table = Table("at full speed", "", "seconds", show_edge=False)
    per_device = plan.flops / plan.topology.count
    recomputed = 1 - plan.model_flops / plan.flops if plan.flops else 0.0
    extra = f", {recomputed:.0%} of it recomputation" if recomputed > 0.005 else ""
    table.add_row(
        "products", f"{per_device:.3g} FLOPs of {chip.flops:.3g} a second{extra}", f"{seconds['products']:.4g}"
    )
    table.add_row("memory", f"{size(plan.moved)} of {size(chip.bandwidth)} a second", f"{seconds['memory']:.4g}")
    sent = sum(one.sent for one in plan.exchanges)
    table.add_row("network", f"{size(sent)} of {size(chip.network)} a second", f"{seconds['network']:.4g}")
    console.print(table)
    console.print(
        f"at best {max(seconds.values()):.4g} s, bound by {plan.bound}; model FLOPs utilisation at most "
        f"{plan.utilisation:.0%}; compiled in {plan.compile_seconds:.0f} s",
        highlight=False,
    )
    if plan.exchanges:
        table = Table("exchange", "devices", "array", "times", "sent by a device", show_edge=False)
        for one in plan.exchanges[:8]:
            table.add_row(one.kind, str(one.group), size(one.size), str(one.times), size(one.sent))
        if rest := plan.exchanges[8:]:
            table.add_row(f"{len(rest)} more kinds", "", "", "", size(sum(one.sent for one in rest)))
        console.print(table)
    for name, length, axis, devices, arrays in plan.whole:
        console.print(
            f"note: axis {name!r} of length {length} in {arrays} array(s) stays whole on every device: "
            f"{axis}={devices} does not divide it",
            highlight=False,
        )


def main(values: flags.FlagValues) -> None:
    """Compiles, prints, and looks for what fits."""
    if values.topology is None:
        raise _cli.UsageError("--topology is required, for example --topology=v5e:4x4 or --topology=h100x8")
    jax.config.update("jax_platforms", "cpu")
    with _cli.usage_errors():
        topology = parse(values.topology)
        if not topology.chip.tpu:
            with contextlib.suppress(RuntimeError):  # JAX has its devices already
                jax.config.update("jax_num_cpu_devices", topology.count)
        train.check(values.config)
        _cli.use_compilation_cache()
        console = Console(width=None if Console().is_terminal else 120, stderr=values.json)
        devices = topology.devices()
        program, mesh, plan = of_config(values.config, topology, devices)
        plans = [plan]
        if not values.json:
            show(plan, console)
        sampler = plan_sampler(program, topology, mesh) if values.sampler else None
        if sampler is not None:
            plans.append(sampler)
            if not values.json:
                show(sampler, console)
        advice = None
        if not plan.fits:
            for given, config in variants(values.config, topology.count):
                console.print(f"trying {' '.join(given)}", highlight=False)
                smaller = of_config(config, topology, devices)[2]
                if smaller.fits:
                    advice = {"flags": given, "plan": smaller.to_json()}
                    console.print(f"fits with {' '.join(given)}: {size(smaller.needed)}", highlight=False)
                    break
            else:
                console.print("no variant fits: take a smaller batch or more devices", highlight=False)
    if values.json:
        print(json.dumps({"plans": [one.to_json() for one in plans], "advice": advice}, indent=2))
    sys.exit(0 if plan.fits else 1)


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()
