"""InstructPix2Pix (Brooks et al., 2023, arXiv:2211.09800): the trained UNet learns to follow instructions.

It reads eight channels: the noisy latents of the changed scene, and the mode of the given picture's posterior, without
the latent scale. UNet and text tower change by low rank. Of the rows 5 % lose the text, 5 % the picture, 5 % both.

Where the text is lost but not the picture, every other row's target is the picture itself: so without text what is
given comes back, which the paper leaves to chance.
"""

import hashlib
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minedit.attention.rules import Attn
from minedit.config import UNetConfig
from minedit.files.variant import WEIGHTS_KEY, WORDS_KEY, changes
from minedit.files.written import CONFIG_KEY, write
from minedit.image import to_tensor
from minedit.picturebook.training.fit import Training, fingerprint, fit
from minedit.picturebook.training.lowrank import factors, learnt_by, lower
from minedit.picturebook.training.train_text import Ids
from minedit.picturebook.training.train_unet import matmul_attention, times, weighted
from minedit.picturebook.world.dataset import CELL, factors_of, style
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.factors import Factors
from minedit.picturebook.world.instructions import WORDS, changed, instruct
from minedit.picturebook.world.scene import scene
from minedit.sampling.ddim import alphas_cumprod, noised
from minedit.stack.model import Model
from minedit.stack.text import TextEncoder
from minedit.stack.tokens import Tokenizer
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

DROPPED = 0.05  # rows without text; as many without picture; as many with neither
SAME = 0.5  # of the rows with a picture but no text: the picture itself is the target
RANK = 24
PEAK = 4e-4  # learning rate
CHANGES = 2  # of each scene
SEEN = 0.18  # what a picture's channels are multiplied by at first; they are 5.5 of the noise's in size
FIRST = "input_blocks.0.0"  # the layer that reads the photo's channels too


@dataclass(frozen=True)
class Pairs:
    """Scenes, each with `CHANGES` changed ones, as latents; n = 1 + CHANGES."""

    factors: list[list[Factors]]  # [N][n]
    means: Tensor  # [N,n,4,h,w] float16, times the latent scale
    stds: Tensor  # [N,n,4,h,w] float16, times the latent scale
    moved: Tensor  # [N,CHANGES,h,w] uint8, the share of each cell's pixels that a change changed

    def pick(self, rng: random.Random) -> tuple[int, int, int]:
        """(scene, what is given, what is asked for): a change of a scene, or back."""
        n, change = rng.randrange(len(self.factors)), rng.randint(1, CHANGES)
        return (n, 0, change) if rng.random() < 0.5 else (n, change, 0)


def pairs(vae: VAE, folder: Path, count: int, size: int, scale: float, run: Training) -> Pairs:
    """`count` training scenes and their changes, from a file in `folder`, or drawn and encoded now and kept there."""
    named = [_changes(run.seed, i) for i in range(count)]
    told = f"{style()}{fingerprint(vae.encoder)}{run.seed}{size}{named}"
    file = folder / f"pairs-{count}-{hashlib.sha256(told.encode()).hexdigest()[:8]}.safetensors"
    if not file.exists():
        write(_encoded(vae, Drawn(named, run.seed, size), scale, run), file)
    kept = load_file(file)
    return Pairs(named, kept["means"], kept["stds"], kept["moved"])


def _changes(seed: int, index: int) -> list[Factors]:
    before = factors_of(seed, index)
    return [before, *(changed(before, stream(seed, f"change:{index}:{k}")) for k in range(CHANGES))]


class Drawn(Dataset):
    """Item i: a scene and its changes as pictures [n,3,H,W] in [-1,1], and what each change moved [n-1,h,w] uint8."""

    def __init__(self, named: list[list[Factors]], seed: int, size: int) -> None:
        self.named, self.seed, self.size = named, seed, size

    def __len__(self) -> int:
        return len(self.named)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        seed = self.seed * 1_000_000_007 + i
        images = [scene(factors, seed, self.size).image for factors in self.named[i]]
        moved = torch.stack([_moved(images[0], image) for image in images[1:]])
        return torch.cat([to_tensor(image) for image in images]), moved


@torch.no_grad()
def _encoded(vae: VAE, drawn: Drawn, scale: float, run: Training) -> dict[str, Tensor]:
    """`means`, `stds` and `moved` of Pairs. Beside a GPU all but one of the cores draw."""
    workers = 0 if run.device == "cpu" else (os.cpu_count() or 2) - 1
    found: dict[str, list[Tensor]] = {"means": [], "stds": [], "moved": []}
    loader = DataLoader(drawn, batch_size=16, num_workers=workers)
    for x, moved in tqdm(loader, desc=f"drawing {len(drawn)} scenes and their changes", mininterval=5):
        with run.bfloat16():
            moments = vae.encode(x.flatten(0, 1).to(run.device, memory_format=torch.channels_last)).float()
        mean, logvar = moments.unflatten(0, x.shape[:2]).chunk(2, dim=2)  # [16, n, 4, h, w]
        found["means"].append((mean * scale).half().cpu())
        found["stds"].append(((logvar.clamp(-30, 20) / 2).exp() * scale).half().cpu())
        found["moved"].append(moved)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _moved(a: Image.Image, b: Image.Image) -> Tensor:
    """[h,w] uint8, 0 … 255: the share of each cell's pixels in which two pictures differ."""
    differ = (np.asarray(a) != np.asarray(b)).any(2)
    cells = differ.reshape(len(differ) // CELL, CELL, -1, CELL).mean((1, 3))
    return torch.from_numpy((255 * cells).round().astype(np.uint8))


def widened(unet: UNet) -> UNet:
    """A UNet that reads a picture's channels beside the noise's, and so far makes little of them.

    They come in by the directions that the first layer uses least for the noise, none at all where it has more than 36
    channels: what is behind it has not learned to read these. From the paper's zeros they grow slowly.
    """
    cfg: UNetConfig = replace(unet.cfg, in_channels=2 * unet.cfg.in_channels)
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    first = state[f"{FIRST}.weight"]  # [C, 4, 3, 3]
    directions, _, _ = torch.linalg.svd(first.flatten(1).float())
    free = directions[:, -first.shape[1] :]  # [C, 4]
    photo = torch.zeros_like(first)
    photo[:, :, 1, 1] = free * SEEN
    state[f"{FIRST}.weight"] = torch.cat([first, photo], 1)
    wide = UNet(cfg)
    wide.load_state_dict(state)
    return wide


def train_instruct(
    unet: UNet, text: TextEncoder, tokenizer: Tokenizer, pairs: Pairs, scale: float, run: Training, batch: int = 32
) -> nn.ModuleDict:
    """Train the `widened` UNet and its text tower; returned as "unet" and "text", see `lowrank.learnt_by`."""
    torch.manual_seed(run.seed)
    unet, text = unet.train().requires_grad_(True), text.train().requires_grad_(True)
    both = nn.ModuleDict({"unet": lower(unet, RANK, (FIRST,)), "text": lower(text, RANK)})
    both.to(run.device).unet.to(memory_format=torch.channels_last)
    ids, alphas = Ids(tokenizer), alphas_cumprod().float()

    def loss(step: int) -> dict[str, Tensor]:
        rng, noise = run.chances("instruct", step), run.noise(step)
        rows = [_row(pairs, rng) for _ in range(batch)]
        captions, *numbers = zip(*rows, strict=True)
        n, given, asked, blank = map(torch.tensor, numbers)
        mean, std = pairs.means[n, asked].float(), pairs.stds[n, asked].float()
        photo = pairs.means[n, given].float() / scale * ~blank[:, None, None, None]
        z = mean + std * torch.randn(mean.shape, generator=noise)
        eps = torch.randn(z.shape, generator=noise)
        t = times(torch.rand(batch, generator=noise))
        a = alphas[t][:, None, None, None]
        x = torch.cat([noised(z, eps, a), photo], 1)  # [B, 8, h, w]
        context = text(ids(list(captions))[0].to(run.device))
        with run.bfloat16():
            x = x.to(run.device, memory_format=torch.channels_last)
            predicted = unet(x, t.to(run.device), context, Attn(attend=matmul_attention))
        square = (predicted.float() - eps.to(run.device)).square().mean(1)  # [B, h, w]
        moved = pairs.moved[n, torch.maximum(given, asked) - 1] * (given != asked)[:, None, None]
        near = F.max_pool2d(moved.to(square), 3, stride=1, padding=1) / 255
        near *= 1 - near.mean((1, 2), keepdim=True)  # a change of everything weighs no more
        return {"loss": weighted(square, a.to(run.device), near), "mse": square.mean()}

    fit("instruct", both, loss, run, peak=PEAK, ema=0.998, weight_decay=0.0, muon=factors)
    return both


def write_variant(learnt: nn.ModuleDict, model: Model, path: Path) -> None:
    """What `train_instruct` changed of `model`, in float16, as `variant.vary` reads it."""
    config = replace(model.config, name="instruct-pix2pix", unet=learnt.unet.cfg)
    told = {CONFIG_KEY: config.to_json(), WEIGHTS_KEY: model.weights, WORDS_KEY: " ".join(WORDS)}
    changed = changes(model.unet, "unet", learnt_by(learnt.unet)) | changes(model.text, "text", learnt_by(learnt.text))
    write({name: tensor.half() for name, tensor in changed.items()}, path, told)


def _row(pairs: Pairs, rng: random.Random) -> tuple[str, int, int, int, bool]:
    """(instruction, scene, what is given, what is asked for, whether the picture is left out)."""
    n, given, asked = pairs.pick(rng)
    said = instruct(pairs.factors[n][given], pairs.factors[n][asked], rng)
    chance = rng.random()
    if chance < 2 * DROPPED:
        said = ""
    if chance < DROPPED and rng.random() < SAME:
        asked = given
    return said, n, given, asked, DROPPED <= chance < 3 * DROPPED
