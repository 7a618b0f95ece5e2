"""The answer: the formula of `attention.Edit` written out once more, in float64, and the distance from it.

Shares nothing with `attention.eager` on purpose: what both get wrong alike would pass for right.
"""

import torch
from torch import Tensor

from minedit.attention.rules import Rule

ENTRIES = 2**23  # of the map held at a time: 64 MiB in float64, a few times over


def oracle(q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = True) -> tuple[Tensor, Tensor]:
    """(out [B,H,N,D], columns [B,N,T]) in float64, for a few pixels at a time; columns is empty unless asked for.

    Computed on the CPU where the device has no float64.
    """
    rule = rule or Rule()
    place = q.device if q.device.type in ("cpu", "cuda") else torch.device("cpu")
    own_rows = range(len(q))
    q, k, v = (
        x.detach().to(place).double()[list(rows or own_rows)]
        for x, rows in ((q, rule.q_rows), (k, rule.k_rows), (v, rule.v_rows))
    )
    B, H, N, D = q.shape
    T = k.shape[2]
    out, seen = [], []
    step = max(1, ENTRIES // (B * H * T))
    for start in range(0, N, step):
        pixels = slice(start, start + step)
        scores = q[:, :, pixels] @ k.transpose(2, 3) / D**0.5  # [B, H, n, T]
        for mask in rule.masks:
            scores[mask.row, :, ~mask.keys.to(place)[pixels]] = float("-inf")
        powers = (scores - scores.amax(3, keepdim=True)).exp()
        p = powers / powers.sum(3, keepdim=True)
        m = p.clone()
        for edit in rule.edits:
            pin, blend, own = (x.to(place).double() for x in (edit.pin, edit.blend, edit.own))
            target, source = p[edit.row], p[edit.source]  # [H, n, T]
            if edit.columns is not None:
                source = torch.einsum("hni,ij->hnj", source, edit.columns.to(place).double())
            w = torch.ones(N, device=place) if edit.gate is None else edit.gate.to(place)
            w = w.double()[pixels, None]  # [n, 1]
            m[edit.row] = pin * source + blend * ((1 - w) * source + w * target) + own * target
        out.append(m @ v)
        if columns:
            seen.append(p.mean(1))  # [B, n, T]
    return torch.cat(out, 2), torch.cat(seen, 1) if columns else torch.empty(0, device=place)


def distance(found: Tensor, true: Tensor) -> float:
    """max |found - true|; nan where anything is."""
    return (found.to(true.device).double() - true).abs().max().item()
