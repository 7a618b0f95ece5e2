"""The autoencoder of Stable Diffusion v1: image [B,3,H,W] in [-1,1] <-> latent [B,4,H/8,W/8].

Module names are the names of the original checkpoint after `first_stage_model.`, so it loads with strict=True and no
mapping. Follows Latent Diffusion (Rombach et al., 2022, arXiv:2112.10752), `ldm/modules/diffusionmodules/model.py`.
torch's GroupNorm and scaled_dot_product_attention accumulate in float32 whatever the dtype of their input.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from minedit.config import MineditError, VAEConfig, shown


def _norm(groups: int, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class ResnetBlock(nn.Module):
    """[B,c_in,h,w] -> [B,c_out,h,w]."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(groups, c_in)
        self.conv1 = _conv(c_in, c_out)
        self.norm2 = _norm(groups, c_out)
        self.conv2 = _conv(c_out, c_out)
        self.nin_shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention of one head as wide as the map: [B,C,h,w] -> [B,C,h,w]."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(groups, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))  # [B, 1, N, C]
        h = F.scaled_dot_product_attention(q, k, v)  # [B, 1, N, C]
        h = h.squeeze(1).transpose(1, 2).reshape(x.shape)  # [B, C, h, w]
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """[B,C,h,w] -> [B,C,h/2,w/2]. Pads right and bottom only: the checkpoint was trained so."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """[B,C,h,w] -> [B,C,2h,2w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _middle(channels: int, groups: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "block_1": ResnetBlock(channels, channels, groups),
            "attn_1": AttnBlock(channels, groups),
            "block_2": ResnetBlock(channels, channels, groups),
        }
    )


def _level(c_in: int, c_out: int, blocks: int, groups: int) -> nn.ModuleDict:
    """`blocks` ResnetBlocks, the first of which changes the width."""
    chain = [ResnetBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(blocks)]
    return nn.ModuleDict({"block": nn.Sequential(*chain)})


class Encoder(nn.Module):
    """Image [B,3,H,W] -> [B,2·z,H/8,W/8]."""

    def __init__(self, cfg: VAEConfig) -> None:
        super().__init__()
        widths, groups = cfg.channels, cfg.norm_groups
        self.conv_in = _conv(cfg.image_channels, widths[0])
        self.down = nn.ModuleDict()
        for i, c in enumerate(widths):
            self.down[str(i)] = _level(widths[max(i - 1, 0)], c, cfg.blocks, groups)
            if i + 1 < len(widths):
                self.down[str(i)]["downsample"] = Downsample(c)
        self.mid = _middle(widths[-1], groups)
        self.norm_out = _norm(groups, widths[-1])
        self.conv_out = _conv(widths[-1], 2 * cfg.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down.values():
            for layer in level.values():  # block, downsample
                h = layer(h)
        for layer in self.mid.values():
            h = layer(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """[B,z,h,w] -> image [B,3,8h,8w]. `up.3` is the coarsest level and runs first, as in the original."""

    def __init__(self, cfg: VAEConfig) -> None:
        super().__init__()
        widths, groups = cfg.channels, cfg.norm_groups
        last = len(widths) - 1
        self.conv_in = _conv(cfg.z_channels, widths[-1])
        self.mid = _middle(widths[-1], groups)
        self.up = nn.ModuleDict()
        for i, c in enumerate(widths):
            self.up[str(i)] = _level(widths[min(i + 1, last)], c, cfg.blocks + 1, groups)
            if i > 0:
                self.up[str(i)]["upsample"] = Upsample(c)
        self.norm_out = _norm(groups, widths[0])
        self.conv_out = _conv(widths[0], cfg.image_channels)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for layer in self.mid.values():
            h = layer(h)
        for level in reversed(self.up.values()):
            for layer in level.values():  # block, upsample
                h = layer(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class VAE(nn.Module):
    """Latents here are unscaled: the caller multiplies by `Config.latent_scale` after encode, divides before decode."""

    def __init__(self, cfg: VAEConfig) -> None:
        super().__init__()
        if not isinstance(cfg, VAEConfig):
            raise MineditError(f"the config is {shown(repr(cfg), 60)}, expected a VAEConfig, such as SD14.vae")
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * cfg.z_channels, 2 * cfg.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(cfg.z_channels, cfg.z_channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Image [B,3,H,W] in [-1,1], H and W multiples of 8 -> moments [B,8,H/8,W/8]: mean, then log variance."""
        return self.quant_conv(self.encoder(image))

    def decode(self, z: Tensor) -> Tensor:
        """Latent [B,4,h,w] -> image [B,3,8h,8w], about [-1,1], not clamped."""
        return self.decoder(self.post_quant_conv(z))
