"""What the mains share: configs by name, one-line errors with exit code 2, `--help`."""

import contextlib
import errno
import importlib.util
import json
import os
import sys
import traceback
import warnings
from asyncio.log import logger as asyncio_logger
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from flowjax import _checks, _interrupt, _overrides, launch, specs
from flowjax.training.mesh import make_mesh

_BUILT_IN = ("flagfile", "undefok")  # flags that absl adds to every set


class UsageError(ValueError):
    """Something that whoever typed the command can repair; its text is one line."""


def choose(what: str, name: Any, allowed: Iterable[Any]) -> Any:
    """Returns `name` if it is allowed.

    Raises:
        UsageError: It is not; the message has the closest name and all allowed ones.
    """
    with usage_errors():
        return _checks.choose(what, name, allowed)


def config_folder() -> Path:
    """The folder of the configs that come with flowjax."""
    installed = importlib.util.find_spec("flowjax.configs")
    if installed is not None and installed.submodule_search_locations:
        return Path(next(iter(installed.submodule_search_locations)))
    return Path(__file__).resolve().parent.parent / "configs"


def load_config(name: str) -> ConfigDict:
    """The config `name`: a Python file, or the bare name of one that comes with flowjax; then `:argument`.

    A config is a program, and runs here.

    Raises:
        UsageError: No such file, the file does not know the argument, or it is not a config; the message names the
            line where it stopped.
    """
    name, _, argument = name.partition(":")
    path = Path(name)
    if path.suffix != ".py":
        bundled = {p.stem: p for p in sorted(config_folder().glob("*.py")) if p.stem not in ("__init__", "base")}
        path = bundled[choose("config", name, bundled)]
    if not path.is_file():
        raise UsageError(f"config file {name} does not exist")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"config file {name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError("it has no function get_config(argument)")
        config = module.get_config(argument)
        if not isinstance(config, ConfigDict):
            raise ValueError(f"get_config must return an ml_collections.ConfigDict, got {type(config).__name__}")
        return config.lock()
    except ValueError as error:
        raise UsageError(f"config {name}: {error}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise UsageError(f"config {name}{where}: {type(error).__name__}: {error}") from error


def define_config(values: flags.FlagValues, argv: list[str]) -> None:
    """Defines `--config` and the overrides `--config.a.b=...` in `argv`; `values.config` has them applied.

    Raises:
        UsageError: No config is given, it cannot be loaded, or an override names a key that it does not have.
    """
    names = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if not names:
        raise UsageError("--config=NAME is required, for example --config=digits")
    argv[:] = [a for a in argv if not a.startswith("--config=")]
    config = load_config(names[-1])
    with usage_errors(), config.unlocked():
        argv[:] = _overrides.apply(config, argv)
    for key in (a[len("--config.") :].split("=", 1)[0] for a in argv if a.startswith("--config.")):
        node = config
        for depth, part in enumerate(key.split(".")):
            where = ".".join(["config", *key.split(".")[:depth]])
            if not isinstance(node, ConfigDict):
                raise UsageError(f"{where} is a value, so --config.{key} cannot be set")
            node = node[choose(f"key of {where}", part, sorted(node))]
        if isinstance(node, ConfigDict):
            raise UsageError(f"--config.{key} is a group; set one of its keys: {', '.join(sorted(node))}")
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)


def start(values: flags.FlagValues, makes: bool = False) -> None:
    """Joins the other processes of a run, if there are any (`flowjax.launch`).

    Args:
        values: Flags of the main, with `workdir`.
        makes: Whether the main makes its workdir; others leave no logs in a folder that is no run.

    Raises:
        UsageError: The flags contradict each other, or the others do not come.
    """
    logs = Path(values.workdir or "") / "logs"
    known = values.workdir and (makes or (logs.parent / "recipe.json").exists())
    with usage_errors():
        launch.start(values, logs if known else None)


def define_mesh(values: flags.FlagValues) -> None:
    """The flag of mains that have no config of their own."""
    text = "How the model lies on all devices, such as fsdp=4 or tensor=2,sequence=2; else each has all of it."
    flags.DEFINE_string("mesh", None, text, flag_values=values)


def mesh(values: flags.FlagValues) -> Mesh:
    """What `--mesh` asks for.

    Raises:
        UsageError: It is none, or one of another number of devices.
    """
    with usage_errors():
        return _checks.call("mesh", make_mesh, specs.parse(f"mesh({values.mesh or ''})")["options"], devices=None)


def check_flags(values: flags.FlagValues, **intervals: str) -> None:
    """Refuses flags that are empty, as with an unset variable of a shell, and numbers outside their interval.

    Args:
        values: The parsed flags.
        **intervals: Where the numbers of these flags must lie, as in "[1, inf)"; flags that were not given pass.

    Raises:
        UsageError: One line with the flag, its value and what is allowed.
    """
    for name in values:
        if values[name].value in ("", []) and not name.startswith("config"):
            raise UsageError("--workdir=FOLDER is required" if name == "workdir" else f"--{name} is empty")
    with usage_errors():
        for name, interval in intervals.items():
            value = values[name].value
            if value is not None:
                (_checks.real if isinstance(value, float) else _checks.whole)(interval, **{f"--{name}": value})


def check_keys(config: ConfigDict, keys: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """The values of a config by dotted name, if it has exactly these keys; what is below them may be anything.

    Raises:
        UsageError: A key is missing or unknown; the message has the closest one.
    """
    keys, optional = list(keys), list(optional)
    found: dict[str, Any] = {}

    def walk(node: ConfigDict, prefix: str) -> None:
        below = [key[len(prefix) :].split(".")[0] for key in (*keys, *optional) if key.startswith(prefix)]
        for name in sorted(node):
            choose(f"key of {f'config.{prefix}'[:-1]}", name, dict.fromkeys(below))
            value, key = node[name], prefix + name
            known = key in (*keys, *optional)
            if not isinstance(value, ConfigDict) and (name == "options" or not known):
                raise UsageError(f"config.{key} must be a group of keys, got {value!r}")
            if known:
                found[key] = value
            else:
                walk(value, f"{key}.")

    walk(config, "")
    missing = [key for key in keys if key not in found]
    if missing:
        raise UsageError(f"the config lacks {', '.join(f'config.{key}' for key in missing)}")
    return found


def number_or_spec(flag: str, text: str | None) -> Any:
    """The number of a flag, or the spec that its text is; None for none.

    Raises:
        ValueError: neither; the number is NaN or infinite.
    """
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        return specs.parse(text)
    _checks.real("[0, inf)", **{flag: number})
    return number


def named_specs(text: str, kind: str) -> list[Any]:
    """The specs of a list; none for the text "none".

    Raises:
        ValueError: A number among them.
    """
    if text.strip() == "none":
        return []
    found = specs.parse_many(text)
    for spec in found:
        if not specs.is_spec(spec):
            raise ValueError(f"a {kind} is a name or name(option=value, ...), got {spec!r}")
    return found


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns the ValueErrors of constructors, which say what is allowed, and what a disk says into UsageErrors."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UsageError(describe(error)) from error


def describe(error: Exception) -> str:
    """The text of an error; of one of the operating system with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error) or type(error).__name__


def check_frozen(config: ConfigDict, workdir: Path, allow: bool = False) -> bool:
    """Refuses a config that differs from the one a run began with; whether it differs, where that is allowed.

    The mesh may differ, from one start to the next.

    Where checkpoints lie, but `config.json` is gone or broken, the config counts as another one.

    Raises:
        UsageError: It differs and `allow` is False; names the first difference and both values. Or `config.json` is
            not that of a run.
    """
    path = workdir / "config.json"
    content = path.read_bytes().strip(b"\0 \n") if path.exists() else b""
    try:
        frozen = json.loads(content)
        if not isinstance(frozen, dict):
            raise ValueError("not a config")
    except ValueError:
        if any(child.name.isdigit() for child in workdir.glob("checkpoints/*")):
            if jax.process_index() == 0:
                print(f"{path} cannot be read: the run goes on with the config that is given now")
            return True
        if content:
            raise UsageError(f"{path} is not the config of a training run; use another --workdir") from None
        return False
    # Through JSON as well, which knows no tuples. The mesh says where a run is at work, and not what it computes.
    asked = json.loads(json.dumps(config.to_dict()))
    frozen, asked = (_flatten({**known, "mesh": {}}, "config") for known in (frozen, asked))
    for key in sorted(frozen.keys() | asked.keys()):
        old, new = frozen.get(key, "absent"), asked.get(key, "absent")
        if old != new and not allow:
            ways = "use that value, another --workdir or --allow_config_change"
            raise UsageError(f"{workdir} began with {key}={old}, not {new}; {ways}")
    return frozen != asked


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk, a quota or a read-only folder into a UsageError, whatever library met it.

    Raises:
        UsageError: One line with the reason.
    """
    report = afterwards = sys.unraisablehook

    def report_others(found: Any) -> None:
        """Leaves out what the other writes of a checkpoint say when Orbax has closed their event loop."""
        if str(found.exc_value) != "Event loop is closed":
            report(found)

    sys.unraisablehook, asyncio_logger.disabled = report_others, True  # it lists them all again
    try:
        yield
    except Exception as error:
        causes: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None and cause not in causes:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            # TensorStore raises ValueError with the text only.
            if any(getattr(e, "errno", None) == code or os.strerror(code) in str(e) for e in causes):
                afterwards = report_others  # the run is over, they may still come
                raise UsageError(
                    f"cannot write to {folder}: {os.strerror(code)}; free space or use another --workdir"
                ) from error
        raise
    finally:
        sys.unraisablehook, asyncio_logger.disabled = afterwards, afterwards is report_others


def use_debug_checks() -> None:
    """Strict numerics: the first NaN raises where it is made, keys are used once, ranks are never promoted."""
    for name, value in (
        ("jax_debug_nans", True),
        ("jax_debug_key_reuse", True),
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_enable_compilation_cache", False),
    ):
        jax.config.update(name, value)


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/flowjax."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "flowjax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run(
    main: Callable[[flags.FlagValues], None],
    define: Callable[[flags.FlagValues, list[str]], None] = lambda values, argv: None,
    argv: list[str] | None = None,
) -> None:
    """Parses the command line, calls `main(values)` and exits.

    Args:
        main: Its module docstring is the text of `--help`.
        define: Gets an empty `FlagValues` and the arguments, and defines the flags of this main.
        argv: Arguments with the program name first; `sys.argv` by default.

    Raises:
        SystemExit: Always, with 0 when all went well. A bad flag, a `UsageError`, a file that cannot be read or
            written and too little memory print `error: ...`, one line, on stderr and exit with 2; Ctrl-C exits with
            130. Other exceptions pass through.
    """
    argv = list(sys.argv if argv is None else argv)
    logging.set_verbosity(logging.FATAL)  # what libraries log as errors they raise as well
    warnings.formatwarning = lambda message, *_: f"warning: {' '.join(str(message).split())}\n"
    flags.FLAGS(argv[:1])
    values = flags.FlagValues()
    wants_help = any(a in ("--help", "-h", "-help", "--helpfull") for a in argv[1:])
    try:
        _interrupt.release()
        if wants_help:
            config = [a for a in argv if a.startswith("--config=")] or ["--config=digits"]
            argv = [argv[0], *(a for a in argv[1:] if not a.startswith("-")), *config]
        define(values, argv)
        if wants_help:
            print(_help(sys.modules[main.__module__].__doc__ or "", values))
            sys.exit(0)
        rest = values(argv)[1:]
        if rest:
            raise UsageError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
        main(values)
    except flags.UnrecognizedFlagError as error:
        try:
            choose("flag", f"--{error.flagname}", [f"--{name}" for name in values if name not in _BUILT_IN])
        except UsageError as unknown:
            _fail(unknown)
    except (flags.Error, UsageError, OSError) as error:
        _fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        launch.leave(130, "interrupted")
        sys.exit(130)
    except Exception as error:
        full = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
        if full or isinstance(error, MemoryError):
            _fail(UsageError(f"out of memory: {describe(error)}; use a smaller batch, number or network"))
        if launch.several():
            traceback.print_exc()
            launch.leave(1, f"{type(error).__name__}: {describe(error)}")
        raise
    sys.exit(0)


def _flatten(node: Any, prefix: str) -> dict[str, Any]:
    """The values of nested dictionaries by dotted name."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {name: leaf for key in node for name, leaf in _flatten(node[key], f"{prefix}.{key}").items()}


def _help(text: str, values: flags.FlagValues) -> str:
    """The text of `--help`: the module docstring, the flags, and the keys of a config if there is one."""
    lines = [text.strip(), "", "Flags:"]
    for name in (name for name in values if name not in ("config", *_BUILT_IN)):
        flag = values[name]
        default = "" if flag.default is None else f" [{flag.default_as_str}]"
        lines.append(f"  --{name}  {flag.help}{default}")
    if "config" in values:
        lines += ["  --config=NAME[:smoke]  A config, and --config.KEY=VALUE for each of its keys, for example:"]
        lines += [
            f"    --{key}={value}"
            for key, value in sorted(_flatten(values["config"].value.to_dict(), "config").items())
        ]
    return "\n".join(lines)


def _fail(error: Exception) -> None:
    """One line on stderr, exit code 2."""
    words = "error: " + " ".join(describe(error).split())
    print(words, file=sys.stderr)
    launch.leave(2, words)
    sys.exit(2)
