"""h-Edit-D with Prompt-to-Prompt against its released code, which HEDIT names a checkout of, as in

    make parity HEDIT=path/to/h-edit ARGS="-k hedit"

Their inversion, their steps and their controllers on diffusers' UNet: same weights, photograph, text and times, 981 ...
1, where their script has 980 ... 0. Final latents are compared. Both are in float64, but for our latents, because with
random weights rounding grows from step to step. Prompts of as many words: p2p.py says how others differ by intent.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from p2p_model import BOY, CONFIG, DOG, model
from seeded import normal
from small_model import TOKENIZER
from torch import Tensor

FOLDER = os.environ.get("HEDIT")
if not FOLDER:
    pytest.skip("HEDIT does not name a checkout of nktoan/h-edit", allow_module_level=True)
pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
import oracles  # noqa: E402
from test_diffusers import check  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

import minedit  # noqa: E402
from minedit.sampling import ddim  # noqa: E402
from minedit.sampling.loop import embed  # noqa: E402

sys.modules.setdefault("cv2", ModuleType("cv2"))  # with which they show pictures
sys.path.insert(0, str(Path(FOLDER) / "text-guided"))
from inversion import ddim_inversion, p2p_h_edit  # noqa: E402
from p2p import ptp_classes, ptp_utils  # noqa: E402

LIMIT = 1e-4
CLIP = CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=77, pad_token_id=49407)
MILD = {"edit_guidance": 2.5, "original_guidance": 2.0}
BLEND = {"blend": ["boy", "dog"], "reweight": {"dog": 2.0}, "controller": "replace", **MILD}
SPANS = {"cross_steps": 0.8, "self_steps": 0.3, "controller": "replace"}
CASES = {  # name → steps, settings
    "as released": (4, {}),
    "explicit": (10, {"implicit": False, **MILD}),
    "implicit": (20, MILD),
    "twice": (10, {"optimisation_steps": 2, "reconstruction": 0.2, **SPANS, **MILD}),
    "explicit, blend and weight": (10, {"implicit": False, **BLEND}),
    "twice, blend and weight": (6, {"optimisation_steps": 2, **BLEND}),
}


def controller(steps: int, how: dict):
    prompts = [BOY, DOG]
    spans = {"cross_replace_steps": how.get("cross_steps", 0.4), "self_replace_steps": how.get("self_steps", 0.6)}
    blend = None
    if "blend" in how:
        blend = ptp_classes.LocalBlend(prompts, steps, (("boy",), ("dog",)), tokenizer=CLIP, device="cpu")
    common = {**spans, "local_blend": blend, "tokenizer": CLIP, "device": "cpu"}
    by = ptp_classes.AttentionReplace if how.get("controller") == "replace" else ptp_classes.AttentionRefine
    made = by(prompts, steps, **common)
    if "reweight" in how:
        scale = torch.ones(1, 77)
        scale[:, ptp_utils.get_word_inds(DOG, "dog", CLIP)] = how["reweight"]["dog"]
        made = ptp_classes.AttentionReweight(prompts, steps, equalizer=scale, controller=made, **common)
    return made


def released(ours, steps: int, how: dict, picture: Tensor, monkeypatch) -> tuple[Tensor, Tensor]:
    """(source, edit) [1, 4, 32, 32] by their code."""
    unet = oracles.unet(CONFIG.unet, {name: x.clone() for name, x in ours.unet.state_dict().items()})
    unet.in_channels, unet.sample_size = 4, picture.shape[-1]  # attributes of diffusers' UNet of then
    theirs = SimpleNamespace(unet=unet, scheduler=oracles.scheduler(), device=torch.device("cpu"))
    theirs.scheduler.set_timesteps(steps)
    theirs.scheduler.alphas_cumprod = ddim.alphas_cumprod()  # theirs in float64, which test_ddim.py compares
    theirs.scheduler.final_alpha_cumprod = theirs.scheduler.alphas_cumprod[0]
    for module in (ddim_inversion, p2p_h_edit):
        monkeypatch.setattr(
            module, "encode_text", lambda _, texts: embed(ours, [texts] if isinstance(texts, str) else texts)
        )
    with torch.no_grad(), monkeypatch.context() as patched:
        patched.setattr(torch, "zeros", partial(torch.zeros, dtype=torch.float64))
        _, zs, course = ddim_inversion.ddim_inversion(theirs, picture, BOY, 1.0)
    made = controller(steps, how)
    ptp_utils.register_attention_control(theirs, made)
    guidance = [1.0, how.get("original_guidance", 9.0), how.get("edit_guidance", 10.0)]
    run = {"xT": course[steps], "eta": 1.0, "prompts": [BOY, DOG], "cfg_scales": guidance, "zs": zs}
    run |= {"controller": made, "after_skip_steps": steps, "is_ddim_inversion": True}
    if not how.get("implicit", True):
        edited, source = p2p_h_edit.h_Edit_p2p_explicit(theirs, **run)
    else:
        run |= {"optimization_steps": how.get("optimisation_steps", 1)}
        edited, source = p2p_h_edit.h_Edit_p2p_implicit(
            theirs, weight_reconstruction=how.get("reconstruction", 0.1), **run
        )
    return source.detach(), edited.detach()


@pytest.mark.parametrize("name", CASES)
def test_final_latents(name: str, monkeypatch):
    steps, how = CASES[name]
    made = model()
    parts = {name: getattr(made, name).double() for name in ("unet", "vae", "text")}
    ours = replace(made, **parts, dtype=torch.float64)
    ours = replace(ours, config=replace(CONFIG, self_size=32))  # as theirs, beside blend maps of 16 x 16
    picture = normal("a photograph", 1, 4, 32, 32)
    source, edited = released(ours, steps, how, picture.double(), monkeypatch)
    shown = picture / CONFIG.latent_scale
    res = minedit.edit(ours, BOY, DOG, "h-edit", image=shown, steps=steps, blend_size=16, **how)
    assert (edited - source).std() > 0.1, "the edit changes nothing"
    check(f"{name}, the source", res.source_latent * CONFIG.latent_scale, source, LIMIT)
    check(f"{name}, the edit, {steps} steps", res.edited_latent * CONFIG.latent_scale, edited, LIMIT)
