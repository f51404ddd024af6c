"""Looks at this environment and says what is missing, slow or in the way.

    python -m flowjax.doctor
    python -m flowjax.doctor --json
    python -m flowjax.doctor --list=solvers
    python -m flowjax.doctor --list

--list=KIND prints what specs of that kind there are, one line each, with their options; --list alone the kinds.

Exit code 0: everything essential works. 1: something does not; the table says what to do.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowjax import _cli, catalogue, specs

DISTRIBUTION = "flowjax-generative"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        value: What was found.
        status: "ok", "note" (works, but worth knowing) or "problem" (something essential does not work).
        advice: What to do about it; empty if nothing.

    Example:
        >>> from flowjax import doctor
        >>> finding = doctor.python_version()[0]
        >>> finding.name, finding.status
        ('python', 'ok')
    """

    name: str
    value: str
    status: str = "ok"
    advice: str = ""


def python_version() -> list[Finding]:
    """The interpreter; the packaging metadata already refuses versions that are too old."""
    return [Finding("python", f"{sys.version.split()[0]} ({sys.executable})")]


def dependencies(distribution: str = DISTRIBUTION) -> list[Finding]:
    """Installed against required versions, then the optional extras."""
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(distribution) or []]
    except importlib.metadata.PackageNotFoundError:
        advice = "run `pip install -e .` in the checkout"
        return [Finding(distribution, "not installed, required versions unknown", "note", advice)]
    version = importlib.metadata.version(distribution)
    findings, extras = [Finding(distribution, version)], dict[str, list[str]]()
    for requirement in requirements:
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            installed = "missing"
        fits = installed != "missing" and requirement.specifier.contains(installed, prereleases=True)
        group = next((e for e in _extras(distribution) if _belongs(requirement, e)), None)
        if group is not None:
            extras.setdefault(group, []).extend([] if fits else [requirement.name])
        elif requirement.marker is None or requirement.marker.evaluate():
            text = f"{installed} (needs {requirement.specifier or 'any'})"
            fix = f"pip install '{requirement.name}{requirement.specifier}'"
            findings.append(Finding(requirement.name, text, *(() if fits else ("problem", fix))))
    for extra, lacking in extras.items():
        value = f"lacks {', '.join(lacking)}" if lacking else "complete"
        advice = f"only if you need it: pip install -e '.[{extra}]'" if lacking else ""
        findings.append(Finding(f"extra: {extra}", value, "note" if lacking else "ok", advice))
    return findings


def _extras(distribution: str) -> list[str]:
    return importlib.metadata.metadata(distribution).get_all("Provides-Extra") or []


def _belongs(requirement: Requirement, extra: str) -> bool:
    """True for a requirement that only this extra brings in."""
    marker = requirement.marker
    return marker is not None and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra})


def other_flowjax() -> list[Finding]:
    """Distributions that install a package with our import name."""
    others = sorted(set(importlib.metadata.packages_distributions().get("flowjax", [])) - {DISTRIBUTION})
    if others:
        return [Finding("other flowjax", ", ".join(others), "problem", f"pip uninstall {' '.join(others)}")]
    return [Finding("other flowjax", "none")]


def machine() -> list[Finding]:
    """Processors and memory of the host."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings = [Finding("processors", f"{cores} usable")]
    if "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        low = ("note", "training the small recipes needs about 2 GiB") if memory < 2 else ()
        findings.append(Finding("memory", f"{memory:.1f} GiB", *low))
    return findings


def devices() -> list[Finding]:
    """What JAX computes on."""
    local = jax.local_devices()
    findings = [Finding("devices", f"{len(local)} x {local[0].device_kind} ({local[0].platform})")]
    limit = (local[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        findings.append(Finding("device memory", f"{limit / 2**30:.1f} GiB each for JAX"))
    if local[0].platform == "cpu" and (Path("/dev/nvidia0").exists() or Path("/dev/accel0").exists()):
        advice = "install jax[cuda13] or jax[tpu], or unset JAX_PLATFORMS"
        findings.append(Finding("accelerator", "present but not used", "note", advice))
    return findings


def compilation() -> list[Finding]:
    """Whether a small program compiles and runs, and how long that takes."""
    x = jnp.linspace(0.0, 1.0, 1024)
    # A new function is never in the in-memory cache; the cache on disk stays out by its minimum compile time.
    program = jax.jit(lambda x: jnp.sum(jnp.sin(x) ** 2 + jnp.cos(x) ** 2))
    began = time.perf_counter()
    compiled = program.lower(x).compile()
    seconds = time.perf_counter() - began
    value = float(compiled(x))
    if abs(value - 1024) > 0.1:
        advice = "reinstall jax and jaxlib in the same version, and the driver of the device"
        return [Finding("compilation", f"wrong result {value} for 1024", "problem", advice)]
    slow = ("note", "the machine is busy or throttled; programs will compile slowly") if seconds > 5 else ()
    return [Finding("compilation", f"{seconds:.2f} s for a small program", *slow)]


def collectives() -> list[Finding]:
    """A sum over all devices of this process."""
    local = jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(local), ("devices",))
    spec = jax.sharding.PartitionSpec("devices")
    numbers = jax.device_put(np.arange(1, len(local) + 1, dtype=np.int32), jax.NamedSharding(mesh, spec))
    total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "devices"), mesh=mesh, in_specs=spec, out_specs=jax.P()))
    result, expected = int(total(numbers)[0]), len(local) * (len(local) + 1) // 2
    if result != expected:
        advice = "run with NCCL_DEBUG=INFO, or with one device: CUDA_VISIBLE_DEVICES=0"
        return [Finding("collectives", f"sum {result} instead of {expected}", "problem", advice)]
    return [Finding("collectives", f"sum over {len(local)} device(s) is right")]


def matmul_precision() -> list[Finding]:
    """Relative error of a float32 matrix product at the default precision, against float64."""
    a, b = np.random.default_rng(0).normal(size=(2, 512, 512)).astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    error = float(np.abs(np.asarray(jnp.asarray(a) @ jnp.asarray(b)) - exact).max() / np.abs(exact).max())
    if not error < 0.05:
        return [Finding("matrix product", f"relative error {error:.0e}", "problem", "reinstall jax and the driver")]
    if error > 1e-5:
        advice = "for comparisons: JAX_DEFAULT_MATMUL_PRECISION=highest"
        return [Finding("matrix product", f"relative error {error:.0e}, reduced precision", "note", advice)]
    return [Finding("matrix product", f"relative error {error:.0e}, float32")]


def compilation_cache() -> list[Finding]:
    """Where compiled programs are kept between runs."""
    _cli.use_compilation_cache()
    folder = Path(jax.config.values["jax_compilation_cache_dir"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "set JAX_COMPILATION_CACHE_DIR to a folder that you can write"
        return [Finding("compilation cache", f"{folder}: {error.strerror}", "note", advice)]
    return [Finding("compilation cache", f"{folder} is writable")]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    python_version,
    other_flowjax,
    dependencies,
    machine,
    devices,
    compilation,
    collectives,
    matmul_precision,
    compilation_cache,
)


def examine(checks: tuple[Callable[[], list[Finding]], ...] = CHECKS) -> list[Finding]:
    """Runs the checks in turn; one that raises becomes a problem and does not stop the others."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            text = (str(error).strip() or "no message").splitlines()[0]
            findings.append(
                Finding(
                    check.__name__.replace("_", " "),
                    f"{type(error).__name__}: {text}",
                    "problem",
                    "this basic operation of jax failed; see https://docs.jax.dev/en/latest/installation.html",
                )
            )
    return findings


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.", flag_values=values)
    argv[:] = ["--list=kinds" if argument == "--list" else argument for argument in argv]
    flags.DEFINE_string("list", None, "Kind of spec whose names are printed.", flag_values=values)


def listing(kind: str) -> list[str]:
    """One line for each spec of a kind, or for each kind."""
    if kind == "kinds":
        return [f"{name:<12} {', '.join(table)}" for name, table in catalogue.tables.items()]
    kind = kind if kind in catalogue.tables else kind.removesuffix("s")
    lines = []
    for name, entry in specs.table_of(kind).items():
        options = ", ".join(
            key if option.required else f"{key}={specs.written(option.default)}"
            for key, option in specs.options_of(entry).items()
        )
        lines.append(f"{name}({options})  {entry.summary}")
    return lines


def main(values: flags.FlagValues) -> None:
    """Prints the findings; exits with 1 if there is a problem."""
    if values.list is not None:
        with _cli.usage_errors():
            print("\n".join(listing(values.list)))
        return
    findings = examine()
    healthy = all(finding.status != "problem" for finding in findings)
    if values.json:
        print(json.dumps({"ok": healthy, "findings": [dataclasses.asdict(f) for f in findings]}, indent=2))
    else:
        colours = {"ok": "green", "note": "yellow", "problem": "red"}
        table = Table("", "what", "found", "advice", show_edge=False)
        for finding in findings:
            mark = f"[{colours[finding.status]}]{finding.status}[/]"
            table.add_row(mark, *map(escape, (finding.name, finding.value, finding.advice)))
        console = Console()
        console.print(table)
        console.print("[green]Everything essential works.[/]" if healthy else "[red]There are problems.[/]")
    if not healthy:
        sys.exit(1)


def cli() -> None:
    """The command `flowjax-doctor`."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()
