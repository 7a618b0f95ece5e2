"""FlexAttention as a baseline: torch's compiler makes one kernel of attention and a change of its scores.

No change of scores is an edit. An edit mixes two softmaxes of different q and k after each was divided by its sum, and
`score_mod` and `mask_mod` are asked before that, about one. By linearity it takes two calls, with wide values:

    [A | B] = P_s [R diag(pin) V | R diag(blend) V]        C = P_t [diag(blend) V | diag(own) V]
    out = A + (1 - w) B + w C_1 + C_2

Tried like any function, `--attention minedit.lab.flex:attend`. It compiles anew for every shape, on a CPU for seconds.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from minedit.attention.rules import Edit, Rule, check
from minedit.attention.sdpa import _columns, _scaled
from minedit.config import MineditError

SHAPES = 64  # that are compiled, before torch goes on without compiling


def attend(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`eager` in one call of FlexAttention for all rows and two for each edit. Raises MineditError for masks."""
    check(q, k, v, rule)
    rule = rule or Rule()
    if rule.masks:
        raise MineditError("the FlexAttention baseline has no masks: its mask_mod could serve them, but not edits")
    q, k, v = rule.route(q, k, v)
    rows = list(_flex(q, k, v))  # of [H, N, D]
    for edit in rule.edits:
        rows[edit.row] = _edited(q, k, v[edit.row], edit).to(v.dtype)
    out = torch.stack(rows)
    return (out, _columns(q, k, {})) if columns else out


def _edited(q: Tensor, k: Tensor, v: Tensor, edit: Edit) -> Tensor:
    """[H,N,D] float32 of v [H,T,D]: A + (1 - w) B + w C_1 + C_2."""
    s, t = edit.source, edit.row
    w = 1.0 if edit.gate is None else edit.gate.to(q.device)[:, None]  # [N, 1]
    wide = [torch.cat([*x], -1) for x in (_scaled(v, edit.pin, edit.blend, columns=edit.columns),
                                         _scaled(v, edit.blend, edit.own))]  # [H, T, 2D]  # fmt: skip
    pinned, blended = _flex(q[s][None], k[s][None], wide[0][None])[0].float().chunk(2, -1)
    own, kept = _flex(q[t][None], k[t][None], wide[1][None])[0].float().chunk(2, -1)
    return pinned + (1 - w) * blended + w * own + kept


def _flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch._dynamo.config.patch(recompile_limit=SHAPES):
        return _compiled()(q, k, v)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)
