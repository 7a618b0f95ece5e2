"""What attention says about the words of a prompt: a map each, what lies under it, how alike that is to the key words.

AdapEdit's equations 5-7 (arXiv:2312.08019) on what watched layers saw, and the pass that lets them see. `settings` are
AdapEdit's throughout. W words, N pixels, T tokens, C channels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minedit.attention.rules import Gate, Seen
from minedit.config import MineditError
from minedit.methods import Way
from minedit.methods.plan import map_shape, map_side
from minedit.sampling.loop import Run
from minedit.settings import Settings
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt, align


@dataclass(frozen=True)
class Spatial:
    """S (eq. 9) of one layer at one step of the edit, before lambda_s: what DPS let through."""

    site: str
    step: int
    map: Tensor  # [height, width] float32, 0 ... 1

    @property
    def mean(self) -> float:
        return self.map.mean().item()

    @property
    def spread(self) -> float:
        """Standard deviation over pixels."""
        return self.map.std(correction=0).item()


@dataclass(frozen=True)
class Statistics:
    """What was found for the W words of the measured prompt. Tensors are on the CPU, float32."""

    prompt: str  # the target, or the source when words are only removed
    words: tuple[str, ...]
    key_words: tuple[int, ...]  # indices into words
    maps: Tensor  # [W, h, w], mean attention of each word's tokens at map_size, unmasked
    masks: Tensor  # [W, h, w] bool, the pixels used: all of them for a word in `empty`
    empty: tuple[int, ...]  # words of which nothing survived alpha_m
    similarity: tuple[float, ...]  # A_i, -1 ... 1
    tau: tuple[float, ...]  # tau_i by eq. 7, 0 ... 1
    keys: Mapping[str, Tensor]  # E_k [C] of each cross-attention layer, unit length
    spatial: tuple[Spatial, ...] = field(default=())  # filled by the edit pass


def threshold(alpha_m: float, tokens: int) -> float:
    """alpha_m for `tokens` tokens: the same multiple of uniform attention as over the paper's 77."""
    return alpha_m * 77 / tokens


def masked(maps: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """(masks [W, N], empty [W]) of maps [W, N]: entries of at least `level`; of a word without any, all."""
    masks = maps >= level
    empty = ~masks.any(1)
    return masks | empty[:, None], empty


def embeddings(maps: Tensor, hidden: Tensor, centre: bool) -> Tensor:
    """E_i [W, C] float64, unit length (eq. 5): the mean of hidden [N, C] under each map [W, N]."""
    maps, hidden = _double(maps), _double(hidden)
    if centre:
        hidden = hidden - hidden.mean(0)
    return F.normalize(maps / maps.sum(1, keepdim=True) @ hidden, dim=1)


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()  # Apple's GPUs have no float64


def key_embedding(words: Tensor) -> Tensor:
    """E_k [C], unit length: the mean of the key words' embeddings [K, C]."""
    return F.normalize(words.mean(0), dim=0)


def taus(similarity: Sequence[float], key_words: Sequence[int], lambda_tau: float) -> tuple[float, ...]:
    """tau_i (eq. 7), clipped to 0 ... 1; 0 for key words."""
    free = (min(max(lambda_tau * (1 - math.exp(a - 1)), 0.0), 1.0) for a in similarity)
    return tuple(0.0 if i in key_words else tau for i, tau in enumerate(free))


def resized(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Maps [W, h, w] of another shape, flat [W, N]: box average down, bilinear up."""
    if shape < tuple(maps.shape[-2:]):
        maps = F.interpolate(maps[None], shape, mode="area")[0]
    elif shape > tuple(maps.shape[-2:]):
        maps = F.interpolate(maps[None], shape, mode="bilinear", align_corners=False)[0]
    return maps.flatten(1)


class Average:
    """The mean over steps of what one row of the watched layers saw, on the layers' device."""

    def __init__(self) -> None:
        self.count, self.sums = 0, {}

    def add(self, seen: Mapping[str, Seen], row: int) -> None:
        self.count += 1
        for name, at in seen.items():
            now = (None if at.columns is None else at.columns[row].float()), at.hidden[row].float()
            self.sums[name] = tuple(map(_sum, self.sums.get(name, (None, None)), now))

    def means(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        """(columns [N, T] where they were watched, hidden [N, C]) by layer."""
        return {name: tuple(s if s is None else s / self.count for s in sums) for name, sums in self.sums.items()}


def _sum(before: Tensor | None, now: Tensor | None) -> Tensor | None:
    return now if before is None else before + now


# --- of a model's layers, for a pair of prompts -----------------------------------------------------------------------


def subject(source: Prompt, target: Prompt) -> tuple[Prompt, tuple[int, ...], tuple[int, ...]]:
    """(prompt to measure, its key words, for each target word its index there). The prompts differ."""
    alignment = align(source, target)
    side, key_words = alignment.key_words
    if side == "target":
        return target, key_words, tuple(range(len(target.words)))
    return source, key_words, tuple(pair.source[0] for pair in alignment.pairs)


def watched(model: Model, settings: Settings) -> dict[str, bool]:
    """The layers the statistics come from: those at map_size, with columns; with DPS every cross-attention."""
    side = {site.name: map_side(site, model.config) for site in model.unet.sites if site.kind == "cross"}
    if model.config.map_size not in side.values():
        found, size = sorted(set(side.values())), model.config.map_size
        raise MineditError(f"{model.config.name} has cross-attention maps of sides {found}, expected map_size {size}")
    at_map_size = {name: at == model.config.map_size for name, at in side.items()}
    return {name: at for name, at in at_map_size.items() if at or settings.dps}


def statistics(
    model: Model,
    prompt: Prompt,
    key_words: tuple[int, ...],
    seen: Mapping[str, tuple[Tensor | None, Tensor]],
    settings: Settings,
    latent: tuple[int, int],
) -> Statistics:
    """Word maps, similarities, taus and keys from what the layers `watched` saw (`Average.means`).

    latent: height and width of the latents. Computed where `seen` is: a GPU would wait for maps to be moved.
    """
    sites = {site.name: site for site in model.unet.sites if site.name in seen}
    at_map_size = [name for name, site in sites.items() if map_side(site, model.config) == model.config.map_size]
    columns = torch.stack([seen[name][0] for name in at_map_size]).mean(0)  # [N, T]
    maps = torch.stack([columns[:, list(word.tokens)].mean(1) for word in prompt.words])  # [W, N]
    masks, empty = masked(maps, threshold(settings.alpha_m, columns.shape[1]))
    visual = [name for name in at_map_size if sites[name].place == "up"] or at_map_size
    words = embeddings(maps * masks, seen[visual[-1]][1], settings.centre)  # [W, C]
    similarity = tuple((words @ key_embedding(words[list(key_words)])).tolist())
    whole = maps.unflatten(1, map_shape(sites[at_map_size[0]], latent))
    key_maps = (whole * masks.view_as(whole) if settings.mask else whole)[list(key_words)]
    keys = {}
    for name, site in sites.items() if settings.dps else ():
        at_site = resized(key_maps, map_shape(site, latent))
        keys[name] = key_embedding(embeddings(at_site, seen[name][1], settings.centre)).float()
    return Statistics(
        prompt=prompt.text,
        words=tuple(word.text for word in prompt.words),
        key_words=key_words,
        maps=whole.cpu(),
        masks=masks.view_as(whole).cpu(),
        empty=tuple(empty.nonzero().flatten().tolist()),
        similarity=similarity,
        tau=taus(similarity, key_words, settings.lambda_tau),
        keys={name: key.cpu() for name, key in keys.items()},  # after all of them: each makes a GPU wait
    )


def spatial(
    model: Model, gates: Mapping[str, Gate], step: int, hidden: Mapping[str, Tensor], latent: tuple[int, int]
) -> tuple[Spatial, ...]:
    """S of each gated layer from the target row's hidden states [N, C] at one step of the edit; latent: its shape.

    Where `hidden` is: a GPU would wait for maps to be moved.
    """
    shape = {site.name: map_shape(site, latent) for site in model.unet.sites}
    return tuple(
        Spatial(name, step, replace(gates[name], scale=1.0).weights(found).view(shape[name]))
        for name, found in hidden.items()
    )


def begun(found: Way | None, pass_steps: int, steps: int) -> int:
    """The step at which the pass begins, where an inversion leaves out some of a run of `steps`."""
    return found.first * pass_steps // steps if found else 0


def measure(
    sd: Model,
    source: Prompt,
    target: Prompt,
    seed: int,
    run: Run,
    settings: Settings,
    tick: Callable[[], None] = lambda: None,
    found: Way | None = None,
) -> Statistics:
    """AdapEdit's statistics pass: the target (or source) prompt alone, from the noise of `seed`, or of an inversion."""
    prompt, key_words, _ = subject(source, target)
    first = begun(found, settings.pass_steps(run.steps), run.steps)
    begin, run = found and found.start, replace(run, steps=settings.pass_steps(run.steps))
    looks = range(run.steps - 1 if settings.statistics == "last" else 0, run.steps)
    watch, seen = watched(sd, settings), Average()

    def observe(step: int) -> dict[str, bool]:
        return watch if step in looks else {}

    for step in run(sd, [prompt.text], [seed], tick, observe=observe, begin=begin, first=first):
        if step.index in looks:
            seen.add(step.seen, row=1)  # conditional
    return statistics(sd, prompt, key_words, seen.means(), settings, step.latents.shape[-2:])
