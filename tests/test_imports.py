"""Rooms import from rooms above them in CONTRIBUTING.md only, and no room imports a main."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAINS = ("train", "sample", "evaluate", "calibrate", "plan", "doctor", "_cli", "_overrides")


def rooms():
    """The rooms in the order of the table."""
    table = (ROOT / "CONTRIBUTING.md").read_text().split("<!-- rooms -->")[1]
    return [name for line in table.splitlines()[3:] for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


def imported(path):
    """The rooms that a file imports when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == "flowjax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flowjax."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("flowjax.")}
    return found


def files():
    """Each file of the library with its room."""
    for path in sorted((ROOT / "flowjax").rglob("*.py")):
        parts = path.relative_to(ROOT / "flowjax").with_suffix("").parts
        if parts[0] not in (*MAINS, "__init__", "__main__") and 'if __name__ == "__main__"' not in path.read_text():
            yield path, parts[0]


def test_every_room_is_in_the_table():
    assert {room for _, room in files()} == set(rooms())
    assert len(rooms()) == len(set(rooms()))


def test_arrows_run_down():
    """So there is no circle either."""
    place = {room: number for number, room in enumerate(rooms())}
    for path, room in files():
        for other in imported(path) - {room}:
            where = f"{path.relative_to(ROOT)} imports {other}"
            assert other not in MAINS, f"{where}, which is a main"
            assert place[other] < place[room], f"{where}, which is below {room} in CONTRIBUTING.md"
