"""Inversions against diffusers' scheduler, and against the code that was released for each of them.

None of it is on PyPI: P2P, PNPINVERSION, DDPM_INVERSION and EDICT name checkouts of google/prompt-to-prompt,
cure-lab/PnPInversion, inbarhub/DDPM_inversion and salesforce/EDICT, as in

    make parity P2P=path/to/prompt-to-prompt EDICT=path/to/EDICT ARGS="-k inversions"

What is absent is skipped. Both sides run the same small random UNet; the latents are compared after the last step.
"""

from __future__ import annotations

import os

import pytest
import torch
from inverted import FEW, GUIDANCE, LIMIT, PROMPTS, SKIP, STEPS, job, photo, small_model, texts
from seeded import relative

pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
import oracles  # noqa: E402
import released_inversions as released  # noqa: E402
from diffusers import DDIMInverseScheduler  # noqa: E402

import minedit  # noqa: E402
from minedit.inversion import coupled, embedding, maps  # noqa: E402
from minedit.inversion.course import course  # noqa: E402
from minedit.inversion.nulltext import NullTextConfig  # noqa: E402


def folder(name):
    found = os.environ.get(name)
    return found or pytest.skip(f"{name} does not name a checkout of the released code")


@pytest.fixture(scope="module")
def pair():
    """Ours and diffusers' UNet, of the same weights."""
    sd = small_model()
    return sd, oracles.unet(sd.config.unet, {name: x.clone() for name, x in sd.unet.state_dict().items()})


def close(what, ours, theirs, limit=LIMIT):
    error = relative(ours, theirs)
    print(f"\n{what}: relative error {error:.1e}, limit {limit:.0e}")
    assert error <= limit


@torch.no_grad()
def test_ddim_inversion(pair):
    """diffusers' scheduler steps from t to t + 20 at the UNet's time t: its course, the UNet at our time, is ours."""
    sd, unet = pair
    scheduler = DDIMInverseScheduler.from_config(oracles.scheduler().config)
    scheduler.set_timesteps(STEPS)
    x, found = photo(), course(job(sd, STEPS, GUIDANCE))
    for i, t in enumerate(scheduler.timesteps):
        eps = unet(x, t, texts(sd)[2:3]).sample
        x = scheduler.step(eps, t, x).prev_sample
        close(f"DDIM inversion, time {int(t)}", found[STEPS - 1 - i], x) if i in (0, 24, 49) else None


def test_null_text(pair):
    sd, unet = pair
    asked = job(sd, STEPS, 7.5)
    at, wanted = released.null_text(folder("P2P"), unet.requires_grad_(False), photo(), texts(sd)[1:3], inner=3)
    trajectory = course(asked)
    close("null-text, the course", trajectory, torch.stack(at[::-1]))
    found, _ = embedding.optimised(asked, trajectory, NullTextConfig(inner_steps=3))
    for i in (0, 1, 24, 49):  # Adam's steps are as large where a gradient is nearly 0: rounding adds up
        close(f"null-text, the embedding of step {i}", found[i], wanted[i], LIMIT if i < 2 else 5 * LIMIT)


def test_direct_inversion(pair):
    sd, unet = pair
    wanted = released.direct(folder("PNPINVERSION"), unet, photo(), texts(sd), FEW, GUIDANCE)
    run = {"image": photo() / sd.config.latent_scale, "steps": FEW, "guidance": GUIDANCE}
    found = minedit.edit(sd, *PROMPTS, "fixed-seed", inversion="direct", **run)
    for i, latents in enumerate((found.source_latent, found.edited_latent)):
        close(f"direct inversion, {('source', 'target')[i]}", latents * sd.config.latent_scale, wanted[i : i + 1])


def test_edit_friendly(pair):
    sd, unet = pair
    rows, asked, seen = texts(sd), job(sd, FEW, GUIDANCE), []
    named = {"": rows[:1], "source": rows[2:3], "target": rows[3:]}
    torch.manual_seed(asked.seed)
    call = folder("DDPM_INVERSION"), unet, photo(), named, FEW, SKIP, GUIDANCE
    at, wanted, _ = released.edit_friendly(*call)
    found = maps.found(asked, 3.5, SKIP)
    close("edit-friendly, the course", found.course[SKIP:], at.flip(0)[SKIP:, None])
    run = {"image": photo() / sd.config.latent_scale, "steps": FEW, "guidance": GUIDANCE, "skip": SKIP / FEW}
    minedit.edit(sd, *PROMPTS, "fixed-seed", inversion="edit-friendly", on_step=seen.append, **run)
    assert len(seen) == len(wanted) == FEW - SKIP
    for step, theirs in list(zip(seen, wanted, strict=True))[:-1]:
        close(f"edit-friendly, step {step.index}", step.latents, theirs)
    close("edit-friendly, the last step, but for its map", seen[-1].latents[1:] - found.added[-1], wanted[-1][1:])


def test_edict(pair):
    sd, unet = pair
    rows = texts(sd).double()
    named = {"": rows[:1], "source": rows[2:3], "target": rows[3:]}
    strength = 1 - SKIP / FEW
    call = folder("EDICT"), unet.double(), photo().double(), named, FEW, strength, GUIDANCE
    begin, end = released.edict(*call)
    found = coupled.inverted(job(sd, FEW, GUIDANCE), 0.93, SKIP)
    for i in (0, 1):
        close(f"EDICT, latent {i} before the first step", found[i], begin[i])
    run = {"image": photo() / sd.config.latent_scale, "steps": FEW, "guidance": GUIDANCE, "strength": strength}
    edited = minedit.edit(sd, *PROMPTS, "fixed-seed", inversion="edict", **run).edited_latent
    close("EDICT, the target", edited * sd.config.latent_scale, end[0])
    unet.float()
