"""The authors' own code of three methods, on diffusers' UNet. None of it is on PyPI: a checkout of each is named by

    make parity MASACTRL=path/to/MasaCtrl FREEPROMPT=path/to/EasyNLP PNP=path/to/pnp-diffusers ARGS="-k released"

of TencentARC/MasaCtrl, alibaba/EasyNLP and MichalGeyer/pnp-diffusers. context [4,T,width] is that of an edit: rows 0, 1
unconditional, 2, 3 of the source and the target.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import oracles
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

FOLDERS = {name: os.environ.get(name.upper()) for name in ("masactrl", "freeprompt", "pnp")}
# what they import to read and write pictures, which nothing here does
UNUSED = {"cv2": (), "torchvision": (), "torchvision.utils": ("save_image",), "torchvision.transforms": ()}


@contextmanager
def importing(*folder: str):
    """With a folder of theirs first on the path, and none of UNUSED asked for."""
    put = {name: ModuleType(name) for name in UNUSED}
    for name, module in put.items():
        for member in UNUSED[name]:
            setattr(module, member, None)
        if "." in name:
            setattr(put["torchvision"], name.split(".")[1], module)
    before = {name: sys.modules.get(name) for name in put}
    sys.modules.update(put)
    sys.path.insert(0, str(Path(*folder)))
    try:
        yield
    finally:
        sys.path.pop(0)
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@torch.no_grad()
def masactrl(
    unet: UNet2DConditionModel,
    latents: Tensor,
    context: Tensor,
    steps: int,
    guidance: float,
    tokens: tuple[list[int], list[int]] | None = None,
    **settings: int,
) -> Tensor:
    """Source and target [2,4,h,w]; tokens: of the foreground in the source and the target, for the masked form."""
    with importing(FOLDERS["masactrl"]):
        control = importlib.import_module("masactrl.masactrl")
        register = importlib.import_module("masactrl.masactrl_utils").regiter_attention_editor_diffusers
    if tokens:
        named = {"ref_token_idx": tokens[0], "cur_token_idx": tokens[1]}
        editor = control.MutualSelfAttentionControlMaskAuto(total_steps=steps, **named, **settings)
    else:
        editor = control.MutualSelfAttentionControl(total_steps=steps, **settings)
    register(SimpleNamespace(unet=unet), editor)
    return oracles.sample(unet, latents.expand(2, -1, -1, -1), context, steps, guidance)


@torch.no_grad()
def freeprompt(
    unet: UNet2DConditionModel, latents: Tensor, context: Tensor, steps: int, guidance: float, share: float, side: int
) -> Tensor:
    """Source and target [2,4,h,w], by the application, where the side of the largest map is an argument."""
    with importing(FOLDERS["freeprompt"], "diffusion", "FreePromptEditing", "gradio_app"):
        control = importlib.import_module("Freeprompt.freeprompt")
        register = importlib.import_module("Freeprompt.freeprompt_utils").register_attention_control_new
    editor = control.SelfAttentionControlEdit(["", ""], steps, side, self_replace_steps=share)
    register(SimpleNamespace(unet=unet), editor)
    return oracles.sample(unet, latents.expand(2, -1, -1, -1), context, steps, guidance)


@torch.no_grad()
def inverted(unet: UNet2DConditionModel, latents: Tensor, text: Tensor, steps: int, folder: Path) -> None:
    """Plug-and-Play's inversion of a picture [1,4,h,w] by text [1,T,width]; the latents of each step go to a folder."""
    with importing(FOLDERS["pnp"]):
        preprocess = importlib.import_module("preprocess").Preprocess
    scheduler = oracles.scheduler()
    scheduler.set_timesteps(steps)
    model = SimpleNamespace(unet=unet, scheduler=scheduler)
    preprocess.ddim_inversion(model, text, latents, str(folder))


@torch.no_grad()
def pnp(
    unet: UNet2DConditionModel, context: Tensor, steps: int, guidance: float, folder: Path, maps: int, features: int
) -> Tensor:
    """The target [1,4,h,w], from a folder of latents, noisy_latents_{t}.pt, of each step."""
    with importing(FOLDERS["pnp"]):
        theirs = importlib.import_module("pnp").PNP
    scheduler = oracles.scheduler()
    scheduler.set_timesteps(steps)
    model = SimpleNamespace(
        unet=unet,
        scheduler=scheduler,
        config={"latents_path": str(folder.parent), "image_path": folder.name, "guidance_scale": guidance},
        pnp_guidance_embeds=context[:1],
        text_embeds=context[[1, 3]],
    )
    theirs.init_pnp(model, conv_injection_t=features, qk_injection_t=maps)
    latents = torch.load(folder / f"noisy_latents_{scheduler.timesteps[0]}.pt")
    for t in scheduler.timesteps:
        latents = theirs.denoise_step(model, latents, t)
    return latents
