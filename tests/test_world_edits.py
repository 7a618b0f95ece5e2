"""The pairs of the closed world: one factor is asked for, captions differ there, the file is what the code draws."""

import difflib
import re
from collections import Counter
from pathlib import Path

import pytest

from minedit.picturebook.world.captions import WORDS
from minedit.picturebook.world.edits import KINDS, SPLITS, pairs, read, written
from minedit.picturebook.world.factors import held_out

FILE = Path(__file__).parent.parent / "benchmarks" / "picturebook-edits.jsonl"
BOTH = {split: pairs(split) for split in SPLITS}
LITTLE = {"a", "an", "in", "on", "at", "the"}


def test_the_file_is_what_the_code_draws():
    """python benchmarks/picturebook_edits.py"""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert lines == [written(pair) for split in ("tune", "test") for pair in BOTH[split]]
    assert read(lines) == [*BOTH["tune"], *BOTH["test"]]


@pytest.mark.parametrize("split", SPLITS)
def test_kinds_are_balanced_and_compositions_unseen(split):
    found = BOTH[split]
    assert Counter(pair.kind for pair in found) == dict.fromkeys(KINDS, SPLITS[split])
    assert len({(pair.source, pair.target) for pair in found}) == len({pair.id for pair in found}) == len(found)
    assert all(held_out(pair.before) or held_out(pair.after) for pair in found)


def test_captions_differ_where_the_factor_is_said():
    """Oracle: difflib. One run of words differs, little ones aside; with plurals, wings and dresses, two."""
    for pair in BOTH["test"]:
        old, new = pair.source.split(), pair.target.split()
        assert set(old + new) <= set(WORDS), pair
        blocks = [
            (old[a:b], new[c:d])
            for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
            if tag != "equal" and not {*old[a:b], *new[c:d]} <= LITTLE
        ]
        second = pair.kind == "count" or "wings" in old + new
        second |= pair.kind == "object" and {*blocks[-1][0]} <= {"shirt", "dress"}
        assert len(blocks) <= 1 + second, (pair, blocks)
        value = getattr(pair.after, pair.factor)
        assert pair.kind in ("remove", "count") or re.search(rf"\b{str(value)[:5]}", pair.target), pair
        assert pair.changed <= {pair.factor, "colour"} and getattr(pair.before, pair.factor) != value
