"""How each method edits. In: a `Job`, an edit that is asked for. Out: a `Way`, what is done while the pair is drawn.

A method is a class of settings (settings.py) with one function, `prepare(job) -> Way`; a pass of its own is a call of
`job.run` in it. choose.py names the methods, and `minedit.METHODS["mine"] = Mine` adds one.

Read in this order:
```
plan.py       the rules of each step, for a schedule of tokens
p2p.py        Prompt-to-Prompt
wordmaps.py   what attention says about words: maps, similarity, τ
running.py    word statistics → a plan
adapedit.py   AdapEdit: a time per word (FWT), a weight per pixel (DPS); with a statistics pass or without
fixedseed.py  the target prompt from the same noise
choose.py     names → methods
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from minedit.attention.rules import Rule
    from minedit.sampling.loop import Predict, Run, Step, Ticks
    from minedit.stack.model import Model
    from minedit.stack.tokens import Alignment, Prompt


@dataclass(frozen=True, eq=False)
class Way:
    """What a method does in a run. A part that is left out leaves the run alone."""

    told: Callable[[], Told]  # called after the last step
    prompts: tuple[str, ...] = ()  # of the rows drawn, the source's first and the edit's last; empty: those two
    rules: Callable[[int], Mapping[str, Rule]] | None = None  # of a step, by the name of any layer that reads its own
    watch: Callable[[int], Mapping[str, bool]] | None = None  # layers that report at a step, and whether with columns
    after: Callable[[Step], Tensor | None] | None = None  # sees each step done; may give other latents to go on from
    start: Tensor | None = None  # [B, 4, h, w], in place of the seed's noise
    first: int = 0  # the step to begin at
    predict: Predict | None = None  # latents → noise: other rows, texts, channels, another guidance


@dataclass(frozen=True)
class Job:
    """An edit that is asked for."""

    sd: Model
    source: Prompt
    target: Prompt
    alignment: Alignment
    seed: int
    run: Run  # steps, guidance, eta, size
    tick: Ticks  # to be called after each step of a pass of one's own, whose steps are added to `tick.total` before


@dataclass(frozen=True)
class Told:
    """What there is to know of an edit."""

    words: tuple[WordPlan, ...]
    notes: tuple[str, ...] = ()  # of how it was decided, a sentence each
    statistics: object = None  # a method's own measurements


@dataclass(frozen=True)
class WordPlan:
    """One word of the target prompt."""

    text: str
    kind: str  # "kept", "replaced" or "inserted"
    tau: float  # fraction of the steps, 0 ... 1, for which the word reads the source's attention
