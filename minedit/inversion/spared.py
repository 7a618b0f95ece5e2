"""Fewer rows of the UNet: where the source's course is known, what it predicts is computed only for others to read."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from minedit.attention.rules import Attn, Rule, Seen
from minedit.sampling import ddim
from minedit.sampling.guidance import two_way
from minedit.sampling.loop import Predict, Step
from minedit.sampling.way import Job


def back_on(trajectory: Tensor) -> Callable[[Step], Tensor]:
    """What puts the source, the first row, on its course [steps + 1, 1, 4, h, w] after each step."""
    return lambda step: torch.cat([trajectory[step.index + 1], step.latents[1:]])


def spared(job: Job, trajectory: Tensor) -> Predict:
    """`loop.guided`, but the source's noise is that which leads along the trajectory [steps + 1, 1, 4, h, w].

    Rows of the UNet that nobody reads are left out; what layers report of them is 0.
    """
    model, guidance, schedule = job.sd, job.run.guidance, ddim.schedule(job.run.steps)

    def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        count = len(latents)
        known = ddim.noise_between(latents[:1], trajectory[step + 1], t, schedule[step][1])
        if count == 1:
            return known
        drawn = [*range(1, count), *range(count + 1, 2 * count)]
        rows = needed(attn.rules, drawn, {count} if attn.watch else set())
        to = {row: at for at, row in enumerate(rows)}
        inner = replace(attn, rules={name: rule.moved(to, len(rows)) for name, rule in attn.rules.items()}, seen={})
        batch = torch.cat([latents, latents])[rows].to(model.dtype)
        times = torch.full((len(rows),), t, device=latents.device)
        found = model.unet(batch, times, context[rows], inner).float()
        attn.seen.update({name: _spread(seen, rows, 2 * count) for name, seen in inner.seen.items()})
        eps = two_way(*_rows(found, rows, 2 * count).chunk(2), guidance)
        return torch.cat([known, eps[1:]])

    return predict


def needed(rules: Mapping[str, Rule], drawn: list[int], more: set[int]) -> list[int]:
    """The rows `drawn` and `more`, and all that these read by any rule, in order."""
    found, fresh = set(), {*drawn, *more}
    while fresh:
        found |= fresh
        fresh = {row for rule in rules.values() for each in fresh for row in rule.reads(each)} - found
    return sorted(found)


def _rows(x: Tensor, rows: list[int], count: int) -> Tensor:
    """x [R, ...] at `rows` of [count, ...], 0 elsewhere."""
    whole = x.new_zeros(count, *x.shape[1:])
    whole[rows] = x
    return whole


def _spread(seen: Seen, rows: list[int], count: int) -> Seen:
    columns = None if seen.columns is None else _rows(seen.columns, rows, count)
    return Seen(_rows(seen.hidden, rows, count), columns)
