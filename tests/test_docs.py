"""Pages are true: code in them runs, commands are read by the command line, what they name is in the source."""

import ast
import json
import re
import shlex
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from weight_files import SLIM, slim

import minedit
from minedit.cli import kernels, options, origin, weights
from minedit.config import MineditError
from minedit.files import checkpoint
from minedit.stack.control import ControlNet

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}$\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


# --- Python -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the files that pages name, small ones; runs of two steps unless a page says how many."""
    monkeypatch.chdir(tmp_path)
    for verb in ("generate", "edit", "edits", "xray"):
        monkeypatch.setattr(minedit, verb, partial(getattr(minedit, verb), steps=2))
    whole, embedded, files = slim(), minedit.load(), {}

    def load(path=None, **more):
        return embedded if path is None else checkpoint.load(files.get(path, path), **more)

    monkeypatch.setattr(minedit, "load", load)
    checkpoint.save(whole, "slim.safetensors")
    files["sd-v1-4.ckpt"] = "slim.safetensors"
    save_file({name: x.contiguous() for name, x in whole.vae.state_dict().items()}, "vae-ft-mse.safetensors")
    down, up = torch.zeros(2, 8), torch.zeros(8, 2)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, "style.safetensors")
    control = ControlNet(SLIM.unet).state_dict()
    save_file({f"control_model.{each}": x.contiguous() for each, x in control.items()}, "control_canny.safetensors")
    Image.new("RGB", (64, 64)).save("edges.png")
    Image.new("RGB", (128, 128), "tan").save("photo.png")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_in_it_runs(page: Path, place):
    exec(compile("\n".join(blocks(page, "python")), page.name, "exec"), {})


def test_pages_have_python():
    assert {page.stem for page in PAGES if blocks(page, "python")} >= {"README", "checkpoints"}


# --- commands ---------------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[list[str]]:
    """Each command of a page in words, without what stands before it: variables, the environment's folder."""
    found = []
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            found.append([words[0].removeprefix(".venv/bin/"), *words[1:]])
    return found


def understood(words: list[str]) -> None:
    """Raises, or fails, where a command is none."""
    program, *rest = words
    if program in ("python", "python3", "torchrun"):
        rest = rest[rest.index("-m") + 1 :] if "-m" in rest else rest
        if rest[0].endswith(".py"):
            assert (ROOT / rest[0]).is_file(), rest[0]
            return
        program, *rest = rest
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in rest if "=" not in word} <= set(targets), rest
        return
    if program in ("pip", "git", "cd"):
        return
    assert program == "minedit", program
    if rest[0] in ("generate", "edit"):
        origin.parse(rest)
    elif rest[0] in ("kernels", "weights"):
        {"kernels": kernels, "weights": weights}[rest[0]]._arguments(rest[1:])
    else:
        assert rest[0] in options.ELSEWHERE, rest


@each_page
def test_its_commands_are_commands(page: Path):
    for words in commands(page):
        try:
            understood(words)
        except MineditError as error:
            pytest.fail(f"{' '.join(words)}: {error}")


def test_a_wrong_command_would_be_seen():
    with pytest.raises(MineditError):
        understood(["minedit", "edit", "a", "b", "--lambda-tow", "1"])
    with pytest.raises(AssertionError):
        understood(["make", "edits"])


# --- what is named ----------------------------------------------------------------------------------------------------


@cache
def defined(file: str) -> frozenset[str]:
    return frozenset(node.name for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name"))


PLACE = re.compile(r"`((?:minedit|tests|benchmarks|docs|notebooks)/[\w./-]+)(::?)?(\w+)?`")


@each_page
def test_what_it_names_is_there(page: Path):
    """`file.py:function` and `tests/file.py::test`."""
    for file, colons, name in PLACE.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / file).exists(), file
        assert not colons or name in defined(file), f"{file}{colons}{name}"


def test_the_algorithm_page_has_a_test_on_every_line():
    rows = [line for line in (ROOT / "docs/algorithm.md").read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in rows if PLACE.search(line)]
    assert len(rows) > 30
    for line in rows:
        found = PLACE.findall(line)
        assert any(file.startswith("minedit/") for file, _, _ in found), line
        assert any(colons == "::" for _, colons, _ in found), line


@each_page
def test_its_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_figures_that_the_course_repeats_are_those_of_the_results():
    book = json.loads((ROOT / "notebooks/06-adapedit.ipynb").read_text(encoding="utf-8"))
    told = "".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown")
    figures, results = (
        re.findall(r"`([-+.\d]+ \[[^]]+\])`", told),
        (ROOT / "docs/results.md").read_text(encoding="utf-8"),
    )
    assert len(figures) == 3
    for each in figures:
        assert each in results, each


@cache
def said() -> tuple[str, ...]:
    """Every text in the source; of a formatted one what stands between the braces' parts."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "minedit").rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return tuple(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def quoted() -> list[str]:
    lines = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").splitlines()
    return [found[1] for line in lines if (found := re.match(r"\| `([^`]+)`", line))]


@pytest.mark.parametrize("line", quoted())
def test_lines_that_are_explained_are_said(line: str):
    parts = [part.strip() for part in line.split("…") if len(part.strip()) > 2]
    assert parts
    for part in parts:
        assert any(part in text for text in said()), part
