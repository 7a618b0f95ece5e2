"""`--pairs` and `--from`: what files say is checked before anything is drawn, and used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from small_model import small_model

from minedit import cli, image
from minedit.files import checkpoint
from minedit.verbs import edit as verb

BOY, SITTING = "a boy in the park", "a sitting boy in the park"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "load", lambda *_: small_model())
    return lambda *argv: cli.main([*map(str, argv), "--steps", "2"])


def lines(*rows: object) -> None:
    Path("pairs.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def failed(capsys) -> str:
    said = capsys.readouterr()
    line = said.err.strip().splitlines()[-1]
    assert line.startswith("minedit: error: ") and len(line) < 1000 and line.isprintable()
    assert "Traceback" not in said.err and not Path("out").exists()
    return line


def records() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(Path("out").glob("*-edit.json"))]


def test_a_rows_own_seed_steps_method_and_settings_are_used(run):
    """They were kept as remarks."""
    own = {"seed": [4, 2**64 - 1], "steps": 1, "method": "p2p", "cross_steps": 0.5, "reweight": {"boy": 2}, "kind": "x"}
    lines({"source": BOY, "target": SITTING}, {"source": BOY, "target": SITTING, **own})
    assert run("edit", "--pairs", "pairs.jsonl", "--seed", 7, "--lambda-s", 0.5) == 0
    plain, *rest = records()
    assert {"seed": 7, "steps": 2, "method": "adapedit", "lambda_s": 0.5}.items() <= plain.items()
    assert [each["seed"] for each in rest] == [4, 2**64 - 1]
    for each in rest:
        assert {"steps": 1, "method": "p2p", "cross_steps": 0.5, "reweight": [["boy", 2]]}.items() <= each.items()
        assert each["pair"]["kind"] == "x"


@pytest.mark.parametrize(
    "names", [("source_prompt", "target_prompt"), ("input", "output"), ("original_prompt", "editing_prompt")]
)
def test_prompts_by_other_projects_names(run, names):
    marked = names[0] == "original_prompt"
    lines(
        {names[0]: "a [boy]" if marked else "a boy", names[1]: "a [tall] boy" if marked else "a tall boy", "mask": [1]}
    )
    assert run("edit", "--pairs", "pairs.jsonl") == 0
    assert {"source": "a boy", "target": "a tall boy", "mask": True}.items() <= records()[0].items()


FINE = {"source": BOY, "target": SITTING}
WRONG = {
    "levels": ("[" * 100_000, "line 2 is not JSON (it has more than 16 levels)"),
    "digits": ('{"source": "a", "target": "b", "seed": ' + "9" * 5000 + "}", "more than 100 digits"),
    "NaN": ('{"source": "a", "target": "b", "tau": NaN}', "NaN for a number"),
    "no object": ("[1]", "lacks a text"),
    "numbers for prompts": ({"source": 1, "target": 2}, "lacks a text"),
    "blanks": ({"source": " " * 5000, "target": "b"}, "has no words"),
    "control characters": ({"source": "\x1b[2J\x07" * 900, "target": "b"}, "line 2: "),
    "seed": ({**FINE, "seed": "1"}, "line 2: seed is '1', expected a whole number"),
    "seeds": ({**FINE, "seed": [1, -1]}, "line 2: seed is -1"),
    "steps": ({**FINE, "steps": {"a": [1]}}, "line 2: steps is {'a': [1]}, expected a whole number"),
    "method": ({**FINE, "method": ["p2p"]}, "line 2: method is"),
    "setting": ({**FINE, "lambda_s": 2}, "line 2: lambda_s is 2"),
    "setting of another method": ({**FINE, "cross_steps": 0.5}, "line 2: adapedit has no setting cross_steps"),
    "reweight": ({**FINE, "method": "p2p", "reweight": {"dog": 2}}, "line 2: the word 'dog' is not in"),
    "size": ({**FINE, "height": 63}, "line 2: height is 63"),
    "a name twice": ('{"source": "a", "source": "b", "target": "b"}', "it has a name twice"),
    "half a letter": ('{"source": "a", "target": "\\ud800"}', "half a letter"),
}


@pytest.mark.parametrize("row, says", WRONG.values(), ids=WRONG)
def test_every_row_is_checked_before_the_first_is_drawn(run, capsys, row, says):
    lines(FINE, row)
    assert run("edit", "--pairs", "pairs.jsonl") == 2
    assert says in failed(capsys)


STORED = {"verb": "edit", **FINE, "method": "p2p", "seed": 0, "model": None, "attention": "auto"}
KINDS = [
    *({name: [1]} for name in STORED),
    *({"verb": {}}, {"vae": 3}, {"device": None}, {"fast": "yes"}, {"fast": 1}, {"dtype": {}}, {"steps": True}),
    *({"guidance": "7"}, {"lora": 5}, {"lora": [["a", "1"]]}, {"lora": [[1, 1]]}, {"method": "\x1b" * 5000}),
]


@pytest.mark.parametrize("wrong", KINDS, ids=lambda wrong: str(wrong)[:40])
def test_a_pictures_settings_have_their_kinds(run, capsys, wrong):
    image.save("stored.png", Image.new("RGB", (8, 8)), STORED | wrong)
    assert run("edit", "--from", "stored.png") == 2
    failed(capsys)


@pytest.mark.parametrize("prompts", ["a boy", [1], [["a"]], None, {"a": 1}], ids=str)
def test_stored_prompts_are_a_list_of_texts(run, capsys, prompts):
    settings = {"verb": "generate", "prompts": prompts, "seed": 0, "model": None, "attention": "auto"}
    image.save("stored.png", Image.new("RGB", (8, 8)), settings)
    assert run("generate", "--from", "stored.png") == 2
    assert "the prompts in stored.png are" in failed(capsys)


def test_what_a_file_says_reaches_the_terminal_as_text(run, capsys):
    """Words, paths and long blanks were printed as they came."""
    long = "a" + " " * 5000 + "boy"
    lines({"source": long, "target": "a \x1b[31m boy"})
    assert run("edit", "--pairs", "pairs.jsonl") == 0
    said = capsys.readouterr().out
    assert all(line.isprintable() and len(line) < 1200 for line in said.splitlines())
    image.save("stored.png", Image.new("RGB", (8, 8)), STORED | {"model": "\x1b[2J"})
    assert run("edit", "--from", "stored.png", "--out", "b") == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


def test_nothing_is_overwritten(run):
    for out in ("a", "a", "b"):
        assert run("edit", BOY, SITTING, "--out", out) == 0
    assert {path.name for path in Path("a").glob("*.json")} == {"0001-edit.json", "0002-edit.json"}
    Path("a/12345-edited.png").touch()
    assert run("generate", BOY, "--out", "a") == 0
    assert Path("a/12346-image.png").is_file()


def test_a_batch_goes_on_where_it_was_stopped(run, capsys, monkeypatch):
    """A killed batch began anew, and its leftovers stayed."""
    lines(FINE, {"source": BOY, "target": "a boy"}, {**FINE, "seed": 3})
    drawn, edit = [], verb.edit

    def stopped(*args: object, **more: object) -> object:
        if len(drawn) == 1:
            raise KeyboardInterrupt(143)
        drawn.append(args)
        return edit(*args, **more)

    monkeypatch.setattr(verb, "edit", stopped)
    assert run("edit", "--pairs", "pairs.jsonl") == 143
    first = {path: path.read_bytes() for path in Path("out").iterdir()}
    monkeypatch.setattr(verb, "edit", lambda *args, **more: drawn.append(args) or edit(*args, **more))
    assert run("edit", "--pairs", "pairs.jsonl") == 0
    said = capsys.readouterr().out
    assert "seed 0 stands already: out/0001-seed0-edit.json; --again draws it anew" in said and len(drawn) == 3
    assert first.items() <= {path: path.read_bytes() for path in Path("out").iterdir()}.items()
    assert len(records()) == 3
    assert run("edit", "--pairs", "pairs.jsonl") == 0 and len(drawn) == 3
    Path("out/0002-seed0-edited.png").unlink()
    assert run("edit", "--pairs", "pairs.jsonl") == 0 and len(drawn) == 4  # what lacks a picture is drawn
    assert run("edit", "--pairs", "pairs.jsonl", "--guidance", 5) == 0 and len(drawn) == 7  # other settings
    assert run("edit", "--pairs", "pairs.jsonl", "--again") == 0 and len(drawn) == 10
    assert run("generate", "a dog", "a cat") == run("generate", "a dog", "a cat", "a boy") == 0
    assert len(list(Path("out").glob("*-generate.json"))) == 3
