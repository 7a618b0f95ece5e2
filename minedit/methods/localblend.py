"""Local blend (Prompt-to-Prompt, section 4): outside of what some words draw, the edit keeps the source's latents.

For any method that draws the source beside the target; its settings are blending.py's. Attention to the blend words, in
the conditional rows of all cross-attention layers of one map size, is added up over the steps done so far, and its mean
over layers and heads becomes a mask: each pixel the largest of its 3 x 3, enlarged to the latents by the nearest pixel,
over the map's maximum, above a threshold, in the source's or in the target's map. The words to subtract make a mask in
the same way, without the 3 x 3.

Agrees with the released code (google/prompt-to-prompt) for 512 x 512: its two layers of the way down and three of the
way up are all those of 16 x 16, config.self_size here. It adds up maps as the edit has left them (blend_maps "edited"),
so a replaced word shows the source's while it follows it. Where a word stands twice, both count, there as here.
Different: inside the mask the target's latents are taken as they are, there as source + (target - source).

Rows of the UNet a step: those of the method; after direct inversion the source's conditional one to the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minedit.attention.eager import edited
from minedit.attention.rules import Rule, Seen, Site
from minedit.config import MineditError
from minedit.methods import Job, Told, Way
from minedit.methods.plan import SOURCE, TARGET, map_shape, map_side, per_token
from minedit.sampling.loop import Step
from minedit.settings import Settings
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt

Named = tuple[Sequence[int], Sequence[int]]  # words of the source, words of the target
POOL = 3  # side of the neighbourhood, in pixels of the map


def mask(maps: Tensor, threshold: float, latent: tuple[int, int], pool: bool) -> Tensor:
    """Where the source's or the target's map [2, h, w] is high: bool [height, width] of `latent`.

    A map of zeros, of a branch without words, is high nowhere.
    """
    maps = maps[:, None]  # [2, 1, h, w]
    if pool:
        maps = F.max_pool2d(maps, POOL, stride=1, padding=POOL // 2)
    maps = F.interpolate(maps, latent)[:, 0]  # [2, height, width], the nearest pixel
    high = maps / maps.amax(dim=(1, 2), keepdim=True) > threshold  # 0 / 0 is not
    return high.any(dim=0)


def layers(model: Model, size: int | None) -> list[Site]:
    """The cross-attention layers whose maps are of this side, None: config.self_size. Raises MineditError."""
    config, size = model.config, model.config.self_size if size is None else size
    side = {site: map_side(site, config) for site in model.unet.sites if site.kind == "cross"}
    if size not in side.values():
        found = ", ".join(str(each) for each in sorted(set(side.values())))
        raise MineditError(f"blend_size is {size}, and {config.name} has maps of sides {found}; expected one of these")
    return [site for site, each in side.items() if each == size]


class LocalBlend:
    """A method's Way with local blend: what attention has said so far, and what is made of it after each step."""

    def __init__(self, job: Job, way: Way, settings: Settings, words: Sequence[Named]) -> None:
        """settings: blending.py's; words: to blend and to subtract."""
        self.way, self.settings = way, settings
        self.begin = int(settings.blend_start * job.run.steps)  # as the released code counts
        self.sites = layers(job.sd, settings.blend_size)
        self.words = [_tokens((job.source, job.target), named) for named in words]  # [2, T] each
        self.sums: list[Tensor] = [torch.zeros(())] * 2  # [2, N] each: attention to them
        self.now: dict[str, Rule] = {}  # the rules of the step that is under way
        self.mask: Tensor | None = None  # [h, w] bool, of the last step: where the target may differ from the source

    def rules(self, step: int) -> dict[str, Rule]:
        self.now = dict(self.way.rules(step)) if self.way.rules else {}
        return self.now

    def watch(self, step: int) -> dict[str, bool]:
        return self._asked(step) | {site.name: True for site in self.sites}

    def after(self, step: Step) -> Tensor | None:
        self._add(step)
        changed = None
        if self.way.after:
            asked = self._asked(step.index)
            changed = self.way.after(replace(step, seen={name: step.seen[name] for name in asked}))
        if step.index < self.begin:
            return changed
        source, target = (step.latents if changed is None else changed).split(1)
        self.mask = self.masked(source.shape[-2:])
        return torch.cat([source, torch.where(self.mask, target, source)])

    def masked(self, latent: tuple[int, int]) -> Tensor:
        """Where the target may differ: bool [height, width] of `latent`."""
        shape, (words, less) = map_shape(self.sites[0], latent), self.sums
        where = mask(words.unflatten(1, shape), self.settings.blend_threshold, latent, pool=True)
        return where & ~mask(less.unflatten(1, shape), self.settings.subtract_threshold, latent, pool=False)

    def told(self) -> Told:
        told = self.way.told()
        share = 0.0 if self.mask is None else self.mask.float().mean().item()
        note = f"local blend: the edit may differ from the source in {share:.0%} of the picture"
        return replace(told, notes=(*told.notes, note))

    def _asked(self, step: int) -> dict[str, bool]:
        """What the method itself watches."""
        return dict(self.way.watch(step)) if self.way.watch else {}

    def _add(self, step: Step) -> None:
        maps = torch.stack([self._maps(step.seen[site.name], self.now.get(site.name)) for site in self.sites]).mean(0)
        self.sums = [
            total.to(maps) + (maps @ words.to(maps)[:, :, None])[..., 0]
            for total, words in zip(self.sums, self.words, strict=True)
        ]

    def _maps(self, seen: Seen, rule: Rule | None) -> Tensor:
        """Attention of the conditional rows, source and target, mean over heads: [2, N, T] float32."""
        columns = seen.columns
        if rule is not None and self.settings.blend_maps == "edited":
            for edit in rule.resolve(seen.hidden).edits:
                if edit.row == TARGET:
                    target = edited(columns[TARGET], columns[edit.source], edit)
                    return torch.stack([columns[SOURCE], target])
        return columns[SOURCE : TARGET + 1]


def _tokens(pair: tuple[Prompt, Prompt], named: Named) -> Tensor:
    """[2, T]: 1 for the tokens of the words named in each prompt, else 0."""
    held = ([float(i in own) for i in range(len(prompt.words))] for prompt, own in zip(pair, named, strict=True))
    return torch.tensor([per_token(prompt, each, 0.0) for prompt, each in zip(pair, held, strict=True)])
