"""The table of names."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys

import jax
import pytest
from kinds import make

import flowjax as fj
from flowjax import catalogue, facts, fields, guidance, objectives, solvers
from flowjax.guidance import Rule

TABLES = {
    "solvers": catalogue.solvers,
    "rules": catalogue.rules,
    "fields": catalogue.fields,
    "couplings": catalogue.couplings,
    "objectives": catalogue.objectives,
}
ENTRIES = {f"{table}-{name}": entry for table, entries in TABLES.items() for name, entry in entries.items()}

FOLKLORE = {"every_nth", "first_block"}  # nobody's paper


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_can_be_made_and_cited(name):
    entry = ENTRIES[name]
    kind, _, own = name.partition("-")
    made = make(kind.removesuffix("s"), own)
    assert not isinstance(entry.make, type) or isinstance(made, entry.make)
    assert dataclasses.is_dataclass(made)
    jax.tree.flatten(made)
    assert entry.summary
    assert not entry.summary.endswith(".")
    if entry.make is type(made) and entry.reference is not None:  # a recipe is cited as what it makes
        assert entry.reference.key in fj.cite(made)
    if entry.reference is None:
        return
    assert re.fullmatch(r"https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/\S+)", entry.reference.url)
    assert 1800 < entry.reference.year < 2100


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
    for name, entry in ENTRIES.items():
        if entry.reference is None:
            assert name.split("-")[1] in FOLKLORE
        else:
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


def test_cite_knows_systems_classes_and_modules():
    stabilization = fj.video.stabilization
    assert "zhao2023faststab" in fj.cite(stabilization.stabilize)
    assert fj.cite(stabilization) == fj.cite(fj.video) == fj.cite(stabilization.stabilize)
    assert fj.cite(solvers.DDIM) == fj.cite(solvers.DDIM())
    assert re.findall(r"\{(\w+),$", fj.cite(fj.science), flags=re.MULTILINE) == [
        entry.cite for entry in catalogue.systems.values() if entry.make.__module__.startswith("flowjax.science")
    ]


@pytest.mark.parametrize(
    ("name", "thing"),
    [("DPM-Solver", "flowjax.solvers.dpm_solver.DPMSolver"), ("event_motion", "flowjax.geometry.event_motion.ransac")],
)
def test_cite_refuses_names(name, thing):
    with pytest.raises(ValueError, match=f"got the name {name!r}: write cite\\({thing}\\)"):
        fj.cite(solvers.Heun(), name)


LAZY = """
import json, pkgutil, sys
import flowjax.catalogue as catalogue, flowjax
heavy = [m for m in sys.modules if m.split(".")[:2][-1] in ("science", "video", "geometry") and m.startswith("flowjax")]
listed = {kind: list(table) for kind, table in catalogue.tables.items()} | {"system": list(catalogue.systems)}
for module in pkgutil.walk_packages(flowjax.__path__, "flowjax."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
from flowjax import facts
print(json.dumps({"heavy": heavy, "listed": listed, "all": {kind: list(t) for kind, t in facts._ENTRIES.items()}}))
"""


def test_domains_wait_until_they_are_asked_for_and_nothing_is_missed():
    """Whatever module has a fact is one that the catalogue imports for its kind."""
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert not found["heavy"]
    assert {kind: sorted(names) for kind, names in found["listed"].items()} == {
        kind: sorted(names) for kind, names in found["all"].items()
    }
    assert found["listed"]["solver"][:3] == ["euler", "heun", "midpoint"]


def test_references_are_those_of_the_entries():
    tables = {**catalogue.tables, "system": catalogue.systems}
    cited = {entry.cite for table in tables.values() for entry in table.values()} - {None}
    known = list(facts.references())
    assert not cited - set(known), "a fact cites what flowjax/references.bib lacks: put it there"
    assert not set(known) - cited, "flowjax/references.bib has what no fact cites: take it out"
    assert known == sorted(known)


BIB = "@misc{one2000some,\n  author = {One, A.},\n  title = {Some},\n  year = {2000},\n  url = {https://doi.org/1},\n}"


def test_references_are_read_strictly():
    (reference,) = facts.parse_references(BIB).values()
    assert (reference.authors, reference.title, reference.year) == ("One, A.", "Some", 2000)
    assert reference.bibtex() == BIB
    for bad in (
        BIB.replace("  year = {2000},\n", ""),
        BIB.replace("2000}", "soon}"),
        BIB.replace("{Some}", "Some"),
        BIB.replace("{Some}", "{{Some}"),
        BIB.replace("misc", "blog"),
        BIB + "\n" + BIB.replace("one", "two"),
        BIB + "\n\n" + BIB,
        BIB[:-2],
        "",
    ):
        with pytest.raises(ValueError, match="not a reference with a key of its own"):
            facts.parse_references(bad)


def test_names_are_given_once_and_reach_everything(monkeypatch):
    monkeypatch.setattr(facts, "_ENTRIES", {kind: dict(table) for kind, table in facts._ENTRIES.items()})

    def mine():
        @facts.fact("solver", "mine", "Euler again", order=1)
        class Mine(solvers.Euler):
            pass

        return Mine

    first = mine()
    again = mine()  # a cell that runs once more
    assert first is not again
    assert list(catalogue.solvers)[-1] == "mine"
    assert type(fj.build("solver", "mine")) is again
    assert catalogue.solvers["mine"].evaluations(7) == 7
    with pytest.raises(ValueError, match=r"the solver 'mine' is .*Mine.* already: give .*Heun.* another name"):
        facts.fact("solver", "mine", "Heun")(solvers.Heun)
    with pytest.raises(ValueError, match=r"no reference 'nobody2000nothing' in .*references.bib"):
        _ = facts.Entry(solvers.Euler, "Euler", cite="nobody2000nothing").reference


def test_a_missing_reference_is_missed_where_it_is_cited(monkeypatch):
    monkeypatch.setattr(facts, "_ENTRIES", {kind: dict(table) for kind, table in facts._ENTRIES.items()})

    @facts.fact("solver", "mine", "Euler again", cite="nobody2000nothing")
    class Mine(solvers.Euler):
        pass

    assert "song2020denoising" in fj.cite(solvers.DDIM())
    with pytest.raises(ValueError, match="no reference 'nobody2000nothing'"):
        fj.cite(Mine)


def test_noise_and_evaluations_follow_from_the_rows():
    entries = catalogue.solvers
    noisy = ["sa_solver", "er_sde", "euler_maruyama", "stochastic_heun", "consistency"]
    assert [name for name, entry in entries.items() if entry.stochastic] == noisy
    assert entries["ddim"].stochastic is False
    assert facts.Entry(solvers.DDIM, "with noise", example=lambda: {"eta": 1.0}).stochastic is True
    for name, count in {"euler": 5, "heun": 10, "stochastic_heun": 9, "rk4": 20, "unipc": 5, "splitting": 5}.items():
        assert entries[name].evaluations(5) == count
    for name in ("usf", "learned", "parallel", "flowturbo", "adaptive", "dpm_adaptive"):  # steps of their own
        assert entries[name].evaluations is None
        assert not entries[name].stochastic
    assert entries["edm_heun"].evaluations is None  # one less where the run reaches the data
    assert catalogue.rules["cfg"].evaluations is catalogue.rules["cfg"].stochastic is None
