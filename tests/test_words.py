"""`minedit words` against the tokenizer's own list, and the note that comes before anything is drawn."""

from pathlib import Path

import pytest

from minedit import cli
from minedit.cli import output
from minedit.cli.words import kinds

LIST = Path(__file__).parent.parent / "weights" / "tokenizer-picturebook" / "words.txt"


def test_every_word_stands_once(capsys):
    found = [word for words in kinds().values() for word in words]
    assert sorted([*found, ","]) == sorted(LIST.read_text().split()) and all(kinds().values())
    assert cli.main(["words"]) == 0
    said = capsys.readouterr().out.replace(",", " ").split()
    assert {*found} <= {*said}


def test_a_word_it_was_never_trained_on_is_said_before_drawing(capsys, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(output, "progress", lambda: said.append(capsys.readouterr().out) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["generate", "a dragon", "--out", str(tmp_path)])
    assert "never trained on: dragon" in said[0]
