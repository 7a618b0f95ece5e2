"""Inversions as their authors released them, run from the user's folders on diffusers' UNet of today.

Each function takes the folder of a checkout, that UNet, latents [1, 4, h, w] and text [2, T, width], unconditional
first, and returns what the code found. Cells and functions are executed as they stand; what they load or show is not.
"""

from __future__ import annotations

import ast
import json
import typing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from oracles import scheduler
from torch import Tensor, nn

STEPS = 50  # of the released null-text notebook, whose rates go by it
SILENT = {"print": lambda *_: None}


class Bar:
    def __init__(self, *_: object, **__: object) -> None: ...

    update = close = lambda self, *_: None


def pipeline(unet: nn.Module, steps: int) -> SimpleNamespace:
    found = scheduler()
    found.set_timesteps(steps)
    return SimpleNamespace(
        unet=unet, scheduler=found, tokenizer=None, text_encoder=None, vae=None, device=torch.device("cpu")
    )


def null_text(folder: str, unet: nn.Module, latents: Tensor, text: Tensor, inner: int) -> tuple[list, list]:
    """google/prompt-to-prompt: (latents from the photo to noise, embeddings from noise to photo), guidance 7.5."""
    cells = json.loads((Path(folder) / "null_text_w_ptp.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = (code for code in ("".join(cell["source"]) for cell in cells) if "class NullInversion" in code)
    tree = ast.parse(cell)
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    held = {name: getattr(typing, name) for name in ("Callable", "Dict", "List", "Optional", "Tuple", "Union")}
    held |= {"torch": torch, "np": np, "nnf": nn.functional, "Adam": torch.optim.Adam, "tqdm": Bar, **SILENT}
    held |= {"NUM_DDIM_STEPS": STEPS, "GUIDANCE_SCALE": 7.5, "device": torch.device("cpu"), "Image": None}
    held["DDIMScheduler"] = lambda **_: scheduler()
    exec(compile(tree, "null_text_w_ptp.ipynb", "exec"), held)
    inversion = held["NullInversion"](pipeline(unet, STEPS))
    inversion.context = text
    course = inversion.ddim_loop(latents)
    return course, inversion.null_optimization(course, inner, 1e-5)


def _pieces(folder: str, name: str, *wanted: str, **held: object) -> SimpleNamespace:
    """Functions and classes of a file, without what else it loads; `held` are the names that they use."""
    tree = ast.parse((Path(folder) / name).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", None) in wanted]
    held |= {"torch": torch, "np": np}
    exec(compile(tree, name, "exec"), held)
    return SimpleNamespace(**{name: held[name] for name in wanted})


@torch.no_grad()
def direct(folder: str, unet: nn.Module, latents: Tensor, text: Tensor, steps: int, guidance: float) -> Tensor:
    """cure-lab/PnPInversion: final latents [2, 4, h, w] of texts [4, T, width], with no edit of attention."""
    name = "direct_inversion_p2p_guidance_diffusion_step"
    step = getattr(_pieces(folder, "models/p2p/p2p_guidance_forward.py", name), name)
    model, control = pipeline(unet, steps), SimpleNamespace(step_callback=lambda x: x)
    inversion = _pieces(folder, "models/p2p/inversion.py", "DirectInversion").DirectInversion(model, steps)
    inversion.context = text
    course = inversion.ddim_loop(latents)
    lost = inversion.offset_calculate(course, 0, 0.0, guidance)
    x = course[-1].expand(2, -1, -1, -1)
    for i, t in enumerate(model.scheduler.timesteps):
        x = step(model, control, x, text, t, guidance, lost[i], low_resource=False)
    return x


@torch.no_grad()
def edit_friendly(
    folder: str, unet: nn.Module, latents: Tensor, texts: dict[str, Tensor], steps: int, skip: int, guidance: float
) -> tuple[Tensor, list[Tensor], Tensor]:
    """inbarhub/DDPM_inversion: (course [S + 1, 4, h, w] from the photo to noise, latents [2, 4, h, w] after each step
    drawn of source and target, noise maps [S, 4, h, w] from the photo to noise). The global seed draws the noise.
    """

    def encoded(_: object, prompts: str | list[str]) -> Tensor:
        return torch.cat([texts[prompt] for prompt in ([prompts] if isinstance(prompts, str) else prompts)])

    runs = "inversion_forward_process", "inversion_reverse_process"
    names = *runs, "sample_xts_from_x0", "get_variance", "reverse_step"
    code = _pieces(folder, "ddm_inversion/inversion_utils.py", *names, encode_text=encoded)
    model, seen = pipeline(unet, steps), []
    model.scheduler.alphas = 1 - model.scheduler.betas
    model.unet = SimpleNamespace(in_channels=4, sample_size=latents.shape[-1], forward=unet.forward)
    _, maps, course = code.inversion_forward_process(
        model, latents, etas=1, prompt="source", cfg_scale=3.5, num_inference_steps=steps
    )
    control = SimpleNamespace(step_callback=lambda x: seen.append(x) or x)
    scales = {"cfg_scales": [3.5, guidance], "controller": control}
    kept = steps - skip
    code.inversion_reverse_process(model, course[kept], etas=1, prompts=["source", "target"], zs=maps[:kept], **scales)
    return course, seen, maps


@torch.no_grad()
def edict(
    folder: str,
    unet: nn.Module,
    latents: Tensor,
    texts: dict[str, Tensor],
    steps: int,
    strength: float,
    guidance: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """salesforce/EDICT: (the pair before the first step drawn, the target's pair after the last), in float64."""

    def scheduled(**_: object) -> object:
        found = scheduler()  # its times begin at 1, as ours do; released, at 0
        found.num_train_timesteps = 1000
        return found

    def tokens(prompt: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=SimpleNamespace(to=lambda _: prompt))

    tokens.model_max_length = 77
    nothing = dict.fromkeys(("init_attention_func", "use_last_tokens_attention_weights"), lambda *_: None)
    held = {"unet": unet, "device": "cpu", "tqdm": lambda x, **_: x, **nothing}
    held |= {"clip_tokenizer": tokens, "clip": lambda prompt: SimpleNamespace(last_hidden_state=texts[prompt])}
    held |= {"DDIMScheduler": scheduled, "init_attention_weights": lambda *_: None, "Image": SimpleNamespace(Image=int)}
    names = "coupled_stablediffusion", "forward_step", "reverse_step", "get_alpha_and_beta"
    run = _pieces(folder, "edict_functions.py", *names, **held).coupled_stablediffusion
    call = {"steps": steps, "init_image_strength": strength, "guidance_scale": guidance, "width": 64, "height": 64}
    pair = run("source", reverse=True, init_image=[latents, latents], **call)
    return pair, run("target", fixed_starting_latent=pair, return_latents=True, **call)
