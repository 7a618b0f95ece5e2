"""The specification of attention, written to be read: it makes the probabilities and applies the Rule to the letter.

In: q [B,H,N,D], k and v [B,H,T,D], maybe a Rule. Out: [B,H,N,D], and on request the probabilities' columns [B,N,T].
"""

import torch
from torch import Tensor

from minedit.attention.inside import float32
from minedit.attention.rules import Edit, Rule, check


def eager(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The specification: materialises the probabilities [B,H,N,T] and applies the rule to the letter, in float32."""
    check(q, k, v, rule)
    rule = rule or Rule()
    q, k, v = rule.route(q, k, v)
    with float32(q):
        scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5  # [B, H, N, T]
        for mask in rule.masks:
            scores[mask.row] = scores[mask.row].masked_fill(~mask.keys.to(scores.device), -torch.inf)
        probabilities = scores.softmax(dim=-1)
        rows = list(probabilities)  # of [H, N, T]
        for edit in rule.edits:
            rows[edit.row] = edited(probabilities[edit.row], probabilities[edit.source], edit)
        out = (torch.stack(rows) @ v.float()).to(v.dtype)  # [B, H, N, D]
    return (out, probabilities.mean(dim=1)) if columns else out


def edited(own: Tensor, source: Tensor, edit: Edit) -> Tensor:
    """M of an Edit, its gate resolved, from P_t and P_s [..., N, T]: of heads, or of their means, as it is linear."""
    if edit.columns is not None:
        source = source @ edit.columns.to(source)
    pin, blend, keep = (x.to(own) for x in (edit.pin, edit.blend, edit.own))
    w = 1.0 if edit.gate is None else edit.gate.to(own)[:, None]  # [N, 1]
    return pin * source + blend * ((1 - w) * source + w * own) + keep * own
