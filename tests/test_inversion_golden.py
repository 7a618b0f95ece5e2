"""Ours against what released inversions found, kept in tests/golden by tests/parity/make_golden_inversions.py."""

from pathlib import Path

import pytest
from inverted import FEW, GUIDANCE, LIMIT, PROMPTS, SKIP, STEPS, job, photo, small_model
from safetensors.torch import load_file
from seeded import relative

import minedit
from minedit.inversion import embedding
from minedit.inversion.course import course
from minedit.inversion.nulltext import NullTextConfig

GOLDEN = load_file(Path(__file__).parent / "golden" / "inversions.safetensors")


@pytest.fixture(scope="module")
def sd():
    return small_model()


def test_null_text(sd):
    asked = job(sd, STEPS, 7.5)
    trajectory = course(asked)
    assert relative(trajectory, GOLDEN["null-text, the course"]) < LIMIT
    found, _ = embedding.optimised(asked, trajectory, NullTextConfig(inner_steps=1))
    assert relative(found[0], GOLDEN["null-text"][0]) < LIMIT
    assert relative(found, GOLDEN["null-text"]) < 5 * LIMIT  # Adam's steps are as large where a gradient is nearly 0


def test_edit_friendly(sd):
    seen = []
    run = {"image": photo() / sd.config.latent_scale, "steps": FEW, "guidance": GUIDANCE, "skip": SKIP / FEW}
    minedit.edit(sd, *PROMPTS, "fixed-seed", inversion="edit-friendly", on_step=seen.append, **run)
    wanted = GOLDEN["edit-friendly, but the last step"]  # whose map is left out there
    assert len(seen) == len(wanted) + 1 == FEW - SKIP
    for step, theirs in zip(seen, wanted, strict=False):
        assert relative(step.latents, theirs) < LIMIT


def test_edict(sd):
    run = {"image": photo() / sd.config.latent_scale, "steps": FEW, "guidance": GUIDANCE, "strength": 1 - SKIP / FEW}
    found = minedit.edit(sd, *PROMPTS, "fixed-seed", inversion="edict", **run)
    assert relative(found.edited_latent * sd.config.latent_scale, GOLDEN["edict"]) < LIMIT
