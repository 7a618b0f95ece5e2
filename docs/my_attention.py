"""An attention function to start your own from: every rule, no [N,T] map of all pixels, plain PyTorch.

minedit kernels check --attention my_attention:attend        (docs/kernels.md says what each argument means)
"""

import torch

PIXELS = 1024  # of the map held at a time


def attend(q, k, v, rule=None, columns=False):
    """q [B,H,N,D], k and v [B,H,T,D] -> out [B,H,N,D]; with columns also the probabilities' mean over heads [B,N,T]."""
    if rule is not None:
        q, k, v = rule.route(q, k, v)  # rows that read another row's q, k or v
    outs, seen = [], []
    for start in range(0, q.shape[2], PIXELS):
        pixels = slice(start, start + PIXELS)
        scores = q[:, :, pixels].float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5  # [B, H, n, T]
        for mask in rule.masks if rule is not None else ():
            scores[mask.row].masked_fill_(~mask.keys[pixels], float("-inf"))  # keys that these pixels do not see
        before = scores.softmax(dim=-1)
        after = before.clone() if rule is not None and rule.edits else before
        for edit in rule.edits if rule is not None else ():
            own, source = before[edit.row], before[edit.source]  # [H, n, T]
            if edit.columns is not None:
                source = source @ edit.columns
            w = 1 if edit.gate is None else edit.gate[pixels, None]  # [n, 1]
            blend = (1 - w) * source + w * own
            after[edit.row] = edit.pin * source + edit.blend * blend + edit.own * own
        outs.append((after @ v.float()).to(v.dtype))
        if columns:
            seen.append(before.mean(dim=1))  # [B, n, T]
    out = torch.cat(outs, dim=2)
    return (out, torch.cat(seen, dim=1)) if columns else out
