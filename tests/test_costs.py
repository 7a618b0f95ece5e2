"""What every method and inversion costs: rows of the UNet in a run, counted by a hook, beside what each should need.

A row is one latent through the UNet once. A new method or inversion needs its line here: reckon it from its paper.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from seeded import fill, normal
from small_model import small_model

import minedit
from minedit.stack.unet import UNet

STEPS = 5
PAIR = "a boy in the park", "a sitting boy in the park"
DRAWN = "a picture of the source prompt"  # in place of a photograph
AS_IT_IS = "a photograph"  # of methods that invert none
PAIRS = 4 * STEPS  # source and target, each without and with its prompt
# By the step from which a run begins: rows of the edit where the source's course is known, which are the target's two,
# and those of the source that it reads.
READ = {
    "fixed-seed": lambda step: 0,
    "p2p": lambda step: int(step < 4),  # .8 of the steps
    "adapedit": lambda step: 1,
    "masactrl": lambda step: 2 * (step == 4),  # both halves, from the fifth step on
    "freeprompt": lambda step: int(step < 2),  # .4
    "plug-and-play": lambda step: int(step < 4),  # .8
}


def lean(method, first=0):
    return sum(2 + READ[method](step) for step in range(first, STEPS)) + statistics(method, first)


def statistics(method, first=0):
    return 2 * (STEPS - first) if method == "adapedit" else 0


COST = {
    **{(method, DRAWN): PAIRS + statistics(method) for method in READ},
    **{(method, "ddim"): STEPS + PAIRS + statistics(method) for method in READ},
    **{(method, "direct"): STEPS + lean(method) for method in READ},
    # ten inner steps at each, the row that they aim at and the one that they end with
    **{(method, "null-text"): STEPS + 12 * STEPS + PAIRS + statistics(method) for method in READ},
    **{(method, "negative-prompt"): STEPS + 3 * STEPS + statistics(method) for method in READ},  # source: one row
    **{(method, "edit-friendly"): 2 * 4 + lean(method, first=1) for method in READ},  # .36 of the steps left out
    # two latents, .8 of the steps: inverted by guidance, then drawn
    **{(method, "edict"): 2 * (2 * 4 + 4 * 4) + statistics(method, first=1) for method in READ},
    ("sdedit", DRAWN): 2 * STEPS + 2 * 4,  # .8 of the steps
    ("sdedit", AS_IT_IS): 2 * 4,
    ("flow", DRAWN): 2 * STEPS + 4 * 3,  # the first .3 skipped
    ("flow", AS_IT_IS): 4 * 3,
    ("adapedit+", DRAWN): 2 * STEPS + 4 + 4 * 4,  # the first .2 skipped, the next with mutual attention and without
    ("adapedit+", AS_IT_IS): 4 + 4 * 4,
    ("h-edit", DRAWN): 4 * STEPS + 4 * 3 + 3 * 2,  # the source is read for .6 of the steps
    ("h-edit", AS_IT_IS): STEPS + 2 * STEPS + 4 * 3 + 3 * 2,
    ("instruct-pix2pix", AS_IT_IS): 3 * STEPS,
}


def ways():
    for method, kind in minedit.METHODS.items():
        if not getattr(kind, "reads_photo", False):
            yield method, DRAWN
        for inversion in minedit.INVERSIONS if getattr(kind, "inverts", True) else [AS_IT_IS]:
            yield method, inversion


@pytest.fixture(scope="module")
def models():
    plain = small_model()
    config = replace(plain.config, unet=replace(plain.config.unet, in_channels=8))
    return plain, replace(plain, config=config, unet=fill(UNet(config.unet)).requires_grad_(False))


@pytest.mark.parametrize("method, how", list(ways()), ids=lambda part: part.split()[-1])
def test_rows_of_the_unet(models, method, how):
    sd, found = models[getattr(minedit.METHODS[method], "reads_photo", False)], []
    photo = {} if how is DRAWN else {"image": normal("a photograph", 1, 4, 8, 8)}
    photo |= {"inversion": how} if how in minedit.INVERSIONS else {}
    with sd.unet.register_forward_pre_hook(lambda _, given: found.append(len(given[0]))):
        res = minedit.edit(sd, *PAIR, method, steps=STEPS, **photo)
    assert res.rows == sum(found), "edit counts otherwise"
    assert (method, how) in COST, f"add its cost, if {res.rows} rows of {STEPS} steps are what it needs"
    print(f"\n{method:18} {how:32} {res.rows:4} rows of {STEPS} steps")
    assert res.rows == COST[method, how]


def test_no_line_is_of_a_method_that_is_gone():
    assert set(COST) <= set(ways())


def test_a_source_that_several_methods_ask_for_is_drawn_once():
    sd = small_model()
    targets = [{"target": PAIR[1], "method": method} for method in ("flow", "sdedit")]
    together = minedit.edits(sd, PAIR[0], targets, steps=STEPS)
    assert together[-1].rows == COST["flow", AS_IT_IS] + COST["sdedit", DRAWN]
    alone = minedit.edit(sd, PAIR[0], PAIR[1], "sdedit", steps=STEPS)
    assert torch.equal(together[1].edited_latent, alone.edited_latent)
    assert not sd.unet._forward_pre_hooks  # edit's own
