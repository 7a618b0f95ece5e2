"""Pages are true: code in them runs, commands are read by the command line, what they name is in the source."""

import argparse
import ast
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from weight_files import SLIM, slim

import minedit
from minedit import cli
from minedit.cli import options
from minedit.cli.parser import Parser
from minedit.config import MineditError
from minedit.files import checkpoint
from minedit.methods.choose import METHODS, method_settings
from minedit.metrics import evaluate
from minedit.stack.control import ControlNet

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_page = pytest.mark.parametrize("page", [*PAGES, *BOOKS], ids=lambda page: page.stem)
FENCED = re.compile(r"^```(\w*)$\n(.*?)^```$", re.M | re.S)


@cache
def text_of(page: Path) -> str:
    """A page, or what a notebook says between its code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def blocks(page: Path, kind: str) -> list[str]:
    return [code for each, code in FENCED.findall(text_of(page)) if each == kind]


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


def commands(text: str) -> list[list[str]]:
    """Each command of some lines in words, without what stands before it: variables, the environment's folder."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
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
    args = read(rest)
    for spec in args.methods if rest[0] == "evaluate" and args.methods != ["all"] else ():
        name, own = evaluate.parsed(spec)
        if name in METHODS:
            method_settings(name, None, own)


class Read(Exception):
    """The arguments, once they are read: what a verb does with them is not begun."""


def read(words: list[str]) -> argparse.Namespace:
    """The arguments of `minedit WORDS` as that verb's own parser has them. Raises MineditError."""
    parse = Parser.parse_args

    def stop(self: Parser, *given: object) -> None:
        raise Read(parse(self, *given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_args", stop)
        try:
            cli._run(words)
        except Read as done:
            return done.args[0]
    raise AssertionError(f"{words} was run")


def mentions(page: Path) -> Iterator[list[str]]:
    """Commands within sentences, without `minedit`: `a|b` is either, [c] may be left out, d... may be several."""
    for found in re.findall(r"(?<!`)`minedit ([^`]+)`(?!`)", FENCED.sub("", text_of(page))):
        words = shlex.split(re.sub(r"\\(?=\|)|[][]|\.\.\.|…", "", found))
        yield from map(list, product(*(word.split("|") for word in words)))


def understood_in_part(words: list[str]) -> None:
    """As `understood`, of a command that may lack what must be given: verbs and options are there all the same."""
    if len(words) == 1:
        assert words[0] in (*options.ELSEWHERE, "generate", "edit"), words
        return
    try:
        read(words)
    except SystemExit as done:  # --help, --version
        assert done.code == 0
    except MineditError as error:
        lacking = re.search(r"arguments are required: (.*);", str(error))
        if lacking is None:
            raise
        if any(word.startswith("-") for word in words):  # which are not looked at before all that is required is there
            read([*words, *("x" for _ in lacking[1].split(", "))])


@each_page
def test_its_commands_are_commands(page: Path):
    indented = re.findall(r"^    ((?:\S+=\S+ )*minedit .*)$", FENCED.sub("", text_of(page)), re.M)
    for words in commands("\n".join([*blocks(page, "sh"), *indented])):
        try:
            understood(words)
        except MineditError as error:
            pytest.fail(f"{' '.join(words)}: {error}")
    for words in mentions(page):
        try:
            understood_in_part(words)
        except MineditError as error:
            pytest.fail(f"minedit {' '.join(words)}: {error}")


@pytest.mark.parametrize("verb", ["generate", "edit", *options.ELSEWHERE])
def test_a_wrong_option_would_be_seen(verb: str):
    with pytest.raises(MineditError, match="--lambda-tow"):
        understood_in_part(
            [verb, *{"kernels": ["check"], "train": ["vae"], "weights": ["verify"]}.get(verb, []), "--lambda-tow", "1"]
        )


def test_a_wrong_command_would_be_seen():
    for wrong in ("edit a b --lambda-tow 1", "edits a b", "sweep a", "train vea", "kernels compiled --targets sm_80"):
        with pytest.raises(MineditError):
            understood(["minedit", *wrong.split()])
    with pytest.raises(MineditError, match="cros_steps"):
        understood(["minedit", "evaluate", "picturebook", "--methods", "copy,p2p:cros_steps=0.5"])
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
    for file, colons, name in PLACE.findall(text_of(page)):
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


def anchors(page: Path) -> set[str]:
    """What a link to a part of a page may name, as GitHub makes it of the headings."""
    lines = re.findall(r"^#+ +(.*?) *$", FENCED.sub("", text_of(page)), re.M)
    names = [re.sub(r"[^\w -]", "", re.sub(r"\]\([^)]*\)", "", line.lower())).replace(" ", "-") for line in lines]
    before: Counter[str] = Counter()
    found = set()
    for name in names:
        found.add(f"{name}-{before[name]}" if before[name] else name)
        before[name] += 1
    return found


def leads_somewhere(page: Path, target: str) -> bool:
    file, _, part = target.partition("#")
    there = page.parent / file if file else page
    return there.exists() and (not part or part in anchors(there))


@each_page
def test_its_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(page)):
        assert leads_somewhere(page, target), target


def test_a_link_that_leads_nowhere_would_be_seen():
    page = ROOT / "docs/results.md"
    assert leads_somewhere(page, "training.md#the-judge") and leads_somewhere(page, "#time")
    for wrong in ("training.md#the-jugde", "trainin.md", "#the-judge"):
        assert not leads_somewhere(page, wrong)
    assert {"lines-that-minedit-says-and-what-to-do"} <= anchors(ROOT / "docs/troubleshooting.md")


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
