"""`eager` on torch's fused kernels, without the probabilities in memory: the algebra of a Rule."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from minedit.attention.inside import float32
from minedit.attention.rules import Edit, Rule, check

AT_ONCE = 2**22  # probabilities that `_columns` holds at once, unless one head has more


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`eager` without the probabilities: they enter the output linearly, so weights on columns are weights on values,

        out = P_s R diag(pin) V + (1 - w) P_s R diag(blend) V + w P_t diag(blend) V + P_t diag(own) V.

    One call for all rows, another for each that has a mask, two more for each edited row. [B,N,T] exists only when
    `columns` asks for it.
    """
    check(q, k, v, rule)
    rule = rule or Rule()
    q, k, v = rule.route(q, k, v)
    masks = {mask.row: mask.keys.to(q.device) for mask in rule.masks}
    values = list(v)  # of [H, T, D]
    for edit in rule.edits:
        (values[edit.row],) = _scaled(v[edit.row], edit.own if edit.gate is not None else edit.own + edit.blend)
    out = _attention(q, k, torch.stack(values) if rule.edits else v, masks)  # [B, H, N, D]
    if rule.edits:
        rows = list(out)  # of [H, N, D]
        for edit in rule.edits:
            rows[edit.row] = (rows[edit.row].float() + _borrowed(q, k, v, edit, masks)).to(out.dtype)
        out = torch.stack(rows)
    return (out, _columns(q, k, masks)) if columns else out


def _attention(q: Tensor, k: Tensor, v: Tensor, masks: Mapping[int, Tensor]) -> Tensor:
    """[B,H,N,D]. Rows with a mask go alone: the kernels are slower for all rows of a call that has one."""
    if not masks:
        return F.scaled_dot_product_attention(q, k, v)
    one = {row: [x[row : row + 1] for x in (q, k, v)] for row in masks}  # of four dimensions, as a GPU's kernels want
    rows = {row: F.scaled_dot_product_attention(*one[row], mask)[0] for row, mask in masks.items()}
    plain = [row for row in range(len(q)) if row not in masks]
    if plain:
        some = (torch.stack([x[row] for row in plain]) for x in (q, k, v))
        rows |= zip(plain, F.scaled_dot_product_attention(*some), strict=True)
    return torch.stack([rows[row] for row in range(len(q))])


def _borrowed(q: Tensor, k: Tensor, v: Tensor, edit: Edit, masks: Mapping[int, Tensor]) -> Tensor:
    """All of an edited row but P_t diag(own) V: [H,N,D] float32."""
    s, t = edit.source, edit.row
    if edit.gate is None:
        return _call(q[s], k[s], _scaled(v[t], edit.pin, columns=edit.columns), masks.get(s))[0]
    pinned, blended = _call(q[s], k[s], _scaled(v[t], edit.pin, edit.blend, columns=edit.columns), masks.get(s))
    (own,) = _call(q[t], k[t], _scaled(v[t], edit.blend), masks.get(t))
    w = edit.gate.to(own)[:, None]  # [N, 1]
    return pinned + torch.lerp(blended, own, w)


def _call(q: Tensor, k: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one row for several sets of values [S,H,T,D] -> [S,H,N,D] float32.

    They are rows of a batch, not wider heads: the fused kernels want q and v of one width.
    """
    n = len(values)
    return F.scaled_dot_product_attention(q.expand(n, *q.shape), k.expand(n, *k.shape), values, mask).float()


def _scaled(v: Tensor, *weights: Tensor, columns: Tensor | None = None) -> Tensor:
    """R diag(w) V for each w of `weights`: [S,H,T,D], computed in float32, in v's dtype."""
    (heads, t, d), sets = v.shape, len(weights)
    wide = v.transpose(0, 1).reshape(t, heads * d).float()  # as the heads lay before they were split: no copy
    scaled = torch.cat([w.to(v.device)[:, None] * wide for w in weights], dim=1)  # [T, S·H·D]
    if columns is not None:
        with float32(v):
            scaled = columns.to(scaled) @ scaled
    return scaled.to(v.dtype).view(t, sets, heads, d).permute(1, 2, 0, 3)


def _columns(q: Tensor, k: Tensor, masks: Mapping[int, Tensor]) -> Tensor:
    """Probabilities, mean over heads: [B,N,T] float32, of a few heads at a time."""
    (b, heads, n, width), t = q.shape, k.shape[2]
    few = max(1, AT_ONCE // (b * n * t))
    total = 0.0
    with float32(q):
        for some_q, some_k in zip(q.split(few, dim=1), k.split(few, dim=1), strict=True):
            scores = some_q.float() @ some_k.float().transpose(-1, -2) / width**0.5
            for row, mask in masks.items():
                scores[row] = scores[row].masked_fill(~mask, -torch.inf)
            total = total + scores.softmax(dim=-1).sum(dim=1)
    return total / heads
