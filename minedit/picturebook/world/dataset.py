"""The drawn training set: images on disk, drawn once; captions anew at every look."""

import errno
import hashlib
import os
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minedit.config import MineditError
from minedit.image import sweep, to_tensor
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.factors import Factors, held_out, random_factors
from minedit.picturebook.world.looks import PEOPLE
from minedit.picturebook.world.scene import scene

DRAWING = ("animals", "draw", "factors", "looks", "people", "places", "scene", "still")  # what a picture depends on
HANDS = {None: 0.1, "hat": 0.3, "balloon": 0.4, "umbrella": 0.5, "cup": 1.0}  # which share of them `hands_of` keeps
CELL = 8  # pixels a side of a mask's cell, as of a latent pixel


def factors_of(seed: int, index: int, unseen: bool = False) -> Factors:
    """The factors of scene `index`, of the training compositions or of the held-out ones."""
    return _composition(stream(seed, f"{'unseen' if unseen else 'seen'}:{index}"), unseen)


def hands_of(seed: int, index: int) -> Factors:
    """The factors of scene `index` of people, of any composition, most of whom hold something: HANDS."""
    rng = stream(seed, f"hands:{index}")
    while (f := random_factors(rng)).subject not in PEOPLE or rng.random() > HANDS[f.held]:
        pass
    return f


def drawings(rng: random.Random, count: int, size: int, unseen: bool = False) -> Tensor:
    """`count` scenes drawn now, of the training compositions or of the held-out ones: [count,3,size,size] in [-1,1]."""
    images = [to_tensor(scene(_composition(rng, unseen), rng.getrandbits(48), size).image) for _ in range(count)]
    return torch.cat(images)


def _composition(rng: random.Random, unseen: bool) -> Factors:
    while True:
        factors = random_factors(rng)
        if held_out(factors) == unseen:
            return factors


def style() -> str:
    """A short name of the way scenes are drawn: another once a line of the modules that draw is another."""
    sources = b"".join(Path(__file__).with_name(f"{module}.py").read_bytes() for module in DRAWING)
    return hashlib.sha256(sources).hexdigest()[:8]


def _reserve(file: Path) -> None:
    """Has the disk keep place for all of a mapped file: where there is none, writing to its pages ends the process."""
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as held:
            try:
                os.posix_fallocate(held.fileno(), 0, file.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems keep no place
                    raise


class Drawings:
    """`count` scenes of `size` × `size` pixels, uint8 on disk in `folder`; held-out compositions if `unseen`.

    hands: scenes of `hands_of` in their place.

    They are drawn at the first use, which takes about 5 ms a scene, and read from the file after that. Once the way
    scenes are drawn changes, so does `name`, and they are drawn anew.
    """

    def __init__(
        self, folder: Path, count: int, size: int, seed: int, unseen: bool = False, hands: bool = False
    ) -> None:
        self.factors = [hands_of(seed, i) if hands else factors_of(seed, i, unseen) for i in range(count)]
        self.seeds = [seed * 1_000_000_007 + i + (500_000_000 if unseen else 0) for i in range(count)]
        which, cells = "hands" if hands else "unseen" if unseen else "seen", size // CELL
        self.name = f"{which}-{count}-{size}-{seed}-{style()}"
        pictures, masks = (folder / f"{kind}-{self.name}.npy" for kind in ("drawings", "masks"))
        shapes = {pictures: (count, size, size, 3), masks: (count, cells, cells)}
        if not all(file.exists() for file in shapes):
            try:
                self._draw(shapes, size, cells)
            except OSError as error:
                reason = error.strerror or error
                raise MineditError(f"cannot write {folder} ({reason}); choose another place, or make room") from error
        self.images, self.masks = (np.load(file, mmap_mode="r") for file in shapes)  # masks: 0…255, share of subject

    def _draw(self, shapes: dict[Path, tuple[int, ...]], size: int, cells: int) -> None:
        """Writes both files, each whole or not at all."""
        partial = [file.with_name(f".{file.name}.{os.getpid()}.part") for file in shapes]
        try:
            partial[0].parent.mkdir(parents=True, exist_ok=True)
            sweep(partial[0].parent, r"(?:drawings|masks)-.*\.npy")
            images, masks = (
                np.lib.format.open_memmap(part, "w+", np.uint8, shape)
                for part, shape in zip(partial, shapes.values(), strict=True)
            )
            for part in partial:
                _reserve(part)
            for i in tqdm(range(len(self.seeds)), desc=f"drawing {len(self.seeds)} scenes", mininterval=5):
                drawn = scene(self.factors[i], self.seeds[i], size)
                images[i], masks[i] = np.asarray(drawn.image), np.asarray(drawn.mask.reduce(CELL))
            images.flush()
            masks.flush()
            for part, file in zip(partial, shapes, strict=True):
                os.replace(part, file)
        finally:
            for part in partial:
                part.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.images)

    def tensor(self, indices: list[int]) -> Tensor:
        """[len(indices),3,size,size] float32 in [-1,1]."""
        return pixels(self.images, indices)


def pixels(images: np.ndarray, indices: list[int]) -> Tensor:
    """Some of images [N,H,W,3] uint8 as [len(indices),3,H,W] float32 in [-1,1]."""
    stacked = torch.from_numpy(images[np.asarray(indices)].copy())
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
