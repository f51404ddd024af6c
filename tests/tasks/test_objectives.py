"""Which objective suits which task."""

import types

import pytest
from ml_collections import ConfigDict

from flowjax import specs
from flowjax.tasks.base import Task

TASKS = specs.table_of("task")
OBJECTIVES = specs.table_of("objective")
WRONG = [(t, o) for t in TASKS for o, entry in OBJECTIVES.items() if t not in entry.tasks]


@pytest.mark.parametrize(("task", "objective"), WRONG, ids="-".join)
def test_objectives_of_other_tasks_are_refused_with_those_that_fit(task, objective):
    config = ConfigDict({"task": {"name": task}, "objective": {"name": objective, "options": {}}})
    with pytest.raises(ValueError, match=f"objective '{objective}' is not one of the task {task}") as error:
        Task.build_objective(types.SimpleNamespace(config=config))
    fitting = str(error.value).partition("(it has ")[2].partition(")")[0].split(", ")
    assert fitting == [name for name, entry in OBJECTIVES.items() if task in entry.tasks]
    assert str(error.value).count("\n") == 0


def test_every_objective_has_a_task_and_every_task_an_objective():
    for name, entry in OBJECTIVES.items():
        assert entry.tasks, name
        assert set(entry.tasks) <= set(TASKS), name
    assert {task for entry in OBJECTIVES.values() for task in entry.tasks} == set(TASKS)
