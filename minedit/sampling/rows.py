"""Fewer rows of the UNet than twice the latents: those that are wanted, and what attention rules let them read."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from minedit.attention.rules import Attn, Rule, Seen
from minedit.stack.model import Model


def needed(rules: Mapping[str, Rule], drawn: list[int], more: set[int]) -> list[int]:
    """The rows `drawn` and `more`, and all that these read by any rule, in order."""
    found, fresh = set(), {*drawn, *more}
    while fresh:
        found |= fresh
        fresh = {row for rule in rules.values() for each in fresh for row in rule.reads(each)} - found
    return sorted(found)


def few(model: Model, latents: Tensor, t: int, attn: Attn, context: Tensor, by: Mapping[int, int]) -> Tensor:
    """The noise [2B, 4, h, w] of B latents, of which row r is computed as row by[r]; of others it is 0.

    So is what layers report of them.
    """
    rows, count = sorted({*by.values()}), 2 * len(latents)
    to = {row: rows.index(at) for row, at in by.items()}
    inner = replace(attn, rules={name: rule.moved(to, len(rows)) for name, rule in attn.rules.items()}, seen={})
    batch = torch.cat([latents, latents])[rows].to(model.dtype)
    times = torch.full((len(rows),), t, device=latents.device)
    found = model.unet(batch, times, context[rows], inner).float()
    attn.seen.update({name: _spread(seen, to, count) for name, seen in inner.seen.items()})
    return _rows(found, to, count)


def _rows(x: Tensor, to: Mapping[int, int], count: int) -> Tensor:
    """Row to[r] of x [R, ...] at row r of [count, ...], 0 elsewhere."""
    whole = x.new_zeros(count, *x.shape[1:])
    whole[list(to)] = x[list(to.values())]
    return whole


def _spread(seen: Seen, to: Mapping[int, int], count: int) -> Seen:
    columns = None if seen.columns is None else _rows(seen.columns, to, count)
    return Seen(_rows(seen.hidden, to, count), columns)
