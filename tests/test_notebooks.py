"""Committed notebooks import and show: no outputs, no counters, no machine's paths, no algorithm."""

import ast
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
HOME = re.compile(r"(?<![\w.])(/home/|/Users/|/root/|/tmp/|[A-Z]:\\)")


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_stray_state(path: Path):
    book = json.loads(path.read_text())
    assert set(book["metadata"]) <= {"kernelspec", "language_info"}
    assert book["metadata"]["language_info"] == {"name": "python"}
    for cell in book["cells"]:
        assert not cell["metadata"]
        assert not HOME.search("".join(cell["source"]))
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_defines_nothing(path: Path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
