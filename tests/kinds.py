"""How a test makes any entry of the catalogue: what the mains give, and typical options."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import flowjax as fj
from flowjax import catalogue, specs
from flowjax._pytree import pytree

PATH = fj.paths.Linear()


def network(x, t, cond=None, guidance=None, end=None):
    """Something smooth of all that it gets."""
    shift = 0 if cond is None else jnp.asarray(cond, x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.tanh(x + t.reshape(-1, *(1,) * (x.ndim - 1)) + shift)


def wide(x, channels):
    """An answer with more channels, all of them different."""
    number = jnp.arange(1, channels + 1, dtype=x.dtype)
    return jnp.sin(jnp.sum(x, axis=-1, keepdims=True) * number.reshape(*(1,) * (x.ndim - 1), -1))


@pytree
class Probed:
    """`network` with what caches look at."""

    def __call__(self, x, t, cond=None):
        return network(x, t, cond)

    def probe(self, x, t, cond, what):
        return jnp.cos(network(x, t, cond))[:, None]

    def block_cache(self, batch):
        return jnp.zeros((1, batch, 1, 3))


def log_density(x, t, cond):
    return -jnp.sum(x**2, axis=1)


FLOW = fj.Flow(network, path=PATH, null=0.0)
PROBED_FLOW = fj.Flow(Probed(), path=PATH, null=0.0)
WIDE_FLOW = fj.Flow(lambda x, t, cond: wide(network(x, t, cond), 9), path=PATH)  # two components of three numbers
TRIG_FLOW = fj.Flow(network, path=fj.paths.Trig(), null=0.0)


MEASURED = np.full((1, 3), 0.1, np.float32)


def given_for(kind, name):
    """What the mains give to the constructors of a kind."""
    if kind in ("network", "encoder"):
        return {"rngs": nnx.Rngs(0)}
    if kind == "adapters":
        return {"network": fj.models.MLP(2, width=4, depth=1, rngs=nnx.Rngs(0)), "rngs": nnx.Rngs(1)}
    if kind == "times":
        return {"path": PATH, "n": 4} | ({"start": 1e-3, "end": 1 - 1e-3} if name == "log_snr" else {})
    if kind == "field":
        rule, other = fj.guidance.CFG(scale=2.0), fj.paths.Trig()
        if name == "curved":
            return {"field": WIDE_FLOW}
        if name in ("teacache", "first_block"):
            return {"field": PROBED_FLOW}
        field = FLOW if name != "converted" else fj.Flow(network, path=PATH, prediction="noise")
        added = fj.fields.Gradient(log_density, path=PATH)
        objects = {"field": field, "rule": rule, "against": 0.0, "path": other}
        objects |= {"added": added, "of": log_density, "operator": jnp.tanh, "measured": MEASURED}
        return objects | {"log_density": log_density, "network": network}
    if kind in ("objective", "weight"):
        inner = fj.objectives.FlowMatching(path=PATH)
        interpolant = fj.paths.Interpolant()
        return {
            "path": TRIG_FLOW.path if name == "continuous_consistency" else PATH,
            "objective": inner,
            "coupling": fj.couplings.OptimalTransport(),
            "interpolant": interpolant,
            "teacher": TRIG_FLOW if name == "continuous_consistency" else FLOW,
            "null": 0.0,
        } | {"diffusion": 0.5}
    if kind == "time_law":
        return {"path": PATH}
    if kind == "edit":
        picture = jnp.full((2, 2, 2, 1), 0.5)
        given = {"field": FLOW, "solver": fj.solvers.Euler(), "times": fj.times.uniform(2), "key": None, "index": 0}
        given |= {"picture": picture, "second": -picture, "mask": 1.0, "noise": 0 * picture}
        return given | {"cond": jnp.zeros(2), "second_cond": jnp.ones(2)}
    if kind == "policy":
        return {"path": PATH}
    return {"steps": 100} if kind == "optimizer" else {}


# Tasks are built by the tests of the train main, which runs every config.
ENTRIES = [(kind, name) for kind, table in catalogue.tables.items() for name in table if kind != "task"]
# Those that read files are built in the tests of their readers.
FILES = {
    ("data", "images"),
    ("data", "fashion"),
    ("data", "npz"),
    ("data", "parquet"),
    ("data", "tfds"),
    ("data", "meshes"),
    ("array", "npz"),
    ("density", "run"),
    ("density", "stored"),
}
OPTIONS = {("data", "toy2d"): {"law": "spiral", "size": 10}, ("data", "shapes"): {"size": 8, "points": 8}}
OPTIONS |= {("diffusion", "g_constant"): {"norm": 0.7}}
OPTIONS |= {("data", "captions"): {"size": 8}, ("data", "laws"): {"size": 8}}
OPTIONS |= {
    ("coupling", "semidiscrete_map"): {"targets": [[0.1, 0, 0], [0, 0.1, 0]], "heights": [0.0, 0.0], "time": 0.5}
}
OPTIONS |= {("data", "solids"): {"size": 8, "resolution": 8, "voxels": 64, "view": 8}}
# Precise measurements are met by large numbers, in which rounding shows.
OPTIONS |= {("field", name): {"noise_std": 1.0} for name in ("dps", "pgdm", "mmps")}
OPTIONS |= {("field", "curved"): {"policy": "momentum(components=2)"}}
OPTIONS |= {("data", name): {"shape": [2, 2, 1], "num_classes": 3, "size": 8} for name in ("blank", "synthetic")}
OPTIONS |= {("objective", "distribution_matching"): {"adversary": True, "divergence": "jensen_shannon"}}
OPTIONS |= {("objective", f"velocity_{k}"): {"mode": "consistency", "phases": 2} for k in ("matching", "distillation")}
OPTIONS |= {("objective", "policy_distillation"): {"policy": "momentum(components=2)"}}
OPTIONS |= {("weight", "sit"): {"weighting": "velocity"}, ("diffusion", "constant"): {"norm": 0.3}}
OPTIONS |= {("schedule", "schedule"): {"times": (0.0, 0.5, 1.0), "decisions": ("decision", "decision(order=1)")}}
OPTIONS |= {("statistics", "statistics"): {k: [0.0, 0.5, 1.0] for k in ("lam", "l", "s", "b")}}


def options_for(kind, name):
    """Options of a typical instance."""
    return OPTIONS.get((kind, name)) or catalogue.tables[kind][name].example()


def make(kind, name, **changes):
    """A typical instance, built as a config builds it."""
    options = {**options_for(kind, name), **changes}
    return specs.build(kind, {"name": name, "options": options}, **given_for(kind, name))
