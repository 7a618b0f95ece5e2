"""Where a word looks, as a picture.

    res = minedit.edit(sd, "a cat in the park", "a dog in the park")
    maps = minedit.word_maps(res, "dog")
    maps.overlay().save("dog.png")

A map is a word's share of cross-attention, summed over its tokens, the mean over steps, heads and layers, each layer's
enlarged to the largest, as DAAM does (Tang et al., arXiv:2210.04885). What was drawn is drawn again, and recorded.
A picture is noised to some times of the run, and the UNet's attention to its prompt recorded there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minedit.config import MineditError, shown
from minedit.image import grid
from minedit.record.axes import Values
from minedit.record.recorder import Tape, recorded
from minedit.record.sheet import heated
from minedit.sampling import ddim
from minedit.sampling.loop import Run, Step
from minedit.sampling.numbers import SEED
from minedit.settings import several
from minedit.stack.model import Model, check_model
from minedit.verbs.asked import read_photo, read_prompt
from minedit.verbs.results import EditResult, Generated

STEPS, FIRST = 20, 8  # of a picture that was not drawn: at times of less noise than 571 of 999, it is still there
SAID = {"source": "the source", "target": "the target, on its own", "edited": "the target, as edited"}
LAYERS = "a name, a glob such as 'output_blocks.*', several, or a function"
LEAST = 256  # side of an overlay, in pixels: smaller pictures are enlarged


@dataclass(frozen=True, eq=False)
class WordMaps:
    """Maps of words in pictures. NaN: a picture whose prompt has not the word."""

    values: Values  # axes picture, word, height, width: shares of attention, 0 ... 1
    pictures: dict[str, Image.Image]  # by the labels of the axis "picture"

    def __repr__(self) -> str:
        words, names = (", ".join(self.values.labels[axis]) for axis in ("word", "picture"))
        return f"<maps of {words} in {names}>"

    def map(self, word: str | None = None, picture: str | None = None) -> Tensor:
        """[h, w] float32 of a word in a picture; None: the first word, the last picture."""
        word = self.values.labels["word"][0] if word is None else word
        picture = self.values.labels["picture"][-1] if picture is None else picture
        return self.values.at(word=word, picture=picture).tensor

    def overlay(self, word: str | None = None, picture: str | None = None) -> Image.Image:
        """The map over its picture, the brighter the more; of several words or pictures a captioned sheet."""
        words, names = self.values.labels["word"], self.values.labels["picture"]
        if (word is not None or len(words) == 1) and (picture is not None or len(names) == 1):
            return self._one(words[0] if word is None else word, names[0] if picture is None else picture)
        cells, captions = [], []
        for each in words if word is None else [word]:
            for name in names if picture is None else [picture]:
                cells.append(self._one(each, name))
                most = self.map(each, name).max().item()
                peak = "not in its prompt" if most != most else f"at most {100 * most:.0f} % of a pixel's attention"
                where = "" if len(names) == 1 else f", {SAID.get(name, f'picture {name}')}"
                captions.append(f"{each}{where}: {peak}")
        return grid(cells, captions, columns=len(names) if picture is None else 1)

    def _one(self, word: str, picture: str) -> Image.Image:
        found, image = self.map(word, picture), self.pictures[picture]
        image = image.resize([round(side * max(1.0, LEAST / min(image.size))) for side in image.size])
        return image if found.isnan().any() else heated(image, found)


def word_maps(
    of: EditResult | Generated | Image.Image | Tape,
    *words: str,
    sd: Model | None = None,
    prompt: str | None = None,
    layers: str | Iterable[str] | Callable[[str], bool] = "*",
    heads: Sequence[int] | None = None,
    steps: int | Iterable[int] | Callable[[int], bool] | None = None,
    seed: int = 0,
) -> WordMaps:
    """Where words look, in a result of `edit` or `generate`, a picture, or what was recorded.

    Args:
        of: of an edit, the maps are those of "source", "target" (its own attention) and "edited" (what it was drawn
            by); of `generate`, of "0", "1" ...; of a picture, "picture"; of a tape, recorded with `words`, its rows.
        words: of the prompts, or phrases; all their tokens and all places count. "dog" finds "dogs".
        sd, prompt: the model, and what the picture shows; of pictures that were not drawn here. seed: of their noise.
        layers: cross-attention layers, by their names or globs such as "output_blocks.*". heads, steps: as `recorded`.

    Raises MineditError for a word that no prompt has.
    """
    if not words and not isinstance(of, Tape):
        raise MineditError("no word was given; expected some of the prompt: word_maps(res, 'dog')")
    SEED.check("seed", seed)
    kinds, chosen = ("columns",), {"heads": heads, "steps": steps, "words": words, "budget": None}
    if isinstance(of, Tape):
        return WordMaps(_averaged(of, {row: (row, "columns") for row in _rows(of)}), _Blank())
    if isinstance(of, EditResult):
        model, kinds = of.again.sd, ("columns", "columns.edited")
        pictures = {"source": of.source, "target": of.edited, "edited": of.edited}
        rows = {"source": ("source.cond", kinds[0])} | {
            name: ("target.cond", kind) for name, kind in zip(("target", "edited"), kinds, strict=True)
        }
    elif isinstance(of, Generated):
        model, pictures = of.again.sd, {str(at): image for at, image in enumerate(of.images)}
        rows = {name: (f"{name}.cond", "columns") for name in pictures}
    elif isinstance(of, Image.Image):
        check_model(sd)
        model, pictures, rows = sd, {"picture": of}, {"picture": ("picture.cond", "columns")}
    else:
        raise MineditError(f"word maps of {shown(repr(of), 60)}; expected what edit or generate return, or a picture")
    if model is None:
        raise MineditError(
            "the result came from another process, without its model; draw it again, or give its picture"
        )
    names = [f"{site}.{kind}" for site in _sites(model, layers) for kind in kinds]
    with recorded(model, names, rows="cond", **chosen) as tape:
        if isinstance(of, Image.Image):
            pictures["picture"] = _looked_at(model, of, prompt, seed)
        else:
            of.again.draw()
    return WordMaps(_averaged(tape, {name: row for name, row in rows.items() if row[0] in _rows(tape)}), pictures)


def _sites(sd: Model, layers: object) -> list[str]:
    from minedit.record.names import chosen  # of names that are sites here

    sites = [site.name for site in sd.unet.sites if site.kind == "cross"]
    if callable(layers):
        return chosen(layers, sites)
    layers = several("layers", layers, str, LAYERS)
    return chosen([each.removesuffix(".columns") for each in layers], sites)


def _rows(tape: Tape) -> tuple[str, ...]:
    return next((tape[name].labels["row"] for name in tape if name.endswith(".columns")), ())


def _looked_at(sd: Model, image: Image.Image, prompt: str | None, seed: int) -> Image.Image:
    """Show the UNet a picture, noised to each time of a run, none of which goes on from the one before."""
    if prompt is None:
        raise MineditError("prompt is missing: word_maps(picture, 'dog', sd=sd, prompt='a dog on the grass')")
    read_prompt(sd, prompt)
    photo, run = read_photo(sd, image, Run(steps=STEPS, guidance=1.0))
    noise = ddim.noise(seed, *photo.latents.shape[2:]).to(photo.latents)
    schedule = ddim.schedule(STEPS)

    def noised(step: Step) -> Tensor:
        return ddim.diffuse(photo.latents, noise, max(schedule[step.index][1], 0))

    begin = ddim.diffuse(photo.latents, noise, schedule[FIRST][0])
    for _ in run(sd, [prompt], [seed], lambda: None, begin=begin, first=FIRST, after=noised, named=("picture",)):
        pass
    return photo.image


def _averaged(tape: Tape, rows: dict[str, tuple[str, str]]) -> Values:
    """Of each picture, from a row of the UNet and a kind of columns: axes picture, word, height, width."""
    found = []
    for row, kind in rows.values():
        maps = []
        for name in tape:
            if name.endswith(f".attn2.{kind}"):
                values = tape[name].at(row=row)
                if "word" not in values.axes:
                    raise MineditError(f"{name} was recorded without words; expected recorded(..., words=[...])")
                words = values.labels["word"]
                maps.append(values.mean("step", "head").maps().tensor.permute(2, 0, 1).float())  # [W, h, w]
        largest = max((each.shape[1:] for each in maps), default=None)
        if largest is None:
            raise MineditError("no cross-attention was recorded; expected names such as '*.attn2.columns'")
        wide = [F.interpolate(each[None], largest, mode="bilinear", align_corners=False)[0] for each in maps]
        found.append(torch.stack(wide).mean(0))
    return Values(torch.stack(found), ("picture", "word", "height", "width"), {"picture": tuple(rows), "word": words})


class _Blank(dict):
    """In place of pictures that a tape has not."""

    def __missing__(self, name: str) -> Image.Image:
        return Image.new("RGB", (LEAST, LEAST), "black")
