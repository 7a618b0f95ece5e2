"""Scenes drawn by many processes while a GPU trains on those that are there already.

A scene is a picture, a mask, several captions as token ids, and the side of each token (grounding.py). Workers write
them into memory that all processes share and raise a flag; `Scenes.take_in` copies the flagged ones to the device,
where training indexes them without the host.
"""

import mmap
import multiprocessing
import re
import time
import traceback

import numpy as np
import torch
from torch import Tensor

from minedit.picturebook.training.grounding import side
from minedit.picturebook.training.train_unet import weight
from minedit.picturebook.world.captions import WORDS, caption
from minedit.picturebook.world.dataset import CELL, factors_of
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.scene import scene
from minedit.stack.tokens import Tokenizer

CAPTIONS = 8  # of each scene, drawn once
AT_ONCE = 2048  # scenes copied to the device in one go


class Spelling:
    """The tokenizer's ids and the grounding's sides of captions, from a table of the few words captions are made of."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.length, self.bos, self.eos = tokenizer.context_length, tokenizer.bos, tokenizer.eos
        self.ids, self.sides = {}, {}
        for text in WORDS:
            prompt = tokenizer.encode(text)
            self.ids[text] = prompt.ids[1 : prompt.length - 1]
            self.sides[text] = side(text)

    def __call__(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, sides), each of `length` numbers: begin, words, end, and ends as padding."""
        words = re.findall(r"[a-z]+|,", text)
        ids = [i for word in words for i in self.ids[word]]
        sides = [int(self.sides[word]) for word in words for _ in self.ids[word]]
        room = self.length - len(ids) - 1
        return [self.bos, *ids, *[self.eos] * room], [0, *sides, *[0] * room]


class Scenes:
    """`count` scenes of the training compositions: numpy arrays that processes share, and device tensors of the same.

    Make it, and `start` it, before anything uses CUDA: the workers are forks of this process.
    """

    def __init__(self, count: int, size: int, spelling: Spelling, seed: int, workers: int) -> None:
        self.count, self.size, self.spelling, self.seed = count, size, spelling, seed
        self.workers, self.ready = workers, 0
        cells, length = size // CELL, spelling.length
        layout = {
            "images": ((count, size, size, 3), np.uint8),
            "masks": ((count, cells, cells), np.uint8),
            "ids": ((count, CAPTIONS, length), np.int16),
            "sides": ((count, CAPTIONS, length), np.int8),
            "weights": ((count,), np.float32),
        }
        self.arrays = {name: _shared(shape, dtype) for name, (shape, dtype) in layout.items()}
        self.flags, self.stopped = _shared((count,), np.uint8), _shared((1,), np.uint8)
        self.taken, self.processes = np.zeros(count, dtype=bool), []
        self.on: dict[str, Tensor] = {}

    def start(self) -> None:
        """Fork the workers, which draw until all are drawn or `stop` is called."""
        context = multiprocessing.get_context("fork")
        self.processes = [context.Process(target=self._draw, args=(i,), daemon=True) for i in range(self.workers)]
        for process in self.processes:
            process.start()

    def _draw(self, first: int) -> None:
        try:
            for i in range(first, self.count, self.workers):
                if self.stopped[0]:
                    return
                self.draw(i)
        except Exception:  # the others go on
            traceback.print_exc()

    def draw(self, i: int) -> None:
        """Draw scene i, as dataset.Drawings would, with its captions."""
        factors = factors_of(self.seed, i)
        drawn, rng = scene(factors, self.seed * 1_000_000_007 + i, self.size), stream(self.seed, f"captions:{i}")
        self.arrays["images"][i], self.arrays["masks"][i] = drawn.image, drawn.mask.reduce(CELL)
        for k in range(CAPTIONS):
            self.arrays["ids"][i, k], self.arrays["sides"][i, k] = self.spelling(caption(factors, rng).text)
        self.arrays["weights"][i] = weight(factors)
        self.flags[i] = 1

    def to(self, device: torch.device) -> None:
        """Make the device tensors, as large as they will be: their addresses stay."""
        for name, array in self.arrays.items():
            kind = torch.from_numpy(array[:1]).dtype
            self.on[name] = torch.zeros(array.shape, dtype=kind, device=device)

    def take_in(self, at_least: int = 0) -> int:
        """Copy what was drawn since the last time to the device, and wait until there are `at_least` scenes there.

        Returns how many there are. They are the first rows of the tensors `on`, in no order. Gives up waiting when no
        worker draws any more.
        """
        while True:
            alive = any(process.is_alive() for process in self.processes)
            new = np.flatnonzero((self.flags > 0) & ~self.taken)
            for rows in np.array_split(new, -(-len(new) // AT_ONCE)) if len(new) else ():
                for name, array in self.arrays.items():
                    self.on[name][self.ready : self.ready + len(rows)].copy_(torch.from_numpy(array[rows]))
                self.taken[rows] = True
                self.ready += len(rows)
            if self.ready >= min(at_least, self.count) or not (alive or len(new)):
                return self.ready
            time.sleep(0.05)

    def stop(self) -> int:
        """Have the workers end, take in the last scenes; the number of all."""
        self.stopped[0] = 1
        for process in self.processes:
            process.join(timeout=2)
        return self.take_in()

    def pictures(self, rows: Tensor) -> Tensor:
        """Device pictures [B,3,H,W] float32 in [-1,1], channels-last in memory."""
        return self.on["images"][rows].permute(0, 3, 1, 2).float() / 127.5 - 1


def _shared(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros that forked processes share."""
    count = int(np.prod(shape))
    buffer = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(buffer, dtype, count).reshape(shape)
