"""Twelve edits by the embedded model as one picture, the README's: `python -m minedit.picturebook.gallery OUT.png`."""

from __future__ import annotations

import sys

from PIL import Image

from minedit.checkpoint import Model, load
from minedit.edit import edit
from minedit.image import grid, save

# (source, target, seed). The first ten are soft: pose, action, count, size, adjective.
EDITS = (
    ("a boy in the park", "a sitting boy in the park", 0),
    ("a girl standing on the beach", "a girl waving on the beach", 0),
    ("a brown dog standing on the grass", "a brown dog running on the grass", 0),
    ("a cat sitting in a room", "a cat lying in a room", 0),
    ("a standing horse in the desert", "a running horse in the desert", 0),
    ("a bird standing on the grass", "a bird spreading its wings on the grass", 0),
    ("a red apple on the table", "two red apples on the table", 0),
    ("three peaches on a plate", "one peach on a plate", 0),
    ("a small dog in the snow", "a big dog in the snow", 0),
    ("a boy in a red shirt in the street", "a boy in a blue shirt in the street", 0),
    ("a cake on the table", "a chocolate cake on the table", 0),
    ("a girl on the beach", "a girl with an umbrella on the beach", 0),
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
