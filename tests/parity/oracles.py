"""diffusers' and transformers' own classes for our configs, with our weights in them.

The names table here is built from a config, block by block; minedit/files/layouts.py goes the other way by patterns.
Two derivations that agree are the check.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from minedit.config import TextConfig, UNetConfig, VAEConfig

RES = {  # LDM's names within a ResBlock -> diffusers'
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def unet_names(cfg: UNetConfig) -> dict[str, str]:
    """Name of a layer or block in LDM's UNet -> in diffusers'."""
    table = {
        "time_embed.cond_proj": "time_embedding.cond_proj",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.1": "mid_block.attentions.0",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }

    def resnet(ldm: str, diffusers: str) -> None:
        table.update({f"{ldm}.{ours}": f"{diffusers}.{theirs}" for ours, theirs in RES.items()})

    resnet("middle_block.0", "mid_block.resnets.0")
    resnet("middle_block.2", "mid_block.resnets.1")
    levels, n = len(cfg.channels), 1
    for level in range(levels):
        for i in range(cfg.blocks):
            resnet(f"input_blocks.{n}.0", f"down_blocks.{level}.resnets.{i}")
            table[f"input_blocks.{n}.1"] = f"down_blocks.{level}.attentions.{i}"
            n += 1
        table[f"input_blocks.{n}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        n += 1
    n = 0
    for up, level in enumerate(reversed(range(levels))):
        for i in range(cfg.blocks + 1):
            resnet(f"output_blocks.{n}.0", f"up_blocks.{up}.resnets.{i}")
            if cfg.attention[level]:
                table[f"output_blocks.{n}.1"] = f"up_blocks.{up}.attentions.{i}"
            n += 1
        table[f"output_blocks.{n - 1}.{1 + cfg.attention[level]}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
    return table


def vae_names(cfg: VAEConfig) -> dict[str, str]:
    """Name of a layer or block in LDM's VAE -> in diffusers'."""
    table, levels = {}, len(cfg.channels)
    for part, way in (("encoder", "down"), ("decoder", "up")):
        table[f"{part}.norm_out"] = f"{part}.conv_norm_out"
        for i in (0, 1):
            table[f"{part}.mid.block_{i + 1}"] = f"{part}.mid_block.resnets.{i}"
        for ours, theirs in VAE_ATTENTION.items():
            table[f"{part}.mid.attn_1.{ours}"] = f"{part}.mid_block.attentions.0.{theirs}"
        for level in range(levels):
            theirs = f"{part}.{way}_blocks.{level if way == 'down' else levels - 1 - level}"
            for i in range(cfg.blocks + (way == "up")):
                block = f"{part}.{way}.{level}.block.{i}"
                table[block] = f"{theirs}.resnets.{i}"
                table[f"{block}.nin_shortcut"] = f"{theirs}.resnets.{i}.conv_shortcut"
            table[f"{part}.{way}.{level}.{way}sample.conv"] = f"{theirs}.{way}samplers.0.conv"
    return table


def rename(state: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    """State under the names of the table, each by its longest prefix there; what has none keeps its name."""
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        prefix = next((prefix for prefix in prefixes if prefix in table), "")
        renamed[table.get(prefix, "") + name[len(prefix) :]] = tensor
    return renamed


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Strictly, without a copy; shapes differ only where LDM has a 1x1 convolution for a linear layer."""
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    state = {name: x.view(shapes[name]) if x.shape[2:] == (1, 1) else x for name, x in state.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


def unet(cfg: UNetConfig, state: Mapping[str, Tensor]) -> UNet2DConditionModel:
    """diffusers' UNet holding `state`, whose names are LDM's."""
    with torch.device("meta"):
        module = UNet2DConditionModel(
            in_channels=cfg.in_channels,
            out_channels=cfg.out_channels,
            block_out_channels=cfg.channels,
            layers_per_block=cfg.blocks,
            time_cond_proj_dim=cfg.guidance_dim or None,
            mid_block_type="UNetMidBlock2DCrossAttn" if cfg.middle else None,
            down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in cfg.attention],
            up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(cfg.attention)],
            attention_head_dim=cfg.heads,  # diffusers' name for the number of heads
            cross_attention_dim=cfg.context_dim,
            norm_num_groups=cfg.norm_groups,
        )
    return _load(module, rename(state, unet_names(cfg)))


def vae(cfg: VAEConfig, state: Mapping[str, Tensor]) -> AutoencoderKL:
    """diffusers' VAE holding `state`, whose names are LDM's."""
    levels = len(cfg.channels)
    with torch.device("meta"):
        module = AutoencoderKL(
            in_channels=cfg.image_channels,
            out_channels=cfg.image_channels,
            block_out_channels=cfg.channels,
            layers_per_block=cfg.blocks,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            latent_channels=cfg.z_channels,
            norm_num_groups=cfg.norm_groups,
        )
    return _load(module, rename(state, vae_names(cfg)))


def text(cfg: TextConfig) -> CLIPTextModel:
    """transformers' text encoder as a published SD-v1 folder configures it, with another bos, eos and pad than ours."""
    return CLIPTextModel(
        CLIPTextConfig(
            attention_dropout=0.0,
            hidden_act="quick_gelu",
            hidden_size=cfg.width,
            intermediate_size=cfg.mlp,
            layer_norm_eps=1e-05,
            max_position_embeddings=cfg.context_length,
            num_attention_heads=cfg.heads,
            num_hidden_layers=cfg.layers,
            vocab_size=cfg.vocab_size,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
    ).eval()


def scheduler() -> DDIMScheduler:
    """As the scheduler_config.json of a published SD-v1 folder, for DDIM."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def sample(model: UNet2DConditionModel, latents: Tensor, context: Tensor, steps: int, guidance: float) -> Tensor:
    """diffusers' pipeline loop: latents [B,4,h,w], context [2B,T,width], unconditional first -> latents."""
    ddim = scheduler()
    ddim.set_timesteps(steps)
    for t in ddim.timesteps:
        eps_uncond, eps_cond = model(torch.cat([latents] * 2), t, context).sample.chunk(2)
        latents = ddim.step(eps_uncond + guidance * (eps_cond - eps_uncond), t, latents).prev_sample
    return latents
