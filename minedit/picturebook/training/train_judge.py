"""The judge: a small network, trained on renderings only, that reads the factors off a picture."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from minedit.config import MineditError
from minedit.files.checkpoint import write
from minedit.picturebook.training.fit import Training, fit
from minedit.picturebook.world.dataset import Drawings
from minedit.picturebook.world.factors import SIZES, SUBJECTS, Factors
from minedit.picturebook.world.looks import HELD, POSES, TINTS
from minedit.picturebook.world.places import PLACES, TIMES
from minedit.picturebook.world.still import SUPPORTS, THINGS

LABELS: dict[str, tuple] = {
    "subject": (*SUBJECTS, *THINGS),
    "place": (*PLACES, *SUPPORTS),
    "colour": tuple(TINTS),
    "pose": tuple(dict.fromkeys(pose for poses in POSES.values() for pose in poses)),
    "count": (1, 2, 3),
    "size": tuple(SIZES),
    "time": TIMES,
    "held": (None, *dict.fromkeys(thing for things in HELD.values() for thing in things)),
}
SIDE = 64  # pixels that the judge sees
UNNAMED = (None, "medium")  # what no caption says
IGNORED = -100  # what cross_entropy leaves out
KEPT = 4  # one in so many pictures of a batch is of a composition kept from the UNet
EVALUATED = 512  # held-out pictures read at every save


class Judge(nn.Module):
    """Picture [B,3,128,128] in [-1,1] -> a dict of logits, one [B,len(LABELS[factor])] for each factor.

    It looks at the picture in half its size: what a factor is shows there, how sharp the picture is does not.
    """

    def __init__(self) -> None:
        super().__init__()
        layers = _convolution(3, 32, 5, stride=2)
        for a, b in ((32, 64), (64, 128), (128, 256)):
            layers += _convolution(a, b, 3, stride=2) + _convolution(b, b, 3)
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(256 * 16, 256), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(labels)) for name, labels in LABELS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        h = self.hidden(self.trunk(F.interpolate(images, size=SIDE, mode="area")).float())
        return {name: head(h) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor, factor: str) -> list:
        """The factor's value in each picture, one of LABELS[factor]."""
        return [LABELS[factor][i] for i in self(images)[factor].argmax(dim=1).tolist()]


def _convolution(a: int, b: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """`a` channels -> `b` channels, the side divided by `stride`."""
    return [nn.Conv2d(a, b, kernel, stride=stride, padding=kernel // 2), nn.GroupNorm(8, b), nn.SiLU()]


def labels(factors: list[Factors]) -> dict[str, Tensor]:
    """Index [B] of each factor's value in LABELS, IGNORED where the subject has no such factor."""

    def index(f: Factors, name: str) -> int:
        # only still life is counted, only figures have a time of the day and may hold something
        asked = f.still if name == "count" else not (f.still and name in ("time", "held"))
        value = getattr(f, name)
        return LABELS[name].index(value) if asked and value in LABELS[name] else IGNORED

    return {name: torch.tensor([index(f, name) for f in factors]) for name in LABELS}


def train_judge(seen: Drawings, kept: Drawings, unseen: Drawings, run: Training, batch: int = 64) -> Judge:
    """Train the judge on `seen` and on `kept`; its accuracy on the first `EVALUATED` of `unseen` is logged.

    `kept` are other renderings of the compositions that the UNet never sees. The judge must read exactly these, and
    without them it took, now and then, a cat for a dog there.
    """
    torch.manual_seed(run.seed)
    judge = Judge().to(run.device, memory_format=torch.channels_last)

    def loss(step: int) -> dict[str, Tensor]:
        rng = run.chances("judge", step)
        parts = (seen, batch - batch // KEPT), (kept, batch // KEPT)
        picked = [(part, [rng.randrange(len(part)) for _ in range(share)]) for part, share in parts]
        x = torch.cat([part.tensor(indices) for part, indices in picked])
        x = _soften(x, rng, run.noise(step)).to(run.device, memory_format=torch.channels_last)
        with run.bfloat16():
            logits = judge(x)
        want, losses = labels([part.factors[i] for part, indices in picked for i in indices]), {}
        for name in LABELS:
            asked = (want[name] != IGNORED).any()
            right = want[name].to(run.device)
            losses[name] = F.cross_entropy(logits[name].float(), right) if asked else torch.zeros((), device=run.device)
        return {"loss": sum(losses.values()), **losses}

    def evaluate(module: nn.Module) -> dict[str, float]:
        return {f"{name}_accuracy": value for name, value in accuracy(module, unseen, EVALUATED).items()}

    return fit("judge", judge, loss, run, peak=2e-3, ema=0.998, weight_decay=0.02, evaluate=evaluate)


def _soften(x: Tensor, rng: random.Random, noise: torch.Generator) -> Tensor:
    """What a generated picture may have and a rendering has not: blur, grain, a little contrast."""
    if rng.random() < 0.5:
        side = round(x.shape[-1] / rng.uniform(1.2, 2.2))
        x = F.interpolate(F.interpolate(x, size=side, mode="area"), size=x.shape[-1], mode="bilinear")
    x = x * rng.uniform(0.9, 1.1) + rng.uniform(-0.06, 0.06)
    return x + rng.uniform(0, 0.12) * torch.randn(x.shape, generator=noise)


@torch.no_grad()
def accuracy(judge: Judge, drawings: Drawings, count: int, batch: int = 64) -> dict[str, float]:
    """Share of the first `count` drawings whose factor the judge reads correctly, where a caption can name it.

    No caption names empty hands or the medium size. Factors that none of them has are left out. Leaves the judge in
    eval mode.
    """
    device = next(judge.parameters()).device
    judge.eval()
    right: dict[str, list[bool]] = {name: [] for name in LABELS}
    stop = min(count, len(drawings))
    for start in range(0, stop, batch):
        picked = list(range(start, min(start + batch, stop)))
        logits, want = judge(drawings.tensor(picked).to(device)), labels([drawings.factors[i] for i in picked])
        for name in LABELS:
            unnamed = [i for i, label in enumerate(LABELS[name]) if label in UNNAMED]
            asked = (want[name] != IGNORED) & ~torch.isin(want[name], torch.tensor(unnamed))
            right[name] += (logits[name].argmax(1).cpu() == want[name])[asked].tolist()
    return {name: sum(hits) / len(hits) for name, hits in right.items() if hits}


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
