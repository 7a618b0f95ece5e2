"""What is trained: the losses of train_vae.py and train_unet.py, batches picked and noised on the device."""

import torch
from torch import Tensor, nn

from minedit.attention.rules import Attn, Rule
from minedit.attention.sdpa import sdpa
from minedit.picturebook.cuda.data import CAPTIONS, Scenes
from minedit.picturebook.cuda.learn import Dice, Loss
from minedit.picturebook.training import train_unet, train_vae
from minedit.sampling.ddim import alphas_cumprod, noised
from minedit.stack.vae import VAE

ROUGH, ROUGHENED = 0.15, 0.5  # largest noise on latents, as a share of their own spread, and how many of a batch get it
KL_WEIGHT = 2e-4  # the posterior's best width is then 0.04 of the latents', which are 4.6 bits a number instead of six
Latents = tuple[Tensor, Tensor]  # means, standard deviations: [N,4,h,w] float16 on the device, times the latent scale


def inner(name: str) -> bool:
    """Whether a parameter of the autoencoder lies between first and last convolutions: what Muon is for."""
    return name.startswith(("encoder.", "decoder.")) and ".conv_in." not in name and ".conv_out." not in name


def vae_loss(scenes: Scenes, ready: Tensor, dice: Dice, batch: int, dtype: torch.dtype, largest: float = ROUGH) -> Loss:
    """train_vae's loss on whole pictures, of the first `ready` scenes (a number on the device, which may grow).

    The decoder sees latents with noise on them, as a UNet will leave some, and the encoder learns latents that bear it.
    Noise and divergence are told in units of the latents' own spread, so a wider spread is no way out.
    """

    def loss(vae: nn.Module) -> dict[str, Tensor]:
        rows = torch.minimum((dice.uniform(batch) * ready).long(), ready.long() - 1)
        x = scenes.pictures(rows)
        weight = train_vae.emphasis(scenes.on["masks"][rows][:, None].float() / 255)
        mean, logvar = vae.encode(x.to(dtype)).float().chunk(2, dim=1)
        logvar, spread = logvar.clamp(-20, 10), mean.std((0, 2, 3), keepdim=True)  # [1, z, 1, 1]
        rough = largest * dice.uniform(batch, 1, 1, 1) * (dice.uniform(batch, 1, 1, 1) < ROUGHENED)
        z = mean + (0.5 * logvar).exp() * dice.normal(*mean.shape) + spread * rough * dice.normal(*mean.shape)
        y = vae.decode(z.to(dtype)).float()
        return train_vae.objective(x, y, weight, mean / spread, logvar - 2 * spread.log(), KL_WEIGHT)

    return loss


@torch.no_grad()
def encoded(vae: VAE, scenes: Scenes, scale: float, batch: int = 512) -> Latents:
    """The scaled latents of all scenes on the device."""
    shape = (scenes.ready, vae.post_quant_conv.in_channels, *scenes.arrays["masks"].shape[1:])
    means, stds = (torch.empty(shape, dtype=torch.float16, device=scenes.on["ids"].device) for _ in range(2))
    for rows in torch.arange(scenes.ready, device=means.device).split(batch):
        mean, logvar = vae.encode(scenes.pictures(rows)).chunk(2, dim=1)
        means[rows], stds[rows] = (mean * scale).half(), ((logvar.clamp(-30, 20) / 2).exp() * scale).half()
    return means, stds


def attend(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Fused attention, and where columns are asked for that of train_unet, whose gradients pass through them."""
    return train_unet.matmul_attention(q, k, v, rule, columns) if columns else sdpa(q, k, v, rule)


def unet_loss(
    both: nn.ModuleDict, scenes: Scenes, latents: Latents, dice: Dice, batch: int, dtype: torch.dtype
) -> Loss:
    """train_unet's loss, of a module that holds `unet` and `text`, on one of the captions that each scene came with."""
    means, stds = latents
    device, eos = means.device, scenes.spelling.eos
    empty = torch.tensor(scenes.spelling("")[0], dtype=torch.int16, device=device)[None]
    watch = {site.name: True for site in both["unet"].sites if site.kind == "cross" and site.stride == 1}
    alphas = alphas_cumprod().float().to(device)
    chances = scenes.on["weights"][: scenes.ready].double().cumsum(0)
    ids_of, sides_of, masks_of = (scenes.on[name] for name in ("ids", "sides", "masks"))

    def loss(work: nn.Module) -> dict[str, Tensor]:
        rows = torch.searchsorted(chances, dice.uniform(batch).double() * chances[-1]).clamp(max=len(chances) - 1)
        said = (dice.uniform(batch) * CAPTIONS).long().clamp(max=CAPTIONS - 1)
        kept = (dice.uniform(batch) >= train_unet.DROPPED)[:, None]
        ids = torch.where(kept, ids_of[rows, said], empty)
        sides = sides_of[rows, said].float() * kept
        states = work["text"](torch.cat([empty, ids]).long())
        ends, blind = (ids == eos).int().argmax(1), dice.uniform(batch) < train_unet.BLIND
        context = train_unet.blinded(states[1:], states[:1], ends, blind)
        mean = means[rows].float()
        z, eps = mean + stds[rows].float() * dice.normal(*mean.shape), dice.normal(*mean.shape)
        t = train_unet.times(dice.uniform(batch))
        a = alphas[t][:, None, None, None]
        x = noised(z, eps, a).to(dtype, memory_format=torch.channels_last)
        attn = Attn(attend=attend, watch=watch, seen={})
        predicted = work["unet"](x, t, context, attn).float()
        columns = torch.stack([seen.columns for seen in attn.seen.values()]).mean(0)
        return train_unet.objective(predicted, eps, a, masks_of[rows].float() / 255, sides, columns)

    return loss
