"""A benchmark, methods and a model -> a row for each edit: drawn, measured, kept.

A method is asked for by its name, or by its name and settings: name:setting=value:setting=value. All methods, and
all edits of one source and seed, share a batch, so a row's `seconds`, the batch's divided by the edits in it, are a
method's own only where it runs alone. Two frames are methods here, too: "copy" gives back the source, and
"re-render", in the closed world, is the renderer's source and counterfactual through the autoencoder.
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
from minedit.metrics.kept import Key, Row, Rows
from minedit.metrics.measured import Tools, measured, readings
from minedit.picturebook.score import rendered, through
from minedit.sampling.loop import Run
from minedit.sampling.numbers import Numbers
from minedit.stack.model import Model
from minedit.verbs.asked import check_reads, sized
from minedit.verbs.edit import edits
from minedit.verbs.generate import generate

FRAMES = ("copy", "re-render")
AS_HELP_SAYS = {"None": "null", "True": "true", "False": "false"}
MOST = 12  # edits of one source in a batch, unless its methods are more
Asked = tuple[str, Task]  # a method, as it was asked for, and the edit


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
            own[setting] = json.loads(AS_HELP_SAYS.get(value, value))
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


def groups(tasks: Sequence[Task], how: How) -> list[list[Task]]:
    """Edits of one source and seed, or photograph, which share a run: as many, by all methods, as MOST allows."""
    found: dict[tuple, list[list[Task]]] = {}
    size = max(1, MOST // max(1, len(how.specs)))
    for task in tasks:
        shows = (task.world.seed, repr(task.world.before)) if how.photographs and task.world else task.image
        same = found.setdefault((task.source, task.seed, shows), [[]])
        if len(same[-1]) == size:
            same.append([])
        same[-1].append(task)
    order = {task.id: at for at, task in enumerate(tasks)}
    return sorted((each for same in found.values() for each in same), key=lambda each: order[each[0].id])


def evaluated(
    sd: Model,
    tools: Tools,
    group: Sequence[Task],
    how: How,
    rows: Rows,
    show: Callable[[Task, str, Made], None] | None = None,
) -> Iterator[Row]:
    """The rows of edits of one source by every method, those that are there as they are; others are made and kept.

    show: is given every picture that is made. An edit that cannot be made has a row that says why: `error`.
    """
    same = [{"source": task.source, "target": task.target, "seed": task.seed} for task in group]
    wanted = [(spec, task, alike) for task, alike in zip(group, same, strict=True) for spec in how.specs]
    missing = [(spec, task, alike) for spec, task, alike in wanted if not rows.of((spec, task.id), alike)]
    found = _made(sd, how, [(spec, task) for spec, task, _ in missing]) if missing else {}
    for spec, task, alike in missing:
        row, made = {"method": spec, "id": task.id, "kind": task.kind, **alike}, found[spec, task.id]
        if isinstance(made, MineditError):
            rows.add(row | {"error": shown(made, 400)})
            continue
        if show:
            show(task, spec, made)
        row |= {"seconds": round(made.seconds, 3), "figures": measured(tools, task, made.source, made.edit, made.drawn)}
        if read := readings(tools, task, made.source, made.edit):
            row |= {"read": list(read)}
        rows.add(row)
    yield from (rows.found[spec, task.id] for spec, task, _ in wanted)


def _made(sd: Model, how: How, asked: Sequence[Asked]) -> dict[Key, Made | MineditError]:
    """Each edit of one source, or what is wrong with it."""
    found: dict[Key, Made | MineditError] = {}
    first = asked[0][1]
    try:
        given = _photograph(sd, first, how) if how.photographs else None
    except MineditError as error:
        return {(spec, task.id): error for spec, task in asked}
    inverting = [each for each in asked if _inverts(each[0])]
    others = [each for each in asked if each not in inverting and parsed(each[0])[0] not in FRAMES]
    for some, inversion in ((inverting, how.inversion), (others, None)):
        for batch in ([each] for each in some) if how.alone else [some]:
            found |= _edits(sd, how, batch, given, inversion)
    drawn = next((made.source for made in found.values() if isinstance(made, Made)), None)
    for spec, task in asked:
        began = time.perf_counter()
        if spec == "re-render":
            before, after = to_pil(through(sd, rendered(task.world, sd.config.image_size)))
            found[spec, task.id] = Made(given or before, after, given and before, time.perf_counter() - began)
        if spec == "copy":
            try:
                drawn = given or drawn or generate(sd, [task.source], seed=task.seed, **asdict(how.run)).images[0]
                found[spec, task.id] = Made(drawn, drawn, given and drawn, time.perf_counter() - began)
            except MineditError as error:
                found[spec, task.id] = error
    return found


def _inverts(spec: str) -> bool:
    name = parsed(spec)[0]
    return name not in FRAMES and getattr(METHODS[name], "inverts", True)


def _edits(
    sd: Model, how: How, asked: Sequence[Asked], given: Image | None, inversion: str | None
) -> dict[Key, Made | MineditError]:
    """Several of one source in one batch; one by one where that fails, to know which of them does."""
    if not asked:
        return {}
    more = {"image": given, "inversion": inversion} if given else {}
    began, first = time.perf_counter(), asked[0][1]
    try:
        targets = [_target(spec, task) for spec, task in asked]
        results = edits(sd, first.source, targets, seed=first.seed, **asdict(how.run), **more)
    except MineditError as error:
        if len(asked) == 1:
            return {(asked[0][0], first.id): error}
        parts = (_edits(sd, how, [each], given, inversion) for each in asked)
        return {key: made for part in parts for key, made in part.items()}
    seconds = (time.perf_counter() - began) / len(asked)
    return {
        (spec, task.id): Made(given or each.source, each.edited, given and each.source, seconds)
        for (spec, task), each in zip(asked, results, strict=True)
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
