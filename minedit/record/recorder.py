"""Names → a tape: what has these names while pictures are drawn, with named axes.

    with minedit.recorded(sd, "*.attn2.columns", rows="target.cond", words=["dog"]) as tape:
        minedit.edit(sd, "a cat in the park", "a dog in the park")
    tape["input_blocks.1.1.transformer_blocks.0.attn2.columns"].at(step=30, word="dog").mean("head").maps().tensor

Off, it costs one test an attention layer. On, it changes no bit of what is drawn. A step that a CUDA graph would replay
is launched kernel by kernel where something inside the UNet is recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor

from minedit.attention.tap import Begun
from minedit.config import MineditError, shown
from minedit.files.torchnames import torch_device, torch_dtype
from minedit.record.axes import Values
from minedit.record.names import MAPS, Asked, Entry, catalogue, chosen, inside, nearest, split
from minedit.record.select import HALVES, held, row_chosen, row_words, step_chosen, word_tokens
from minedit.record.store import NAMES, File, Memory, Planned, read
from minedit.record.tap import Places, listening
from minedit.settings import several
from minedit.stack.model import Model, check_model

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in NAMES}


class Tape:
    """What was recorded: `tape[name]`, of the last run that has the name; `tape.runs` has each run's, by name."""

    def __init__(self, runs: list[dict[str, Values]] | None = None) -> None:
        self.runs = [] if runs is None else runs
        if not isinstance(self.runs, list) or not all(isinstance(run, dict) for run in self.runs):
            raise MineditError(f"runs is {shown(repr(runs), 60)}, expected those of another tape, or None")

    def __getitem__(self, name: str) -> Values:
        if name in self:
            return next(run[name] for run in reversed(self.runs) if name in run)
        if not isinstance(name, str):
            raise MineditError(f"the name is {shown(repr(name), 60)}, expected one that was recorded, such as 'x0'")
        raise MineditError(f"{shown(repr(name), 100)} was not recorded; the nearest that was: {nearest(name, self)}")

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for run in self.runs for name in run))

    def __contains__(self, name: str) -> bool:
        return isinstance(name, str) and any(name in run for run in self.runs)

    def __len__(self) -> int:
        return len(list(iter(self)))

    @classmethod
    def read(cls, path: str | os.PathLike) -> Tape:
        """From a file that `recorded(..., to=path)` wrote. Raises MineditError for another."""
        return cls([read(path)])


class Recorder:
    """A Listener (tap.py) that fills a tape."""

    def __init__(
        self,
        sd: Model,
        names: Asked,
        steps: object,
        rows: object,
        heads: Sequence[int] | None,
        words: Sequence[str] | None,
        dtype: torch.dtype | None,
        store: Memory | File,
    ) -> None:
        self.sd, self.store, self.dtype, self.tape = sd, store, dtype, Tape()
        self.names = frozenset(chosen(names, catalogue(sd.config)))
        self.inside = inside(sd, self.names)
        self.steps, self.rows, self.words = held("steps", steps, Integral), held("rows", rows, str), words
        some = f"some of 0 to {sd.config.unet.heads - 1}"
        self._heads = None if heads is None else list(several("heads", heads, Integral, some))
        self.now: dict[str, Values] = {}
        self.begun: Begun | None = None
        self.drawn: list[int] = []  # the steps of this run that are recorded
        self.tokens: dict[str, list[list[int]]] = {}  # of a row: for each word, where its tokens stand
        self.texts: dict[str, tuple[str, ...]] = {}  # of a row, of the UNet or the text encoder: its tokens' words
        self.early: dict[str, Values] = {}  # of a photograph, which comes up before the run
        if heads is not None and not (self._heads and all(0 <= head < sd.config.unet.heads for head in self._heads)):
            raise MineditError(f"heads is {shown(repr(heads), 60)}, expected {some}")

    def heads(self) -> list[int] | None:
        return self._heads

    def wants(self, row: str) -> bool:
        return row_chosen(self.rows, row)

    def asks(self, step: int | None) -> bool:
        return step in self.drawn

    def foresee(self, begun: Begun) -> None:
        """Raises MineditError where `begin` will, before statistics are taken for this run."""
        self.store.check(self._plan(begun))

    def begin(self, begun: Begun) -> None:
        """Lay out all that will come. Raises MineditError where it does not fit, or where a word is in no prompt."""
        planned = self._plan(begun)
        photo, self.early = self.early, {}
        if isinstance(self.store, File):
            planned |= {name: _again(each) for name, each in photo.items()}
        self.now = {**photo, **(self.store.lay_out(planned) if planned else {})}
        for name, each in photo.items():
            if self.now[name] is not each:
                self.now[name].tensor.copy_(each.tensor)
        self.tape.runs.append(self.now)

    def _plan(self, begun: Begun) -> dict[str, Planned]:
        self.begun = begun
        self.drawn = [step for step in begun.steps if step_chosen(self.steps, step)]
        if not self.drawn:
            what = f"steps is {shown(repr(self.steps), 60)}"
            raise MineditError(f"{what}, none of this run's {begun.steps.start} to {begun.steps.stop - 1}")
        self.tokens = word_tokens(self.sd, begun, self.words, self.wants)
        self.texts = row_words(self.sd, begun)
        known = catalogue(self.sd.config, begun.sides)
        planned = {}
        for name in chosen(lambda name: name in self.names, known):
            entry = known[name]
            if entry.part != "encoder":
                planned[name] = self._planned(name, entry, self._rows_of(name, entry))
        return planned

    def take(self, name: str, x: Tensor, rows: Places, step: int | None, time: int | None) -> Tensor:
        values = self.now.get(name) or self.early.get(name)
        if values is None or (step is not None and step not in self.drawn):
            return x
        into = values.tensor if step is None else values.tensor[self.drawn.index(step)]
        for row, at in rows.items():
            if row in values.labels["row"]:
                found = x[at] if self._heads is None or "head" not in values.axes else x[at][self._heads]
                into[values.labels["row"].index(row)].copy_(found)
        return x

    def take_row(self, name: str, x: Tensor, row: str, step: int, time: int) -> Tensor:
        values = self.now[name]
        into = values.tensor[self.drawn.index(step), values.labels["row"].index(row)]
        if "word" not in values.axes:
            into.copy_(x)
            return x
        for at, tokens in enumerate(self.tokens[row]):
            if tokens:
                into[..., at].copy_(x[..., tokens].sum(-1))
        return x

    def photo(self, sides: tuple[int, int]) -> None:
        """A photograph is encoded before the run; what is recorded of it is laid out with the run's in a file."""
        known = catalogue(self.sd.config, sides)
        names = [name for name in self.names if known[name].part == "encoder"]
        if names:
            planned = {name: self._planned(name, known[name], ["photo"]) for name in names}
            own = isinstance(self.store, Memory)
            memory = self.store if own else Memory(self.store.budget, torch.device("cpu"))
            self.early = memory.lay_out(planned)

    def _rows_of(self, name: str, entry: Entry) -> list[str]:
        names = self.begun.rows
        if entry.part == "unet" or name == "text":
            names = [f"{row}.{half}" for half in HALVES for row in names]
        elif entry.part == "text":
            names = ["negative", *names]
        found = [row for row in names if self.wants(row)]
        if not found:
            what = f"rows is {shown(repr(self.rows), 60)}, none of {', '.join(names)}, which {name} has"
            raise MineditError(f"{what}; choose other rows, or leave out the name")
        return found

    def _planned(self, name: str, entry: Entry, rows: list[str]) -> Planned:
        shape, axes, labels = list(entry.shape), list(entry.axes), {"row": tuple(rows)}
        if "head" in axes and self._heads is not None:
            shape[axes.index("head")], labels["head"] = len(self._heads), tuple(self._heads)
        if split(name)[1] in MAPS and axes[-1] == "token" and self.words is not None:
            shape[-1], axes[-1], labels["word"] = len(self.words), "word", tuple(self.words)
        shape, axes = [len(rows), *shape], ["row", *axes]
        if entry.part == "unet" or (entry.part == "run" and name != "text"):
            shape, axes, labels = [len(self.drawn), *shape], ["step", *axes], {"step": tuple(self.drawn), **labels}
        dtype = self.dtype or (torch.float32 if entry.wide else self.sd.dtype)
        words = {row: self.texts[row] for row in rows} if "token" in axes else {}
        return Planned(tuple(shape), dtype, tuple(axes), labels, entry.map, words)


@contextmanager
def recorded(
    sd: Model,
    names: Asked = "*.attn2.columns",
    *,
    steps: int | Iterable[int] | Callable[[int], bool] | None = None,
    rows: str | Iterable[str] | Callable[[str], bool] | None = None,
    heads: Sequence[int] | None = None,
    words: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    budget: int | None = 2**30,
    to: str | os.PathLike | None = None,
) -> Iterator[Tape]:
    """While it lasts, runs of `sd` in this thread that draw pictures fill the tape.

    Args:
        names: a name, a glob, several of them, or a function of names; docs/tensors.md lists all.
        steps: of the run, 0 for pure noise; None: all. rows: "source", "target", "cond", "target.cond" ...; pictures of
            `generate` are "0", "1" ... heads: of q, k, v, columns and heads.
        words: of `.columns` of the text, in place of tokens: a word's share of attention, the sum over its tokens.
        device: where the tape's tensors lie. dtype: theirs; None: as they come, probabilities and latents in float32.
        budget: bytes that the tape, or the file with its header, may take; None: any number.
        to: a .safetensors file that is filled while the run goes on, in place of memory; `Tape.read` reads it.

    Raises MineditError for names that there are not, and before the run where the budget is too small.
    """
    check_model(sd)
    dtype = None if dtype is None else torch_dtype(dtype, DTYPES)
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 0):
        raise MineditError(f"budget is {shown(repr(budget), 60)}, expected a number of bytes, or None")
    if words is not None:
        words = several("words", words, str, "words of the prompts")
    store = Memory(budget, torch_device(device)) if to is None else File(budget, to)
    recorder, done = Recorder(sd, names, steps, rows, heads, words, dtype, store), False
    try:
        with listening(sd, recorder):
            yield recorder.tape
        done = True
    finally:
        store.close(done)


def _again(values: Values) -> Planned:
    return Planned(tuple(values.shape), values.tensor.dtype, values.axes, values.labels, values.map, values.words)
