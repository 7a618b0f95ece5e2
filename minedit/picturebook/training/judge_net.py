"""The judge: a small network that reads the factors off a picture. train_judge.py teaches it."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from minedit.config import MineditError
from minedit.files.checkpoint import write
from minedit.picturebook.world.shown import LABELS, LOOKS

SIDE = 64  # pixels of the small picture that the judge sees beside the whole one
SPOTS = 16  # places that it looks for in a picture
PARTS = ("held", *LOOKS)  # factors of which every cell tells whether it is a part, and which; None in the hand: neither
WIDE = 48  # channels of what it knows of a cell


class Judge(nn.Module):
    """Picture [B,3,128,128] in [-1,1] -> a dict of logits, one [B,len(LABELS[factor])] for each factor.

    It looks twice: at the picture in half its size, where what matters does not depend on how sharp the picture is, and
    at every pixel, for what is as small as a cup. Of what it sees it keeps all, in a coarse grid, and what stands at
    SPOTS places that it looks for, wherever they are, with their plain colours: a face, hair, a hand. And it counts:
    each cell of 4 × 4 pixels, with what surrounds it, is skin, hair or a thing held, which one, or neither.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Sequential(*_convolution(3, 32, 5, stride=2))
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), *_convolution(12, 32, 3, stride=2), *_convolution(32, 32, 3))
        self.middle = nn.Sequential(*_convolution(32, 64, 3, stride=2), *_convolution(64, 64, 3))
        self.trunk = nn.Sequential(
            *_convolution(64, 128, 3, stride=2),
            *_convolution(128, 128, 3),
            *_convolution(128, 256, 3, stride=2),
            *_convolution(256, 256, 3),
        )
        self.hidden = nn.Sequential(nn.Flatten(), nn.Dropout(0.4), nn.Linear(256 * 16, 256), nn.SiLU())
        self.where, self.around = nn.Conv2d(32, SPOTS, 1), nn.Conv2d(64, SPOTS, 1)
        self.local = nn.Sequential(nn.Linear(SPOTS * (32 + 3) + 64, 128), nn.SiLU())
        self.lateral = nn.ModuleList(nn.Conv2d(channels, WIDE, 1) for channels in (32, 64, 128))
        self.gathered = nn.Sequential(nn.GroupNorm(8, WIDE), nn.SiLU())
        parts = sum(len(LABELS[name]) for name in PARTS)
        # without a norm, which would take brightness from the plain colours
        self.parts = nn.Sequential(nn.Conv2d(WIDE + 12, WIDE, 3, padding=1), nn.SiLU(), nn.Conv2d(WIDE, parts, 1))
        nn.init.constant_(self.parts[-1].bias[:1], 5.0)  # most cells are neither
        width = {name: (128 if name in LOOKS else 128 + 256) + (parts - 1 if name in PARTS else 0) for name in LABELS}
        self.heads = nn.ModuleDict({name: nn.Linear(width[name], len(labels)) for name, labels in LABELS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.see(images)[0]

    def see(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The logits, and two logarithms: how much of each place stands where, [B,SPOTS,32,32], and what is each cell.

        The last [B,parts,32,32], a distribution over the values of PARTS, one after the other; None is neither.
        """
        small = F.interpolate(images, size=SIDE, mode="area")
        near = self.coarse(small) + self.fine(images)  # [B, 32, 32, 32]
        far = self.middle(near)  # [B, 64, 16, 16]
        wide = self.trunk[:6](far)  # [B, 128, 8, 8]
        logits = self.where(near) + F.interpolate(self.around(far), scale_factor=2, mode="bilinear")
        share = logits.float().flatten(2).log_softmax(dim=-1)  # [B, SPOTS, 1024]
        seen = torch.cat([near.float(), 4 * F.avg_pool2d(small.float(), 2)], dim=1).flatten(2)  # [B, 35, 1024]
        places = torch.einsum("bpn,bcn->bpc", share.exp(), seen).flatten(1)
        local = self.local(torch.cat([places, far.float().amax((2, 3))], dim=1))
        both = torch.cat([self.hidden(self.trunk[6:](wide).float()), local], dim=1)

        maps = [lateral(x) for lateral, x in zip(self.lateral, (near, far, wide), strict=True)]
        cells = sum(F.interpolate(x, size=maps[0].shape[-1]) for x in maps)  # [B, WIDE, 32, 32]
        cells = self.parts(torch.cat([self.gathered(cells), 2 * F.pixel_unshuffle(small, 2)], dim=1))
        part = cells.float().log_softmax(dim=1)  # [B, parts, 32, 32]
        counted = (part.exp().sum((2, 3)) + 0.01).log()[:, 1:]  # of cells
        given = {name: local if name in LOOKS else both for name in LABELS}
        given |= {name: torch.cat([given[name], counted], dim=1) for name in PARTS}
        found = {name: head(given[name]) for name, head in self.heads.items()}
        return found, share.unflatten(2, logits.shape[2:]), part

    @torch.no_grad()
    def read(self, images: Tensor, factor: str) -> list:
        """The factor's value in each picture, one of LABELS[factor]."""
        return [LABELS[factor][i] for i in self(images)[factor].argmax(dim=1).tolist()]

    @torch.no_grad()
    def read_all(self, images: Tensor) -> list[dict[str, object]]:
        """The value of every factor in each picture; what a subject has not is guessed, too."""
        found = {name: logits.argmax(dim=1).tolist() for name, logits in self(images).items()}
        return [{name: LABELS[name][row[i]] for name, row in found.items()} for i in range(len(images))]


def _convolution(a: int, b: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """`a` channels -> `b` channels, the side divided by `stride`."""
    return [nn.Conv2d(a, b, kernel, stride=stride, padding=kernel // 2), nn.GroupNorm(8, b), nn.SiLU()]


def save_judge(judge: Judge, path: Path) -> None:
    """Write the judge in float16 as a safetensors file."""
    write({name: tensor.half() for name, tensor in judge.state_dict().items()}, path)


def load_judge(path: Path) -> Judge:
    """The judge in eval mode. Raises MineditError where there is none yet."""
    if not path.is_file():
        raise MineditError(f"no judge at {path}; train one with `minedit train judge`")
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return judge.eval()
