"""Settings of every test: eight fake devices, strict numerics, annotations checked at run time.

Key reuse, rank promotion and dtype promotion raise. Code of other projects that promotes dtypes (optax does)
is tested under `pytestmark = pytest.mark.standard_promotion`. Compiled programs are cached between runs, also
for the programs that tests start as processes.
"""

import gc
import os
import re

import jax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import install_import_hook

# With the numeric tower, an integer is a float, as in type hints.
# Left out are paths and the methods of solvers, whose functions run once per coefficient on the host: checking doubles
# the time of their tests, and their arguments are plain numbers; and `calibration.ems`, which answers for numbers of
# another type itself.
CHECKED = (
    "calibration.compensation",
    "calibration.ranking",
    "calibration.reference",
    "calibration.schedules",
    "calibration.store",
    "calibration.use",
    "couplings",
    "data",
    "evaluation",
    "fields",
    "flow",
    "geometry",
    "guidance",
    "keys",
    "likelihood",
    "models",
    "objectives",
    "policies",
)
CHECKED += ("recipe", "science", "solvers.adaptive", "solvers.bound", "solvers.dpm_adaptive", "solvers.executor")
CHECKED += ("solving", "training", "video", "weights")
install_import_hook(
    [f"flowjax.{name}" for name in CHECKED], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

gc.disable()  # while tests are collected

if not hasattr(jax, "enable_x64"):  # before jax 0.8
    jax.enable_x64 = jax.experimental.enable_x64

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs in pytest's own cache folder; quick tests are compiled quickly, slow ones well."""
    quick = config.option.markexpr == "not slow"
    jax.config.update("jax_disable_most_optimizations", quick)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quick))
    if quick:  # half of the time to compile is XLA's search for better loops; JAX 0.12 has no choice of it
        flags = "--xla_cpu_parallel_codegen_split_count=1"
        flags += " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
        os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"
    cache = str(config.rootpath / ".pytest_cache" / "jax")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    # Of a process that is killed, an entry may stay half written: the fewer entries, the rarer.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_collection_finish() -> None:
    """What is imported stays: looking for garbage in it again and again would take a sixth of the time of the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


_finished = 0


def pytest_runtest_teardown() -> None:
    """Forgets compiled functions now and then: of more than 8,192 JAX keeps no account, and they take gigabytes."""
    global _finished
    _finished += 1
    if _finished % 800 == 0:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def dtype_promotion(request: pytest.FixtureRequest):
    """Strict dtype promotion, unless the test is marked `standard_promotion`."""
    relaxed = request.node.get_closest_marker("standard_promotion")
    with jax.numpy_dtype_promotion("standard" if relaxed else "strict"):
        yield


@pytest.fixture
def x64():
    """Double precision within a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def on_eight_devices():
    """Runs a function over a batch of problems on eight devices and checks that nothing is communicated."""

    def run(function, *batch):
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
        spec = PartitionSpec("batch")
        sharded = jax.jit(jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
        batch = jax.device_put(batch, NamedSharding(mesh, spec))
        program = sharded.lower(*batch).compile()
        assert not re.search(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", program.as_text())
        return program(*batch)

    return run
