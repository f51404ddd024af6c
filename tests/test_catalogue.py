"""The table of names."""

import dataclasses
import inspect
import re

import jax
import pytest

import flowjax as fj
from flowjax import catalogue, fields, guidance, objectives, solvers
from flowjax.guidance import Rule

TABLES = {
    "solvers": catalogue.solvers,
    "rules": catalogue.rules,
    "fields": catalogue.fields,
    "couplings": catalogue.couplings,
    "objectives": catalogue.objectives,
}
ENTRIES = {f"{table}-{name}": entry for table, entries in TABLES.items() for name, entry in entries.items()}
FLOW = fj.Flow(lambda x, t, cond: x, path=fj.paths.Linear())
SPECIAL = {  # what cannot be made from the example alone
    fields.Guided: lambda: fields.Guided(fj.Flow(lambda x, t, cond: x, path=fj.paths.Linear()), guidance.CFG(), 0),
    fields.Converted: lambda: fields.Converted(FLOW, path=fj.paths.Trig()),
    fields.DriftPlusScore: lambda: fields.DriftPlusScore(FLOW),
    fields.InterpolantFlow: lambda: fields.InterpolantFlow(lambda x, t, cond: x, path=fj.paths.Interpolant()),
    fields.Gradient: lambda: fields.Gradient(lambda x, t, cond: x[:, 0], path=fj.paths.Linear()),
    fields.Thresholded: lambda: fields.Thresholded(FLOW),
    fields.Embedded: lambda: fields.Embedded(FLOW),
    objectives.Interpolation: lambda: objectives.Interpolation(interpolant=fj.paths.Interpolant()),
    objectives.Coupled: lambda: objectives.Coupled(
        objectives.FlowMatching(path=fj.paths.Linear()), fj.couplings.OptimalTransport()
    ),
    objectives.SchroedingerBridge: lambda: objectives.SchroedingerBridge(diffusion=0.1),
    objectives.TeacherRegression: lambda: objectives.TeacherRegression(teacher=FLOW),
    objectives.FlowMatching: lambda: objectives.FlowMatching(path=fj.paths.Linear()),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_can_be_made_and_cited(name):
    entry = ENTRIES[name]
    made = SPECIAL.get(entry.make, lambda: entry.make(**entry.example()))()
    assert not isinstance(entry.make, type) or isinstance(made, entry.make)
    assert dataclasses.is_dataclass(made)
    jax.tree.flatten(made)
    assert entry.summary
    assert not entry.summary.endswith(".")
    assert entry.make is not type(made) or entry.reference.key in fj.cite(made)  # a recipe is cited as what it makes
    assert re.fullmatch(r"https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/\S+)", entry.reference.url)
    assert 1980 < entry.reference.year < 2100


def test_every_public_class_has_an_entry():
    made = {entry.make for entry in ENTRIES.values()}
    for module, base in ((solvers, solvers.Solver), (guidance, Rule), (fields, fj.Field)):
        for name, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, base) and not inspect.isabstract(member) and member is not solvers.Formula:
                assert member in made, name
    assert solvers.Adaptive in made
    assert objectives.FlowMatching in made


TASKS = {"generation", "distillation", "adapters", "regression", "classification", "clouds", "autoencoding"}


def test_every_objective_says_in_which_tasks_it_makes_sense():
    for entry in catalogue.objectives.values():
        assert entry.tasks
        assert set(entry.tasks) <= TASKS
    assert catalogue.objectives["classification"].tasks == ("classification", "clouds")
    assert "classification" not in catalogue.objectives["flow_matching"].tasks


def test_one_reference_for_each_key():
    references = {}
    for entry in ENTRIES.values():
        assert references.setdefault(entry.reference.key, entry.reference) == entry.reference


def test_names_in_any_spelling():
    assert isinstance(catalogue.solver("DPM-Solver", order=3), solvers.DPMSolver)
    assert catalogue.solver("dpmsolver", order=3).order == 3
    assert isinstance(catalogue.solver("RK4"), solvers.RK4)
    assert catalogue.rule("CFG", scale=3.0).scale == 3.0


def test_unknown_names_come_with_the_closest_and_all():
    with pytest.raises(
        ValueError, match=r"unknown solver 'huen'; did you mean 'heun'\? \(allowed: euler, heun, .*adaptive"
    ):
        catalogue.solver("huen")
    with pytest.raises(ValueError, match=r"unknown rule 'cfgg'; did you mean 'cfg'\?"):
        catalogue.rule("cfgg")
    with pytest.raises(ValueError, match=r"unknown solver 'zzzzzz' \(allowed: euler"):
        catalogue.solver("zzzzzz")


def test_unknown_and_missing_options():
    with pytest.raises(ValueError, match=r"dpm_solver has no option ordr; did you mean order\?; it has order, "):
        catalogue.solver("dpm_solver", ordr=2)
    with pytest.raises(ValueError, match=r"heun has no option order \(it is one of .*\); it has none"):
        catalogue.solver("heun", order=2)
    with pytest.raises(ValueError, match="usf needs its option schedule"):
        catalogue.solver("usf")


def test_cite_is_recursive_and_without_repetition():
    flow = fj.Flow(lambda x, t, cond: x, path=fj.paths.Linear(), null=3)
    rule = guidance.Interval(rule=guidance.APG(scale=2.0), start=0.2, end=0.8)
    field = fj.guide(flow, rule, against=fj.guide(flow, guidance.CFG(scale=2.0)))
    text = fj.cite(solvers.HeavyBall(solver=solvers.DDIM()), field, solvers.DDIM())
    keys = re.findall(r"^@misc\{(\w+),$", text, flags=re.MULTILINE)
    assert keys == [
        "wizadwongsa2023diffusion",
        "song2020denoising",
        "ho2022classifier",
        "kynkaanniemi2024applying",
        "sadat2024eliminating",
    ]
    assert text.count("{") == text.count("}")
    assert fj.cite() == ""
    assert fj.cite(flow, "text", 3) == ""
