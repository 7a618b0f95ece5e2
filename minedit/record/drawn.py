"""What an edit draws as it is: its steps. And what a sweep cannot take away from it, said before it is drawn.

An inversion whose class says `spares = True` leaves out rows of the source, as does such a method of a photograph; a
method whose class says `alone = True` draws the target alone. Of the others it is found out at the first step.
"""

from __future__ import annotations

from minedit.attention.tap import Begun
from minedit.config import MineditError
from minedit.inversion.choose import INVERSIONS, name_of
from minedit.record.tap import Places
from minedit.stack.model import Model
from minedit.stack.tokens import align
from minedit.verbs.asked import read_prompt
from minedit.verbs.edit import Wanted


class Drawn:
    """A Listener (tap.py) of the edit as it is. Raises MineditError where the sweep cannot be."""

    names, inside = frozenset(("eps.uncond", "eps.cond")), True

    def __init__(self, sd: Model, kind: str, source: str, wanted: Wanted, image: bool) -> None:
        self.sd, self.kind, self.wanted, self.image = sd, kind, wanted, image
        self.steps: list[int] = []  # those that were begun
        self.rows: set[str] = set()  # of the UNet, in the last of them
        pair = read_prompt(sd, source, empty=image), read_prompt(sd, wanted.target)
        chosen, inverse = wanted.chosen, wanted.inverse
        if inverse and align(*pair).identical and not getattr(chosen, "reweight", ()):
            raise _same()  # of others `begin` says so, to which nothing is computed
        if kind == "swap" and getattr(chosen, "alone", False):
            raise self._refused(f"{wanted.method} draws the target alone")
        if kind == "swap" and image and getattr(inverse or chosen, "spares", False):
            what = f"inversion {name_of(inverse)}" if inverse else f"{wanted.method} of a photograph"
            raise self._refused(f"{what} leaves out some of it", bool(inverse))

    def photo(self, sides: tuple[int, int]) -> None: ...

    def foresee(self, begun: Begun) -> None: ...

    def begin(self, begun: Begun) -> None:
        if "target" not in begun.rows:
            raise _same()

    def heads(self) -> None:
        return None

    def wants(self, row: str) -> bool:
        return True

    def asks(self, step: int | None) -> bool:
        self.check()
        self.steps.append(step)
        self.rows.clear()
        return True

    def take(self, name: str, x: object, rows: Places, step: int | None, time: int | None) -> object:
        self.rows.update(f"{row}.{name.removeprefix('eps.')}" for row in rows)
        return x

    def check(self) -> None:
        """Raises MineditError where the last step did not compute what the sweep needs."""
        if not self.steps:
            return
        if self.kind == "steps" and "target.uncond" not in self.rows:
            what = "this run predicts no noise without the prompt, and a step cannot go without guidance; expected "
            told = self.sd.config.unet.guidance_dim
            raise MineditError(what + ("another model" if told else "--guidance other than 1, or another method"))
        lacks = [f"source.{half}" for half in ("uncond", "cond") if f"target.{half}" in self.rows]
        if self.kind == "swap" and (lacks := [row for row in lacks if row not in self.rows]):
            raise self._refused(f"{self.wanted.method} computes no {lacks[0]} at step {self.steps[-1]}")

    def _refused(self, why: str, inverse: bool = False) -> MineditError:
        whole = ", ".join(name for name, kind in INVERSIONS.items() if not getattr(kind, "spares", False))
        other = "" if inverse else "a method that draws source and target, such as p2p"
        other += " with " * (self.image and not inverse) + f"--inversion {whole}" * self.image
        return MineditError(f"swap needs all that the source's layers give, and {why}; expected {other}")


def _same() -> MineditError:
    what = "source and target are the same words, and there is no edit to take anything from"
    return MineditError(f"{what}; change a word of the target, or weigh one: --method p2p --reweight WORD=X")
