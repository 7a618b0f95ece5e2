"""A file imports only what stands above it: wings in the order of the README's map, a wing's files in that of its list.

Nothing else states these orders. A folder's `__init__` stands before its files, or behind them if it imports any.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minedit"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = 10  # of wings that stand on one another, at most


@cache
def listed(folder: Path) -> tuple[str, ...]:
    """The order in a folder: of the README's table, or of the fenced list in its `__init__`; `loop.py`, `world/`."""
    if folder == PACKAGE:
        section = re.search(r"^## Map of the code$(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S).group(1)
        cells = re.findall(r"^\| (`[^|]*) \|", section, re.M)
        return tuple(name for cell in cells for name in re.findall(r"`([^`]+)`", cell))
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    return tuple(re.findall(r"^([\w.]+/?)(?:  |$)", re.search(r"^```$(.*?)^```$", text, re.M | re.S).group(1), re.M))


def imported(file: Path) -> set[Path]:
    """The files of the package that a file imports anywhere in it."""
    package = ["minedit", *file.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {found(name.split(".")[1:]) for name in names if name.split(".")[0] == "minedit"}


def found(parts: list[str]) -> Path:
    """The file that a dotted name is of."""
    here = PACKAGE.joinpath(*parts)
    if here.with_suffix(".py").is_file() and here != PACKAGE:
        return here.with_suffix(".py")
    return here / "__init__.py" if here.is_dir() else found(parts[:-1])


@cache
def place(file: Path) -> tuple[float, ...]:
    """Where a file stands: its number in each of its folders."""
    *folders, name = file.relative_to(PACKAGE).parts
    at = [listed(PACKAGE.joinpath(*folders[:depth])).index(f"{each}/") for depth, each in enumerate(folders)]
    if name != "__init__.py":
        return (*at, listed(file.parent).index(name))
    if file.parent == PACKAGE:  # it gathers the public names, and may name what has them
        return (listed(PACKAGE).index("report/") + 0.5,)
    return (*at, 99 if any(each.parent == file.parent and each != file for each in imported(file)) else -1)


each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))


def test_every_file_has_a_place():
    for folder in {file.parent for file in FILES}:
        inside = [f"{each.name}/" if each.is_dir() else each.name for each in folder.iterdir()]
        inside = {name for name in inside if name.endswith((".py", "/"))} - {"__init__.py", "__pycache__/", "fonts/"}
        assert len(listed(folder)) == len(set(listed(folder))) and inside == set(listed(folder)), folder


@each_file
def test_imports_only_from_above(file: Path):
    below = [str(each.relative_to(PACKAGE)) for each in imported(file) - {file} if place(each) >= place(file)]
    assert not below, f"{file.name} imports {below}, which the README's map or its wing's list places below it"


def test_wings_are_few_floors():
    """The longest way from wing to wing along imports."""
    wing = {file: file.relative_to(PACKAGE).parts[0] for file in FILES}
    floor = {}
    for name in listed(PACKAGE):
        used = {wing[each] for file in FILES if wing[file] == name.rstrip("/") for each in imported(file)}
        floor[name.rstrip("/")] = 1 + max((floor[each] for each in used - {name.rstrip("/"), "__init__.py"}), default=0)
    assert max(floor.values()) <= FLOORS, floor


@each_file
def test_stands_without_diffusers(file: Path):
    assert "diffusers" not in re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.M)
