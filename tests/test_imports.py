"""A file imports only from the rooms above it. The README's map of the code is the order; nothing else states it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minedit"
FILES = sorted(PACKAGE.rglob("*.py"))


def rooms() -> list[str]:
    """Modules in the order of the README's table: `config.py` → config, `picturebook/` → picturebook."""
    section = re.search(r"^## Map of the code$(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S).group(1)
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.M)
    return [name.removesuffix(".py").removesuffix("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """Absolute dotted names that a file imports anywhere in it: `from .a import b` in minedit is minedit.a.b."""
    package = ["minedit", *file.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))


def test_every_file_has_a_room():
    order = rooms()
    assert len(order) == len(set(order))
    assert {room(file) for file in FILES} - {"__init__"} == set(order)


@each_file
def test_imports_only_from_above(file: Path):
    order = rooms()
    # minedit/__init__.py gathers the public verbs, the last of which is edit
    here = order.index("edit") + 1 if room(file) == "__init__" else order.index(room(file))
    parts = [name.split(".") for name in imported(file)]
    used = {part[1] for part in parts if part[0] == "minedit"} & set(order) - {room(file)}
    below = sorted(name for name in used if order.index(name) >= here)
    assert not below, f"{file.name} imports {below}, which the README's map places below it"


@each_file
def test_stands_without_diffusers(file: Path):
    assert not [name for name in imported(file) if name.split(".")[0] == "diffusers"]
