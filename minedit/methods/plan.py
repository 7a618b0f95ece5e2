"""A plan: what an editing method does to attention at every step, as data.

Prompt-to-Prompt and AdapEdit are one schedule with other numbers. Each token of the target prompt reads its source
column while it is `pinned`; afterwards it is `gated` (blended with the source through the gate of its site) or plain.
Self-attention reads the source's queries and keys in `self_steps`. Both are windows, from a step up to another. In:
what a method decided. Out: `rules(step)`, the Rule of each attention layer.

Rows of the UNet's batch while a pair is edited: 0, 1 unconditional source, target; 2, 3 conditional source, target.
Only row 3 is ever edited.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minedit.attention.rules import Edit, Gate, Rule, Site
from minedit.config import Config
from minedit.methods import Job, Told, Way, WordPlan
from minedit.stack.tokens import Prompt

SOURCE, TARGET = 2, 3
SELF_RULE = Rule(q_rows=(0, 1, SOURCE, SOURCE), k_rows=(0, 1, SOURCE, SOURCE), v_rows=None, edits=())


Window = tuple[int, int]  # the steps from the first up to the second, which is not in it


@dataclass(frozen=True)
class Plan:
    """The edit of one prompt pair over one run; Plan() changes nothing. T is the model's context length."""

    cross_sites: tuple[str, ...] = ()  # layers that follow the token schedule
    self_sites: tuple[str, ...] = ()  # layers whose self-attention is injected
    columns: Tensor | None = None  # R [T, T] float32, source column -> target column
    pinned: tuple[Window, ...] = ()  # [T] steps for which token j reads its source column
    gated: tuple[bool, ...] = ()  # [T] whether token j is blended afterwards
    gates: Mapping[str, Gate] = field(default_factory=dict)  # by site; empty: gated tokens are plain
    weights: tuple[float, ...] = ()  # [T] factors of the columns; empty: none
    weighted: tuple[Window, ...] = ()  # [T] steps for which token j has its factor
    self_steps: Window = (0, 0)
    words: tuple[WordPlan, ...] = ()
    notes: tuple[str, ...] = ()
    made: dict[Hashable, dict[str, Rule]] = field(init=False, default_factory=dict, compare=False, repr=False)

    def rules(self, step: int) -> dict[str, Rule]:
        """The rules of step 0, 1 ... by site name; a site without one is left alone."""
        rules = {name: SELF_RULE for name in self.self_sites} if _in(step, self.self_steps) else {}
        pin = tuple(float(_in(step, window)) for window in self.pinned)
        over = (step >= end and gate for (_, end), gate in zip(self.pinned, self.gated, strict=True))
        blend = tuple(float(each and bool(self.gates)) for each in over)
        held = zip(self.weights, self.weighted, strict=True)
        factor = tuple(weight if _in(step, window) else 1.0 for weight, window in held)
        key = pin, blend, factor
        if key not in self.made:  # a GPU would wait for numbers to be moved at each step
            self.made[key] = self._edits(*map(torch.tensor, key))
        return rules | self.made[key]

    def _edits(self, pin: Tensor, blend: Tensor, factor: Tensor) -> dict[str, Rule]:
        """The rules of cross-attention where tokens are pinned, blended, weighted so; factor may be empty."""
        own = 1 - pin - blend
        weighted = bool((factor != 1).any())
        if weighted:
            pin, blend, own = factor * pin, factor * blend, factor * own
        if not (weighted or pin.any() or blend.any()):
            return {}
        gated, vectors = bool(blend.any()), [v.to(self.columns.device) for v in (pin, blend, own)]
        rules = {}
        for name in self.cross_sites:
            gate = self.gates.get(name) if gated else None  # nothing to gate: two attention calls fewer
            edit = Edit(TARGET, SOURCE, self.columns, *vectors, gate=gate)
            rules[name] = Rule(q_rows=None, k_rows=None, v_rows=None, edits=(edit,))
        return rules

    def way(self) -> Way:
        """The Plan as what is done in a run."""
        return Way(rules=self.rules, told=lambda: Told(self.words, self.notes))


def _in(step: int, window: Window) -> bool:
    return window[0] <= step < window[1]


def unedited(job: Job) -> Way:
    """The target from the source's noise, with no edit; where the prompts are the same words, the source alone."""
    same = job.alignment.identical
    told = Told(unscheduled(job), ("the prompts are the same words: the edit is the source",) if same else ())
    return Way(prompts=(job.source.text,) if same else (), told=lambda: told)


def unscheduled(job: Job) -> tuple[WordPlan, ...]:
    """The words of the target prompt, none of which ever reads the source's attention."""
    return tuple(WordPlan(job.target.words[pair.word].text, pair.kind, 0.0) for pair in job.alignment.pairs)


def map_side(site: Site, config: Config) -> int:
    """Side of a layer's attention map at the size the model was trained for, in pixels of that map."""
    return -(-config.latent_size // site.stride)


def map_shape(site: Site, latent: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a layer's map, for latents of this shape: halved, and rounded up, at each level."""
    return -(-latent[0] // site.stride), -(-latent[1] // site.stride)


def cross_sites(sites: Sequence[Site]) -> tuple[str, ...]:
    return tuple(site.name for site in sites if site.kind == "cross")


def injected_sites(sites: Sequence[Site], config: Config) -> tuple[str, ...]:
    """The self-attention layers whose map is at most `config.self_size` a side: coarse layout, not texture.

    Sides are those at the trained size: a wider picture has wider maps, of the same layers.
    """
    return tuple(site.name for site in sites if site.kind == "self" and map_side(site, config) <= config.self_size)


def per_token(prompt: Prompt, values: Sequence, rest) -> tuple:
    """One value per token [T] from one per word; `rest` for begin, end and padding."""
    out = [rest] * len(prompt.ids)
    for word, value in zip(prompt.words, values, strict=True):
        for token in word.tokens:
            out[token] = value
    return tuple(out)


def first_steps(fraction: float, steps: int) -> int:
    """How many of the steps s = 0, 1 ... satisfy s < fraction * steps."""
    return min(max(math.ceil(round(fraction * steps, 6)), 0), steps)
