"""Which words answer to which, and the column map that follows. Oracle: matrices written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minedit.stack.tokens import Alignment, Tokenizer, WordPair, align, column_map

FOLDER = Path(__file__).parent.parent / "weights" / "tokenizer"


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer(FOLDER, 77)


@pytest.fixture(scope="module")
def short() -> Tokenizer:
    """Rows of 8 tokens, so that a matrix fits on the page."""
    return Tokenizer(FOLDER, 8)


def aligned(tokenizer: Tokenizer, source: str, target: str) -> Alignment:
    return align(tokenizer.encode(source), tokenizer.encode(target))


def test_insertion(clip):
    found = aligned(clip, "a boy in the park", "a sitting boy in the park")
    assert found.pairs[:3] == (WordPair(0, "kept", (0,)), WordPair(1, "inserted", ()), WordPair(2, "kept", (1,)))
    assert found.removed == () and found.key_words == ("target", (1,))
    assert not found.identical and not found.disjoint


def test_replacement_of_runs(clip):
    found = aligned(clip, "a standing boy in the park", "a boy sitting in the park")
    assert [pair.kind for pair in found.pairs] == ["kept", "kept", "inserted", "kept", "kept", "kept"]
    assert found.removed == (1,)
    found = aligned(clip, "a red car on the road", "a big blue truck on the road")
    assert found.pairs[1:4] == tuple(WordPair(i, "replaced", (1, 2)) for i in (1, 2, 3))
    assert found.key_words == ("target", (1, 2, 3))


def test_runs_of_as_many_words_go_word_by_word(clip):
    """The bug: both new words stood for both old ones."""
    found = aligned(clip, "a red cat sits", "a blue dog sits")
    assert found.pairs == tuple(WordPair(i, "replaced" if i in (1, 2) else "kept", (i,)) for i in range(4))
    assert found.removed == () and found.key_words == ("target", (1, 2))


def test_removal_takes_its_key_words_from_the_source(clip):
    found = aligned(clip, "a red car and a red house", "a red car and a house")
    assert [pair.source for pair in found.pairs] == [(0,), (1,), (2,), (3,), (4,), (6,)]
    assert found.removed == (5,) and found.key_words == ("source", (5,))


def test_repeated_words_are_told_apart_by_position(clip):
    found = aligned(clip, "a cat and a dog", "a cat and a cat")
    assert [pair.kind for pair in found.pairs] == ["kept"] * 4 + ["replaced"]
    assert found.pairs[4] == WordPair(4, "replaced", (4,))


def test_identical_and_disjoint(clip):
    assert aligned(clip, "A Boy", "a boy").identical
    assert aligned(clip, "", "").identical
    assert aligned(clip, "a boy", "the cat").disjoint
    assert aligned(clip, "", "a cat").disjoint and aligned(clip, "a cat", "").disjoint
    assert not aligned(clip, "a boy", "a boy").disjoint


# Column maps: row i, column j is the share of source token i in target token j.


def mapped(
    tokenizer: Tokenizer, source: str, target: str, spread: str = "mean"
) -> tuple[list[list[float]], list[bool]]:
    a, b = tokenizer.encode(source), tokenizer.encode(target)
    R, has_source = column_map(a, b, align(a, b), spread)
    assert R.dtype == torch.float32 and has_source.dtype == torch.bool
    return R.tolist(), has_source.tolist()


def test_same_prompt_is_the_identity(short):
    R, has_source = mapped(short, "a sunhat in the park", "a sunhat in the park")
    assert R == torch.eye(8).tolist() and all(has_source)


def test_map_of_a_replacement_by_a_longer_word(short):
    # source: BOS a cat sits EOS - - -        target: BOS a sun hat sits EOS - -
    R, has_source = mapped(short, "a cat sits", "a sunhat sits")
    assert R == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert all(has_source)


def test_map_of_a_replacement_by_a_shorter_word(short):
    # source: BOS a sun hat sits EOS - -      target: BOS a cat sits EOS - - -
    R, has_source = mapped(short, "a sunhat sits", "a cat sits")
    assert R == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0.5, 0, 0, 0, 0, 0],
        [0, 0, 0.5, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],  # the target's third padding token has no counterpart: the source's last
    ]
    assert all(has_source)


def test_map_of_a_run_of_words(short):
    # source: BOS a red cat EOS - - -         target: BOS a sun hat EOS - - -
    R, has_source = mapped(short, "a red cat", "a sunhat")
    assert R == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0.5, 0.5, 0, 0, 0, 0],
        [0, 0, 0.5, 0.5, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]
    assert all(has_source)


def test_words_replaced_side_by_side_are_not_pooled(short):
    """The bug: "blue" and "dog" each read the mean of "red" and "cat". Released: the identity, as here."""
    R, has_source = mapped(short, "a red cat sits", "a blue dog sits")
    assert R == torch.eye(8).tolist() and all(has_source)
    # each word by itself also where one has other tokens: BOS a red sun hat EOS - -  to  BOS a blue cat EOS - - -
    R, _ = mapped(short, "a red sunhat", "a blue cat")
    assert [row[1:4] for row in R[1:5]] == [[1, 0, 0], [0, 1, 0], [0, 0, 0.5], [0, 0, 0.5]]


def test_a_word_of_as_many_tokens_goes_token_by_token(short):
    """The bug: "rain" and "coat" both read the mean of "sun" and "hat"."""
    source, target = (short.encode(f"a {word} sits") for word in ("sunhat", "raincoat"))
    assert [len(prompt.words[1].tokens) for prompt in (source, target)] == [2, 2]
    assert mapped(short, source.text, target.text)[0] == torch.eye(8).tolist()


# what google/prompt-to-prompt's get_replacement_mapper gives the tokens of the replaced word, columns 1 to 4
RELEASED = {
    ("a cat sits", "a sunhat sits"): [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 0]],
    ("a sunhat sits", "a cat sits"): [[1, 0], [0, 1], [0, 1]],
}


@pytest.mark.parametrize("pair", RELEASED)
def test_the_sum_is_the_released_rule_and_keeps_a_words_attention(short, pair):
    """The bug: one token replaced by two had twice the attention, two by one half of it."""
    R, _ = mapped(short, *pair, "sum")
    expected = RELEASED[pair]
    assert [row[1 : 1 + len(expected[0])] for row in R[1 : 1 + len(expected)]] == expected
    source, target = map(short.encode, pair)
    old, new = list(source.words[1].tokens), list(target.words[1].tokens)
    for spread, kept in (("sum", 1), ("mean", len(new) / len(old))):
        R = torch.tensor(mapped(short, *pair, spread)[0])
        assert R[old][:, new].sum(1).tolist() == [kept] * len(old)  # of each old token's attention
        assert R[old].sum(1).tolist() == [kept] * len(old)


def test_a_run_that_is_pooled_keeps_its_attention_by_the_sum(short):
    # three tokens, "red", "sun", "hat", stand for one; each has a third of it
    R, _ = mapped(short, "a cat", "a red sunhat", "sum")
    assert torch.tensor(R)[2].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0])
    assert mapped(short, "a cat", "a red sunhat")[0][2] == [0, 0, 1, 1, 1, 0, 0, 0]


def test_map_of_an_insertion(short):
    # source: BOS a cat EOS - - - -           target: BOS a sun hat cat EOS - -
    R, has_source = mapped(short, "a cat", "a sunhat cat")
    assert R == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert has_source == [True, True, False, False, True, True, True, True]


def test_map_of_a_removal_with_repeated_words(short):
    # source: BOS a cat a red cat EOS -       target: BOS a cat a cat EOS - -
    R, has_source = mapped(short, "a cat a red cat", "a cat a cat")
    assert R == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]
    assert all(has_source)


def test_map_to_and_from_nothing(short):
    R, has_source = mapped(short, "", "one two three four five six")
    assert has_source == [True] + [False] * 6 + [True]
    assert R[1] == [0] * 7 + [1]
    R, has_source = mapped(short, "one two three four five six", "")
    assert all(has_source) and R[7] == [0] + [1] * 7
