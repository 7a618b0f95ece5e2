"""Against CompVis' own modules, whose names ours are. Their code is not on PyPI: COMPVIS names a checkout of
CompVis/stable-diffusion, as in

    make parity COMPVIS=path/to/stable-diffusion ARGS="-k compvis"

Their weights are ours as they stand, without a table of names: the strict load is half of the test.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from seeded import normal
from tiny import GUIDANCE, TINY
from torch import Tensor, nn

FOLDER = os.environ.get("COMPVIS")
if not FOLDER:
    pytest.skip("COMPVIS does not name a checkout of CompVis/stable-diffusion", allow_module_level=True)
sys.path.insert(0, FOLDER)
from ldm.models.diffusion.ddim import DDIMSampler  # noqa: E402
from ldm.modules.diffusionmodules.model import Decoder, Encoder  # noqa: E402
from ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from test_diffusers import NARROW, built, check  # noqa: E402

from minedit.attention.sdpa import sdpa  # noqa: E402
from minedit.config import SD14, Config, UNetConfig  # noqa: E402
from minedit.sampling import ddim  # noqa: E402
from minedit.sampling.loop import sample  # noqa: E402
from minedit.stack.unet import UNet  # noqa: E402
from minedit.stack.vae import VAE  # noqa: E402

CONFIGS = [NARROW, pytest.param(SD14, marks=pytest.mark.full)]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


def their_unet(cfg: UNetConfig, state: dict[str, Tensor]) -> nn.Module:
    with torch.device("meta"):
        unet = UNetModel(
            image_size=32,  # unused
            in_channels=cfg.in_channels,
            out_channels=cfg.out_channels,
            model_channels=cfg.channels[0],
            attention_resolutions=[2**level for level, attends in enumerate(cfg.attention) if attends],
            num_res_blocks=cfg.blocks,
            channel_mult=[width // cfg.channels[0] for width in cfg.channels],
            num_heads=cfg.heads,
            use_spatial_transformer=True,
            transformer_depth=1,
            context_dim=cfg.context_dim,
            use_checkpoint=False,
            legacy=False,
        )
    unet.load_state_dict(state, strict=True, assign=True)
    return unet.eval()


@each_config
@torch.no_grad()
def test_unet(config: Config):
    ours, state = built(UNet, config.unet)
    rows, (h, w) = (1, (64, 64)) if config is SD14 else (3, (16, 24))
    x, t = normal("x", rows, 4, h, w), torch.tensor([981, 21, 500][:rows])
    context = normal("context", rows, 77, config.unet.context_dim)
    check(f"UNet {config.name} {h} x {w}", ours(x, t, context), their_unet(config.unet, state)(x, t, context))


@each_config
@torch.no_grad()
def test_vae(config: Config):
    ours, state = built(VAE, config.vae)
    cfg, side = config.vae, 256 if config is SD14 else 64
    sizes = {"ch": cfg.channels[0], "ch_mult": [width // cfg.channels[0] for width in cfg.channels], "out_ch": 3}
    sizes |= {"num_res_blocks": cfg.blocks, "attn_resolutions": [], "in_channels": 3, "resolution": 256}
    parts = {"encoder": Encoder(**sizes, z_channels=cfg.z_channels, double_z=True)}
    parts |= {"decoder": Decoder(**sizes, z_channels=cfg.z_channels, double_z=True)}
    for name, module in parts.items():
        own = {key.removeprefix(f"{name}."): x for key, x in state.items() if key.startswith(f"{name}.")}
        module.load_state_dict(own, strict=True)
        module.eval()
    image, z = normal("image", 1, 3, side, side).clamp(-1, 1), normal("z", 1, 4, side // 8, side // 8)
    check(f"VAE encoder {config.name}", ours.encoder(image), parts["encoder"](image))
    check(f"VAE decoder {config.name}", ours.decoder(z), parts["decoder"](z))


class OnCPU(DDIMSampler):
    """Theirs puts its schedule on a GPU, always."""

    def register_buffer(self, name: str, attr: object) -> None:
        setattr(self, name, attr)


@torch.no_grad()
def test_ten_guided_ddim_steps():
    config = TINY
    ours, state = built(UNet, config.unet)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2  # as ldm's make_beta_schedule "linear"
    products = np.cumprod(1 - betas)
    model = SimpleNamespace(
        num_timesteps=1000,
        device=torch.device("cpu"),
        betas=torch.tensor(betas),
        alphas_cumprod=torch.tensor(products),
        alphas_cumprod_prev=torch.tensor(np.append(1.0, products[:-1])),
        apply_model=lambda x, t, context: ours(x, t, context),
    )
    side = config.latent_size
    latents, context = normal("latents", 1, 4, side, side), normal("context", 2, 8, config.unet.context_dim)
    theirs, _ = OnCPU(model).sample(
        10, 1, (4, side, side), context[1:], x_T=latents, verbose=False, eta=0.0,
        unconditional_guidance_scale=GUIDANCE, unconditional_conditioning=context[:1],
    )  # fmt: skip
    stack = SimpleNamespace(unet=ours, attend=sdpa, config=config, device=latents.device, dtype=latents.dtype)
    *_, last = sample(stack, latents, context, steps=10, guidance=GUIDANCE)
    assert ddim.timesteps(10)[0] == 901
    check("10 DDIM steps, guidance 7.5", last.latents, theirs.float(), 1e-4)
