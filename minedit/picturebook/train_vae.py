"""Stage 1: the KL autoencoder, on scenes drawn as it goes (Rombach et al., 2022, section 3.1, without the GAN)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minedit.config import Config
from minedit.picturebook.dataset import drawings
from minedit.picturebook.draw import stream
from minedit.picturebook.fit import Training, fit
from minedit.vae import VAE

KL_WEIGHT = 3e-5  # on nats per latent number, against the squared error per colour value in [-1,1]
L1_WEIGHT = 0.05
PROBE, STATISTICS = 64, 512  # pictures that the reconstruction is measured on, and the latents' mean and variance


def train_vae(config: Config, run: Training, batch: int = 4) -> VAE:
    """Train the autoencoder, then standardise its latents for the UNet."""
    torch.manual_seed(run.seed)
    vae, size = VAE(config.vae).to(run.device, memory_format=torch.channels_last), config.image_size
    probe = drawings(stream(run.seed, "vae probe"), PROBE, size, unseen=True).to(run.device)

    def loss(step: int) -> dict[str, Tensor]:
        x = drawings(stream(run.seed, f"vae:{step}"), batch, size).to(run.device, memory_format=torch.channels_last)
        with run.bfloat16():
            mean, logvar = vae.encode(x).float().chunk(2, dim=1)
            logvar = logvar.clamp(-20, 10)
            z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=run.noise(step)).to(mean)
            y = vae.decode(z).float()
        square, absolute = F.mse_loss(y, x), F.l1_loss(y, x)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return {"loss": square + L1_WEIGHT * absolute + KL_WEIGHT * kl, "mse": square, "l1": absolute, "kl": kl}

    @torch.no_grad()
    def evaluate(module: nn.Module) -> dict[str, float]:
        return {"psnr": psnr(probe, reconstruct(module, probe)).mean().item()}

    fit("vae", vae, loss, run, peak=1e-3, ema=0.998, weight_decay=0.0, evaluate=evaluate)
    images = drawings(stream(run.seed, "vae statistics"), STATISTICS, size).to(run.device)
    standardise(vae, images, config.latent_scale)
    return vae


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
