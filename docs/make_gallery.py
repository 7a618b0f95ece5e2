"""Twelve edits by the embedded model as one picture, the README's: `python docs/make_gallery.py OUT.png`."""

from __future__ import annotations

import sys

from PIL import Image

from minedit.files.checkpoint import Model, load
from minedit.image import grid, save
from minedit.verbs.edit import edit

# (source, target, seed), the best of 0 to 5; the first of 0 to 35, the third of 0 to 23. All but two are soft.
EDITS = (
    ("a boy in the park", "a sitting boy in the park", 16),
    ("a standing boy on the beach", "a running boy on the beach", 4),
    ("a standing girl in the snow", "a jumping girl in the snow", 7),
    ("a girl in a red dress on the beach", "a girl in a blue dress on the beach", 4),
    ("a standing horse in the desert", "a running horse in the desert", 3),
    ("a brown dog on the grass", "a white dog on the grass", 5),
    ("a standing dog on the grass", "a sitting dog on the grass", 4),
    ("a standing cat in a room", "a lying cat in a room", 0),
    ("an apple on the table", "two apples on the table", 3),
    ("a small red ball on the table", "a big red ball on the table", 0),
    ("a cake on the table", "a chocolate cake on the table", 0),
    ("an apple on the table", "a hamburger on the table", 1),
)
SCALE = 1.5  # of the pictures in the sheet


def gallery(model: Model) -> Image.Image:
    """All EDITS in three columns of pairs, each source beside its edit."""
    pictures, captions = [], []
    for source, target, seed in EDITS:
        result = edit(model, source, target, seed=seed)
        for image, text in ((result.source, source), (result.edited, "-> " + target)):
            pictures.append(image.resize([round(side * SCALE) for side in image.size], Image.Resampling.BICUBIC))
            captions.append(text)
    return grid(pictures, captions, columns=6)


if __name__ == "__main__":
    save(sys.argv[1] if len(sys.argv) > 1 else "gallery.png", gallery(load()), {"edits": EDITS})
