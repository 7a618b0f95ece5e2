"""Prompt-to-Prompt (Hertz et al. 2022): replace, refine and reweight, as a Plan.

For the first `cross_steps` of the run the target reads the source's cross-attention, then its own. *Replace* (as many
words, some replaced): every token reads a source column. *Refine* (anything else): tokens of new words read their own.
*Reweight* scales words' columns meanwhile. Self-attention of coarse maps is the source's for the first `self_steps`.

Agrees with the released code (google/prompt-to-prompt), its step counts included, but for the aligner: words are
aligned by `difflib`, a target token of a replaced word reads the mean of the source word's columns (released: their sum
over the number of target tokens, the same for one token each), and padding follows the end of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minedit.config import MineditError
from minedit.methods import Job, Way, WordPlan
from minedit.settings import Settings, setting

if TYPE_CHECKING:
    from minedit.methods.plan import Plan
    from minedit.stack.model import Model
    from minedit.stack.tokens import Alignment, Prompt


@dataclass(frozen=True)
class P2PConfig(Settings):
    """Prompt-to-Prompt's settings; the defaults are those of the released code."""

    cross_steps: float = setting(0.8, "fraction of the steps with the source's cross-attention", low=0, high=1)
    self_steps: float = setting(0.4, "fraction of the steps with the source's self-attention", low=0, high=1)
    reweight: tuple[tuple[str | int, float], ...] = setting(
        (), "weight of a target word; a repeated word by its index", dict
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
    columns, has_source = column_map(source, target, alignment)
    cross = min(int(settings.cross_steps * (steps + 1)), steps)  # the released code counts steps + 1 here, not below
    replace = is_replacement(source, target, alignment)
    kept = [cross if replace or pair.kind == "kept" else 0 for pair in alignment.pairs]
    weights = [1.0] * len(target.words)
    for word, factor in settings.reweight:
        weights[word_index(target, word)] = float(factor)
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


def word_index(prompt: Prompt, word: str | int) -> int:
    """The index of a word given by text (which must occur once) or by index."""
    texts = [w.text.lower() for w in prompt.words]
    if isinstance(word, int):
        if 0 <= word < len(texts):
            return word
        raise MineditError(f"word {word} of the target prompt, which has {len(texts)}; expected 0 to {len(texts) - 1}")
    found = [index for index, text in enumerate(texts) if text == word.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise MineditError(
            f"the word {word!r} stands at {found} in the target prompt; give one of these indices instead"
        )
    raise MineditError(f"the word {word!r} is not in the target prompt; its words are {', '.join(texts)}")
