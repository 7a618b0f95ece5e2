"""Prompt-to-Prompt (Hertz et al. 2022): replace, refine and reweight, as a Plan.

For the first `cross_steps` of the run the target reads the source's cross-attention, then its own. *Replace* (as many
words, some replaced): every token reads a source column. *Refine* (anything else): tokens of new words read their own.
*Reweight* scales words' columns meanwhile. Self-attention of coarse maps is the source's for the first `self_steps`.

Agrees with the released code (google/prompt-to-prompt), its step counts included, where every word is one token. Else:
- Words are aligned by `difflib`, as CLIP splits them; released: *replace* by position, as blanks split them, *refine*
  token by token. A replaced word of as many tokens goes token by token in both.
- A word of k tokens replaced by one of m: `spread` "sum" is the released rule, each token reads 1/m of the k columns'
  sum and the word keeps its attention; by "mean" it reads 1/k, in all m/k as much. A judge of the embedded model's
  pictures found 80 of 80 words changed with "mean", 77 with "sum", and as much kept: benchmarks/spread.py.
- Behind the last replaced word, if it has not as many tokens as the old one, the released *replace* reads the column at
  the same position, not the word's own: from "a sunhat here" to "a hat here", "here" reads "hat", the end of the text
  reads "here", and padding is shifted likewise. Here each reads its own. The released *refine* shifts padding alone.
- The released equaliser scales every word of that text; here a text that stands twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minedit.config import MineditError
from minedit.methods import Job, Way, WordPlan
from minedit.settings import SHOWN, Settings, setting

if TYPE_CHECKING:
    from minedit.methods.plan import Plan
    from minedit.stack.model import Model
    from minedit.stack.tokens import Alignment, Prompt, Tokenizer

NUMBER = re.compile(r"[0-9]{1,9}")  # a text that may be an index


@dataclass(frozen=True)
class P2PConfig(Settings):
    """Prompt-to-Prompt's settings; the defaults are those of the released code."""

    cross_steps: float = setting(0.8, "fraction of the steps with the source's cross-attention", low=0, high=1)
    self_steps: float = setting(0.4, "fraction of the steps with the source's self-attention", low=0, high=1)
    spread: str = setting(
        "mean",
        "what the tokens of a word read of a word of more or fewer: their mean, or a share of their sum",
        choices=("mean", "sum"),
    )
    reweight: tuple[tuple[str | int, float], ...] = setting(
        (), "weight of a target word or phrase; a repeated word by its index", dict
    )

    def prepare(self, job: Job) -> Way:
        from minedit.methods.plan import unedited  # torch's: settings are read without it

        if job.alignment.identical and not self.reweight:
            return unedited(job)
        return plan(job.sd, job.source, job.target, job.run.steps, self).way()


def plan(model: Model, source: Prompt, target: Prompt, steps: int, settings: P2PConfig) -> Plan:
    """The plan of one prompt pair. Raises MineditError when a word to reweight is not in the target, or repeated."""
    from minedit.methods.plan import Plan, cross_sites, injected_sites, per_token
    from minedit.stack.tokens import align, column_map

    alignment = align(source, target)
    columns, has_source = column_map(source, target, alignment, settings.spread)
    cross = min(int(settings.cross_steps * (steps + 1)), steps)  # the released code counts steps + 1 here, not below
    replace = is_replacement(source, target, alignment)
    kept = [cross if replace or pair.kind == "kept" else 0 for pair in alignment.pairs]
    weights = word_weights(model.tokenizer, target, settings.reweight)
    return Plan(
        cross_sites=cross_sites(model.unet.sites),
        self_sites=injected_sites(model.unet.sites, model.config),
        columns=columns.to(model.device),
        pinned=per_token(target, kept, cross),
        gated=(False,) * len(target.ids),
        weights=per_token(target, weights, 1.0) if settings.reweight else (),
        weight_steps=cross,
        self_steps=int(settings.self_steps * steps),
        words=tuple(
            WordPlan(target.words[pair.word].text, pair.kind, steps_pinned / steps)
            for pair, steps_pinned in zip(alignment.pairs, kept, strict=True)
        ),
        notes=("prompt-to-prompt: " + ("replace" if replace else "refine"),),
    )


def is_replacement(source: Prompt, target: Prompt, alignment: Alignment) -> bool:
    """Whether the prompts have as many words and differ by replaced words only."""
    same = len(source.words) == len(target.words) and not alignment.removed
    return same and all(pair.kind != "inserted" for pair in alignment.pairs)


def word_weights(tokenizer: Tokenizer, prompt: Prompt, reweight: Sequence[tuple[str | int, float]]) -> list[float]:
    """A factor for each word of `prompt`, 1 where none is given. Raises MineditError, also for a word given two."""
    found: dict[int, tuple[str | int, float]] = {}
    for word, factor in reweight:
        for index in word_indices(tokenizer, prompt, word):
            if index in found:
                text, names = prompt.words[index].text, f"{found[index][0]!r} and {word!r}"
                raise MineditError(f"reweight gives the word {text!r} two factors, as {names}; give it one")
            found[index] = word, float(factor)
    return [found[index][1] if index in found else 1.0 for index in range(len(prompt.words))]


def word_indices(tokenizer: Tokenizer, prompt: Prompt, word: str | int) -> tuple[int, ...]:
    """The words of `prompt` that a text or an index names.

    A text is read as a prompt is: it names the run of words it is split into, "sitting boy", "t-shirt" or "boy's" all
    of its pieces, and must stand in the prompt once. A number written as text is a word of the prompt first ("3 boys"),
    an index where no such word stands there. Raises MineditError.
    """
    texts = [w.text for w in prompt.words]
    if isinstance(word, str):
        wanted = [w.text for w in tokenizer.encode(word).words] if len(word) <= len(prompt.text) else []
        starts = [i for i in range(len(texts)) if wanted and texts[i : i + len(wanted)] == wanted]
        if len(starts) == 1:
            return tuple(range(starts[0], starts[0] + len(wanted)))
        if starts:
            what = f"{'word' if len(wanted) == 1 else 'phrase'} {word!r} stands at {starts} in the target prompt"
            each = "one of these indices" if len(wanted) == 1 else "the indices of its words"
            raise MineditError(f"the {what}; give {each} instead")
        if not NUMBER.fullmatch(word):
            what = f"the word {word[:SHOWN]!r} is not in the target prompt"
            raise MineditError(f"{what}; its words are {', '.join(texts)}")
    if 0 <= int(word) < len(texts):
        return (int(word),)
    raise MineditError(f"word {word} of the target prompt, which has {len(texts)}; expected 0 to {len(texts) - 1}")
