"""Words that a user names, by a text or an index → which words of a prompt they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minedit.config import MineditError
from minedit.settings import SHOWN

if TYPE_CHECKING:
    from minedit.stack.tokens import Prompt, Tokenizer

NUMBER = re.compile(r"[0-9]{1,9}")  # a text that may be an index
EVERY = "every "  # before a text: wherever it stands


def places(tokenizer: Tokenizer, prompt: Prompt, text: str) -> list[range]:
    """Where a text stands in a prompt, as runs of words.

    It is read as a prompt is: it names the run of words that it is split into, "sitting boy", "t-shirt" or "boy's" all
    of its pieces.
    """
    texts = [word.text for word in prompt.words]
    wanted = [word.text for word in tokenizer.encode(text).words] if len(text) <= len(prompt.text) else []
    starts = [i for i in range(len(texts)) if wanted and texts[i : i + len(wanted)] == wanted]
    return [range(start, start + len(wanted)) for start in starts]


def everywhere(tokenizer: Tokenizer, prompt: Prompt, text: str) -> tuple[int, ...]:
    """The words of a prompt that a text names, wherever it stands; "every cat" is "cat" unless it stands there."""
    found = places(tokenizer, prompt, text)
    if not found and text.startswith(EVERY):
        found = places(tokenizer, prompt, text.removeprefix(EVERY))
    return tuple(dict.fromkeys(index for run in found for index in run))


def word_indices(tokenizer: Tokenizer, prompt: Prompt, word: str | int) -> tuple[int, ...]:
    """The words of the target `prompt` that a text or an index names.

    The text must stand there once; "every cat" names each "cat". A number written as text is a word of the prompt first
    ("3 boys"), an index where no such word stands there. Raises MineditError.
    """
    texts = [w.text for w in prompt.words]
    if isinstance(word, str):
        runs = places(tokenizer, prompt, word)
        if len(runs) == 1:
            return tuple(runs[0])
        if runs:
            one = len(runs[0]) == 1
            what = f"{'word' if one else 'phrase'} {word!r} stands at {[run[0] for run in runs]} in the target prompt"
            each = "one of these indices" if one else "the indices of its words"
            raise MineditError(f"the {what}; give {each}, or {EVERY + word!r}, instead")
        if found := everywhere(tokenizer, prompt, word):
            return found
        if not NUMBER.fullmatch(word):
            what = f"the word {word[:SHOWN]!r} is not in the target prompt"
            raise MineditError(f"{what}; its words are {', '.join(texts)}")
    if 0 <= int(word) < len(texts):
        return (int(word),)
    raise MineditError(f"word {word} of the target prompt, which has {len(texts)}; expected 0 to {len(texts) - 1}")


def word_values(
    name: str, value: str, tokenizer: Tokenizer, prompt: Prompt, given: Sequence[tuple[str | int, object]], rest: object
) -> list:
    """A value for each word of the target `prompt`, `rest` where none is given.

    name: of the setting; value: what it gives. Raises MineditError, also for a word given two.
    """
    found: dict[int, tuple[str | int, object]] = {}
    for word, each in given:
        for index in word_indices(tokenizer, prompt, word):
            if index in found:
                text, names = prompt.words[index].text, f"{found[index][0]!r} and {word!r}"
                raise MineditError(f"{name} gives the word {text!r} two {value}s, as {names}; give it one")
            found[index] = word, each
    return [found[index][1] if index in found else rest for index in range(len(prompt.words))]
