"""Runs that name other runs, several outputs, guidance as an input, chains."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import flowjax as fj
from flowjax import recipe as recipes
from flowjax.data import Source
from flowjax.recipe import Base, Chain, Recipe, Request, Run, export_run, load_run, make_chain

pytestmark = pytest.mark.standard_promotion
MLP = {"name": "mlp", "options": {"dim": 2, "width": 8, "depth": 1}}


def plane(**changes):
    """A flow of points in the plane."""
    options = dict(
        network=MLP,
        path={"name": "linear", "options": {}},
        prediction="velocity",
        data={"name": "laws", "options": {"size": 30}},
        shape=(2,),
        shift=0.0,
        scale=2.0,
        low=None,
        high=None,
        num_classes=None,
        solver={"name": "euler", "options": {}},
        steps=2,
    )
    return fj.Recipe(**(options | changes))


def saved(recipe, folder, seed=0):
    export_run({"network": small.network(recipe, seed)}, recipe, folder)
    return recipe


@pytest.fixture
def pair(tmp_path):
    """A flow whose recipe names another run, `weak`, and that run."""
    saved(plane(), tmp_path / "weak", seed=1)
    strong = plane(runs={"weak": Run(workdir=str(tmp_path / "weak")).load().entry(tmp_path / "strong")})
    other = load_run(tmp_path / "weak")[0]["network"]
    (tmp_path / "strong").mkdir()
    strong.save(tmp_path / "strong")
    fj.weights.write(tmp_path / "strong" / recipes.WEIGHTS, small.network(strong))
    return tmp_path, other


def test_networks_of_other_runs_come_along(pair):
    folder, other = pair
    networks, recipe = load_run(folder / "strong")
    assert set(networks) == {"network", "weak"}
    jax.tree.map(np.testing.assert_array_equal, networks["weak"], other)
    assert set(recipe.flows(networks)) == {"weak"}
    assert recipe.runs["weak"]["workdir"] == "../weak"
    half, _ = load_run(folder / "strong", dtype="bfloat16")
    assert {leaf.dtype for network in half.values() for leaf in jax.tree.leaves(network)} == {jnp.dtype(jnp.bfloat16)}
    (folder / "elsewhere").mkdir()
    (folder / "strong").rename(folder / "elsewhere" / "strong")
    with pytest.raises(FileNotFoundError, match="needs the run 'weak' at"):
        load_run(folder / "elsewhere" / "strong")


def test_a_label_names_the_flow_of_another_run(pair):
    folder, _ = pair
    networks, recipe = load_run(folder / "strong")
    solver = recipe.build_solver("flowturbo(blocks='H1P1R1', refiner=weak)", recipe.flows(networks))
    assert solver.refiner.network is networks["weak"]
    recipe.check(Request(solver="flowturbo(blocks='H1P1R1', refiner=weak)"))
    with pytest.raises(ValueError, match=r"unknown flow \(label of the recipe\) 'wek'; did you mean 'weak'"):
        recipe.check(Request(solver="flowturbo(blocks='H1P1R1', refiner=wek)"))
    with pytest.raises(ValueError, match="allowed: none"):
        plane().check(Request(solver="flowturbo(blocks='H1P1R1', refiner=wek)"))


def test_a_copy_takes_other_runs_along(pair):
    folder, other = pair
    networks, recipe = load_run(folder / "strong")
    export_run(networks, recipe, folder / "alone" / "copy", "float16")
    (folder / "alone").rename(folder / "moved")
    copied, found = load_run(folder / "moved" / "copy")
    assert found.runs["weak"]["workdir"] == "runs/weak"
    np.testing.assert_allclose(copied["weak"].embed.kernel, other.embed.kernel, atol=2e-3)
    with pytest.raises(ValueError, match="the network 'weak' is missing"):
        export_run({"network": networks["network"]}, recipe, folder / "again")


def test_other_weights_are_refused(pair):
    folder, _ = pair
    for path in (folder / "weak").iterdir():
        path.unlink()
    saved(plane(), folder / "weak", seed=2)
    with pytest.raises(ValueError, match=r"was made with the run 'weak' at .* when its weights had the hash"):
        load_run(folder / "strong")


def changed(folder, change):
    """Changes `recipe.json` of a folder, not its weights."""
    path = folder / "recipe.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_other_options_of_the_same_weights_are_refused_at_every_depth(pair):
    """The network's own, and those of a run that the other run needs: weights do not tell them."""
    folder, _ = pair
    outer = plane(runs={"strong": Run(workdir=str(folder / "strong")).load().entry(folder / "outer")})
    (folder / "outer").mkdir()
    outer.save(folder / "outer")
    fj.weights.write(folder / "outer" / recipes.WEIGHTS, small.network(outer))
    assert set(load_run(folder / "outer")[0]) == {"network", "strong", "strong.weak"}

    def other_time(values):
        values["network"]["options"]["time_scale"] = 7.0

    changed(folder / "weak", other_time)
    with pytest.raises(ValueError, match=r"made with the run 'weak' at .* when its network was .* now$"):
        load_run(folder / "strong")
    changed(folder / "strong", lambda values: other_time(values["runs"]["weak"]["recipe"]))  # made anew with it
    load_run(folder / "strong")
    with pytest.raises(ValueError, match=r"run 'strong' at .* when its weak.network was .* now$") as error:
        load_run(folder / "outer")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "flwo"}, "unknown kind of recipe 'flwo'; did you mean 'flow'"),
        ({"runs": {"weak": {"workdir": "x"}}}, "the run weak must have workdir, model and recipe"),
        ({"runs": {"weak": {"workdir": "x", "model": "y", "recipe": {}}}}, "recipe needs its option"),
        ({"adapters": {"name": "lora", "options": {}}}, "adapters need the run 'base'"),
        ({"embedded": [1.0, float("nan")]}, "embedded"),
        ({"embedded": [4.0, 1.0]}, r"embedded=.4.0, 1.0. must be \(smallest, largest\)"),
        ({"head": 1.5}, "head"),
        ({"boundary": {"scale": -1.0}}, "scale must be above 0"),
        ({"boundary": {"sclae": 1.0}}, "boundary has no option sclae"),
    ],
)
def test_recipes_that_are_none(tmp_path, change, message):
    plane().save(tmp_path)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Base.load(tmp_path)


def test_one_of_several_outputs_is_the_prediction():
    twin = jax.tree_util.Partial(lambda x, t, cond: {"v": -x, "u": x})
    recipe = plane(head="v")
    recipe.check_networks({"network": twin})
    flow, x = recipe.flow(twin), jnp.ones((3, 2))
    np.testing.assert_array_equal(flow.velocity(0.5, x), -x)
    raw, _ = flow.evaluate(0.5, x, None, flow.init(x), to="raw")
    assert set(raw) == {"v", "u"}
    with pytest.raises(ValueError, match="several outputs; head= says which"):
        plane().check_networks({"network": twin})
    with pytest.raises(ValueError, match="the network has no output head='w'"):
        plane(head="w").check_networks({"network": twin})


def test_a_consistency_function_is_sampled_as_it_was_trained(tmp_path):
    """Within its boundary, and through guidance as an input; recipes of earlier versions have none."""
    network = jax.tree_util.Partial(lambda x, t, cond, guidance=None: guidance[:, None] + 0 * x)
    options = {"scale": 2.0, "end": 0.9}
    plane(prediction="data", boundary=options, embedded=(1.0, 4.0), guidance=3.0).save(tmp_path)
    recipe, x = Base.load(tmp_path), jnp.ones((3, 2))
    field = recipe.field(recipe.flow(network))
    s = 2.0 * 0.4  # at t = 0.5
    expected = 0.25 / (s**2 + 0.25) + s / np.sqrt(s**2 + 0.25) * 3.0
    np.testing.assert_allclose(field.data(0.5, x), jnp.full((3, 2), expected), rtol=1e-6)
    np.testing.assert_array_equal(field.data(0.95, x), x)
    assert recipe.flow(network).network is network
    values = json.loads((tmp_path / "recipe.json").read_text())
    del values["boundary"]
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    np.testing.assert_array_equal(Base.load(tmp_path).flow(network).data(0.95, x, guidance=jnp.ones(3)), x)


def test_guidance_as_an_input_reaches_the_network_through_other_fields():
    seen = []

    def answer(x, t, cond, guidance=None):
        seen.append(guidance)
        return 0.1 * guidance[:, None] * x

    network = jax.tree_util.Partial(answer)
    recipe = plane(embedded=(1.0, 4.0), guidance=2.0, fields=({"name": "thresholded", "options": {}},))
    recipe.check_networks({"network": network})
    field = recipe.field(recipe.flow(network))
    field.velocity(0.5, jnp.ones((3, 2)))
    np.testing.assert_array_equal(seen[-1], [2.0, 2.0, 2.0])
    with pytest.raises(ValueError, match="answers with guidance itself"):
        recipe.plain_scale()


def test_guidance_as_an_input_holds_in_an_interval_where_the_network_has_learned_that():
    seen = {}

    def answer(x, t, cond, end=None, guidance=None, interval=None):
        seen.update(guidance=guidance, interval=interval)
        return 0.1 * x

    plain = jax.tree_util.Partial(lambda x, t, cond, guidance=None: x)
    network, recipe, x = jax.tree_util.Partial(answer), plane(embedded=(1.0, 4.0)), jnp.ones((2, 2))
    rule = "interval(rule=cfg(scale=3), start=0.25, end=0.5)"
    assert recipe.build_rule(rule) is None
    recipe.field(recipe.flow(network), rule).velocity(0.5, x)
    np.testing.assert_array_equal(seen["guidance"], [3.0, 3.0])
    np.testing.assert_array_equal(seen["interval"], [[0.25, 0.5]] * 2)
    recipe.field(recipe.flow(network), 2.0).velocity(0.5, x)
    assert seen["interval"] is None
    with pytest.raises(ValueError, match="no interval=, as networks like that do"):
        recipe.field(recipe.flow(plain), rule).velocity(0.5, x)
    for other in ("apg(scale=3)", "interval(rule=apg(scale=3), start=0.25, end=0.5)", "cfg(scale=3)"):
        with pytest.raises(ValueError, match=r"guidance is a number, or interval\(rule=cfg\(scale=...\)"):
            recipe.build_rule(other)
    with pytest.raises(ValueError, match="has learned scales from 1 to 4"):
        recipe.field(recipe.flow(network), "interval(rule=cfg(scale=5))")
    with pytest.raises(ValueError, match=r"interval=\(0.5, 0.25\) must be \(smallest, largest\)"):
        fj.fields.Embedded(recipe.flow(network), interval=(0.5, 0.25))


def chain(tmp_path, into="start", **second):
    saved(plane(), tmp_path / "first")
    start = {"start": {"name": "data", "options": {"field": "x0"}}} if into == "start" else {}
    saved(plane(**start, **second), tmp_path / "second", seed=1)
    return make_chain(tmp_path / "both", {"a": tmp_path / "first", "b": tmp_path / "second"}, [into])


def test_a_chain_starts_from_what_comes_before(tmp_path):
    made = chain(tmp_path)
    networks, recipe = load_run(tmp_path / "both")
    assert recipe == made
    found = recipe.sample(networks, Request(num=5, batch=8))
    assert (found.evaluations, found.network_calls) == (4, 4)
    first, second = recipe.recipes
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in (0, 1)]
    begin = first.generate(first.flow(networks["a"]), 5, key=keys[0], batch=8)
    end = second.generate(second.flow(networks["b"]), 5, key=keys[1], start=(begin.x / 2).astype(np.float32), batch=8)
    np.testing.assert_array_equal(found.x, end.x)
    source = Source(x=np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    setting, request = recipe.sweep(Request(num=20, batch=24))[0]
    assert setting == {"stages": "a > b"}
    assert recipe.assess(networks, source, request)["evaluations"] == 4
    with pytest.raises(ValueError, match="steps is given, but each stage of a chain is sampled as its own recipe says"):
        recipe.check(Request(steps=3))
    with pytest.raises(FileExistsError, match="holds a recipe"):
        make_chain(tmp_path / "both", {"a": tmp_path / "first", "b": tmp_path / "second"}, ["start"])


def test_a_chain_conditions_on_what_comes_before(tmp_path):
    inner = {"name": "mlp", "options": {**MLP["options"], "cond_dim": 4}}
    encoders = {"wind": {"name": "vector", "options": {"size": 2, "dim": 4}}}
    network = {"name": "conditioned", "options": {"network": inner, "encoders": encoders}}
    conditions = {"wind": {"name": "vector", "options": {"dim": 2}}}
    chain(tmp_path, "wind", network=network, conditions=conditions)
    networks, recipe = load_run(tmp_path / "both")
    found = recipe.sample(networks, Request(num=5, batch=8))
    assert set(found.cond) == {"wind"}
    assert float(np.abs(found.cond["wind"]).min()) > 0
    with pytest.raises(ValueError, match="unknown condition of this chain 'wind'"):
        recipe.check(Request(conditions={"wind": "1,2"}))


@pytest.mark.parametrize("into", ["start", "wind"])
def test_what_fails_in_a_stage_is_bad_in_the_end(tmp_path, monkeypatch, into):
    """Whatever the later stages make of it; the other samples are what they are."""
    inner = {"name": "mlp", "options": {**MLP["options"], "cond_dim": 4}}
    encoders = {"wind": {"name": "vector", "options": {"size": 2, "dim": 4}}}
    network = {"name": "conditioned", "options": {"network": inner, "encoders": encoders}}
    conditions = {"wind": {"name": "vector", "options": {"dim": 2}}}
    chain(tmp_path, into, **({"network": network, "conditions": conditions} if into == "wind" else {}))
    networks, recipe = load_run(tmp_path / "both")
    request, plain = Request(num=5, batch=8), Recipe.generate
    good = recipe.sample(networks, request)

    def fail(self, *args, **options):
        found = plain(self, *args, **options)
        if self == recipe.recipes[0]:
            found.x[[1, 3], 0] = np.nan, np.inf
        return found

    monkeypatch.setattr(Recipe, "generate", fail)
    found = recipe.sample(networks, request)
    assert (good.bad, found.bad) == (0, 2)
    assert np.isnan(found.x[[1, 3]]).all()
    np.testing.assert_array_equal(found.x[[0, 2, 4]], good.x[[0, 2, 4]])
    source = Source(x=np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    assert recipe.assess(networks, source, request)["bad_samples"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ("a",), "into": ()}, "two stages or more"),
        ({"stages": ("a", "c")}, "unknown run of the chain 'c'"),
        ({"into": ("wind",)}, "unknown condition of the stage b 'wind'"),
        ({"stages": ("b", "a")}, "the first stage b starts from data"),
        ({"stages": ("a", "a")}, "the stage a starts from noise"),
    ],
)
def test_chains_that_are_none(tmp_path, change, message):
    made = chain(tmp_path)
    assert isinstance(made, Chain)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(made, **change)
