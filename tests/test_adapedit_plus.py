"""adapedit+. Oracle: its share and its loop in float64, by explicit calls of the UNet with the eager backend."""

from __future__ import annotations

import pytest
import torch
from seeded import normal, relative
from small_model import small_model
from test_drift import A

import minedit
from minedit.attention.eager import eager
from minedit.attention.rules import Attn, Rule
from minedit.sampling.loop import embed

BOY, SITTING = "a boy in the park", "a sitting boy in the park"
SHORT = {"steps": 10, "guidance": 3.0, "seed": 5}
FIRST = 2  # of 10 steps, .2 are skipped


@pytest.fixture(scope="module")
def sd():
    return small_model()


def photo(sd):
    return normal("a photograph", 1, 4, 8, 8) / sd.config.latent_scale


def localised(added):
    """Where a pixel and those around it moved by .15 of the most and more it stays, by half of it and less it goes."""
    squares, (h, w) = added[0].square().sum(0), added.shape[2:]
    means = [
        [squares[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean().item() ** 0.5 for x in range(w)] for y in range(h)
    ]
    share = torch.tensor(means, dtype=torch.float64) / max(map(max, means))
    return added * ((share - 0.075) / 0.075).clamp(0, 1)


def formula(sd, begin, use):
    """(the share, the edit) of ten steps; use: whether the target reads the source from step `begin` on."""
    texts, x0 = embed(sd, ["", "", BOY, SITTING]), (photo(sd) * sd.config.latent_scale).double()
    names = [site.name for site in sd.unet.sites if site.kind == "self" and ".attn1" in site.name]
    mutual = {name: Rule(k_rows=(0, 0, 2, 2), v_rows=(0, 0, 2, 2)) for name in names if name.startswith("output")}
    assert 0 < len(mutual) < len(names)
    noises = torch.Generator("cpu").manual_seed(5)

    def difference(pair, t, rules):
        batch = torch.cat([pair, pair]).float()
        with torch.no_grad():
            eps = sd.unet(batch, torch.full((4,), t), texts, Attn(attend=eager, rules=rules)).double()
        guided = eps[:2] + 3.0 * (eps[2:] - eps[:2])
        return guided[1:] - guided[:1]

    added, times = torch.zeros_like(x0), [*range(901, 0, -100)]
    for step in range(FIRST, 10):
        a, after = A[times[step]], A[times[step + 1]] if step < 9 else A[0]
        noise = torch.randn(1, 4, 8, 8, generator=noises).double()
        pair = a**0.5 * torch.cat([x0, x0 + added]) + (1 - a) ** 0.5 * noise
        if step == FIRST:
            own, shared = (difference(pair, times[step], rules) for rules in ({}, mutual))
            share = float((own * shared).sum() / (own * own).sum())
        found = difference(pair, times[step], mutual if use and step >= begin else {})
        added = added + found * (((1 - after) / after) ** 0.5 - ((1 - a) / a) ** 0.5)
        added = localised(added)
    return share, x0 + added


@pytest.mark.parametrize("start, begin", [(0.4, 4), (0.0, FIRST)])
@pytest.mark.parametrize("above", [False, True])
def test_its_formula(sd, start, begin, above):
    """The level just above the share, or just below it."""
    share, _ = formula(sd, begin, above)
    assert 0 < share < 1
    level = share + (0.002 if above else -0.002)
    share, edited = formula(sd, begin, not above)
    res = minedit.edit(sd, BOY, SITTING, "adapedit+", mutual_start=start, mutual_level=level, image=photo(sd), **SHORT)
    assert relative(res.edited_latent * sd.config.latent_scale, edited) < 1e-4
    note = f"mutual self-attention keeps {share:.2f} of what the target asks for: "
    assert note + ("not used" if above else f"used in the last {10 - begin} of 10 steps") in res.notes
    assert res.rows == 4 + 4 * 8


def test_its_levels(sd):
    how = {"image": photo(sd), **SHORT}
    plain = minedit.edit(sd, BOY, SITTING, "flow", skipped=0.2, local=0.15, **how)
    never, late, always = (
        minedit.edit(sd, BOY, SITTING, "adapedit+", **more, **how)
        for more in ({"mutual_level": 1}, {"mutual_start": 1}, {"mutual_level": 0})
    )
    assert torch.equal(never.edited_latent, plain.edited_latent) and torch.equal(
        late.edited_latent, plain.edited_latent
    )
    assert (plain.rows, late.rows, never.rows) == (32, 32, 36)
    assert relative(always.edited_latent * sd.config.latent_scale, formula(sd, 4, True)[1]) < 1e-4
    assert relative(always.edited_latent, plain.edited_latent) > 1e-4


def test_what_changes_little_goes_back(sd):
    """`local`: 0 leaves all, and the more it is the more pixels are the source's, of the latents, bit for bit."""
    how = {"image": photo(sd), **SHORT}
    same = []
    for local in (0, 0.3, 0.6, 1):
        res = minedit.edit(sd, BOY, SITTING, "adapedit+", local=local, **how)
        same.append((res.edited_latent == res.source_latent).all(1).sum().item())
    assert same[0] == 0 and same == sorted(same) and 0 < same[-1] < 64


def test_equal_prompts(sd):
    for given in ({}, {"image": photo(sd)}):
        res = minedit.edit(sd, BOY, BOY, "adapedit+", **given, **SHORT)
        assert relative(res.edited_latent, res.source_latent) < 1e-5
