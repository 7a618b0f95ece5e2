"""The UNet of Stable Diffusion v1: noisy latent, timestep, text -> predicted noise.

Module names are the names of the original checkpoint after `model.diffusion_model.`, so it loads with strict=True and
no mapping; nn.Identity stands where the original has dropout. Follows Latent Diffusion (Rombach et al., 2022,
arXiv:2112.10752), `ldm/modules/diffusionmodules/openaimodel.py` and `ldm/modules/attention.py`.
torch's GroupNorm and LayerNorm accumulate in float32 whatever the dtype of their input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minedit.attention.inside import Gate
from minedit.attention.rules import Attn, Seen, Site, branch
from minedit.attention.sdpa import sdpa
from minedit.config import MineditError, UNetConfig, shown
from minedit.stack.feed_forward import FeedForward
from minedit.stack.times import TimeEmbed


def _zero(layer: nn.Module) -> nn.Module:
    """Zero weights: at the start of training each residual branch adds nothing."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class CrossAttention(nn.Module):
    """x [B,N,C] attends to context [B,T,context_dim], or to itself without one -> [B,N,C]."""

    weights = staticmethod(Gate.weights)  # speed/layers.py has another

    def __init__(self, site: Site, context_dim: int) -> None:
        super().__init__()
        self.site = site
        c = site.channels
        self.to_q = nn.Linear(c, c, bias=False)
        self.to_k = nn.Linear(context_dim, c, bias=False)
        self.to_v = nn.Linear(context_dim, c, bias=False)
        self.to_out = nn.Sequential(nn.Linear(c, c), nn.Identity())
        self.register_buffer("to_qkv", None, persistent=False)  # [3C,C] self-attention's weights in one; speed/fast.py

    def forward(self, x: Tensor, context: Tensor, attn: Attn) -> Tensor:
        if self.to_qkv is None:
            projected = self.to_q(x), self.to_k(context), self.to_v(context)
        else:
            projected = F.linear(x, self.to_qkv).chunk(3, dim=-1)
        q, k, v = map(self._heads, projected)
        rule = attn.rules.get(self.site.name)
        if rule is not None:
            rule = rule.resolve(x, attn.seen, self.weights)
        attend = attn.attend or sdpa
        if attn.tap is not None:
            attend = attn.tap.attend(self.site, attn)
        wanted = attn.watch.get(self.site.name)
        out, columns = attend(q, k, v, rule, columns=True) if wanted else (attend(q, k, v, rule), None)
        if out.shape != q.shape or out.dtype != q.dtype:
            fault = "the attention function returned {}, {}; expected {}, {}, as q is; try: minedit kernels check"
            raise MineditError(f"{self.site.name}: {fault}".format(list(out.shape), out.dtype, list(q.shape), q.dtype))
        if wanted is not None:
            attn.seen[self.site.name] = Seen(x, columns)
        return self.to_out(out.transpose(1, 2).reshape(x.shape))  # [B, N, C]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.site.heads, -1)).transpose(1, 2)  # [B, H, N or T, D]


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each on the layer-normed input: [B,N,C] -> [B,N,C]."""

    def __init__(self, name: str, place: str, stride: int, channels: int, cfg: UNetConfig) -> None:
        super().__init__()
        own = Site(f"{name}.attn1", "self", place, stride, channels, cfg.heads)
        text = Site(f"{name}.attn2", "cross", place, stride, channels, cfg.heads)
        self.attn1 = CrossAttention(own, channels)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(text, cfg.context_dim)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor, attn: Attn) -> Tensor:
        hidden = self.norm1(x)
        x = x + self.attn1(hidden, hidden, attn)
        x = x + self.attn2(self.norm2(x), context, attn)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """[B,C,h,w] -> [B,C,h,w] through one transformer block over its h·w pixels."""

    def __init__(self, name: str, place: str, stride: int, channels: int, cfg: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(cfg.norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        block = BasicTransformerBlock(f"{name}.transformer_blocks.0", place, stride, channels, cfg)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor, attn: Attn) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2).contiguous()  # [B, N, C], laid out once for all norms
        for block in self.transformer_blocks:
            h = block(h, context, attn)
        h = h.transpose(1, 2).unflatten(2, x.shape[2:])  # [B, C, h, w]
        return x + self.proj_out(h.contiguous() if x.is_contiguous() else h)


class ResBlock(nn.Module):
    """[B,c_in,h,w] and time embedding [B,emb] -> [B,c_out,h,w]."""

    def __init__(self, c_in: int, c_out: int, emb: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, c_out))
        last = _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, c_out), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor, attn: Attn) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + branch(self.out_layers(h), attn.rules.get(self.name))


class Downsample(nn.Module):
    """[B,C,h,w] -> [B,C,h/2,w/2], rounded up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """[B,C,h,w] -> [B,C,*size], size 2h or 2h-1, 2w or 2w-1: each pixel twice, the last once where it is odd."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(F.interpolate(x, size, mode="nearest"))


class Block(nn.Sequential):
    """Layers in a row, each given what it takes of x, time embedding, text, attention data, size of the next skip."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, attn: Attn, size: torch.Size) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb, attn)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, attn)
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """`sites` lists its attention layers in the order in which they run."""

    fast = False  # whether speed/fast.py changed its layers
    unfused = False  # whether it had to leave them torch's own on a GPU, for want of Triton

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        if not isinstance(cfg, UNetConfig):
            raise MineditError(f"the config is {shown(repr(cfg), 60)}, expected a UNetConfig, such as SD14.unet")
        self.cfg = cfg
        c, groups = cfg.channels[0], cfg.norm_groups
        emb = 4 * c
        self.time_embed = TimeEmbed(c, cfg.guidance_dim)
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(cfg.in_channels, c, 3, padding=1))])
        skips = [c]  # widths of what the way down hands to the way up
        for level, width in enumerate(cfg.channels):
            for _ in range(cfg.blocks):
                block = Block(ResBlock(c, width, emb, groups))
                if cfg.attention[level]:
                    name = f"input_blocks.{len(self.input_blocks)}.1"
                    block.append(SpatialTransformer(name, "down", 2**level, width, cfg))
                self.input_blocks.append(block)
                c = width
                skips.append(c)
            if level + 1 < len(cfg.channels):
                self.input_blocks.append(Block(Downsample(c)))
                skips.append(c)

        self.middle_block = Block()
        if cfg.middle:
            middle = SpatialTransformer("middle_block.1", "mid", 2 ** (len(cfg.channels) - 1), c, cfg)
            self.middle_block.extend([ResBlock(c, c, emb, groups), middle, ResBlock(c, c, emb, groups)])

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(cfg.channels))):
            for i in range(cfg.blocks + 1):
                block = Block(ResBlock(c + skips.pop(), width, emb, groups))
                if cfg.attention[level]:
                    name = f"output_blocks.{len(self.output_blocks)}.1"
                    block.append(SpatialTransformer(name, "up", 2**level, width, cfg))
                if level > 0 and i == cfg.blocks:
                    block.append(Upsample(width))
                self.output_blocks.append(block)
                c = width
        last = _zero(nn.Conv2d(c, cfg.out_channels, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(groups, c), nn.SiLU(), last)
        self.sites: tuple[Site, ...] = tuple(m.site for m in self.modules() if isinstance(m, CrossAttention))
        for name, module in self.named_modules():
            module.name = name  # by which a Rule is a ResBlock's

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, attn: Attn | None = None, residuals: list[Tensor] | None = None
    ) -> Tensor:
        """x [B,4,h,w], timesteps t [B] in 0 … 999, text [B,T,context_dim] -> predicted noise [B,4,h,w].

        t: [B,2], with the guidance scale in the second column, where `cfg.guidance_dim` is not 0.
        residuals: of a ControlNet, added to each map that the way up is handed, the middle's last; none without.
        Any h and w: the way up makes each map as large as that of the way down, an odd one too, as diffusers does.
        """
        attn = attn or Attn()
        emb = self.time_embed(t)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context, attn, x.shape[2:])
            skips.append(x)
        x = self.middle_block(x, emb, context, attn, x.shape[2:])
        if residuals:
            *skips, x = (each + more for each, more in zip([*skips, x], residuals, strict=True))
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb, context, attn, skips[-1].shape[2:] if skips else x.shape[2:])
        return self.out(x)
