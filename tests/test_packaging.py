"""The distribution: what is in the tree is installed, imports are declared, commands and files agree."""

import ast
import configparser
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def lines(section: str, option: str) -> list[str]:
    """The non-empty lines of a multi-line option of setup.cfg."""
    return [line for line in SETUP[section][option].splitlines() if line and not line.startswith("#")]


def requirements(section: str, option: str) -> set[str]:
    """The names of the distributions that an option of setup.cfg requires."""
    return {canonicalize_name(Requirement(line).name) for line in lines(section, option)}


def imported(source: pathlib.Path) -> set[str]:
    """The top-level names that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_every_folder_with_code_is_installed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "flowjax").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders} | {"flowjax.configs"}
    assert set(lines("options", "packages")) == packages


def test_floors_are_what_the_oldest_environment_has():
    pins = {(pin := Requirement(line)).name: pin for line in (ROOT / ".ci/oldest.txt").read_text().splitlines()[1:]}
    assert pins.pop("jaxlib").specifier == pins["jax"].specifier
    floors = {(floor := Requirement(line)).name: floor for line in lines("options", "install_requires")}
    for name, pin in pins.items():
        assert str(pin.specifier).removeprefix("==").startswith(str(floors[name].specifier).removeprefix(">=")), name


def test_every_import_is_a_declared_dependency():
    owners = importlib.metadata.packages_distributions()
    declared = requirements("options", "install_requires")
    for extra in SETUP["options.extras_require"]:
        declared |= requirements("options.extras_require", extra)
    foreign = {
        name: source.relative_to(ROOT)
        for folder in ("flowjax", "configs")
        for source in (ROOT / folder).rglob("*.py")
        for name in imported(source) - sys.stdlib_module_names - {"flowjax"}
    }
    undeclared = {
        name: str(source)
        for name, source in foreign.items()
        if name in owners and not declared & {canonicalize_name(owner) for owner in owners[name]}
    }
    assert not undeclared


def test_console_scripts_point_to_functions():
    for line in lines("options.entry_points", "console_scripts"):
        module, function = line.partition("=")[2].strip().split(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, line


def test_change_log_begins_with_the_version():
    released = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert released[0] == SETUP["metadata"]["version"]


def test_installed_configs_are_importable_from_anywhere(tmp_path):
    code = "import importlib.util as u; print(u.find_spec('flowjax.configs').submodule_search_locations[0])"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert list(pathlib.Path(done.stdout.strip()).glob("digits.py")), done.stderr


@pytest.mark.slow
def test_wheel_holds_code_and_recipes(tmp_path):
    tree = tmp_path / "tree"
    for name in ("flowjax", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(tree)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("flowjax_generative-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {source.relative_to(tree).as_posix() for source in (tree / "flowjax").rglob("*.py")} <= names
    assert {f"flowjax/configs/{source.name}" for source in (tree / "configs").glob("*.py")} <= names
    assert {"flowjax/py.typed", "flowjax/references.bib"} <= names


def test_names_that_are_imported_later_are_seen():
    """By `dir` and by type checkers, who read the package's own annotations."""
    import flowjax as fj

    seen = set(dir(fj))
    for name in (*fj._LAZY_MODULES, *fj._LAZY_NAMES, "solve", "Flow"):
        assert name in seen
        assert getattr(fj, name) is not None
    typed = (ROOT / "flowjax" / "__init__.py").read_text().split("if TYPE_CHECKING:")[1].split("_LAZY_MODULES")[0]
    assert all(re.search(rf"\b{name}\b", typed) for name in (*fj._LAZY_MODULES, *fj._LAZY_NAMES))
    assert (ROOT / "flowjax" / "py.typed").exists()
