"""Stage 1: the KL autoencoder (Rombach et al., 2022, section 3.1, without the GAN).

Crops around the subject alternate with whole pictures in which the subject counts more: it is a tenth of a picture and
most of its difficulty. The embedded autoencoder saw 5000 steps of whole pictures first (28.6 dB, faces and legs were
smears), then 3300 steps like these (30.5 dB); whether crops from the start come as far is not measured.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minedit.config import Config
from minedit.picturebook.training.fit import Training, fit
from minedit.picturebook.world.dataset import CELL, Drawings, drawings
from minedit.picturebook.world.draw import stream
from minedit.stack.vae import VAE

KL_WEIGHT = 3e-5  # on nats per latent number, against the squared error per colour value in [-1,1]
L1_WEIGHT = 0.05
SUBJECT_WEIGHT = 2.0  # of a subject's pixels in a whole picture, above the 1 of all
PROBE, STATISTICS = 64, 512  # pictures that the reconstruction is measured on, and the latents' mean and variance


def train_vae(config: Config, data: Drawings, run: Training, batch: int = 8, begun: VAE | None = None) -> VAE:
    """Train the autoencoder on `batch` pictures, or four times as many crops, a step; standardise it for the UNet.

    Of an autoencoder that is `begun` the decoder alone goes on learning: a UNet's latents stay what they are.
    """
    torch.manual_seed(run.seed)
    vae, size = (begun or VAE(config.vae)).to(run.device, memory_format=torch.channels_last), config.image_size
    vae.train().requires_grad_(True)
    if begun:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    for norm in (m for m in vae.modules() if isinstance(m, nn.GroupNorm)):
        norm.register_forward_pre_hook(lambda _, x: (x[0].float(),))  # on CPU its bfloat16 backward is 4 × slower
    probe = drawings(stream(run.seed, "vae probe"), PROBE, size, unseen=True).to(run.device)

    def loss(step: int) -> dict[str, Tensor]:
        rng = run.chances("vae", step)
        x, weight = crops(data, rng, 4 * batch, size // 2) if step % 2 == 0 else wholes(data, rng, batch)
        x, weight = x.to(run.device, memory_format=torch.channels_last), weight.to(run.device)
        with run.bfloat16():
            mean, logvar = vae.encode(x).float().chunk(2, dim=1)
            logvar = logvar.clamp(-20, 10)
            z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=run.noise(step)).to(mean)
            y = vae.decode(z).float()
        return objective(x, y, weight, mean, logvar)

    @torch.no_grad()
    def evaluate(module: nn.Module) -> dict[str, float]:
        return {"psnr": psnr(probe, reconstruct(module, probe)).mean().item()}

    muon = hidden if begun else None  # whether it helps an autoencoder that has learned nothing is not measured
    fit("vae", vae, loss, run, peak=1e-3, ema=0.998, weight_decay=0.0, muon=muon, evaluate=evaluate)
    if not begun:
        images = drawings(stream(run.seed, "vae statistics"), STATISTICS, size).to(run.device)
        standardise(vae, images, config.latent_scale)
    return vae


def objective(
    x: Tensor, y: Tensor, weight: Tensor, mean: Tensor, logvar: Tensor, kl_weight: float = KL_WEIGHT
) -> dict[str, Tensor]:
    """What is minimised, and its parts, of pictures x [B,3,H,W] that came back as y, with the weight of their pixels.

    mean, logvar: [B,z,h,w] of the posterior.
    """
    square, absolute = (((weight * d).mean() / weight.mean()) for d in ((y - x).square(), (y - x).abs()))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return {"loss": square + L1_WEIGHT * absolute + kl_weight * kl, "mse": square, "l1": absolute, "kl": kl}


def hidden(name: str) -> bool:
    """Whether the parameter lies between the first convolution of the decoder and the last: what Muon is for."""
    return name.startswith("decoder.") and not name.startswith(("decoder.conv_in.", "decoder.conv_out."))


def wholes(data: Drawings, rng: random.Random, count: int) -> tuple[Tensor, Tensor]:
    """Random pictures [count,3,H,W] in [-1,1] and the weight of their pixels [count,1,H,W]."""
    picked = [rng.randrange(len(data)) for _ in range(count)]
    return data.tensor(picked), emphasis(torch.from_numpy(data.masks[picked].astype(np.float32) / 255)[:, None])


def emphasis(share: Tensor) -> Tensor:
    """Weight of pixels [B,1,H,W], from the share of each cell that the subject covers: [B,1,H/8,W/8] in [0,1]."""
    share = F.max_pool2d(share, 3, stride=1, padding=1)  # with its surroundings
    return 1 + SUBJECT_WEIGHT * F.interpolate(share, scale_factor=CELL)


def crops(data: Drawings, rng: random.Random, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Square windows [count,3,side,side] near the subjects of random pictures, one in ten anywhere; weight 1."""
    windows, size = [], data.images.shape[1]
    for i in (rng.randrange(len(data)) for _ in range(count)):
        cells = np.argwhere(data.masks[i] > 100)
        near = CELL * cells[rng.randrange(len(cells))] if len(cells) and rng.random() < 0.9 else None
        centre = [rng.randrange(size), rng.randrange(size)] if near is None else near
        y, x = (int(min(max(c - side // 2 + rng.randint(-side // 4, side // 4), 0), size - side)) for c in centre)
        windows.append(data.images[i][y : y + side, x : x + side])
    return torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.ones(())


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image of two batches in [-1,1]; b is clamped as a picture would be."""
    return -10 * torch.log10(F.mse_loss(a, b.clamp(-1, 1), reduction="none").mean((1, 2, 3)) / 4)


@torch.no_grad()
def reconstruct(vae: VAE, images: Tensor, batch: int = 16) -> Tensor:
    """decode(mean of encode(images)), [N,3,H,W] -> [N,3,H,W], about [-1,1], `batch` at a time."""
    return torch.cat([vae.decode(vae.encode(x).chunk(2, dim=1)[0]) for x in images.split(batch)])


@torch.no_grad()
def standardise(vae: VAE, images: Tensor, scale: float) -> None:
    """Change the latents of `images` [N,3,H,W] to mean 0 and standard deviation 1/scale in every channel, in place.

    Reconstructions do not change: with g = 1/(scale·σ), quant_conv's output becomes (z − μ)·g, its log variance gains
    2·ln g, and post_quant_conv undoes both.
    """
    means = torch.cat([vae.encode(x).chunk(2, dim=1)[0] for x in images.split(32)])
    mu, g = means.mean((0, 2, 3)), 1 / (scale * means.std((0, 2, 3)))
    quant, post, z = vae.quant_conv, vae.post_quant_conv, len(mu)
    quant.weight[:z] *= g[:, None, None, None]
    quant.bias[:z] = (quant.bias[:z] - mu) * g
    quant.bias[z:] += 2 * g.log()
    post.bias += (post.weight[:, :, 0, 0] * mu).sum(1)
    post.weight /= g[None, :, None, None]
