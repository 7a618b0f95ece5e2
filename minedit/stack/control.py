"""ControlNet (Zhang et al., ICCV 2023, arXiv:2302.05543): a picture of edges, depth, a pose ... steers the UNet.

A trained copy of the UNet's way down reads the hint too, and what it finds is added to the maps that the UNet's way
down hands to its way up. Module names are those of the released files after `control_model.`, `cldm/cldm.py`.
"""

from torch import Tensor, nn

from minedit.attention.rules import Attn
from minedit.config import MineditError, UNetConfig
from minedit.stack.unet import UNet

HINT = (16, 16, 32, 32, 96, 96, 256)  # widths of the layers that read the hint
FACTOR = 8  # side of the hint / side of the latents: three of those layers halve it


class ControlNet(nn.Module):
    """For a UNet of these sizes. A new one adds nothing: the last layer of each path is zero, where training starts."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.file = self.weights = ""  # its name, a short hash of what was loaded; files/control.py
        self.kept: tuple = ()  # as of a Model
        half, c = UNet(cfg), cfg.channels[0]
        self.time_embed, self.input_blocks, self.middle_block = half.time_embed, half.input_blocks, half.middle_block
        layers, before = [], 3
        for at, width in enumerate(HINT):
            layers += [nn.Conv2d(before, width, 3, padding=1, stride=2 if at in (2, 4, 6) else 1), nn.SiLU()]
            before = width
        self.input_hint_block = nn.Sequential(*layers, nn.Conv2d(before, c, 3, padding=1))
        widths = [c]  # of what each block gives
        for level, width in enumerate(cfg.channels):
            widths += [width] * (cfg.blocks + (level + 1 < len(cfg.channels)))
        self.zero_convs = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 1)) for width in widths)
        self.middle_block_out = nn.Sequential(nn.Conv2d(widths[-1], widths[-1], 1))
        for layer in (self.input_hint_block[-1], *self.zero_convs, self.middle_block_out):
            for p in layer.parameters():
                nn.init.zeros_(p)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor, attn: Attn | None = None) -> list[Tensor]:
        """x [B,4,h,w], t [B], text [B,T,context_dim], hint [1 or B,3,8h,8w] in [0,1] -> `UNet.forward`'s residuals."""
        return self.residuals(x, t, context, self.input_hint_block(hint), attn)

    def residuals(self, x: Tensor, t: Tensor, context: Tensor, read: Tensor, attn: Attn | None = None) -> list[Tensor]:
        """The same with the hint as it was read, [1 or B,C,h,w], which is alike at every step."""
        attn, emb, found = attn or Attn(), self.time_embed(t), []
        for block, out in zip(self.input_blocks, self.zero_convs, strict=True):
            x = block(x, emb, context, attn, x.shape[2:])
            x = x if found else x + read  # behind the first convolution
            found.append(out(x))
        return [*found, self.middle_block_out(self.middle_block(x, emb, context, attn, x.shape[2:]))]


class Controlled(nn.Module):
    """A UNet steered by a ControlNet, in the place of a UNet: every row is, by the one hint.

    Attention rules act on the UNet alone, and layers that report are its own.
    """

    def __init__(self, unet: UNet, control: ControlNet, hint: Tensor, scale: float) -> None:
        """hint: [1,3,H,W] in [0,1], dtype and device of the modules. scale: of what is added."""
        super().__init__()
        self.unet, self.control, self.scale = unet, control, scale
        self.read = control.input_hint_block(hint)

    def __getattr__(self, name: str) -> object:
        """What else is asked of it, such as `sites`, is the UNet's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("unet"), name)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, attn: Attn | None = None) -> Tensor:
        """As `UNet.forward`."""
        if x.shape[2:] != self.read.shape[2:]:
            sides = (" x ".join(str(FACTOR * side) for side in each.shape[2:]) for each in (self.read, x))
            raise MineditError("the hint is of {} pixels, expected those of the picture, {}".format(*sides))
        inner = Attn(attn.attend) if attn else Attn()
        found = [each * self.scale for each in self.control.residuals(x, t, context, self.read, inner)]
        return self.unet(x, t, context, attn, found)
