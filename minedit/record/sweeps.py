"""What an edit owes to a head, a layer, a word, a step: each is taken away in turn, and what changes is measured.

In: a model, an edit, the kind of sweep. Out: a table, and a picture of it with the edits that changed most. Only the
target's rows are touched, the source stays as it is.

heads   a head of a cross-attention layer hands on nothing
layers  an attention layer adds nothing to what goes on
words   no pixel attends to a word: its tokens' probabilities are 0, those of the others as much larger
steps   at a step the prediction with the prompt is the one without it
swap    a layer hands on what it does for the source: "which layer carries the pose?"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from minedit.attention.rules import Site
from minedit.config import MineditError, shown
from minedit.image import difference
from minedit.methods.choose import DEFAULT
from minedit.record.drawn import Drawn
from minedit.record.names import catalogue, chosen, split
from minedit.record.patches import At, Patch, patched
from minedit.record.sheet import beside, table
from minedit.record.tap import listening
from minedit.sampling.loop import Progress
from minedit.stack.model import Model, check_model
from minedit.stack.unet import ResBlock
from minedit.verbs.asked import check_calls
from minedit.verbs.edit import asked, edit, spelled
from minedit.verbs.results import EditResult

MOST = 6  # pictures beside the table
SIDE = 160  # of these, in pixels
FIELDS = ("kind", "row", "column", "changed", "from_source")


@dataclass(frozen=True, eq=False)
class Case:
    """What is taken away in one edit: its place in the table, the patches, the steps."""

    row: str
    column: str
    patches: dict[str, Patch]
    steps: int | None = None


@dataclass(frozen=True)
class Measured:
    row: str
    column: str
    changed: float  # from the edit as it is, of 255, mean over the picture
    from_source: float  # from the source: less than the edit's own says that the edit came nearer to it
    image: Image.Image


@dataclass(frozen=True)
class Sweep:
    kind: str
    plain: EditResult
    cases: tuple[Measured, ...]

    @property
    def rows(self) -> list[dict]:
        """For a CSV; first, without row and column, the edit as it is."""
        apart = round(difference(self.plain.edited, self.plain.source), 3)
        first = {"kind": self.kind, "row": "", "column": "", "changed": 0.0, "from_source": apart}
        found = (
            (self.kind, each.row, each.column, round(each.changed, 3), round(each.from_source, 3))
            for each in self.cases
        )
        return [first, *(dict(zip(FIELDS, each, strict=True)) for each in found)]

    def value(self, case: Measured) -> float:
        """What the table shows: how much the edit changed; of a swap, how much nearer it came to the source."""
        if self.kind == "swap":
            return difference(self.plain.edited, self.plain.source) - case.from_source
        return case.changed

    def picture(self) -> Image.Image:
        """The table, source and edit, and the edits for which it shows most."""
        rows, columns = (list(dict.fromkeys(getattr(each, name) for each in self.cases)) for name in ("row", "column"))
        value = {(each.row, each.column): self.value(each) for each in self.cases}
        left = table(rows, columns, value, TITLES[self.kind])
        most = sorted(self.cases, key=lambda each: -self.value(each))[:MOST]
        images = [self.plain.source, self.plain.edited, *(each.image for each in most)]
        captions = ["source", "the edit", *(f"{_caption(self.kind, each)}: {self.value(each):.1f}" for each in most)]
        images = [image.resize((SIDE, round(SIDE * image.height / image.width))) for image in images]
        return beside(left, images, captions)


@spelled
def sweep(
    sd: Model,
    kind: str,
    source: str,
    target: str,
    method: str = DEFAULT,
    *,
    layers: str | Iterable[str] | None = None,
    progress: Progress | None = None,
    **more: object,
) -> Sweep:
    """An edit, and the same with each head, layer, word or step taken away in turn, or each layer's swapped.

    Args:
        kind: one of SWEEPS. layers: globs of layers, "output_blocks.*", for heads, layers and swap; None: all.
        more: as `minedit.edit`.

    Raises MineditError, for a method that draws no source beside the target where that is asked for, too.
    """
    check_model(sd)
    if not isinstance(kind, str) or kind not in SWEEPS:
        raise MineditError(f"the sweep {shown(repr(kind), 60)} is unknown; expected one of {', '.join(SWEEPS)}")
    check_calls(progress=progress)
    wanted = asked(target, method, more)
    drawn = Drawn(sd, kind, source, wanted, more.get("image") is not None)
    said, measured = getattr(wanted.chosen, "instruction", None) or wanted.target, []
    cases = list(SWEEPS[kind](sd, said, layers, ())) if kind != "steps" else []  # wrong layers are said at once
    with listening(sd, drawn):
        plain = edit(sd, source, target, method, **more)
    drawn.check()
    cases = cases or list(SWEEPS[kind](sd, said, layers, drawn.steps))
    for done, case in enumerate(cases):
        if progress:
            progress(done, len(cases))
        rows = None if kind == "swap" else "target"
        with patched(sd, case.patches, steps=case.steps, rows=rows):
            res = edit(sd, source, target, method, **more)
        apart = (difference(res.edited, other) for other in (plain.edited, plain.source))
        measured.append(Measured(case.row, case.column, *apart, res.edited))
    return Sweep(kind, plain, tuple(measured))


def _caption(kind: str, case: Measured) -> str:
    texts = {"words": f"without {case.row}", "steps": case.row}
    return texts.get(kind, f"{case.row} {case.column}")


def _layers(sd: Model, layers: object, kinds: tuple[str, ...] = ("self", "cross")) -> list[Site]:
    sites = {site.name: site for site in sd.unet.sites if site.kind in kinds}
    if layers is None:
        return list(sites.values())
    return [sites[name] for name in chosen(layers, sites, "layers")]


def _short(name: str) -> str:
    """A layer's block: "output_blocks.1.1"."""
    return name.partition(".transformer_blocks")[0]


def _nothing(value: Tensor, at: At) -> Tensor:
    return torch.zeros_like(value)


def _heads(sd: Model, target: str, layers: object, steps: Iterable[int]) -> Iterator[Case]:
    for site in _layers(sd, layers, ("cross",)):
        for head in range(site.heads):

            def silent(value: Tensor, at: At, head: int = head) -> Tensor:
                found = value.clone()
                found[head] = 0
                return found

            yield Case(_short(site.name), f"head {head}", {f"{site.name}.heads": silent})


def _whole(sd: Model, target: str, layers: object, steps: Iterable[int]) -> Iterator[Case]:
    for site in _layers(sd, layers):
        yield Case(_short(site.name), f"{site.kind}-attention", {f"{site.name}.out": _nothing})


def _words(sd: Model, target: str, layers: object, steps: Iterable[int]) -> Iterator[Case]:
    for word in sd.tokenizer.encode(target).words:

        def unseen(value: Tensor, at: At, tokens: tuple[int, ...] = tuple(word.tokens)) -> Tensor:
            if not at.row.endswith(".cond"):
                return value
            found = value.clone()
            found[..., list(tokens)] = 0
            return found / found.sum(-1, keepdim=True).clamp(min=1e-12) * value.sum(-1, keepdim=True)

        at = f" ({word.tokens[0]})" * (sum(w.text == word.text for w in sd.tokenizer.encode(target).words) > 1)
        names = [f"{site.name}.columns.edited" for site in _layers(sd, layers, ("cross",))]
        yield Case(word.text + at, "change", dict.fromkeys(names, unseen))


def _steps(sd: Model, target: str, layers: object, steps: Iterable[int]) -> Iterator[Case]:
    for step in steps:
        held: list[Tensor] = []

        def keep(value: Tensor, at: At, held: list[Tensor] = held) -> Tensor:
            held[:] = [value]
            return value

        def give(value: Tensor, at: At, held: list[Tensor] = held) -> Tensor:
            return held[0] if held else value

        yield Case(f"step {step}", "change", {"eps.uncond": keep, "eps.cond": give}, step)


def _swapped(sd: Model, target: str, layers: object, steps: Iterable[int]) -> Iterator[Case]:
    blocks = [f"{name}.out" for name, each in sd.unet.named_modules() if isinstance(each, ResBlock)]
    names = [*blocks, *(f"{site.name}.out" for site in sd.unet.sites)]
    names = [name for name in catalogue(sd.config) if name in names]
    if layers is not None:
        names = [f"{name}.out" for name in chosen(layers, [split(name)[0] for name in names], "layers")]
    kind = {f"{site.name}.out": f"{site.kind}-attention" for site in sd.unet.sites}
    for name in names:
        held: dict[str, Tensor] = {}

        def given(value: Tensor, at: At, held: dict[str, Tensor] = held) -> Tensor:
            picture, _, half = at.row.partition(".")
            if picture == "source":
                held[half] = value
                return value
            if half not in held:
                raise MineditError(f"the source's activation is not there at step {at.step}; expected another method")
            return held[half]

        yield Case(_short(split(name)[0]), kind.get(name, "ResBlock"), {name: given})


SWEEPS: dict[str, Callable[..., Iterator[Case]]] = {
    "heads": _heads,
    "layers": _whole,
    "words": _words,
    "steps": _steps,
    "swap": _swapped,
}
TITLES = {
    "heads": "without a head of cross-attention: change of the edit, of 255",
    "layers": "without an attention layer: change of the edit, of 255",
    "words": "without a word of the target: change of the edit, of 255",
    "steps": "without guidance at a step: change of the edit, of 255",
    "swap": "with the source's output of a layer: nearer to the source by, of 255",
}
