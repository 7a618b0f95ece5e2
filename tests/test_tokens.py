"""Prompts to tokens and words. Oracle: ids as published for SD-v1's tokenizer, CLIP's regular expression."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from minedit.config import MineditError
from minedit.stack.tokens import Prompt, Tokenizer, foreign

FOLDER = Path(__file__).parent.parent / "weights" / "tokenizer"


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer(FOLDER, 77)


@pytest.fixture(scope="module")
def short() -> Tokenizer:
    """Rows of 8 tokens, so that a matrix fits on the page."""
    return Tokenizer(FOLDER, 8)


def texts(prompt: Prompt) -> list[str]:
    return [word.text for word in prompt.words]


def test_ids_of_a_known_prompt(clip):
    prompt = clip.encode("A dog sitting on the grass")
    assert prompt.ids == (49406, 320, 1929, 4919, 525, 518, 5922, 49407) + (49407,) * 69
    assert prompt.length == 8
    assert texts(prompt) == ["a", "dog", "sitting", "on", "the", "grass"]
    assert [word.tokens for word in prompt.words] == [range(i, i + 1) for i in range(1, 7)]
    assert (clip.size, clip.bos, clip.eos) == (49408, 49406, 49407)


def test_empty_prompt(clip):
    for text in ("", "  \n"):
        prompt = clip.encode(text)
        assert prompt.ids == (49406,) + (49407,) * 76
        assert prompt.words == () and prompt.length == 2


def test_words_are_the_pre_tokenizers(clip):
    """The split of the regular expression in CLIP's simple_tokenizer.py: letters, single digits, runs of signs, 's."""
    prompt = clip.encode("The boy's  CAFÉ, 42 cats — \U0001f436!? x")
    assert texts(prompt) == ["the", "boy", "'s", "café", ",", "4", "2", "cats", "—", "\U0001f436!?", "x"]


def test_a_word_covers_its_pieces_and_words_repeat(clip):
    prompt = clip.encode("a sunhat, a toadstool")
    assert clip.pieces("a sunhat, a toadstool") == (
        "a</w>",
        "sun",
        "hat</w>",
        ",</w>",
        "a</w>",
        "to",
        "ad",
        "stool</w>",
    )
    assert [(word.text, word.tokens) for word in prompt.words] == [
        ("a", range(1, 2)),
        ("sunhat", range(2, 4)),
        (",", range(4, 5)),
        ("a", range(5, 6)),
        ("toadstool", range(6, 9)),
    ]


def test_a_special_token_typed_into_the_prompt_is_one_word(clip):
    prompt = clip.encode("a <|endoftext|> b")
    assert texts(prompt) == ["a", "<|endoftext|>", "b"]
    assert prompt.length == 5


def test_too_long_quotes_the_cut(short):
    assert short.encode("one two three four five six").length == 8
    with pytest.raises(
        MineditError, match=r"7 tokens, the model reads 6.*two three four five six \| seven \.\.\.'"
    ) as e:
        short.encode("one two three four five six seven")
    assert "\n" not in str(e.value)
    with pytest.raises(MineditError, match=r"8 tokens.*four five \| toadstool"):  # not in the middle of a word
        short.encode("one two three four five toadstool")
    with pytest.raises(MineditError) as e:
        short.encode("word " * 1000)
    assert len(str(e.value)) < 300


def test_errors(tmp_path, clip):
    with pytest.raises(MineditError, match=r"vocab.json and merges.txt not found"):
        Tokenizer(tmp_path, 77)
    with pytest.raises(MineditError, match="not Unicode"):
        clip.encode("a \ud800 b")


@pytest.mark.parametrize(
    "text, marks",
    [
        ("a (red:1.3) cat, ((big)) and (old:.5)", ["(red:1.3)", "((big))", "(old:.5)"]),
        ("a [cat|dog] by a [tree]", ["[cat|dog]", "[tree]"]),
        ("a cat <lora:ink:0.8> <LORA:a>", ["<lora:ink:0.8>", "<LORA:a>"]),
        ("(boy:1.2), twice (boy:1.2)", ["(boy:1.2)"]),
        ("a boy (smiling) at 12:30, <3, i :) [", []),
        ("(at 12:30 in the park) (a b: c)", []),
        ("", []),
    ],
)
def test_marks_of_other_programs(text, marks):
    assert list(foreign(text)) == marks


def test_marks_are_found_in_linear_time():
    began = time.process_time()
    for part in ("(", "((", "[", "<lora:", "(:", "(a:1", "(:1 ", "(:" + "1" * 9, ":" * 9, "(: "):
        foreign(part * 2000)
    assert time.process_time() - began < 5
