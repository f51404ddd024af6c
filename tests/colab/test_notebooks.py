"""The notebooks: in step with their percent source, and executable from top to bottom."""

import os
import pathlib
import re

import jupytext
import pytest
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[2] / "colab"
SOURCES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebook_equals_its_source(source):
    notebook = jupytext.read(source.with_suffix(".ipynb"))
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert cells == [(cell.cell_type, cell.source) for cell in jupytext.read(source).cells]
    assert not any(cell.get("outputs") for cell in notebook.cells), "stored without outputs"


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
@pytest.mark.filterwarnings("ignore")  # of the notebook machinery; the code runs in a process of its own
def test_notebook_runs(source, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_SMOKE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = jupytext.read(source.with_suffix(".ipynb"))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_badge_opens_what_is_installed(source):
    text = source.read_text()
    repository = re.search(r'REPOSITORY = "https://github\.com/([^"]+)"', text)[1]
    assert f"(https://colab.research.google.com/github/{repository}/blob/main/colab/{source.stem}.ipynb)" in text
