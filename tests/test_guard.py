"""The import guard against the other distribution named `flowjax`."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

from flowjax import _guard

ROOT = pathlib.Path(__file__).parents[1]


def python(site: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a fresh interpreter that also sees `site`."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)


def install(site: pathlib.Path, name: str, version: str) -> None:
    """Writes the metadata that an installer leaves for a distribution."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_import_names_the_other_distribution_and_the_way_out(tmp_path):
    install(tmp_path, "flowjax", "99.1")
    message = python(tmp_path, "-c", "import flowjax").stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: the distribution 'flowjax' 99.1")
    assert str(tmp_path) in message
    assert "pip uninstall flowjax" in message


def test_refusal_comes_before_jax_is_imported(tmp_path):
    install(tmp_path, "flowjax", "99.1")
    code = "import sys\ntry: import flowjax\nexcept ImportError: print('jax' in sys.modules)"
    assert python(tmp_path, "-c", code).stdout.strip() == "False"


def test_own_distribution_is_no_conflict(tmp_path):
    install(tmp_path, "flowjax-generative", "0.1.0")
    done = python(tmp_path, str(ROOT / "flowjax" / "_guard.py"))
    assert done.returncode == 0, done.stderr


def test_guard_looks_up_one_name_only():
    asked = []

    def find(name):
        asked.append(name)
        return importlib.metadata.distribution("pytest")

    with pytest.raises(ImportError, match="another project"):
        _guard.check(find)
    assert asked == ["flowjax"]
