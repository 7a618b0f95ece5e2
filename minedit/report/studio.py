"""An edit that is drawn again as its settings change: one at a time, and given up where something else is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL.Image import Image

from minedit.config import MineditError, shown
from minedit.image import difference
from minedit.report.arrays import data_url
from minedit.report.page import Page
from minedit.sampling.loop import Progress

Draw = Callable[[Mapping[str, object], Progress, Callable[[Image], object]], Page]  # shows what becomes of it
KEPT = 2  # pages: this one and the one before


class GivenUp(Exception):
    """Something else was asked for."""


@dataclass(frozen=True, eq=False)
class Drawn:
    number: int
    asked: Mapping[str, object]
    page: Page


class Studio:
    """Use as a context; `ask` returns at once, `state` says how far it is."""

    def __init__(self, draw: Draw) -> None:
        self.draw, self.change = draw, threading.Condition()
        self.number, self.asked, self.done, self.total, self.served = 0, {}, 0, 0, 0
        self.given_up, self.error, self.open = 0, "", True
        self.becoming: Image | None = None  # what the edit at work looks like by now
        self.drawn: list[Drawn] = []
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Studio:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.change:
            self.open = False
            self.change.notify_all()
        self.thread.join()

    def ask(self, settings: Mapping[str, object]) -> int:
        """Have an edit drawn by these settings, in place of the one that is being drawn. Returns its number."""
        with self.change:
            self.number, self.asked = self.number + 1, dict(settings)
            self.change.notify_all()
            return self.number

    def _work(self) -> None:
        while True:
            with self.change:
                self.change.wait_for(lambda: not self.open or self.served < self.number)
                if not self.open:
                    return
                number, asked, self.done, self.total, self.becoming = self.number, self.asked, 0, 0, None

            def progress(done: int, total: int, number: int = number) -> None:
                self.done, self.total = done, total
                if number != self.number or not self.open:
                    raise GivenUp

            def show(picture: Image) -> None:
                self.becoming = picture

            page, error = None, ""
            try:
                page = self.draw(asked, progress, show)
            except GivenUp:
                self.given_up += 1
            except (MineditError, RuntimeError) as fault:  # torch's too: the next edit may need less memory
                error = shown(fault, 400)
            with self.change:
                self.served = number
                if page is not None:
                    self.drawn = [*self.drawn, Drawn(number, asked, page)][-KEPT:]
                if number == self.number:
                    self.error = error
                self.change.notify_all()

    def state(self) -> dict:
        """As JSON values."""
        with self.change:
            drawn, at_work, becoming = list(self.drawn), self.served < self.number, self.becoming
            told = {"asked": self.number, "busy": at_work, "done": self.done, "total": self.total, "error": self.error}
        pictures = [{"number": each.number, "edited": data_url(each.page.result.edited)} for each in drawn]
        apart = [each.page.result.edited for each in drawn]
        changed = difference(*apart) if len(apart) == KEPT and apart[0].size == apart[1].size else None
        told["becoming"] = data_url(becoming) if at_work and becoming is not None else None
        return told | {"drawn": pictures, "changed": changed}
