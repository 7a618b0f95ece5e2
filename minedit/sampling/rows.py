"""Fewer rows of the UNet than twice the latents: those that are wanted, and what attention rules let them read."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from minedit.attention.inside import spread
from minedit.attention.rules import Attn, Rule
from minedit.stack.model import Model


def needed(rules: Mapping[str, Rule], drawn: list[int], more: set[int]) -> list[int]:
    """The rows `drawn` and `more`, and all that these read by any rule, in order."""
    found, fresh = set(), {*drawn, *more}
    while fresh:
        found |= fresh
        fresh = {row for rule in rules.values() for each in fresh for row in rule.reads(each)} - found
    return sorted(found)


def few(
    model: Model, latents: Tensor, t: int, attn: Attn, context: Tensor, by: Mapping[int, int], *told: float
) -> Tensor:
    """The noise [2B, 4, h, w] of B latents, of which row r is computed as row by[r]; of others it is 0.

    So is what layers report of them. told: the guidance scale, where the UNet is told one beside the time.
    """
    rows, count = sorted({*by.values()}), 2 * len(latents)
    to = {row: rows.index(at) for row, at in by.items()}
    inner = replace(attn, rules={name: rule.moved(to, len(rows)) for name, rule in attn.rules.items()}, seen={})
    if attn.tap is not None:
        asked = dict(enumerate(range(count))) if attn.rows is None else attn.rows
        inner = replace(inner, rows={row: to[at] for row, at in asked.items() if at in to})
    batch = torch.cat([latents, latents])[rows].to(model.dtype)
    times = torch.tensor([[t, *told]] if told else [t], device=latents.device).expand(len(rows), *[-1] * bool(told))
    found, places = model.unet(batch, times, context[rows], inner).float(), [*to.values()]
    attn.seen.update({name: seen.of(places).placed([*to], count) for name, seen in inner.seen.items()})
    return spread(found[places], [*to], count)
