"""`minedit compare`: one labelled picture of all methods."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from small_model import small_model

import minedit
from minedit import cli
from minedit.config import MineditError
from minedit.files import checkpoint
from minedit.settings import Settings

PAIR = "a boy in the park", "a sitting boy in the park"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "load", lambda *_: small_model())
    return lambda *argv: cli.main(["compare", *PAIR, *map(str, argv), "--steps", "2"])


def test_every_method_for_every_seed(run, monkeypatch, capsys):
    @dataclass(frozen=True)
    class Cannot(Settings):
        """A method that no model here can do."""

        def prepare(self, job):
            raise MineditError("it needs another model")

    monkeypatch.setitem(minedit.METHODS, "cannot", Cannot)
    names = ["adapedit", "p2p", "fixed-seed"]
    assert run("--seeds", "3-4", "--methods", ",".join(["cannot", *names])) == 0
    record = json.loads(Path("out/0001-compare.json").read_text())
    assert [(row["seed"], row["method"]) for row in record["rows"]] == [
        (seed, name) for seed in (3, 4) for name in names
    ]
    assert record["methods"] == names and "cannot cannot draw this: it needs another model" in capsys.readouterr().out
    sheet = Image.open("out/0001-compare.png")
    assert sheet.width == 4 * (64 + 6) + 6 and sheet.height > 2 * (64 + 6) + 6
    edited = minedit.edit(small_model(), *PAIR, "p2p", seed=4, steps=2).edited.tobytes()
    x, rows = 2 * (64 + 6) + 6, range(sheet.height // 2, sheet.height - 64)  # third cell of the second row
    assert any(sheet.crop((x, y, x + 64, y + 64)).tobytes() == edited for y in rows)
    assert run("--methods", "cannot") == 2


def test_a_photograph_is_compared_too(run):
    Image.new("RGB", (50, 70), "red").save("photo.png")
    assert run("--image", "photo.png", "--methods", "p2p,fixed-seed", "--inversion", "ddim") == 0
    record = json.loads(Path("out/0001-compare.json").read_text())
    assert record["inversion"] == "ddim" and record["image"] == str(Path("photo.png").absolute())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "p2p,none"), "expected all, or some of adapedit"),
        (("--methods", ""), "expected all, or some of"),
        (("--seeds", "4-3"), "expected seeds such as 0-3"),
        (("--seeds", "x"), "expected seeds such as 0-3"),
        (("--inversion", "ddim"), "there is no image to invert"),
        (("--image", "nothing.png"), "cannot read nothing.png"),
    ],
)
def test_mistakes_are_a_line(run, capsys, words, said):
    assert run(*words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("minedit: error: ") and said in line and not Path("out").exists()
