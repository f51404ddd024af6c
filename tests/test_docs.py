"""README and docs: Python blocks run, links lead somewhere, tables are the catalogue's, classes have examples."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import flowjax

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LONG = {"geometry", "science", "video"}  # whole systems, whose parts have tests of their own
RUN = [pytest.param(page, marks=[pytest.mark.slow] * (page.stem in LONG)) for page in PAGES]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_python_blocks_run(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    exec(compile("\n".join(blocks), str(page), "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_tables_are_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "docs" / "build.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_class_has_an_example():
    """Which runs as a doctest of its module; public is what no underscore hides."""
    names = [module.name for module in pkgutil.walk_packages(flowjax.__path__, "flowjax.")]
    classes = {
        f"{found.__module__}.{found.__name__}": found
        for name in names
        if "._" not in name
        for found in vars(importlib.import_module(name)).values()
        if inspect.isclass(found) and found.__module__ == name and not found.__name__.startswith("_")
    }
    assert len(classes) > 200
    assert [name for name, found in classes.items() if ">>> " not in (found.__doc__ or "")] == []
