"""h-Edit's noise (hedit.py says what it is): all that a step adds to the latents, as the one noise that leads there.

Beside a pair's four rows the edit stands once more, without rules, led by the source prompt: six rows of three latents.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minedit.attention.rules import Attn
from minedit.methods import Job
from minedit.sampling import ddim
from minedit.sampling.guidance import two_way
from minedit.sampling.loop import Predict
from minedit.sampling.rows import few, needed
from minedit.settings import Settings
from minedit.stack.model import Model

PAIR = 0, 1, 3, 4  # where the four rows stand among the six
NONE_SOURCE, NONE, SOURCE, TARGET, AGAIN = 0, 1, 3, 4, 5  # unconditional: of the source, of the edit; conditional ones
TEXTS = [0, 1, 1, 2, 3, 2]  # of the four


def predicting(job: Job, settings: Settings, known: Predict | None) -> Predict:
    """The noise of source and edit [2, 4, h, w].

    settings: hedit.py's; known: predicts what leads along the source's course, None: the guidance of the run does.
    """
    model, schedule = job.sd, ddim.schedule(job.run.steps)
    guidance = 1.0 if known else job.run.guidance
    led = [SOURCE, AGAIN] if guidance == 1 else [NONE_SOURCE, NONE, SOURCE, AGAIN]

    def term(eps: Tensor) -> Tensor:
        """f [1, 4, h, w], of the six rows' noise."""
        none, target, source = (eps[row : row + 1] for row in (NONE, TARGET, AGAIN))
        return two_way(none, target, settings.edit_guidance) - two_way(none, source, settings.original_guidance)

    def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        plain = replace(attn, rules={}, watch={})
        asked = (plain, led) if settings.implicit else (attn, [*led, NONE, TARGET])
        eps = noises(model, latents, t, asked[0], context, asked[1])
        both = two_way(eps[[NONE_SOURCE, NONE]], eps[[SOURCE, AGAIN]], guidance)  # by the source prompt
        source = known(latents[:1], step, t, plain, context) if known else both[:1]
        edit = both[1:] + (source - both[:1])
        if not settings.implicit:
            return torch.cat([source, edit + term(eps)])
        t_prev = schedule[step][1]
        own, base = ddim.step(latents, torch.cat([source, edit]), t, t_prev)[0].split(1)
        x = base
        for turn in range(settings.optimisation_steps):
            f = term(noises(model, torch.cat([own, x]), max(t_prev, 0), attn, context, [NONE, TARGET, AGAIN]))
            back = settings.reconstruction * f.square().mean().sqrt() * (x - base).sign() if turn else 0
            x = x - back + ddim.step(torch.zeros_like(f), f, t, t_prev)[0]
        return torch.cat([source, ddim.noise_between(latents[1:], x, t, t_prev)])

    return predict


def noises(model: Model, latents: Tensor, t: int, attn: Attn, context: Tensor, drawn: Sequence[int]) -> Tensor:
    """The noise [6, 4, h, w] of source and edit [2, 4, h, w]: of the rows `drawn` and those that they read, else 0.

    attn, context: of a pair's four rows, as is what layers report.
    """
    rules = {name: rule.moved(dict(enumerate(PAIR)), len(TEXTS)) for name, rule in attn.rules.items()}
    inner = replace(attn, rules=rules, seen={}, rows=dict(enumerate(PAIR)))
    rows = needed(rules, [*drawn], {SOURCE} if attn.watch else set())
    eps = few(model, torch.cat([latents, latents[1:]]), t, inner, context[TEXTS], {row: row for row in rows})
    attn.seen.update({name: seen.of(PAIR) for name, seen in inner.seen.items()})
    return eps
