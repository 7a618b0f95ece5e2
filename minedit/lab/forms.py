"""A Rule of every form that an attention function may be given, and the shape of a call that it is made for.

Out: RULES (name -> how to make that Rule for a `Shape`). The rules are those of the methods: columns from
`tokens.column_map`, weights from `plan.Plan`, gates from `attention.Gate`. "general" is what a Rule may be beyond them:
every row routed, every weight between 0 and 1; "all" has masks, too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator

from minedit.attention.rules import Edit, Gate, Mask, Rule
from minedit.lab import names
from minedit.methods.plan import SELF_RULE, SOURCE, Plan
from minedit.stack.tokens import Prompt, Word, align, column_map

ROUTES = ("inject", "masactrl", "masked")  # what self-attention sees, beside "plain"
HEAVY = 4096 * 4096  # pixels times tokens from which a float64 map takes minutes of a CPU
LAYER = "layer"
FEATURES = 16  # width of the hidden states that the gates are made from


@dataclass(frozen=True)
class Shape:
    """What one attention call gets: q [B,H,N,D], k and v [B,H,T,D]."""

    kind: str  # "cross" | "self", where T is N
    B: int
    H: int
    N: int
    T: int
    D: int
    columns: bool = True  # whether the columns are looked at as well
    rules: tuple[str, ...] = ()  # names in RULES; empty: all
    spread: float = 2.0  # standard deviation of the scores before softmax
    note: str = ""  # a trap of traps.py, or a word on the shape; without one q, k and v are views of [B,N,H,D]

    def __str__(self) -> str:
        return f"{self.kind} {self.B}x{self.H}x{self.N}x{self.T}x{self.D}" + f" {self.note}" * bool(self.note)

    @property
    def heavy(self) -> bool:
        return self.N * self.T >= HEAVY


def _plain(shape: Shape, draw: Generator) -> None:
    """No rule at all: attention."""


def _replace(shape: Shape, draw: Generator) -> Rule:
    """Prompt-to-Prompt, a word replaced: every token reads the source, the new word the mean of the old one's two."""
    return _planned(shape, draw, "replaced", follow=1)


def _refine(shape: Shape, draw: Generator) -> Rule:
    """Prompt-to-Prompt, a word inserted: it reads its own column, every other token the source."""
    return _planned(shape, draw, "inserted", follow=1)


def _reweight(shape: Shape, draw: Generator) -> Rule:
    """Refine with columns scaled, one of them negatively."""
    factors = tuple((1.0, 3.0, -0.5)[j % 3] for j in range(shape.T))
    return _planned(shape, draw, "inserted", follow=1, weights=factors)


def _fwt(shape: Shape, draw: Generator) -> Rule:
    """AdapEdit without a gate: some tokens read the source, those released read their own."""
    return _planned(shape, draw, "inserted", follow=2)


def _dps(shape: Shape, draw: Generator) -> Rule:
    """AdapEdit amid the run: some tokens read the source, those released are blended pixel by pixel."""
    return _planned(shape, draw, "inserted", follow=2, gated=True)


def _dps_mix(shape: Shape, draw: Generator) -> Rule:
    """The same after a word was replaced: it is blended with the mean of the old one's two columns."""
    return _planned(shape, draw, "replaced", follow=2, gated=True)


def _dps_end(shape: Shape, draw: Generator) -> Rule:
    """AdapEdit's last steps: every token is blended but the inserted one."""
    return _planned(shape, draw, "inserted", follow=0, gated=True)


def _dps_mix_end(shape: Shape, draw: Generator) -> Rule:
    """The same after a word was replaced: nothing but blending."""
    return _planned(shape, draw, "replaced", follow=0, gated=True)


def _inject(shape: Shape, draw: Generator) -> Rule:
    """Self-attention injection: the target reads the source's q and k."""
    return SELF_RULE


def _masactrl(shape: Shape, draw: Generator) -> Rule:
    """MasaCtrl: the target rows read k and v of their source rows."""
    return Rule(None, (0, 0, SOURCE, SOURCE), (0, 0, SOURCE, SOURCE))


def _masked(shape: Shape, draw: Generator) -> Rule:
    """MasaCtrl with foreground and background apart: some keys are hidden from some pixels of the target rows."""
    pixels, keys = torch.rand(shape.N, generator=draw) < 0.3, torch.rand(shape.T, generator=draw) < 0.4
    keys[:2] = torch.tensor([True, False])  # one of each kind
    same = pixels[:, None] == keys
    return replace(_masactrl(shape, draw), masks=(Mask(1, same), Mask(SOURCE + 1, same)))


def _two_rows(shape: Shape, draw: Generator) -> Rule:
    """Two edited rows, one the source of the other: P_s is that before any edit. One mixes no columns."""
    odd = (torch.arange(shape.T) % 2).float()
    first = Edit(SOURCE, 0, None, pin=odd, blend=torch.zeros(shape.T), own=1 - odd)
    return Rule(edits=(first, *_dps(shape, draw).edits))


def _general(shape: Shape, draw: Generator) -> Rule:
    """Routed rows and an edit of them with dense weights, a dense mix and a gate from 0 to 1."""
    mix = torch.rand(shape.T, shape.T, generator=draw)
    gate = torch.rand(shape.N, generator=draw).mul(1.2).sub(0.1).clamp(0, 1)
    edit = Edit(1, 3, mix / mix.sum(0), *torch.rand(3, shape.T, generator=draw), gate=gate)
    return Rule((1, 0, 2, 2), (1, 0, 3, 2), (3, 1, 2, 0), (edit,))


def _all(shape: Shape, draw: Generator) -> Rule:
    """The same with masks of any form, of an edited row and of its source."""
    some = torch.rand(2, shape.N, shape.T, generator=draw) < 0.5
    some[..., -1] = True  # a key for each pixel
    return replace(_general(shape, draw), masks=(Mask(1, some[0]), Mask(3, some[1])))


_MADE = (
    *(_plain, _replace, _refine, _reweight, _fwt, _dps, _dps_mix, _dps_end, _dps_mix_end),
    *(_inject, _masactrl, _masked, _two_rows, _general, _all),
)
RULES: dict[str, Callable[[Shape, Generator], Rule | None]] = dict(zip(names.RULES, _MADE, strict=True))


def _planned(
    shape: Shape, draw: Generator, change: str, follow: int, gated: bool = False, weights: tuple[float, ...] = ()
) -> Rule:
    """The first step's rule of a plan for two prompts. follow: 0 no token reads the source, 1 all that can, 2 half."""
    source, target = _prompts(shape.T, change)
    columns, has_source = column_map(source, target, align(source, target))
    keys = F.normalize(torch.randn(FEATURES, generator=draw), dim=0)
    plan = Plan(
        cross_sites=(LAYER,),
        columns=columns,
        pinned=tuple((0, int(has and follow > 0 and j % follow == 0)) for j, has in enumerate(has_source.tolist())),
        gated=tuple(has_source.tolist()),
        gates={LAYER: Gate(keys, scale=0.95, slope=1.0, centre=True)} if gated else {},
        weights=weights,
        weighted=((0, 1),) * len(weights),
    )
    return plan.rules(0)[LAYER].resolve(torch.randn(4, shape.N, FEATURES, generator=draw))


def _prompts(tokens: int, change: str) -> tuple[Prompt, Prompt]:
    """Source and target: a first word of two tokens is replaced by one of one, or is inserted; then words are kept."""
    kept = [(f"kept {i}", 1) for i in range(min(tokens - 4, 9))]
    old, new = ([("old", 2)], [("new", 1)]) if change == "replaced" else ([], [("new", 1)])
    return _prompt(old + kept, tokens), _prompt(new + kept, tokens)


def _prompt(words: list[tuple[str, int]], tokens: int) -> Prompt:
    """A prompt of words, each with its number of tokens. Which tokens they are, nobody asks."""
    placed, start = [], 1
    for text, count in words:
        placed.append(Word(text, range(start, start + count)))
        start += count
    return Prompt("", ids=(0,) * tokens, words=tuple(placed), length=start + 1)
