"""Found against expected: how far apart, where, and which well-known mistake gives just these numbers.

In: what a function returned for a case of cases.py, the float64 answer, and the error allowed. Out: lines to print.
A mistake is recognised by computing what it would give, in float64, and finding that.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minedit.attention.rules import Rule
from minedit.lab.cases import Case
from minedit.lab.oracle import distance, oracle

SHOWN = 5  # mismatches of one report
TILES = (128, 64, 32, 16)
LN2 = 0.6931471805599453
TRAPPED = {  # what a shape is there for, by its note: what may be wrong where it is
    "NaN around": "memory around q, k and v is NaN here: mask loads beyond N, T and D; 0 times NaN is NaN",
    "misaligned": "q, k and v begin at odd addresses here: not at 0 of their storage, nor at a multiple of 16 bytes",
    "numbers apart": "a head's numbers are two apart here: the last stride is not 1",
    "rows are one": "q, k and v are expanded here: the first stride is 0",
    "minus zeros": "scores and values are 0 or -0 here: the sign says nothing",
    "denormals": "weights or values are below the smallest normal number here: 1 / largest is infinite",
    "hidden key": "a hidden key has the largest scores: put -inf in their place, added negatives are too little",
    "one token": "there is one token here: its probability is 1",
    "one pixel": "there is one pixel here",
    "one row": "there is one row here",
    "odd width": "D is 23 here: neither a tile nor a vector of numbers divides it",
}


def mismatches(name: str, found: Tensor, true: Tensor, limit: float) -> Iterator[str]:
    """How many numbers are off, and the first of them by index."""
    off = _off(found, true, limit)
    yield f"{int(off.sum())} of {off.numel()} numbers are off, the first of them:"
    for index in map(tuple, off.nonzero()[:SHOWN].tolist()):
        place = ",".join(map(str, index))
        yield f"{name}[{place}] found {found[index].item():.6g}, expected {true[index].item():.6g}"


def hints(case: Case, found: Tensor, true: Tensor, limit: float) -> Iterator[str]:
    """Guesses at what a wrong out [B,H,N,D] comes from."""
    if not found.isfinite().all():
        yield f"{int((~found.isfinite()).sum())} numbers are NaN or infinite"
        if case.shape.spread > 10:
            yield "the scores are large here: subtract each pixel's largest before exp"
        return
    found, off = found.to(true.device).double(), _off(found, true, limit)
    rows = off.flatten(1).any(1)  # [B]
    known = []
    for text, answer in _mistakes(case, true.device):
        if _is(found[rows], answer()[rows], true[rows], limit):
            known.append(f"these are the numbers of a function that {text}")
            break
    for b in rows.nonzero().flatten().tolist():
        known += [
            f"row {b} holds what belongs into row {a}"
            for a in range(len(found))
            if a != b and _is(found[b], true[a], true[b], limit)
        ]
    yield from known
    yield from _regions(off, case.rule)
    if not known and distance(found, true) < 0.02 * true.abs().max():
        yield "the error is small: sums or probabilities in low precision, such as TF32 or half?"


def column_hints(case: Case, found: Tensor, true: Tensor, limit: float) -> Iterator[str]:
    """Guesses at what wrong columns [B,N,T] come from, out being right."""
    q, k, v, rule = case.q, case.k, case.v, case.rule
    yield "out is right, only the columns are wrong"
    if not found.isfinite().all():
        yield f"{int((~found.isfinite()).sum())} of them are NaN or infinite"
        return
    eye = torch.eye(case.shape.T, device=q.device).expand(*k.shape[:2], -1, -1)  # as v: out is the map itself
    answers: dict[str, Callable[[], Tensor]] = {
        "the sum over heads, not their mean": lambda: true * case.shape.H,
        "those of the first head, not the mean over heads": lambda: oracle(q[:, :1], k[:, :1], v[:, :1], rule)[1],
        "the probabilities after the edit, not before": lambda: oracle(q, k, eye, rule)[0].mean(1),
        "those of q and k before the rule chose their rows": lambda: oracle(q, k, v)[1],
    }
    for text, answer in answers.items():
        if _is(found.to(true.device).double(), answer(), true, limit):
            yield f"these are {text}"
            return


def _off(found: Tensor, true: Tensor, limit: float) -> Tensor:
    """Where the numbers differ by more than the limit, or are none."""
    return ~((found.to(true.device).double() - true).abs() <= limit)


def _is(found: Tensor, other: Tensor, true: Tensor, limit: float) -> bool:
    """Whether `found` is `other`, and not by chance. Beside a mistake rounding may be more than the limit, too."""
    error = distance(found, true)
    return distance(found, other) <= min(max(limit, error / 1000), error / 10)


def _regions(off: Tensor, rule: Rule | None) -> Iterator[str]:
    """Where the wrong numbers [B,H,N,D] lie, if not everywhere."""
    B, H, N, D = off.shape
    rows, heads, pixels, width = (off.transpose(0, i).flatten(1).any(1).nonzero().flatten().tolist() for i in range(4))
    edited = sorted(edit.row for edit in rule.edits) if rule else []
    if edited and set(rows) <= set(edited):
        yield f"only rows {rows} are wrong, which the rule edits: attention itself is right"
    elif len(rows) < B:
        yield f"only rows {rows} of {B} are wrong"
    if len(heads) < H:
        yield f"only heads {heads} of {H} are wrong"
    if pixels[0] > 0 and pixels == list(range(pixels[0], N)):
        tiles = [f": the last, partial tile of {t}?" for t in TILES if pixels[0] == N - N % t]
        yield f"only pixels n >= {pixels[0]} of {N} are wrong{tiles[0] if tiles else ''}"
    if len(width) < D:
        yield f"only d from {width[0]} to {width[-1]} of {D} are wrong"


def _mistakes(case: Case, place: torch.device) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Mistakes often made, and how to compute the out [B,H,N,D] that they give."""
    D, T, rule = case.shape.D, case.shape.T, case.rule
    q, k, v = (x.to(place).double() for x in (case.q, case.k, case.v))

    def answer(rule: Rule | None = rule, scale: float = 1.0) -> Callable[[], Tensor]:
        return lambda: oracle(q * scale, k, v, rule, columns=False)[0]

    def resized(tokens: int) -> Callable[[], Tensor]:
        """With keys and values cut, or filled up with zeros, to `tokens`."""
        return lambda: oracle(q, *(F.pad(x, (0, 0, 0, tokens - T)) for x in (k, v)), columns=False)[0]

    padded = 1 << (D - 1).bit_length()
    yield "does not divide the scores by sqrt(D)", answer(scale=D**0.5)
    yield "divides the scores by D, not by its root", answer(scale=D**-0.5)
    yield f"divides the scores by sqrt({padded}), the padded width, not by sqrt({D})", answer(scale=(D / padded) ** 0.5)
    yield "takes exp2 of the scores without the factor log2(e)", answer(scale=LN2)
    if rule is None:
        for tile in TILES:
            if T % tile:
                yield f"counts {-T % tile} tokens beyond the last, up to a tile of {tile}", resized(T + -T % tile)
            if T % tile and T > tile:
                yield f"leaves out the tokens from {T - T % tile} on, a partial tile of {tile}", resized(T - T % tile)
    else:
        yield "ignores the rule", answer(None)
        yield from ((text, answer(other)) for text, other in _altered(rule, case.shape.B))


def _altered(rule: Rule, batch: int) -> Iterator[tuple[str, Rule]]:
    """Rules that a function may have applied in place of this one."""

    def edits(name: str, change: Callable[[Tensor | None], Tensor | None]) -> Rule:
        return replace(rule, edits=tuple(replace(e, **{name: change(getattr(e, name))}) for e in rule.edits))

    for name in ("q_rows", "k_rows", "v_rows"):
        yield f"ignores {name}", replace(rule, **{name: None})
    yield "ignores the masks", replace(rule, masks=())
    turned = tuple(replace(mask, keys=~mask.keys) for mask in rule.masks)
    yield "hides the keys that the masks let pixels see", replace(rule, masks=turned)
    yield "ignores the edits", replace(rule, edits=())
    yield "ignores the gate", edits("gate", lambda gate: None)
    yield "takes 1 - gate for the gate", edits("gate", lambda gate: None if gate is None else 1 - gate)
    yield "ignores the edit's columns R", edits("columns", lambda R: None)
    yield "transposes the edit's columns R", edits("columns", lambda R: None if R is None else R.T)
    for name in ("pin", "blend", "own"):
        yield f"leaves out {name}", edits(name, torch.zeros_like)
    values = list(rule.v_rows or range(batch))
    for edit in rule.edits:
        values[edit.row] = (rule.v_rows or range(batch))[edit.source]
    yield "multiplies an edited row's probabilities with the source's v", replace(rule, v_rows=tuple(values))
