"""How the judge (judge_net.py) learns: on renderings, and on what the autoencoder makes of some."""

import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minedit.image import to_pil, write_whole
from minedit.picturebook.training.fit import Training, fingerprint, fit
from minedit.picturebook.training.judge_net import PARTS, Judge
from minedit.picturebook.training.train_vae import reconstruct
from minedit.picturebook.world.dataset import Drawings, pixels
from minedit.picturebook.world.factors import Factors
from minedit.picturebook.world.looks import PEOPLE, look
from minedit.picturebook.world.places import SUBJECT_LIGHT
from minedit.picturebook.world.shown import LABELS, LOOKS, shown

UNNAMED = (None, "medium")  # what no caption says
NEAR = 5 / 127.5  # colours of the same thing are nearer than this
MOST = 6  # pixels by which a picture is moved while the judge learns
IGNORED = -100  # what cross_entropy leaves out
CELLS = 64  # by which the loss of all cells of a picture is divided: about as many are of a subject
EVALUATED = 512  # held-out pictures read at every save


def labels(factors: list[Factors], seeds: list[int]) -> dict[str, Tensor]:
    """Index [B] of each factor's value in LABELS, as it shows; IGNORED where the subject has no such factor."""
    seen = [shown(f, seed) for f, seed in zip(factors, seeds, strict=True)]
    return {
        name: torch.tensor([values.index(each[name]) if name in each else IGNORED for each in seen])
        for name, values in LABELS.items()
    }


class Coded:
    """The first `count` of some drawings, and what the autoencoder makes of them, uint8 on disk in `folder`."""

    def __init__(self, drawings: Drawings, count: int, vae: nn.Module, folder: Path, run: Training) -> None:
        self.tensor, count = drawings.tensor, min(count, len(drawings))
        self.factors, self.seeds = drawings.factors[:count], drawings.seeds[:count]
        file = folder / f"coded-{count}-{drawings.name}-{fingerprint(vae)}.npy"
        if not file.exists():
            write_whole(file, lambda part: self._code(part, vae, run))
        self.images = np.load(file, mmap_mode="r")

    def _code(self, part: Path, vae: nn.Module, run: Training) -> None:
        found = []
        for start in tqdm(range(0, len(self.seeds), 16), desc=f"coding {len(self.seeds)} scenes", mininterval=5):
            x = self.tensor(list(range(start, min(start + 16, len(self.seeds)))))
            with run.bfloat16():
                x = reconstruct(vae, x.to(run.device, memory_format=torch.channels_last))
            found += map(np.asarray, to_pil(x))
        with part.open("wb") as out:  # np.save would add to a name
            np.save(out, np.stack(found))

    def __len__(self) -> int:
        return len(self.seeds)

    def coded(self, indices: list[int]) -> Tensor:
        """[len(indices),3,size,size] float32 in [-1,1]: the autoencoder's; `tensor` gives the renderer's."""
        return pixels(self.images, indices)


def lessons(
    seen: Drawings, kept: Drawings, hands: Drawings, vae: nn.Module, folder: Path, run: Training
) -> list[tuple[Drawings | Coded, int]]:
    """What the judge learns from, and how many pictures of it a step.

    `kept` are other renderings of the compositions that the UNet never sees: the judge must read exactly these, and
    without them it took, now and then, a cat for a dog there. `hands` has the cups that are rare elsewhere. And it is
    to read what a model draws, which comes out of the autoencoder.
    """
    coded = Coded(kept, 400, vae, folder, run), Coded(hands, 600, vae, folder, run)
    return [(seen, 13), (kept, 13), (hands, 14), (coded[0], 3), (coded[1], 5)]


def train_judge(
    parts: Sequence[tuple[Drawings | Coded, int]], unseen: Drawings, run: Training, begun: Judge | None = None
) -> Judge:
    """Train the judge on so many pictures a step of each of `parts`; its accuracy on the first `EVALUATED` of `unseen`
    is logged.

    What is small is picked twice as often as the rest (`_weight`). The judge is told where skin, hair and the thing
    held are, which the renderer's colours betray: the first three places that it looks for, and every cell. `begun`: a
    judge to go on with, at half the learning rate.
    """
    torch.manual_seed(run.seed)
    judge = (begun or Judge()).to(run.device, memory_format=torch.channels_last)
    truth = [labels(part.factors, part.seeds) for part, _ in parts]
    colours = [torch.stack([*map(_colours, part.factors, part.seeds)]) for part, _ in parts]
    weights = [list(accumulate(_weight(f) for f in part.factors)) for part, _ in parts]

    def loss(step: int) -> dict[str, Tensor]:
        rng = run.chances("judge", step)
        picked = [
            rng.choices(range(len(part)), cum_weights=own, k=share)
            for (part, share), own in zip(parts, weights, strict=True)
        ]
        drawn = torch.cat([part.tensor(indices) for (part, _), indices in zip(parts, picked, strict=True)])
        given = [getattr(part, "coded", part.tensor)(own) for (part, _), own in zip(parts, picked, strict=True)]
        drawn, x = _moved(torch.cat([drawn, torch.cat(given)], dim=1), rng).chunk(2, dim=1)
        want = {name: torch.cat([t[name][own] for t, own in zip(truth, picked, strict=True)]) for name in LABELS}
        there = _where(drawn, torch.cat([t[own] for t, own in zip(colours, picked, strict=True)]))
        x = _soften(x, rng, run.noise(step)).to(run.device, memory_format=torch.channels_last)
        with run.bfloat16():
            logits, share, part = judge.see(x)
        cells, there = _cells(there, want).to(run.device), (there / _total(there)).to(run.device)
        losses = {
            "places": -(there * share[:, : there.shape[1]]).sum() / there.sum().clamp(min=1),
            "parts": -(cells * part).sum() / (CELLS * len(x)),
        }
        for name, own in want.items():
            own = own.to(run.device)
            wrong = F.cross_entropy(logits[name].float(), own, reduction="sum")
            losses[name] = wrong / (own != IGNORED).sum().clamp(min=1)  # 0 where nobody has the factor
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
    """Which share of each cell of pictures x is skin, hair, the thing held, [B,3,32,32], by their colours."""
    alike = torch.ones(())
    for channel, own in zip(x.split(1, dim=1), colours.unbind(2), strict=True):  # all at once takes five times as long
        alike = alike * ((channel - own[..., None, None]).abs_() < NEAR)  # [B, 3, H, W]
    return F.avg_pool2d(alike, 4)


def _total(there: Tensor) -> Tensor:
    """Of every thing [B,3,1,1], in cells; not 0."""
    return there.sum((2, 3), keepdim=True).clamp(min=1e-6)


def _cells(there: Tensor, want: dict[str, Tensor]) -> Tensor:
    """What every cell is, [B,parts,32,32], as Judge.see tells it; there: shares of skin, hair and the thing."""
    share = dict(zip((*LOOKS, "held"), there.unbind(1), strict=True))
    parts = [
        share[name][:, None] * F.one_hot(want[name].clamp(min=0), len(LABELS[name]))[..., None, None] for name in PARTS
    ]
    cells = torch.cat(parts, dim=1)
    cells[:, 0] = (1 - cells[:, 1:].sum(dim=1)).clamp(min=0)  # neither
    return cells / cells.sum(dim=1, keepdim=True)


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
