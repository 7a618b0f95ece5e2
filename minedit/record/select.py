"""Which steps, rows and words are meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minedit.attention.tap import Begun
from minedit.config import MineditError, shown
from minedit.methods.named import everywhere
from minedit.settings import several
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt

HALVES = ("uncond", "cond")
ONE = {"steps": "the number of a step", "rows": "a name such as target.cond"}


def held(name: str, asked: object, kind: type) -> object:
    """Steps or rows as they are asked for, to be looked at more than once. Raises MineditError for what is neither."""
    if asked is None or callable(asked):
        return asked
    found = several(name, asked, kind, f"{ONE[name]}, several, or a function")
    return found[0] if isinstance(asked, kind) else found


def step_chosen(steps: object, step: int) -> bool:
    """steps: None for all, a number, several, or a function of it."""
    if steps is None:
        return True
    if callable(steps):
        return bool(steps(step))
    return step == steps if isinstance(steps, int) else step in steps


def row_chosen(rows: object, row: str) -> bool:
    """By its name or a part of it: "target", "cond" and "target.cond" all choose "target.cond".

    Of what has one row for a picture, "target" in place of "target.cond", that picture's halves choose it too.
    """
    if rows is None:
        return True
    if callable(rows):
        return bool(rows(row))
    parts = {row, *row.split(".")}
    whole = not set(HALVES) & parts
    return any(
        each in parts or (whole and (each in HALVES or each.split(".")[0] in parts))
        for each in ([rows] if isinstance(rows, str) else rows)
    )


def word_tokens(
    sd: Model, begun: Begun, words: Sequence[str] | None, wants: Callable[[str], bool]
) -> dict[str, list[list[int]]]:
    """For each chosen row of the UNet and each word, where its tokens stand: nowhere in a prompt without the word.

    Raises MineditError for a word that is in none of them.
    """
    if words is None:
        return {}
    encode = sd.tokenizer.encode
    prompts = {f"{row}.cond": encode(text) for row, text in zip(begun.rows, begun.prompts, strict=True)}
    prompts |= {f"{row}.uncond": encode(begun.negative) for row in begun.rows}
    prompts = {row: prompt for row, prompt in prompts.items() if wants(row)}
    found = {row: [tokens_of(sd, prompt, word) for word in words] for row, prompt in prompts.items()}
    for at, word in enumerate(words):
        if not any(each[at] for each in found.values()):
            texts = ", ".join(dict.fromkeys(w.text for prompt in prompts.values() for w in prompt.words))
            raise MineditError(f"the word {shown(repr(word), 60)} is in none of the prompts; their words are {texts}")
    return found


def row_words(sd: Model, begun: Begun) -> dict[str, tuple[str, ...]]:
    """The word that each token is of, for each row of the UNet and of the text encoder."""
    empty = _read(sd.tokenizer.encode(begun.negative))
    found = {"negative": empty}
    for row, text in zip(begun.rows, begun.prompts, strict=True):
        found[row] = found[f"{row}.cond"] = _read(sd.tokenizer.encode(text))
        found[f"{row}.uncond"] = empty
    return found


def _read(prompt: Prompt) -> tuple[str, ...]:
    found = ["<begin>", *["<padding>"] * (len(prompt.ids) - 1)]
    found[prompt.length - 1] = "<end>"
    for word in prompt.words:
        for token in word.tokens:
            found[token] = word.text
    return tuple(found)


def tokens_of(sd: Model, prompt: Prompt, word: str) -> list[int]:
    """Where the tokens of a word or phrase stand in a prompt, wherever it does; "dog" is "dogs" unless it stands there.

    And "dogs" is "dog".
    """
    forms = [word, f"{word}s", f"{word}es", *([word[:-1] + "ies"] if word.endswith("y") else [])]
    forms += [word.removesuffix(end) for end in ("s", "es") if word.endswith(end)]
    for form in forms:
        if form.strip() and (found := everywhere(sd.tokenizer, prompt, form)):
            return [token for index in found for token in prompt.words[index].tokens]
    return []
