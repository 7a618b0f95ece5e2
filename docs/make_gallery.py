"""Edits by the embedded model: `python docs/make_gallery.py docs/gallery.png [docs/methods.jpg [docs/methods]]`.

The first is the README's, twelve edits by AdapEdit; the second has eight pairs, each edited by every method that draws
its source. The third is a folder: for each method and inversion a strip of what examples.py has, and the photographs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from examples import GUIDANCE, INSTRUCTED, INVERTED, STRIPS, picture
from PIL import Image, ImageChops

from minedit.files.checkpoint import Model, load
from minedit.image import grid, save
from minedit.inversion.choose import INVERSIONS
from minedit.methods.choose import METHODS
from minedit.picturebook.world.factors import Factors
from minedit.picturebook.world.scene import scene
from minedit.verbs.edit import edit, edits

# (source, target, seed), the best of 0 to 5; of 0 to 35 for the first two, to 23 for the third, to 11 for the dog
EDITS = (
    ("a boy in the park", "a sitting boy in the park", 16),
    ("a standing boy on the beach", "a running boy on the beach", 9),
    ("a standing girl in the snow", "a jumping girl in the snow", 7),
    ("a girl in a red dress on the beach", "a girl in a blue dress on the beach", 4),
    ("a standing horse in the desert", "a running horse in the desert", 3),
    ("a brown dog on the grass", "a white dog on the grass", 6),
    ("a standing dog on the grass", "a sitting dog on the grass", 4),
    ("a standing cat in a room", "a lying cat in a room", 0),
    ("an apple on the table", "two apples on the table", 3),
    ("a small red ball on the table", "a big red ball on the table", 0),
    ("a cake on the table", "a chocolate cake on the table", 0),
    ("an apple on the table", "a hamburger on the table", 1),
)
SCALE = 1.5  # of the pictures in the sheet
APART = 4  # times that a difference is shown
PHOTOGRAPHS = {  # what renderings show, and their seeds
    "boy": (Factors("boy", "park", "blue", pose="standing"), 1),
    "cat": (Factors("cat", "grass", "brown", pose="standing"), 2),
    "girl": (Factors("girl", "snow", "red", pose="standing"), 3),
}
COMPARED = (*(EDITS[at] for at in (0, 7, 5, 3, 8, 9, 2)), ("a dog on the beach", "a dog in the snow", 1))


def gallery(model: Model) -> Image.Image:
    """All EDITS in three columns of pairs, each source beside its edit."""
    pictures, captions = [], []
    for source, target, seed in EDITS:
        result = edit(model, source, target, seed=seed)
        for image, text in ((result.source, source), (result.edited, "-> " + target)):
            pictures.append(image.resize([round(side * SCALE) for side in image.size], Image.Resampling.BICUBIC))
            captions.append(text)
    return grid(pictures, captions, columns=6)


def compared(model: Model) -> Image.Image:
    """A row for each of COMPARED: the source, then its edit by each method; 25 steps."""
    names = [name for name in METHODS if not getattr(METHODS[name], "reads_photo", False)]
    pictures, captions = [], []
    for source, target, seed in COMPARED:
        found = edits(model, source, [{"target": target, "method": name} for name in names], seed=seed, steps=25)
        pictures += [found[0].source, *(each.edited for each in found)]
        captions += [f"{source} → {target}", *names]
    return grid(pictures, captions, columns=1 + len(names))


def strips(model: Model, folder: Path, only: Iterable[str] = ()) -> None:
    """A picture of each method and inversion, or of some, and the photographs that they edit."""
    photos = {name: scene(*of, model.config.image_size).image for name, of in PHOTOGRAPHS.items()}
    for name, image in photos.items():
        save(folder / f"{name}.png", image)
    for name in only or (*STRIPS, *INSTRUCTED, *INVERSIONS):
        cells: list[tuple[Image.Image, str]] = []
        if name in STRIPS:
            for source, target, seed in STRIPS[name]:
                res = edit(model, source, target, name, seed=seed)
                cells += [(res.source, source), (res.edited, f"→ {target}, seed {seed}")]
        elif name in INSTRUCTED:
            instructed = load(name)
            for photo, text, seed in INSTRUCTED[name]:
                res = edit(instructed, "", text, name, image=photos[photo], seed=seed)
                cells += [(photos[photo], "photograph"), (res.edited, f"“{text}”, seed {seed}")]
        else:
            more = {"guidance": GUIDANCE[name]} if name in GUIDANCE else {}
            photo, source, target = INVERTED
            res = edit(model, source, target, image=photos[photo], inversion=name, **more)
            off = ImageChops.difference(photos[photo], res.source).point(lambda x: min(255, APART * x))
            cells += [(photos[photo], f"photograph: {source}"), (res.source, "drawn again")]
            cells += [(off, f"how far off, {APART} times"), (res.edited, f"→ {target}")]
        grid(*zip(*cells, strict=True)).save(folder / picture(name), quality=80, method=6)


if __name__ == "__main__":
    sd = load()
    save(sys.argv[1] if len(sys.argv) > 1 else "gallery.png", gallery(sd), {"edits": EDITS})
    if len(sys.argv) > 2:
        compared(sd).save(sys.argv[2], quality=85)
    if len(sys.argv) > 3:
        strips(sd, Path(sys.argv[3]), sys.argv[4:])
