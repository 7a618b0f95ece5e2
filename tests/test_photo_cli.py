"""Photographs on the command line: --image, --inversion, --pairs with "image", --from of an edited photograph."""

import json
from pathlib import Path

import pytest
from PIL import Image
from small_model import small_model

import minedit.verbs.edit
from minedit import cli, image
from minedit.files import checkpoint

BOY, SITTING = "a boy in the park", "a sitting boy in the park"
EMPTY = "note: the source prompt is empty: the photograph is inverted by no text"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "load", lambda *_: small_model())
    Image.effect_noise((64, 48), 60).convert("RGB").save("photo.png")
    return lambda *argv: cli.main(["edit", *map(str, argv)])


def records(folder="out"):
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*-edit.json"))]


def failed(capsys):
    said = capsys.readouterr()
    line = said.err.strip().splitlines()[-1]
    assert line.startswith("minedit: error: ") and line.isprintable() and "Traceback" not in said.err
    return line


def test_a_photograph_is_edited_and_edited_again_from_its_settings(run, capsys):
    asked = "--image", "photo.png", "--inversion", "edit-friendly", "--skip", "0.5", "--method", "p2p", "--steps", 2
    assert run(BOY, SITTING, *asked) == 0
    assert "of photo.png by inversion edit-friendly" in capsys.readouterr().out
    (record,) = records()
    own = {
        "inversion": "edit-friendly",
        "skip": 0.5,
        "source_guidance": 3.5,
        "image": str(Path("photo.png").absolute()),
    }
    assert own.items() <= record.items() and (record["height"], record["width"]) == (48, 80)
    assert image.settings("out/0001-edited.png")["photo"] == record["photo"]
    assert run("--from", "out/0001-edited.png", "--out", "again") == 0
    assert Path("out/0001-edited.png").read_bytes() == Path("again/0001-edited.png").read_bytes()
    assert "another photograph" not in capsys.readouterr().out
    Image.new("RGB", (64, 48), "red").save("photo.png")
    assert run("--from", "out/0001-edited.png", "--out", "other") == 0
    assert "was made of another photograph" in capsys.readouterr().out
    Path("photo.png").unlink()
    assert run("--from", "out/0001-edited.png", "--out", "gone") == 2
    assert "photo.png (No such file or directory)" in failed(capsys) and not Path("gone").exists()


def test_the_empty_source_prompt_is_said_before_anything_is_drawn(run, capsys, monkeypatch):
    assert run("", SITTING, "--image", "photo.png", "--steps", 1) == 0
    said = capsys.readouterr().out
    assert said.count(EMPTY) == 1 and said.index(EMPTY) < said.index("kind")
    monkeypatch.setattr(minedit.verbs.edit, "edits", lambda *_, **__: pytest.fail("drawn"))
    assert run("", SITTING, "--steps", 1) == 2
    assert "prompt '' has no words" in failed(capsys)


def test_lines_with_photographs_of_their_own(run, capsys):
    Path("set").mkdir()
    Image.new("RGB", (32, 32), "blue").save("set/blue.png")
    rows = [
        {"source": BOY, "target": SITTING, "image": "blue.png", "inversion": "null-text", "inner_steps": 1},
        {"source": "", "target": SITTING, "image": "blue.png"},
        {"source": BOY, "target": SITTING},
    ]
    Path("set/pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("--pairs", "set/pairs.jsonl", "--steps", 1, "--method", "fixed-seed") == 0
    first, second, third = records()
    assert (first["inversion"], first["inner_steps"], second["inversion"]) == ("null-text", 1, "direct")
    assert Path(first["image"]) == Path("set/blue.png").absolute() and "image" not in third and "photo" not in third
    assert capsys.readouterr().out.count(EMPTY) == 1


@pytest.mark.parametrize(
    "row, said",
    [
        ({"image": "none.png"}, "none.png (No such file"),
        ({"image": "pairs.jsonl"}, "pairs.jsonl is not a picture"),
        ({"image": "."}, "is not a file"),
        ({"image": 3}, "line 1: image is 3, expected the name of a file"),
        ({"image": "photo.png", "inversion": "x"}, "line 1: inversion is 'x', expected one of direct"),
        ({"inversion": "ddim"}, "line 1: inversion is 'ddim', and there is no image to invert"),
        ({"image": "photo.png", "inversion": "edict", "mix": 2}, "line 1: mix is 2, expected a finite number"),
        ({"source": ""}, "line 1: prompt '' has no words"),
    ],
)
def test_lines_that_cannot_be_are_a_line_before_anything_is_drawn(run, capsys, row, said):
    Path("pairs.jsonl").write_text(json.dumps({"source": BOY, "target": SITTING, **row}))
    assert run("--pairs", "pairs.jsonl", "--steps", 1) == 2
    assert said in failed(capsys) and not Path("out").exists()


def test_the_help_says_which_prompt_inverts(run, capsys):
    with pytest.raises(SystemExit):
        run("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "it is inverted by SOURCE, which says what it shows" in said
    assert "settings of --inversion null-text" in said and all(name in said for name in minedit.INVERSIONS)
