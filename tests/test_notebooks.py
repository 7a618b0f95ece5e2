"""Committed notebooks import, show and read well unexecuted: small outputs of the code that stands there, no state."""

import ast
import base64
import importlib
import json
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
HOME = re.compile(r"(?<![\w.])(/home/|/Users/|/root/|/tmp/|[A-Z]:\\)|0x[0-9a-f]{8}")
LARGEST, LARGEST_PICTURE = 200_000, 100_000  # bytes
WRITTEN = ("07-your-own-attention",)  # what a reader is to write is defined there

sys.path.insert(0, str(FOLDER))
from execute import code  # noqa: E402

each_book = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(path: Path) -> str:
    """Its code as one program, and the code in its answers."""
    answers = re.findall(
        r"^```python$(.*?)^```$", "\n".join("".join(c["source"]) for c in cells(path, "markdown")), re.M | re.S
    )
    return "\n".join(["".join(cell["source"]) for cell in cells(path, "code")] + answers)


def test_they_are_numbered():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, len(NOTEBOOKS) + 1)]


@each_book
def test_no_stray_state(path: Path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert set(book["metadata"]) == {"kernelspec", "language_info", "outputs_of"}
    assert book["metadata"]["language_info"] == {"name": "python"}
    for cell in book["cells"]:
        assert not cell["metadata"] and not HOME.search("".join(cell["source"]))
        assert cell.get("execution_count") is None


@each_book
def test_its_outputs_are_small_and_of_this_code(path: Path):
    assert path.stat().st_size <= LARGEST
    own = cells(path, "code")
    assert json.loads(path.read_text())["metadata"]["outputs_of"] == code(own), "run: notebooks/execute.py"
    outputs = [output for cell in own for output in cell["outputs"]]
    assert len(outputs) >= 4
    for output in outputs:
        assert output["output_type"] in ("stream", "display_data", "execute_result")  # no error
        assert output.get("name", "stdout") == "stdout" and not output.get("metadata")
        data = output.get("data", {"text/plain": output.get("text", "")})
        assert set(data) <= {"text/plain", "image/png", "image/jpeg"}
        assert not HOME.search("".join(data["text/plain"]))
        for kind in set(data) - {"text/plain"}:
            picture = base64.b64decode("".join(data[kind]), validate=False)
            assert 0 < len(picture) <= LARGEST_PICTURE and picture[:2] in (b"\x89P", b"\xff\xd8")


@each_book
def test_its_code_compiles_and_what_it_imports_is_there(path: Path):
    text = source(path)
    compile(text, path.name, "exec")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] != "triton":  # which Linux alone has
                    importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("minedit", "show")
        ):
            assert hasattr(importlib.import_module(node.value.id), node.attr), node.attr


@each_book
def test_it_defines_nothing(path: Path):
    defined = [each for each in ast.walk(ast.parse(source(path))) if isinstance(each, ast.FunctionDef | ast.ClassDef)]
    assert not defined or path.stem in WRITTEN


@each_book
def test_it_ends_with_exercises_and_answers(path: Path):
    last = "".join(cells(path, "markdown")[-1]["source"])
    asked, answered = last.split("<details><summary>Answers</summary>")
    numbers = [re.findall(r"^(\d)\. ", part, re.M) for part in (asked, answered)]
    assert "## Exercises" in asked and len(numbers[0]) >= 2 and numbers[0] == numbers[1]
