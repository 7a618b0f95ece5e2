"""The judge: a small network, trained on renderings only, that reads the factors off a picture."""

import random
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from minedit.config import MineditError
from minedit.files.checkpoint import write
from minedit.picturebook.training.fit import Training, fit
from minedit.picturebook.world.dataset import Drawings
from minedit.picturebook.world.factors import Factors
from minedit.picturebook.world.looks import PEOPLE, look
from minedit.picturebook.world.places import SUBJECT_LIGHT
from minedit.picturebook.world.shown import LABELS, LOOKS, shown

SIDE = 64  # pixels of the small picture that the judge sees beside the whole one
SPOTS = 16  # places that it looks for in a picture
UNNAMED = (None, "medium")  # what no caption says
NEAR = 5 / 127.5  # colours of the same thing are nearer than this
MOST = 6  # pixels by which a picture is moved while the judge learns
IGNORED = -100  # what cross_entropy leaves out
KEPT = 2  # one in so many pictures of a batch is of a composition kept from the UNet
EVALUATED = 512  # held-out pictures read at every save


class Judge(nn.Module):
    """Picture [B,3,128,128] in [-1,1] -> a dict of logits, one [B,len(LABELS[factor])] for each factor.

    It looks twice: at the picture in half its size, where what matters does not depend on how sharp the picture is, and
    at every pixel, for what is as small as a cup. Of what it sees it keeps all, in a coarse grid, and what stands at
    SPOTS places that it looks for, wherever they are, with their plain colours: a face, hair, a hand.
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
        width = {name: 128 if name in LOOKS else 128 + 256 for name in LABELS}
        self.heads = nn.ModuleDict({name: nn.Linear(width[name], len(labels)) for name, labels in LABELS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.see(images)[0]

    def see(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The logits, and the logarithm of how much of each place stands where, [B,SPOTS,32,32]."""
        small = F.interpolate(images, size=SIDE, mode="area")
        near = self.coarse(small) + self.fine(images)  # [B, 32, 32, 32]
        far = self.middle(near)  # [B, 64, 16, 16]
        logits = self.where(near) + F.interpolate(self.around(far), scale_factor=2, mode="bilinear")
        share = logits.float().flatten(2).log_softmax(dim=-1)  # [B, SPOTS, 1024]
        seen = torch.cat([near.float(), 4 * F.avg_pool2d(small.float(), 2)], dim=1).flatten(2)  # [B, 35, 1024]
        places = torch.einsum("bpn,bcn->bpc", share.exp(), seen).flatten(1)
        local = self.local(torch.cat([places, far.float().amax((2, 3))], dim=1))
        both = torch.cat([self.hidden(self.trunk(far).float()), local], dim=1)
        found = {name: head(local if name in LOOKS else both) for name, head in self.heads.items()}
        return found, share.unflatten(2, logits.shape[2:])

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


def labels(factors: list[Factors], seeds: list[int]) -> dict[str, Tensor]:
    """Index [B] of each factor's value in LABELS, as it shows; IGNORED where the subject has no such factor."""
    seen = [shown(f, seed) for f, seed in zip(factors, seeds, strict=True)]
    return {
        name: torch.tensor([values.index(each[name]) if name in each else IGNORED for each in seen])
        for name, values in LABELS.items()
    }


def train_judge(
    seen: Drawings, kept: Drawings, unseen: Drawings, run: Training, batch: int = 64, begun: Judge | None = None
) -> Judge:
    """Train the judge on `seen` and on `kept`; its accuracy on the first `EVALUATED` of `unseen` is logged.

    `kept` are other renderings of the compositions that the UNet never sees. The judge must read exactly these, and
    without them it took, now and then, a cat for a dog there. Pictures that were misread are picked twice as often as
    others (`_weight`). The first three places that it looks for are told: skin, hair and the thing held, which the
    renderer's colours betray. `begun`: a judge to go on with, at half the learning rate.
    """
    torch.manual_seed(run.seed)
    judge = (begun or Judge()).to(run.device, memory_format=torch.channels_last)
    parts = (seen, batch - batch // KEPT), (kept, batch // KEPT)
    truth = [labels(part.factors, part.seeds) for part, _ in parts]
    colours = [torch.stack([*map(_colours, part.factors, part.seeds)]) for part, _ in parts]
    weights = [list(accumulate(_weight(f) for f in part.factors)) for part, _ in parts]

    def loss(step: int) -> dict[str, Tensor]:
        rng = run.chances("judge", step)
        picked = [
            rng.choices(range(len(part)), cum_weights=own, k=share)
            for (part, share), own in zip(parts, weights, strict=True)
        ]
        x = torch.cat([part.tensor(indices) for (part, _), indices in zip(parts, picked, strict=True)])
        x = _moved(x, rng)
        there = _where(x, torch.cat([own[indices] for own, indices in zip(colours, picked, strict=True)]))
        x = _soften(x, rng, run.noise(step)).to(run.device, memory_format=torch.channels_last)
        with run.bfloat16():
            logits, share = judge.see(x)
        there = there.to(run.device)
        losses = {"places": -(there * share[:, : there.shape[1]]).sum() / there.sum().clamp(min=1)}
        for name in LABELS:
            want = torch.cat([own[name][indices] for own, indices in zip(truth, picked, strict=True)]).to(run.device)
            wrong = F.cross_entropy(logits[name].float(), want, reduction="sum")
            losses[name] = wrong / (want != IGNORED).sum().clamp(min=1)  # 0 where nobody has the factor
        return {"loss": sum(losses.values()), **losses}

    def evaluate(module: nn.Module) -> dict[str, float]:
        return {f"{name}_accuracy": value for name, value in accuracy(module, unseen, EVALUATED).items()}

    peak = 1e-3 if begun else 2e-3
    return fit("judge", judge, loss, run, peak=peak, ema=0.998, weight_decay=0.02, evaluate=evaluate)


def _weight(f: Factors) -> int:
    """How often a scene is picked: twice, if it is one in which an earlier judge misread what is small."""
    return 1 + (f.held is not None or f.pose == "waving" or f.subject in ("cat", "dog"))


def _colours(f: Factors, seed: int) -> Tensor:
    """The colours [3,3] in [-1,1] of skin, hair and the thing held in a rendering; NaN of what is not there."""
    if f.still:
        return torch.full((3, 3), torch.nan)
    own, light, person = look(seed), SUBJECT_LIGHT[f.time], f.subject in PEOPLE
    rows = ((own.skin, person), (own.hair, person), (own.thing, f.held))
    lit = [[c * level // 255 for c, level in zip(colour, light, strict=True)] for colour, _ in rows]
    there = torch.tensor([bool(each) for _, each in rows])
    return torch.where(there[:, None], torch.tensor(lit) / 127.5 - 1, torch.nan)


def _where(x: Tensor, colours: Tensor) -> Tensor:
    """Which share of each thing's pixels in pictures x lies in a cell, [B,3,32,32], by their colours; 0 without one."""
    alike = ((x[:, None] - colours[..., None, None]).abs() < NEAR).all(dim=2).float()  # [B, 3, H, W]
    cells = F.avg_pool2d(alike, 4)
    return cells / cells.sum((2, 3), keepdim=True).clamp(min=1e-6)


def _moved(x: Tensor, rng: random.Random) -> Tensor:
    """Every picture elsewhere by up to `MOST` pixels, its edges stretched: what it shows stays the same."""
    wide, (height, width) = F.pad(x, [MOST] * 4, mode="replicate"), x.shape[-2:]
    corners = [(rng.randint(0, 2 * MOST), rng.randint(0, 2 * MOST)) for _ in x]
    return torch.stack([each[:, y : y + height, x : x + width] for each, (y, x) in zip(wide, corners, strict=True)])


def _soften(x: Tensor, rng: random.Random, noise: torch.Generator) -> Tensor:
    """What a generated picture may have and a rendering has not: blur, grain, a little contrast."""
    if rng.random() < 0.5:
        side = round(x.shape[-1] / rng.uniform(1.1, 1.8))
        x = F.interpolate(F.interpolate(x, size=side, mode="area"), size=x.shape[-1], mode="bilinear")
    x = x * rng.uniform(0.96, 1.04) + rng.uniform(-0.03, 0.03)
    return x + rng.uniform(0, 0.08) * torch.randn(x.shape, generator=noise)


@torch.no_grad()
def confusion(judge: Judge, drawings: Drawings, count: int, batch: int = 64) -> dict[str, Tensor]:
    """How often [L,L] a value (row) of each factor was read as each (column) in the first `count` drawings.

    Leaves the judge in eval mode.
    """
    device = next(judge.parameters()).device
    judge.eval()
    table = {name: torch.zeros(len(values), len(values), dtype=torch.long) for name, values in LABELS.items()}
    stop = min(count, len(drawings))
    for start in range(0, stop, batch):
        picked = list(range(start, min(start + batch, stop)))
        want = labels([drawings.factors[i] for i in picked], [drawings.seeds[i] for i in picked])
        for name, logits in judge(drawings.tensor(picked).to(device)).items():
            asked = want[name] != IGNORED
            where = want[name][asked], logits.argmax(dim=1).cpu()[asked]
            table[name].index_put_(where, torch.ones(()).long(), accumulate=True)
    return table


def accuracy(judge: Judge, drawings: Drawings, count: int, batch: int = 64) -> dict[str, float]:
    """Share of the first `count` drawings whose factor the judge reads correctly: those that a caption can name, looks.

    No caption names empty hands or the medium size. Factors that none of them has are left out. Leaves the judge in
    eval mode.
    """
    found = {}
    for name, table in confusion(judge, drawings, count, batch).items():
        asked = [i for i, value in enumerate(LABELS[name]) if value not in UNNAMED]
        if total := table[asked].sum().item():
            found[name] = table.diagonal()[asked].sum().item() / total
    return found


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
