"""Prompt-to-Prompt (Hertz et al. 2022): replace, refine and reweight, as a Plan; and local blend.

While its word is in `cross_steps`, or in its own window of `cross_words`, a token of the target reads the source's
cross-attention, then its own. *Replace* (as many words, some replaced): every token reads a source column. *Refine*
(anything else): tokens of new words read their own. *Reweight* scales words' columns meanwhile. Self-attention of
coarse maps is the source's in `self_steps`. Local blend: localblend.py.

Agrees with the released code (google/prompt-to-prompt), its step counts included, for words of one token and prompts of
as many. Else:
- Words are aligned by `difflib`, as CLIP splits them; released: *replace* by position, as blanks split them, as here
  where it is asked for by name; *refine* token by token. A replaced word of as many tokens goes token by token in both.
- A word of k tokens replaced by one of m: `spread` "sum" is the released rule, each token reads 1/m of the k columns'
  sum and the word keeps its attention; by "mean" it reads 1/k, in all m/k as much. A judge of the embedded model's
  pictures found 80 of 80 words changed with "mean", 77 with "sum", and as much kept: benchmarks/spread.py.
- Behind the last replaced word, if it has not as many tokens as the old one, the released *replace* reads the column at
  the same position, not the word's own: from "a sunhat here" to "a hat here", "here" reads "hat", the end of the text
  reads "here", padding is shifted likewise, and the last of it reads nothing. Here each reads its own.
- Padding of a longer or shorter prompt reads the source's padding as far behind its end; in the released *refine* the
  column at the same position.
- Self-attention is injected up to config.self_size, 16 x 16 as in the first release; 32 x 32 in the null-text notebook.
- A text that stands twice is an error here, "every cat" names each; the released code takes every one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minedit.config import MineditError
from minedit.methods import Job, Way, WordPlan
from minedit.methods.blending import Blending
from minedit.methods.named import word_values
from minedit.settings import setting

if TYPE_CHECKING:
    from minedit.methods.plan import Plan, Window
    from minedit.stack.model import Model
    from minedit.stack.tokens import Alignment, Prompt, Tokenizer


@dataclass(frozen=True)
class P2PConfig(Blending):
    """Prompt-to-Prompt: for the first steps words look where they look in the source. For words that are replaced,
    added or weighed, and layouts that stay. The defaults are those of the released code.

    A span is a fraction of the steps, from the first on, or two: from one up to the other.
    """

    cross_steps: float | tuple[float, float] = setting(
        0.8, "span of the steps with the source's cross-attention", tuple, low=0, high=1
    )
    cross_words: tuple[tuple[str | int, float | tuple[float, float]], ...] = setting(
        (), "a target word's or phrase's own span, as --reweight names it", dict, low=0, high=1, values=tuple
    )
    self_steps: float | tuple[float, float] = setting(
        0.4, "span of the steps with the source's self-attention", tuple, low=0, high=1
    )
    controller: str = setting(
        "auto",
        "replace: every word reads the word in its place; refine: new words read their own; auto: by the prompts",
        choices=("auto", "replace", "refine"),
    )
    spread: str = setting(
        "mean",
        "what the tokens of a word read of a word of more or fewer: their mean, or a share of their sum",
        choices=("mean", "sum"),
    )
    reweight: tuple[tuple[str | int, float], ...] = setting(
        (), "weight of a target word or phrase; a repeated word by its index, or as 'every WORD'", dict
    )

    def prepare(self, job: Job) -> Way:
        from minedit.methods.plan import unedited  # torch's: settings are read without it

        if job.alignment.identical and not self.reweight:
            return unedited(job)
        return self.blended(job, plan(job.sd, job.source, job.target, job.run.steps, self).way())

    def check_words(self, tokenizer: Tokenizer, source: Prompt, target: Prompt) -> None:
        super().check_words(tokenizer, source, target)
        own_values(tokenizer, target, self)
        aligned(source, target, self.controller)


def plan(model: Model, source: Prompt, target: Prompt, steps: int, settings: P2PConfig) -> Plan:
    """The plan of one prompt pair.

    Raises MineditError when a word of a setting is not in the target, repeated or given two values, and where replace
    cannot be.
    """
    from minedit.methods.plan import Plan, cross_sites, injected_sites, per_token
    from minedit.stack.tokens import column_map

    alignment, replace = aligned(source, target, settings.controller)
    columns, _ = column_map(source, target, alignment, settings.spread)
    cross = window(settings.cross_steps, steps + 1, steps)  # the released code counts steps + 1 here, not below
    weights, spans = own_values(model.tokenizer, target, settings)
    windows = [cross if span is None else window(span, steps + 1, steps) for span in spans]
    reads = [replace or pair.kind == "kept" for pair in alignment.pairs]
    pinned = [each if read else (0, 0) for each, read in zip(windows, reads, strict=True)]
    return Plan(
        cross_sites=cross_sites(model.unet.sites),
        self_sites=injected_sites(model.unet.sites, model.config),
        columns=columns.to(model.device),
        pinned=per_token(target, pinned, cross),
        gated=(False,) * len(target.ids),
        weights=per_token(target, weights, 1.0) if settings.reweight else (),
        weighted=per_token(target, windows, cross) if settings.reweight else (),
        self_steps=window(settings.self_steps, steps, steps),
        words=tuple(
            WordPlan(target.words[pair.word].text, pair.kind, (end - begin) / steps)
            for pair, (begin, end) in zip(alignment.pairs, pinned, strict=True)
        ),
        notes=("prompt-to-prompt: " + ("replace" if replace else "refine"),),
    )


def own_values(tokenizer: Tokenizer, target: Prompt, settings: P2PConfig) -> tuple[list, list]:
    """The factor and the span, None where it has none of its own, of each word. Raises MineditError."""
    weights = word_values("reweight", "factor", tokenizer, target, settings.reweight, 1.0)
    return weights, word_values("cross_words", "span", tokenizer, target, settings.cross_words, None)


def window(span: float | tuple[float, float], count: int, steps: int) -> Window:
    """The steps of a span, counted of `count` as the released code does."""
    begin, end = span if isinstance(span, tuple) else (0, span)
    return min(int(begin * count), steps), min(int(end * count), steps)


def aligned(source: Prompt, target: Prompt, controller: str) -> tuple[Alignment, bool]:
    """Which word stands for which, and whether by replacement. Raises MineditError where replace cannot be."""
    from minedit.stack.tokens import align, by_position

    if controller == "replace":
        if len(source.words) != len(target.words):
            counts = f"{len(source.words)} and {len(target.words)} words"
            raise MineditError(f"controller is replace, and the prompts have {counts}; expected as many, or refine")
        return by_position(source, target), True
    alignment = align(source, target)
    return alignment, controller == "auto" and is_replacement(source, target, alignment)


def is_replacement(source: Prompt, target: Prompt, alignment: Alignment) -> bool:
    """Whether the prompts have as many words and differ by replaced words only."""
    same = len(source.words) == len(target.words) and not alignment.removed
    return same and all(pair.kind != "inserted" for pair in alignment.pairs)
