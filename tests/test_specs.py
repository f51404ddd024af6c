"""Specs: one thing as an object, as data and as text."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kinds import ENTRIES, FILES, FLOW, PATH, given_for, options_for

import flowjax as fj
from flowjax import catalogue, specs


def equal(a, b):
    if isinstance(a, optax.GradientTransformation):
        params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
        a, b = (o.update(params, o.init(params), params)[0] for o in (a, b))
    if isinstance(a, fj.data.Source):
        return np.array_equal(a.x, b.x)
    leaves = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(leaves[0]) == len(leaves[1]) and all(
        np.array_equal(x, y) if hasattr(x, "shape") else x == y for x, y in zip(*leaves, strict=True)
    )


@pytest.mark.standard_promotion
@pytest.mark.parametrize(("kind", "name"), [entry for entry in ENTRIES if entry not in FILES])
def test_every_entry_is_built_printed_and_built_again(kind, name):
    entry, given = catalogue.tables[kind][name], given_for(kind, name)
    options = options_for(kind, name)
    thing = specs.build(kind, {"name": name, "options": options}, **given)
    printed = {"name": name, "options": options}  # of functions and networks: what they were made from
    if dataclasses.is_dataclass(thing) and entry.make is type(thing):
        printed = specs.spec_of(kind, thing, **given)
    text = specs.text(printed)
    assert specs.text(specs.parse(text)) == text
    rebuilt = specs.build(kind, text, **given | given_for(kind, name) if "rngs" in given else given)
    assert type(rebuilt) is type(thing)
    assert equal(rebuilt, thing)


def test_objects_pass_and_options_nest():
    solver = fj.solvers.Heun()
    assert fj.build("solver", solver) is solver
    nested = fj.build("solver", "heavy_ball(solver=ghvb(order=2, beta=0.5), beta=0.8)")
    assert (nested.solver.order, nested.solver.beta, nested.beta) == (2, 0.5, 0.8)
    assert fj.build("solver", {"name": "nesterov", "options": {"solver": "ddim"}}).solver == fj.solvers.DDIM()
    assert fj.build("rule", "apg(scale=4, eta=0, r=inf)").r == math.inf
    assert fj.build("rule", "interval(rule=raag(w_max=5), start=0.2)").rule.w_max == 5
    np.testing.assert_array_equal(
        fj.build("times", "shifted(times=quadratic(start=1e-3), shift=3)", path=PATH, n=4),
        fj.times.shifted(fj.times.quadratic(4, start=1e-3), 3),
    )
    np.testing.assert_array_equal(fj.build("times", "karras(rho=5)", path=PATH, n=6), fj.times.karras(PATH, 6, rho=5))
    objective = fj.build(
        "objective", "sit(prediction=noise, weighting=velocity, label_dropout=0.1)", null=10, path=PATH
    )
    assert (objective.prediction, objective.label_dropout, objective.null) == ("noise", 0.1, 10)
    field = fj.build("field", "thresholded(quantile=0.9)", field=FLOW)
    assert field.field is FLOW
    assert fj.build("solver", "euler_maruyama(diffusion=linear(norm=0.5))").diffusion == fj.build(
        "diffusion", "linear(norm=0.5)"
    )


def test_arrays(tmp_path):
    table = [0.9, 0.5, 0.1]
    np.savez(tmp_path / "tables.npz", good=table, other=[1.0])
    for spec in (
        table,
        f"npz(path='{tmp_path}/tables.npz', name=good)",
        {"name": "npz", "options": {"path": "tables.npz", "name": "good"}},
    ):
        path = specs.build("path", {"name": "tabulated", "options": {"alphas_cumprod": spec}}, folder=str(tmp_path))
        assert path.alphas_cumprod == tuple(table)
    assert len(fj.build("path", "tabulated(alphas_cumprod=scaled_linear_betas(n=100))").alphas_cumprod) == 100
    with pytest.raises(ValueError, match=r"has good, other: say which"):
        fj.build("array", f"npz(path='{tmp_path}/tables.npz')")
    with pytest.raises(ValueError, match="another file"):
        fj.build("array", f"npz(path='{tmp_path}/tables.npz', name=good, sha256='00')")
    with pytest.raises(ValueError, match="list of at most"):
        fj.build("array", ["a"])


def test_paths_need_no_quotes():
    spec = specs.parse("run(workdir=runs/a-b.c, others=[/tmp/x, ~/y], quoted='a(b=c/d,', inner=run(workdir=../z/))")
    assert spec["options"].pop("inner")["options"] == {"workdir": "../z/"}
    assert spec["options"] == {"workdir": "runs/a-b.c", "others": ["/tmp/x", "~/y"], "quoted": "a(b=c/d,"}
    assert specs.parse(specs.text(spec)) == spec
    with pytest.raises(ValueError, match="cannot read the spec"):
        specs.parse("edm(rho=1/2)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpm_solver(order=3", r"at character 11 \('\(order=3'\).*never closed"),
        ("dpm_solver(3)", r"at character 12 \('3\)'\): options are written option=value"),
        ("dpm_solver(order=3, order=2)", "keyword argument repeated|once"),
        ("dpm_solver(order=__import__('os').system('x'))", "a name is expected in front"),
        ("__import__('os').system('x')", "a name is expected in front"),
        ("(lambda: 1)()", "a name is expected"),
        ("heun(x=[i for i in y])", "a number, a text"),
        ("heun(**{'a': 1})", "once"),
        ("3 + 4", "a name is expected first"),
        ("", "cannot read the spec"),
        ("a b", "cannot read the spec"),
        ("heun(" * 3000, "cannot read the spec|at most"),
        ("h" * 30_000, "at most 20000 characters"),
    ],
)
def test_what_cannot_be_read_points_at_the_place(text, message):
    with pytest.raises(ValueError, match=message) as error:
        specs.build("solver", text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("solvr", "heun", "unknown kind of spec 'solvr'; did you mean 'solver'"),
        ("solver", "huen", "unknown solver 'huen'; did you mean 'heun'"),
        ("solver", "dpm_solver(ordr=2)", "no option ordr; did you mean order"),
        ("solver", "heun(beta=0.5)", r"no option beta \(it is one of heavy_ball, nesterov, ghvb\); it has none"),
        ("solver", "usf", r"needs its option schedule: write usf\(schedule=\.\.\.\)"),
        ("solver", "heavy_ball(solver=huen)", "unknown solver 'huen'"),
        ("solver", "dpm_solver(order=7)", "order=7 is not one of"),
        ("rule", {"options": {}}, "a spec is a text"),
        ("rule", {"name": "cfg", "scale": 3}, "a spec is a text"),
        ("times", "quadratic(n=4, steps=3)", "quadratic has no option steps"),
        ("network", "dit(image_shape=(4, 4, 1), hidden=3)", "dit has no option hidden"),
        ("network", "conditioned(encoders=label, network=mlp)", "a dict of encoder specs by name"),
        ("encoder", "conditioned", "unknown encoder"),
    ],
)
def test_what_does_not_exist_is_one_line(kind, spec, message):
    with pytest.raises(ValueError, match=message) as error:
        specs.build(kind, spec, path=PATH)
    assert "\n" not in str(error.value)


def test_what_has_no_spec_says_so():
    with pytest.raises(ValueError, match="no weight of the catalogue makes a function"):
        specs.spec_of("objective", fj.objectives.FlowMatching(path=PATH, weight=lambda t: t))
    with pytest.raises(ValueError, match="no solver of the catalogue makes"):
        specs.spec_of("solver", PATH)
