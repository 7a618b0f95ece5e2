"""`preview`: pictures of every step while a run draws, in place in a notebook, or handed to whoever wants them."""

from __future__ import annotations

import sys
from collections.abc import Callable

from PIL import Image
from torch import Tensor

from minedit.config import MineditError, shown
from minedit.image import grid, to_pil
from minedit.sampling.loop import Step
from minedit.settings import Setting
from minedit.stack.model import Model, check_model
from minedit.stack.preview import coloured
from minedit.verbs.asked import check_calls

EVERY = Setting("show every N-th step", int, 1, 1000)
LARGEST = 256  # pixels of a preview's side: there is no more to see in it
Show = Callable[[Image.Image], object]


class Preview:
    """What `on_step` takes. It keeps a preview of each step that it showed, of the run that it saw last."""

    def __init__(self, sd: Model, every: int, show: Show | None) -> None:
        self.matrix, self.factor, self.every, self.show = sd.rgb, sd.config.vae.factor, every, show
        self.frames: dict[int, Tensor] = {}  # [B, 3, h, w] in [-1, 1], by the number of steps done
        self.last, self.put = 0, show

    def __call__(self, step: Step) -> None:
        if not isinstance(getattr(step, "x0", None), Tensor):
            raise MineditError(f"step is {shown(repr(step), 60)}, expected a run's: give a verb on_step=preview(sd)")
        done = step.index + 1
        if done <= self.last:  # another run
            self.frames, self.put = {}, None
        if not self.frames:
            self.put = self.show or _inline()
        self.last = done
        if done % self.every == 0 and step.x0.isfinite().all():  # the run itself says where they are not
            self.frames[done] = coloured(self.matrix, step.x0)
            if self.put:
                self.put(grid(self.images))

    @property
    def images(self) -> list[Image.Image]:
        """The latest step's, a picture for each row: of an edit, the source and the target."""
        return self._pictures(max(self.frames, default=0))

    def strip(self, count: int = 6) -> Image.Image:
        """Some of the steps side by side, the first and the last among them. Raises MineditError where there are none.

        count: 1 or more.
        """
        if not self.frames:
            raise MineditError("no step was shown yet; expected a run with this preview as its on_step")
        count = min(EVERY.check("count", count), len(self.frames))
        steps = list(self.frames)
        chosen = [steps[-1 - k * (len(steps) - 1) // max(count - 1, 1)] for k in reversed(range(count))]
        rows = list(zip(*(self._pictures(done) for done in chosen), strict=True))
        captions = [f"step {done}" for done in chosen] * len(rows)
        return grid([picture for row in rows for picture in row], captions, columns=count)

    def _pictures(self, done: int) -> list[Image.Image]:
        if done not in self.frames:
            return []
        h, w = self.frames[done].shape[2:]
        times = min(self.factor, LARGEST / max(h, w))
        size = round(w * times), round(h * times)
        return [each.resize(size, Image.Resampling.BICUBIC) for each in to_pil(self.frames[done])]


def preview(sd: Model, every: int = 1, show: Show | None = None) -> Preview:
    """What shows a run's clean latents as they become, given to a verb: `on_step=minedit.preview(sd)`.

    A colour is a matrix's of the latents there, fitted to the model's own VAE once; nothing else is computed. Reading a
    step makes a GPU wait, so `every` is for fast ones.

    Args:
        every: steps; those that it divides are shown.
        show: called with each picture, the run's rows side by side; None: a notebook shows it in place of the one
            before, and elsewhere it is kept alone (`images`, `strip`).

    Raises:
        MineditError: no model, an `every` out of range, or a VAE that gives NaN.
    """
    check_model(sd)
    check_calls(show=show)
    return Preview(sd, EVERY.check("every", every), show)


def _inline() -> Show | None:
    """In a notebook: what shows one picture in place of the other. It is there already, or this is none."""
    ipython = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    handles = []

    def put(picture: Image.Image) -> None:
        if handles:
            handles[0].update(picture)
        else:
            handles.append(sys.modules["IPython.display"].display(picture, display_id=True))

    return put
