"""Stage 3: the UNet, predicting ε on cached latents (Ho et al., 2020), and the text encoder, taken from CLIP's.

The encoder goes on learning: the contrastive loss told subjects, places and colours apart and left the states of
"sitting" and "standing" nearly equal, and the UNet then drew the same picture for both.

10 % of the captions are dropped for classifier-free guidance (Ho & Salimans, 2022). Squared errors are weighted by
1/sqrt(SNR) (Yu et al., arXiv:2310.08442): ε alone leaves the noisiest steps, which decide what is where, next to no
gradient. Where the noise leaves the subject visible its pixels count more: it is a fifth of a picture and most of its
difficulty. What generated pictures showed wrong most often (`weight`) is drawn twice as often.
"""

import random
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from minedit.attention.rules import Attn, Rule
from minedit.config import UNetConfig
from minedit.files.checkpoint import write
from minedit.picturebook.training.fit import Training, fit
from minedit.picturebook.training.grounding import Grounding, astray
from minedit.picturebook.training.train_text import Ids
from minedit.picturebook.world.captions import caption
from minedit.picturebook.world.dataset import Drawings
from minedit.picturebook.world.factors import Factors
from minedit.sampling.ddim import alphas_cumprod, noised
from minedit.stack.text import TextEncoder
from minedit.stack.tokens import Tokenizer
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

DROPPED = 0.10  # captions replaced by the empty prompt
BLIND = 0.75  # of the rest: end-of-text and padding states replaced by the empty prompt's, see `conditions`
DEBIAS = 12.0  # most that a squared error is weighted by
SUBJECT = 3.0  # weight of a subject's pixels above the 1 of all, at the lowest noise
PEAK = 5e-4  # learning rate
GROUNDING = 0.1  # weight of the words' maps, see grounding.py

Latents = tuple[Tensor, Tensor]  # means, standard deviations: [N,4,h,w] float16, times the latent scale
Conditions = Callable[[list[str], random.Random], Tensor]  # captions, chances -> [B,T,width]


@torch.no_grad()
def cached_latents(vae: VAE, drawings: Drawings, file: Path, scale: float, batch: int = 32) -> Latents:
    """The scaled latents of all drawings, from `file` or encoded now, where the autoencoder is, and kept there."""
    if not file.exists():
        device = next(vae.parameters()).device
        means, stds = [], []
        for i in tqdm(range(0, len(drawings), batch), desc="encoding", mininterval=5):
            x = drawings.tensor(list(range(i, min(i + batch, len(drawings)))))
            mean, logvar = vae.encode(x.to(device, memory_format=torch.channels_last)).chunk(2, dim=1)
            means.append((mean * scale).half().cpu())
            stds.append((logvar.clamp(-30, 20) / 2).exp().mul(scale).half().cpu())
        write({"means": torch.cat(means), "stds": torch.cat(stds)}, file)
    kept = load_file(file)
    return kept["means"], kept["stds"]


def matmul_attention(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain attention by two matrix products: on CPU its backward pass beats the fused kernel's at 256 pixels."""
    probabilities = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1)
    out = probabilities.to(v.dtype) @ v
    return (out, probabilities.float().mean(dim=1)) if columns else out


def hidden(name: str) -> bool:
    """Whether the parameter lies between the embeddings or the first convolution and the last: what Muon is for."""
    return "embedding" not in name and name not in ("unet.input_blocks.0.0.weight", "unet.out.2.weight")


def weight(f: Factors) -> float:
    """How often a scene is picked, beside others: cats and dogs differ in ears and snout, waving is one small hand."""
    return 2.0 if f.subject in ("cat", "dog") or f.pose == "waving" or f.held else 1.0


def conditions(text: TextEncoder, tokenizer: Tokenizer, device: str) -> Conditions:
    """How the UNet reads captions: their text states [B,T,width], most of them blinded.

    The causal tower's end-of-text state knows the whole sentence, and the UNet could read everything there. Where that
    state and the padding are often those of the empty prompt, it must read the words where they are. Alone this did
    not make maps local (40 % of the subject words peaked in the subject); it keeps the words' values in use.
    """
    ids, text = Ids(tokenizer), text.to(device)

    def states(captions: list[str], rng: random.Random) -> Tensor:
        rows, lengths = ids(captions)
        empty, full = text(ids([""])[0].to(device)), text(rows.to(device))
        blind = torch.tensor([rng.random() < BLIND for _ in captions])
        return blinded(full, empty, (lengths - 1).to(device), blind.to(device))

    return states


def blinded(full: Tensor, empty: Tensor, ends: Tensor, blind: Tensor) -> Tensor:
    """Text states full [B,T,width], in `blind` rows [B] from position `ends` [B] on those of empty [1,T,width]."""
    late = torch.arange(full.shape[1], device=full.device) >= ends[:, None]  # [B, T]
    return torch.where((late & blind[:, None])[..., None], empty, full)


def times(spread: Tensor) -> Tensor:
    """One t in each of B equal ranges of 0 ... 999, from uniform chances [B] in [0,1): [B]."""
    batch = len(spread)
    return ((torch.arange(batch, device=spread.device) + spread) * (1000 / batch)).long().clamp(max=999)


def objective(
    predicted: Tensor, eps: Tensor, a: Tensor, masks: Tensor, sides: Tensor, columns: Tensor
) -> dict[str, Tensor]:
    """What is minimised, and its parts.

    Args:
        predicted, eps: [B,4,h,w], noise as predicted and as it was.
        a: [B,1,1,1], the signal's share of the variance.
        masks: [B,h,w], the share of each cell that the subject covers, in [0,1].
        sides: [B,T], see grounding.py.
        columns: [B,h·w,T] cross-attention probabilities.
    """
    square = (predicted - eps).square().mean(1)  # [B, h, w]
    near = F.max_pool2d(masks[:, None], 3, stride=1, padding=1)[:, 0]
    wrong = astray(sides, masks.flatten(1), columns)
    return {"loss": weighted(square, a, near) + GROUNDING * wrong, "mse": square.mean(), "astray": wrong}


def weighted(square: Tensor, a: Tensor, near: Tensor) -> Tensor:
    """Mean of squared errors [B,h,w], weighted by 1/sqrt(SNR), and more where `near` [B,h,w] in [0,1]; a: [B,1,1,1]."""
    snr = (a / (1 - a))[:, 0]  # [B, 1, 1]
    return (square * snr.rsqrt().clamp(max=DEBIAS) * (1 + SUBJECT * near * snr / (snr + 0.5))).mean()


def train_unet(
    cfg: UNetConfig,
    text: TextEncoder,
    tokenizer: Tokenizer,
    drawn: Drawings,
    latents: Latents,
    run: Training,
    batch: int = 32,
    unet: UNet | None = None,
) -> UNet:
    """Train a UNet, which is returned, and `text` on the `latents` of the pictures `drawn`, row by row.

    `unet` is one to go on with; `batch` is each worker's.
    """
    torch.manual_seed(run.seed)
    unet = (UNet(cfg) if unet is None else unet.train().requires_grad_(True)).to(
        run.device, memory_format=torch.channels_last
    )
    means, stds = latents
    read, ground = conditions(text, tokenizer, run.device), Grounding(tokenizer)
    both = nn.ModuleDict({"unet": unet, "text": text.train().requires_grad_(True)})
    watch = {site.name: True for site in unet.sites if site.kind == "cross" and site.stride == 1}
    alphas, factors = alphas_cumprod().float(), drawn.factors
    chances = list(accumulate(map(weight, factors)))
    forward = torch.compile(unet) if run.compile else unet

    def loss(step: int) -> dict[str, Tensor]:
        rng, noise = run.chances("unet", step), run.noise(step)
        picked = rng.choices(range(len(factors)), cum_weights=chances, k=batch)
        captions = ["" if rng.random() < DROPPED else caption(factors[i], rng).text for i in picked]
        mean = means[picked].float()
        z = mean + stds[picked].float() * torch.randn(mean.shape, generator=noise)
        eps = torch.randn(z.shape, generator=noise)
        t = times(torch.rand(batch, generator=noise))
        a = alphas[t][:, None, None, None]
        x = noised(z, eps, a).to(run.device, memory_format=torch.channels_last)
        context, attn = read(captions, rng), Attn(attend=matmul_attention, watch=watch)
        with run.bfloat16():
            predicted = forward(x, t.to(run.device), context, attn)
        masks = torch.from_numpy(drawn.masks[picked] / np.float32(255)).to(run.device)  # [B, h, w]
        columns = torch.stack([seen.columns for seen in attn.seen.values()]).mean(0)
        sides = ground.sides(captions).to(columns)
        return objective(predicted.float(), eps.to(run.device), a.to(run.device), masks, sides, columns)

    fit("unet", both, loss, run, peak=PEAK, ema=0.999, weight_decay=0.05, muon=hidden)
    return unet
