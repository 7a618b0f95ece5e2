"""What a page shows of a run, taken while the run goes on: word maps, clean latents, norms. A Listener (record/tap.py).

Maps are averaged over heads as they come up, so that those of Stable Diffusion's size need no memory to speak of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minedit.attention.tap import GATES, Begun, root
from minedit.config import MineditError
from minedit.record.names import MAPS, catalogue, split
from minedit.record.tap import Places
from minedit.report.arrays import taken
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt, align

LIMIT = 15_000_000  # bytes of a page
REST = 400_000  # of them, for the page itself and its words
FINEST = 32  # side of a map in the page: finer ones are averaged over squares
ROWS = ("source", "target")
KINDS = ("source", "target", "edited")  # maps: the source's own, the target's own, those that the edit was drawn by
NUMBERS = ("rms", "mean", "std", "largest")
BINS, SPREAD = 24, 4.0  # of a histogram, from SPREAD standard deviations below the mean to as many above


@dataclass(frozen=True)
class PageWord:
    """A word of the target, or one of the source that is gone."""

    text: str
    kind: str  # "kept", "replaced", "inserted", "removed"
    was: str  # the source's words that it stands for; none: ""
    source: tuple[int, ...]  # tokens in the source's prompt
    target: tuple[int, ...]  # and in the target's


def words_of(source: Prompt, target: Prompt) -> tuple[PageWord, ...]:
    alignment = align(source, target)
    found = []
    for pair in alignment.pairs:
        word, old = target.words[pair.word], [source.words[at] for at in pair.source]
        tokens = tuple(token for each in old for token in each.tokens)
        found.append(PageWord(word.text, pair.kind, " ".join(each.text for each in old), tokens, tuple(word.tokens)))
    gone = [source.words[at] for at in alignment.removed]
    return (*found, *(PageWord(each.text, "removed", each.text, tuple(each.tokens), ()) for each in gone))


class Gathered:
    """Of the last run that pictures were drawn by. Tensors lie on the CPU; NaN where there is no value."""

    inside = True

    def __init__(self, sd: Model, words: tuple[PageWord, ...], every: int, room: int = LIMIT) -> None:
        self.sd, self.words, self.every, self.room = sd, words, every, room
        known = catalogue(sd.config)
        self.sites = tuple(site.name for site in sd.unet.sites if site.kind == "cross")
        blocks = (f"{name}.out" for name in block_names(sd))
        self.blocks = (*(name for name in blocks if name in known), "eps.cond")
        self.names = frozenset((*(f"{site}.{kind}" for site in self.sites for kind in MAPS), *self.blocks, "x0", GATES))
        self.steps: list[int] = []
        self.times: dict[int, int] = {}

    def heads(self) -> None:
        return None

    def wants(self, row: str) -> bool:
        return row in ("source.cond", "target.cond")

    def asks(self, step: int | None) -> bool:
        return step in self.steps

    def photo(self, sides: tuple[int, int]) -> None:
        """Nothing is shown of how a photograph is encoded."""

    def foresee(self, begun: Begun) -> None:
        """Raises MineditError where the page would be too large."""
        self.steps, need = self._shown(begun, self.every)
        if need > self.room:
            fits = (n for n in range(self.every + 1, len(begun.steps)) if self._shown(begun, n)[1] <= self.room)
            what = f"the page would take {need / 1e6:.1f} MB for {len(self.steps)} steps"
            remedy = next((f"show fewer: --every {n}" for n in fits), "draw a smaller picture, or use shorter prompts")
            raise MineditError(f"{what}, expected {self.room / 1e6:g} at most; {remedy}")

    def _shown(self, begun: Begun, every: int) -> tuple[list[int], int]:
        """(every so many of the run's steps and its last, the bytes that they take at most)."""
        steps = sorted({*begun.steps[::every], begun.steps[-1]})
        return steps, self._need(len(steps), begun.sides)

    def begin(self, begun: Begun) -> None:
        self.foresee(begun)
        shapes = self.shapes(len(self.steps), begun.sides)
        self.x0 = torch.full(shapes.pop("x0"), torch.nan)
        self.numbers = torch.full(shapes.pop("numbers"), torch.nan)
        self.counts = torch.full(shapes.pop("counts"), torch.nan)
        self.apart = torch.full(shapes.pop("apart"), torch.nan)
        self.maps = {site: torch.full(shapes[site], torch.nan) for site in self.sites}
        self.sides, self.first, self.all = begun.sides, begun.steps.start, begun.steps.stop
        self.rows = begun.rows

    def shapes(self, steps: int, sides: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Of what is kept, by name; of a layer's maps: step, kind, word, height, width."""
        known, rows, blocks = catalogue(self.sd.config, sides), len(ROWS), len(self.blocks)
        fixed = {"x0": (steps, rows, *known["x0"].shape), "numbers": (steps, rows, blocks, len(NUMBERS))}
        fixed |= {"counts": (steps, rows, blocks, BINS), "apart": (steps, blocks)}
        maps = {site: coarse(known[f"{site}.columns"].map) for site in self.sites}
        fixed |= {f"{GATES} of {site}": (steps, *shape) for site, shape in maps.items()}
        return fixed | {site: (steps, len(KINDS), len(self.words), *shape) for site, shape in maps.items()}

    def _need(self, steps: int, sides: tuple[int, int]) -> int:
        pixels = sides[0] * sides[1] * self.sd.config.vae.factor**2
        pictures = 2 * min(steps, decoded_most(pixels)) * pixels + 4 * pixels  # a byte a pixel, four of the last two
        return taken(*self.shapes(steps, sides).values()) + pictures + REST

    def take(self, name: str, x: Tensor, rows: Places, step: int | None, time: int | None) -> Tensor:
        s = self.steps.index(step)
        self.times[step] = time
        found = [rows.get(row, rows.get(f"{row}.cond")) for row in ROWS]
        if name == "x0":
            for r, at in enumerate(found):
                if at is not None:
                    self.x0[s, r] = x[at].float().cpu()
            return x
        b, both = self.blocks.index(name), []
        for r, at in enumerate(found):
            if at is not None:
                flat = x[at].detach().float().flatten()
                self.numbers[s, r, b], self.counts[s, r, b] = told(flat)
                both.append(flat)
        if len(both) == 2:
            size = both[0].square().mean().sqrt().clamp(min=1e-12)
            self.apart[s, b] = ((both[1] - both[0]).square().mean().sqrt() / size).cpu()
        return x

    def take_row(self, name: str, x: Tensor, row: str, step: int, time: int) -> Tensor:
        site, suffix = split(name)
        source, edited = row == "source.cond", suffix == MAPS[1]
        if source and edited:
            return x
        mean, into = x.mean(0), self.maps[site][self.steps.index(step), 0 if source else 1 + edited]
        shape = catalogue(self.sd.config, self.sides)[name].map
        for w, word in enumerate(self.words):
            tokens = list(word.source if source else word.target)
            if tokens:
                found = mean[:, tokens].sum(-1).view(shape)
                into[w] = F.adaptive_avg_pool2d(found[None], into.shape[1:])[0].cpu()
        return x


def told(flat: Tensor) -> tuple[Tensor, Tensor]:
    """(NUMBERS, shares of the values by bin; what lies beyond the bins is in the outermost)."""
    mean, std = flat.mean(), flat.std(correction=0).clamp(min=1e-12)
    scaled = ((flat - mean) / std).clamp(-SPREAD, SPREAD)
    counts = torch.histc(scaled, BINS, -SPREAD, SPREAD) / flat.numel()
    numbers = torch.stack([flat.square().mean().sqrt(), mean, std, flat.abs().max()])
    return numbers.cpu(), counts.cpu()


def block_names(sd: Model) -> list[str]:
    """The UNet's blocks by the checkpoint's names, in the order in which they run."""
    unet = root(sd.unet)
    down, up = (
        [f"{name}.{at}" for at in range(len(getattr(unet, name)))] for name in ("input_blocks", "output_blocks")
    )
    return [*down, *["middle_block"] * bool(len(unet.middle_block)), *up]


def decoded_most(pixels: int) -> int:
    """How many steps of a page show what the VAE decodes, of pictures of so many pixels."""
    return max(2, 2**21 // pixels)


def coarse(shape: tuple[int, int]) -> tuple[int, int]:
    factor = -(-max(shape) // FINEST)
    return -(-shape[0] // factor), -(-shape[1] // factor)
