"""A benchmark, methods and a model -> a row for each edit: drawn, measured, kept.

A method is asked for by its name, or by its name and settings: name:setting=value:setting=value. All methods that are
asked for edit a source in one batch, so a row's `seconds`, the batch's divided by the edits in it, are a method's own
only where it runs alone. Two frames are methods here, too: "copy" gives back the source, and "re-render", in the closed
world, is the renderer's source and counterfactual through the autoencoder.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from PIL.Image import Image

from minedit import photo
from minedit.config import MineditError, shown
from minedit.image import to_pil
from minedit.inversion.choose import inversion_settings
from minedit.methods.choose import METHODS, method_settings
from minedit.metrics.asked import Task
from minedit.metrics.kept import Row, Rows
from minedit.metrics.measured import Tools, measured, readings
from minedit.picturebook.score import rendered, through
from minedit.sampling.loop import Run
from minedit.sampling.numbers import Numbers
from minedit.stack.model import Model
from minedit.verbs.asked import check_reads, sized
from minedit.verbs.edit import edits
from minedit.verbs.generate import generate

FRAMES = ("copy", "re-render")


@dataclass(frozen=True)
class How:
    """How each edit is made."""

    specs: tuple[str, ...]
    run: Numbers
    photographs: bool = False  # of the closed world, renderings are edited as photographs
    inversion: str | None = None
    alone: bool = False  # each method by itself, so that `seconds` are its own

    def told(self) -> dict[str, object]:
        more = {"inversion": self.inversion or "default"} if self.photographs else {}
        return {**asdict(self.run), "photographs": self.photographs, **more}


@dataclass(frozen=True)
class Made:
    """An edit, before it is measured. source: what was to be edited; drawn: what a photograph was drawn again as."""

    source: Image
    edit: Image
    drawn: Image | None
    seconds: float


def parsed(spec: str) -> tuple[str, dict[str, object]]:
    """A method and its settings, as the command line says them. Raises MineditError."""
    name, *said = spec.split(":")
    if name not in (*METHODS, *FRAMES):
        raise MineditError(f"no method {shown(repr(name))}; expected some of {', '.join((*METHODS, *FRAMES))}, or all")
    own: dict[str, object] = {}
    for each in said:
        setting, equals, value = each.partition("=")
        if not equals or (name in FRAMES):
            raise MineditError(f"{shown(repr(each))} in {shown(spec)}: expected name:setting=value, frames have none")
        try:
            own[setting] = json.loads(value)
        except ValueError:
            own[setting] = value  # a text
    return name, own


def possible(sd: Model, spec: str, how: How, world: bool) -> None:
    """Raises MineditError for a method, or settings of one, that cannot edit what the benchmark has."""
    name, own = parsed(spec)
    if name == "re-render" and not world:
        raise MineditError("re-render is of the closed world alone, whose truth is known; omit it")
    if name not in FRAMES:
        inverts = how.photographs and getattr(METHODS[name], "inverts", True)
        _, rest = inversion_settings(how.photographs, METHODS[name], how.inversion if inverts else None, own)
        check_reads(sd, name, method_settings(name, None, rest), how.photographs)


def evaluated(
    sd: Model, tools: Tools, task: Task, how: How, rows: Rows, show: Callable[[str, Made], None] | None = None
) -> Iterator[Row]:
    """The rows of an edit by every method, those that are there already as they are; the others are made and kept.

    show: is given every picture that is made. An edit that cannot be made has a row that says why: `error`.
    """
    same = {"source": task.source, "target": task.target, "seed": task.seed}
    missing = [spec for spec in how.specs if not rows.of((spec, task.id), same)]
    for spec, made in _made(sd, task, how, missing).items() if missing else ():
        row = {"method": spec, "id": task.id, "kind": task.kind, **same}
        if isinstance(made, MineditError):
            rows.add(row | {"error": shown(made, 400)})
            continue
        if show:
            show(spec, made)
        row |= {"seconds": round(made.seconds, 3), "figures": measured(tools, task, made.source, made.edit, made.drawn)}
        if read := readings(tools, task, made.source, made.edit):
            row |= {"read": list(read)}
        rows.add(row)
    yield from (rows.found[spec, task.id] for spec in how.specs)


def _made(sd: Model, task: Task, how: How, specs: Sequence[str]) -> dict[str, Made | MineditError]:
    """The edit by each method, or what is wrong with it."""
    found: dict[str, Made | MineditError] = {}
    try:
        given = _photograph(sd, task, how) if how.photographs else None
    except MineditError as error:
        return dict.fromkeys(specs, error)
    inverting = [spec for spec in specs if _inverts(spec)]
    others = [spec for spec in specs if spec not in inverting and parsed(spec)[0] not in FRAMES]
    for group, inversion in ((inverting, how.inversion), (others, None)):
        for some in ([spec] for spec in group) if how.alone else [group]:
            found |= _edits(sd, task, how, some, given, inversion)
    if "re-render" in specs:
        began = time.perf_counter()
        before, after = to_pil(through(sd, rendered(task.world, sd.config.image_size)))
        found["re-render"] = Made(given or before, after, given and before, time.perf_counter() - began)
    if "copy" in specs:
        began = time.perf_counter()
        drawn = next(
            (made.source for spec, made in found.items() if isinstance(made, Made) and spec != "re-render"), None
        )
        try:
            source = given or drawn or generate(sd, [task.source], seed=task.seed, **asdict(how.run)).images[0]
            found["copy"] = Made(source, source, given and source, time.perf_counter() - began)
        except MineditError as error:
            found["copy"] = error
    return found


def _inverts(spec: str) -> bool:
    name = parsed(spec)[0]
    return name not in FRAMES and getattr(METHODS[name], "inverts", True)


def _edits(
    sd: Model, task: Task, how: How, specs: Sequence[str], given: Image | None, inversion: str | None
) -> dict[str, Made | MineditError]:
    """By several methods in one batch; one by one where that fails, to know which of them does."""
    if not specs:
        return {}
    more = {"image": given, "inversion": inversion} if given else {}
    began = time.perf_counter()
    try:
        targets = [_target(spec, task) for spec in specs]
        results = edits(sd, task.source, targets, seed=task.seed, **asdict(how.run), **more)
    except MineditError as error:
        if len(specs) == 1:
            return {specs[0]: error}
        parts = (_edits(sd, task, how, [spec], given, inversion) for spec in specs)
        return {spec: made for part in parts for spec, made in part.items()}
    seconds = (time.perf_counter() - began) / len(specs)
    return {
        spec: Made(given or each.source, each.edited, given and each.source, seconds)
        for spec, each in zip(specs, results, strict=True)
    }


def _target(spec: str, task: Task) -> dict[str, object]:
    """What `edits` takes. A model that follows instructions is given one, where the benchmark has it."""
    name, own = parsed(spec)
    prompt = task.instruction if getattr(METHODS[name], "reads_photo", False) and task.instruction else task.target
    return {"target": prompt, "method": name, **own}


def _photograph(sd: Model, task: Task, how: How) -> Image:
    """In the size in which it is edited."""
    if task.image is None:
        return rendered(task.world, sd.config.image_size)[0]
    picture = photo.upright(photo.read(task.image))
    run = sized(sd, picture, Run(**asdict(how.run)))
    return photo.fitted(picture, run.height, run.width)
