"""The tokenizer cut down to a closed word list. Oracle: full CLIP's own pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minedit.picturebook.training.vocabulary import merges_for, trim_tokenizer
from minedit.picturebook.world.captions import WORDS
from minedit.stack.tokens import Prompt, Tokenizer

FOLDER = Path(__file__).parent.parent / "weights" / "tokenizer"


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer(FOLDER, 77)


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("trimmed")
    trim_tokenizer(FOLDER, ["a", "boy", "in", "the", "park", "sunhat", "toadstool", "T-shirt", "café", ","], folder)
    return Tokenizer(folder, 32)


def texts(prompt: Prompt) -> list[str]:
    return [word.text for word in prompt.words]


def test_trimmed_spells_the_listed_words_as_clip_does(clip, trimmed):
    text = "a boy, in the park: café toadstool SUNHAT t-shirt"
    assert trimmed.pieces("a boy in the park") == clip.pieces("a boy in the park")
    for word in trimmed.words:
        assert trimmed.pieces(word) == clip.pieces(word)
    assert texts(trimmed.encode(text)) == texts(clip.encode(text))


def test_the_picture_books_words_are_spelt_as_clip_spells_them(clip, tmp_path):
    size = trim_tokenizer(FOLDER, WORDS, tmp_path)
    small = Tokenizer(tmp_path, 32)
    assert size == small.size < 2000
    assert [small.pieces(word) for word in WORDS] == [clip.pieces(word) for word in WORDS]
    assert small.words == {word.text for entry in WORDS for word in clip.encode(entry).words}


def test_the_shipped_vocabulary_is_that_of_the_captions(tmp_path):
    shipped = FOLDER.parent / "tokenizer-picturebook"
    trim_tokenizer(FOLDER, WORDS, tmp_path)
    for name in ("vocab.json", "merges.txt", "words.txt", "LICENSE"):
        assert (shipped / name).read_bytes() == (tmp_path / name).read_bytes(), f"{name}: run trim_tokenizer again"


def test_trimmed_vocabulary_holds_the_bytes_then_only_what_is_needed(trimmed, tmp_path):
    size = trim_tokenizer(FOLDER, ["a", "sunhat"], tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    full = json.loads((FOLDER / "vocab.json").read_text())
    assert list(ids.values()) == list(range(size))
    assert list(ids)[:512] == sorted(full, key=full.get)[:512]
    assert list(ids)[512:] == ["at</w>", "un", "sun", "hat</w>", "<|startoftext|>", "<|endoftext|>"]
    assert (tmp_path / "merges.txt").read_text() == "#version: 0.2\na t</w>\nu n\ns un\nh at</w>\n"
    assert trimmed.bos == trimmed.size - 2 and trimmed.eos == trimmed.size - 1


def test_words_outside_the_list_fall_apart_and_are_named(clip, trimmed):
    prompt = trimmed.encode("a purple Boy in the café, \U0001f436 purple")
    assert texts(prompt) == ["a", "purple", "boy", "in", "the", "café", ",", "\U0001f436", "purple"]
    assert len(prompt.words[1].tokens) > 1 and max(prompt.ids) == trimmed.eos
    assert trimmed.unknown(prompt) == ("purple", "\U0001f436")
    assert clip.unknown(clip.encode("a purple boy")) == ()


def test_merges_by_hand():
    ranks = {("a", "b"): 0, ("ab", "c</w>"): 1, ("b", "a"): 2}
    assert merges_for(["a", "b", "a", "b", "c</w>"], ranks) == [("a", "b"), ("ab", "c</w>")]
    assert merges_for(["c</w>"], ranks) == []
