"""Overrides of configs that go beyond what the file spells out."""

import pytest
from ml_collections import ConfigDict

from flowjax import _overrides


def config():
    return ConfigDict(
        {
            "seed": 0,
            "objective": {"name": "flow_matching", "options": {"prediction": "velocity", "label_dropout": 0.1}},
            "data": {"name": "digits", "options": {}, "augment": {"flip": False}},
            "codec": {"name": "", "options": {}},
            "train": {"rate": 1e-3},
            "sample": {"solver": {"name": "heun", "options": {}}, "fields": (), "steps": 5},
        }
    )


def applied(*arguments):
    changed = config()
    rest = _overrides.apply(changed, list(arguments))
    return changed, rest


def test_a_spec_replaces_a_spec():
    changed, rest = applied("--config.sample.solver=heavy_ball(solver=ghvb(order=2), beta=0.8)")
    solver = changed.sample.solver.to_dict()
    assert rest == []
    assert solver == {
        "name": "heavy_ball",
        "options": {"solver": {"name": "ghvb", "options": {"order": 2}}, "beta": 0.8},
    }
    changed, _ = applied("--config.data=toy2d(law=spiral)")
    assert changed.data.augment.flip is False
    assert changed.data.options.law == "spiral"
    assert applied("--config.codec=none")[0].codec.name == ""


def test_names_come_first_and_drop_the_options():
    changed, rest = applied("--config.objective.options.weighting=velocity", "--config.objective.name=sit")
    assert changed.objective.to_dict() == {"name": "sit", "options": {"weighting": "velocity"}}
    assert rest == []
    kept, _ = applied("--config.objective.name=FlowMatching")  # the same under another spelling
    assert kept.objective.options.label_dropout == 0.1


def test_missing_options_are_added_and_typos_left_to_be_refused():
    changed, rest = applied(
        "--config.sample.solver.options.order=3",
        "--config.data.options.path=a/b.npz",
        "--config.objective.options.times.name=logit_normal",
        "--config.objective.options.weight=sit(weighting=velocity)",
        "--config.objective.options.label_dropout=0.2",
        "--config.train.rat=1",
        "--config.seed=3",
        "--workdir=x",
        "--config.sample.solver.option.order=3",
    )
    assert changed.sample.solver.options.order == 3
    assert changed.data.options.path == "a/b.npz"
    assert changed.objective.options.times.name == "logit_normal"
    assert changed.objective.options.weight.options.weighting == "velocity"
    assert changed.objective.options.label_dropout == 0.1  # there already: left to config_flags, which knows its type
    assert rest == [
        "--workdir=x",
        "--config.objective.options.label_dropout=0.2",
        "--config.train.rat=1",
        "--config.seed=3",
        "--config.sample.solver.option.order=3",
    ]


def test_lists_of_specs():
    changed, _ = applied("--config.sample.fields=thresholded(max=2), converted(path=vp)")
    assert [field["name"] for field in changed.sample.fields] == ["thresholded", "converted"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1.5", -1.5),
        ("True", True),
        ("None", None),
        ("(1, 2)", (1, 2)),
        ("inf", float("inf")),
        ("a/b", "a/b"),
    ],
)
def test_literals(text, value):
    assert _overrides.literal(text) == value


def test_what_is_no_spec_is_refused():
    with pytest.raises(ValueError, match="at character"):
        applied("--config.sample.solver=dpm_solver(order=3")
