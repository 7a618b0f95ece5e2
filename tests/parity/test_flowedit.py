"""Difference-driven edits against FlowEdit's released code, which FLOWEDIT names a checkout of, as in

    make parity FLOWEDIT=path/to/FlowEdit ARGS="-k flowedit"

Theirs moves a rectified flow. It is given diffusers' UNet as one: at time τ = σ/(1 + σ) the state z is (1 - τ)x/√ᾱ of
the UNet's x, and the velocity is ε - x̂0. Their last step goes on to τ = 0, ours ends at Stable Diffusion's own last σ,
so there the velocity they are given is 0.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from seeded import normal

FOLDER = os.environ.get("FLOWEDIT")
if not FOLDER:
    pytest.skip("FLOWEDIT does not name a checkout of fallenshock/FlowEdit", allow_module_level=True)
sys.path.insert(0, FOLDER)
pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
from FlowEdit_utils import FlowEditSD3  # noqa: E402
from test_diffusers import NARROW, check  # noqa: E402
from test_pipeline import pair  # noqa: E402
from torch import Tensor  # noqa: E402

import minedit  # noqa: E402
from minedit.config import SD14  # noqa: E402
from minedit.sampling.loop import embed  # noqa: E402
from minedit.stack.model import Model  # noqa: E402

STEPS, SKIPPED = 50, 10
SOURCE, TARGET = "a boy in the park", "a sitting boy in the park"


def theirs(model: Model, unet: torch.nn.Module, picture: Tensor, scales: tuple[float, float], draws: int) -> Tensor:
    a = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    times = [*range(981, 0, -20)]
    sigma = torch.cat([((1 - a) / a).sqrt()[times], ((1 - a) / a).sqrt()[:1]])
    tau = (sigma / (1 + sigma)).float()  # [51]

    def velocity(hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: object) -> list[Tensor]:
        at = (tau * 1000 - timestep[0]).abs().argmin().item()
        if at == STEPS:
            return [torch.zeros_like(hidden_states)]
        x = hidden_states / (1 - tau[at]) * a[times[at]].sqrt().float()
        eps = unet(x, torch.tensor(times[at]), encoder_hidden_states).sample
        return [eps - (hidden_states - tau[at] * eps) / (1 - tau[at])]

    def encode_prompt(prompt: str, negative_prompt: str, **_: object) -> tuple[Tensor, ...]:
        text, none = embed(model, [prompt]), embed(model, [negative_prompt])
        return text, none, text[:, 0], none[:, 0]

    stub = {"transformer": velocity, "encode_prompt": encode_prompt, "do_classifier_free_guidance": True}
    scheduler = SimpleNamespace(timesteps=1000 * tau, order=1, set_timesteps=lambda *_, **__: None)
    torch.manual_seed(7)  # they draw from torch's own generator
    prompts = {"src_prompt": SOURCE, "tar_prompt": TARGET, "negative_prompt": ""}
    numbers = {"T_steps": STEPS + 1, "n_avg": draws, "n_min": 0, "n_max": STEPS + 1 - SKIPPED}
    scaled = {"src_guidance_scale": scales[0], "tar_guidance_scale": scales[1]}
    edited = FlowEditSD3(SimpleNamespace(**stub), scheduler, picture, **prompts, **numbers, **scaled)
    return picture + (edited - picture) / (1 - tau[-1])  # from their state to z


@pytest.mark.parametrize("draws, scales", [(1, (7.5, 7.5)), (2, (3.5, 13.5))])
@torch.no_grad()
def test_flow(draws, scales, tmp_path, monkeypatch):
    model, pipeline = pair(NARROW, tmp_path, monkeypatch)
    picture = normal("a photograph", 1, 4, 16, 16)
    how = {"seed": 7, "steps": STEPS, "guidance": scales[1], "source_guidance": scales[0], "draws": draws}
    ours = minedit.edit(model, SOURCE, TARGET, "flow", image=picture / SD14.latent_scale, skipped=0.2, **how)
    # another random UNet of the same prompts moves the picture far; what moved it is compared, not where it is
    moved = ours.edited_latent * SD14.latent_scale - picture
    expected = theirs(model, pipeline.unet, picture, scales, draws) - picture
    check(f"what FlowEdit adds, guidance {scales}, {draws} draws", moved, expected, 1e-4)
