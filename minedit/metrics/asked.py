"""Which edits a benchmark asks for: a file of pairs of prompts, PIE-Bench's folder, or the closed world -> `Task`s.

Lines of JSON in any of these names: InstructPix2Pix's 700 human-written edits (input, edit, output), EditEval v1
(category, source, target, instruction), the closed world's own (source, target, seed, kind, before, changes), and any
other pairs (source, target; source_prompt, target_prompt; original_prompt, editing_prompt).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minedit.config import MineditError, foreign_json, shown
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.edits import Pair, pairs, read
from minedit.picturebook.world.instructions import instruct

WORLD = "picturebook"
SIDE = 512  # of PIE-Bench's pictures and masks
TYPES = (  # of PIE-Bench, by editing_type_id
    *("random", "change object", "add object", "delete object", "change content", "change pose"),
    *("change colour", "change material", "change background", "change style"),
)
PROMPTS = (("source", "target"), ("source_prompt", "target_prompt"), ("input", "output"))
INSTRUCTIONS, KINDS = ("instruction", "edit"), ("kind", "category")
LINE = 'expected lines such as {"source": "a boy", "target": "a sitting boy"}, PIE-Bench\'s folder, or ' + WORLD
MAPPED = "expected PIE-Bench's mapping_file.json: an id, and image_path, original_prompt, editing_prompt ..."


@dataclass(frozen=True)
class Task:
    """An edit that a benchmark asks for."""

    id: str
    kind: str  # of edit; empty where the benchmark has none
    source: str
    target: str
    instruction: str = ""  # for models that follow one
    seed: int | None = None  # where the benchmark says it
    image: Path | None = None  # the photograph's file
    mask: tuple[int, ...] | None = None  # of what is to be edited: starts and lengths, see `decoded`
    world: Pair | None = None  # whose truth is known


def decoded(runs: Sequence[int], side: int = SIDE) -> np.ndarray:
    """PIE-Bench's mask: (start, length, start, length ...) over rows -> [side,side] of 0 and 1, 1 to be edited.

    Lengths end with the picture, and its outermost rows and columns are 1, where annotators slipped.
    """
    mask = np.zeros(side * side, dtype=np.float32)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        mask[start : start + length] = 1
    mask = mask.reshape(side, side)
    mask[[0, -1]] = mask[:, [0, -1]] = 1
    return mask


def tasks(name: str, split: str = "test") -> list[Task]:
    """What `name` asks for: `picturebook`, a file or a folder. Raises MineditError, in one line."""
    if name == WORLD:
        return [_of_world(pair) for pair in pairs(split)]
    path = Path(name).expanduser()
    try:
        found = _folder(path) if path.is_dir() else _lines(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise MineditError(f"cannot read {shown(path, 300)} ({reason}); {LINE}") from error
    doubled = [name for name, times in Counter(task.id for task in found).items() if times > 1]
    if doubled or not found:
        what = f"has the id {shown(repr(doubled[0]), 60)} twice" if doubled else "asks for no edit"
        raise MineditError(f"{shown(path, 300)} {what}; {LINE}")
    return found


def few(found: Sequence[Task], limit: int | None) -> list[Task]:
    """The first `limit` of each kind, one of each after the other: a run that is stopped has about as many of each."""
    seen: Counter[str] = Counter()
    picked = []
    for task in found:
        seen[task.kind] += 1
        if limit is None or seen[task.kind] <= limit:
            picked.append((seen[task.kind], task))
    return [task for _, task in sorted(picked, key=lambda each: each[0])]


def _of_world(pair: Pair) -> Task:
    told = instruct(pair.before, pair.after, stream(pair.seed, "instruct"))
    return Task(pair.id, pair.kind, pair.source, pair.target, told, pair.seed, world=pair)


def _lines(path: Path) -> list[Task]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [_line(text, at, f"{path} line {at}") for at, text in enumerate(lines, 1) if text.strip()]


def _line(text: str, at: int, where: str) -> Task:
    row = _object(text, where)
    if {"before", "changes", "factor"} <= row.keys():
        try:
            return _of_world(read([text])[0])
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise MineditError(
                f"{shown(where, 300)} is no pair of the closed world ({shown(error)}); {LINE}"
            ) from error
    texts = next((names for names in PROMPTS if all(_text(row, name) for name in names)), None)
    if texts is None:
        raise MineditError(f"{shown(where, 300)} lacks a text for source or target; {LINE}")
    seed = row.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        raise MineditError(
            f"{shown(where, 300)} has the seed {shown(repr(seed), 60)}, expected a whole number of 0 or more"
        )
    return Task(
        id=str(row.get("id", at)),
        kind=next((_text(row, name) for name in KINDS if _text(row, name)), ""),
        source=row[texts[0]],
        target=row[texts[1]],
        instruction=next((_text(row, name) for name in INSTRUCTIONS if _text(row, name)), ""),
        seed=seed,
    )


def _text(row: dict, name: str) -> str:
    found = row.get(name)
    return found if isinstance(found, str) and found.strip() else ""


def _object(text: str, where: str) -> dict:
    try:
        row = foreign_json(text)
        if not isinstance(row, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise MineditError(f"{shown(where, 300)} cannot be read ({shown(error)}); {LINE}") from error
    return row


def _folder(path: Path) -> list[Task]:
    """PIE-Bench: mapping_file.json, and pictures in annotation_images/."""
    file = path / "mapping_file.json"
    if not file.is_file():
        raise MineditError(f"{shown(path, 300)} has no mapping_file.json; {LINE}")
    rows = _mapping(file)
    return [_mapped(path, id, row) for id, row in rows.items()]


def _mapping(file: Path) -> dict:
    """Too large for `foreign_json`: its masks are millions of numbers. Two levels, and nothing of it is run."""
    import json

    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise MineditError(f"{shown(file, 300)} is not JSON ({shown(error)}); {MAPPED}") from error
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise MineditError(f"{shown(file, 300)} is no object of objects; {MAPPED}")
    return rows


def _mapped(folder: Path, id: str, row: dict) -> Task:
    where = f"{folder}/mapping_file.json, {id}"
    source, target = (re.sub(r"[\[\]]", "", _text(row, name)) for name in ("original_prompt", "editing_prompt"))
    kind, runs, name = str(row.get("editing_type_id")), row.get("mask"), _text(row, "image_path")
    if not (source and target and name) or kind not in map(str, range(len(TYPES))):
        raise MineditError(f"{shown(where, 300)} lacks a prompt, a picture or its editing_type_id; {MAPPED}")
    if not isinstance(runs, list) or not all(type(each) is int and each >= 0 for each in runs) or len(runs) % 2:
        raise MineditError(f"{shown(where, 300)} has a mask that is no list of starts and lengths; {MAPPED}")
    base = folder / "annotation_images"
    image = base / name
    if not image.resolve().is_relative_to(base.resolve()) or not image.is_file():
        raise MineditError(f"{shown(where, 300)} names {shown(name)}, which is no file of annotation_images/; {MAPPED}")
    told = re.sub(r"[\[\]]", "", _text(row, "editing_instruction"))
    return Task(id, TYPES[int(kind)], source, target, told, image=image, mask=tuple(runs))
