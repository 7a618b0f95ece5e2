"""What `generate` and `edit` share: the model that is asked for, the files that come out, what the terminal says."""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from minedit import __version__, image
from minedit.config import SD14, MineditError, foreign_json, shown
from minedit.sampling.numbers import Numbers
from minedit.speed import threads

if TYPE_CHECKING:
    from minedit.sampling.loop import Step
    from minedit.stack.model import Model
    from minedit.verbs.asked import OnStep

PREVIEW_EVERY = 5  # steps
# in a record, beside what is asked for
FOUND = {"words", "notes", "pair", "unet_rows", "seconds", "versions", "files", "threads"}


def arguments(args: argparse.Namespace, seed: int) -> dict:
    """Arguments of generate and edit."""
    return {"seed": seed} | {field.name: getattr(args, field.name) for field in fields(Numbers)}


def forewarn(sd: Model, *texts: str, inverted: bool = False) -> tuple[str, ...]:
    """Say, before anything is drawn, what is known of the prompts alone. Returns those notes.

    inverted: whether a photograph is, by the first of them.
    """
    from minedit.verbs.results import reading, unsaid

    prompts = [sd.tokenizer.encode(text) for text in texts]
    notes = *unsaid(prompts[0], inverted), *reading(sd, prompts)
    for note in notes:
        print(f"  note: {shown(note, 1000)}")
    return notes


def check_letters(*texts: str) -> None:
    """Say which letters of what will stand in a picture no font has."""
    if letters := image.undrawn("".join(texts)):
        what = f"no font here has {shown(letters, 60)}, boxes stand for them in the captions of the grid"
        print(f"  note: {what}; install one that has, such as Noto Sans CJK")


def load(args: argparse.Namespace) -> Model:
    before = threads.look()
    from minedit.attention.choose import resolve  # torch's, as what the functions below import
    from minedit.files import checkpoint
    from minedit.speed.fast import said

    began = time.perf_counter()
    sd = checkpoint.load(args.model, args.device, args.dtype, args.attention, args.lora, args.fast, args.vae)
    chosen = f" ({resolve(sd.attention, sd.device)})" if sd.attention == "auto" else ""
    where = "embedded" if args.model is None else args.model
    print(f"model {shown(sd.config.name)} ({shown(where, 300)}), loaded in {time.perf_counter() - began:.1f} s")
    speed = f", {said(sd)}" if args.fast else ""
    speed += threads.choose(args.threads, before)
    print(f"  device {sd.device}, dtype {args.dtype}, attention {sd.attention}{chosen}{speed}")
    for file, scale, _ in sd.lora:
        print(f"  with the LoRA {shown(file, 300)}, scale {scale:g}")
    for note in (*sd.notes, *_other(args, sd)):
        print(f"  note: {shown(note, 1000)}")
    return sd


def _other(args: argparse.Namespace, sd: Model) -> list[str]:
    """Why a picture made from the settings of another will not be its equal."""
    weights, version = args.made.get("weights"), args.made.get("minedit")
    loras = args.made.get("loras", {})
    notes = []
    if weights and sd.weights and weights != sd.weights:
        notes.append(f"{args.origin} was made with other weights ({weights}; these are {sd.weights}): expect another")
    for file, now in {file: now for file, _, now in sd.lora}.items():
        if loras.get(file, now) != now:
            what = f"{args.origin} was made with other contents of {shown(file, 300)}"
            notes.append(f"{what} ({loras[file]}; these are {now}): expect another")
    if version and version != __version__:
        notes.append(f"{args.origin} was made by minedit {version}; this is {__version__}: defaults may differ")
    return notes


def preview(args: argparse.Namespace, sd: Model) -> OnStep | None:
    """What writes preview.png every few steps, if --preview asks for it."""
    if args.preview is None:
        return None
    if args.preview == "linear":
        from minedit.verbs.preview import preview

        return preview(sd, PREVIEW_EVERY, lambda picture: image.save(args.out / "preview.png", picture))
    if sd.config.vae != SD14.vae:
        raise MineditError(
            f"--preview FILE is for Stable Diffusion v1, and {sd.config.name} has latents of its own; --preview linear"
        )
    from minedit.files.taesd import load_taesd
    from minedit.stack.taesd import save_preview

    tiny = load_taesd(args.preview, sd.device)

    def show(step: Step) -> None:
        if (step.index + 1) % PREVIEW_EVERY == 0:
            save_preview(tiny, step.x0, args.out / "preview.png")

    return show


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """A folder that takes files, made if need be; unmade if what follows fails before it writes any.

    What killed runs left in it half-written is removed.
    """
    try:
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        image.sweep(path, r"(?:\d{4,}-.*|preview)\.(?:png|json)")
    except OSError as error:
        raise MineditError(
            f"cannot write to {shown(path, 300)} ({error.strerror or error}); choose another --out"
        ) from error
    try:
        yield
    except BaseException:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


@contextmanager
def progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr: a function of the steps done and the steps in all."""
    from tqdm import tqdm

    with tqdm(unit="step", leave=False, ncols=80, mininterval=0.5) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def model_settings(args: argparse.Namespace, sd: Model) -> dict:
    """Which model made a picture, in the words of the command line."""
    import torch

    from minedit.files import lora

    names = ("model", *("vae",) * bool(args.vae), "device", "dtype", "attention", "fast")
    model = {name: getattr(args, name) for name in names}
    if sd.weights:
        model["weights"] = sd.weights
    if sd.device.type == "cpu":  # sums of another number of threads differ in their last bits
        model["threads"] = torch.get_num_threads()
    return {**model, **lora.settings(sd), "model_name": sd.config.name, "minedit": __version__}


def finished(folder: Path, verb: str) -> Iterator[tuple[dict, Path]]:
    """The settings of runs whose files stand in the folder, and their records."""
    for path in sorted(folder.glob(f"*-{verb}.json")):
        with suppress(OSError, ValueError, TypeError, AttributeError):  # ValueError: no JSON; the others: not ours
            record = foreign_json(path.read_text(encoding="utf-8"))
            if all((folder / Path(name).name).is_file() for name in record["files"].values()):
                yield {name: value for name, value in record.items() if name not in FOUND}, path


def standing(args: argparse.Namespace, settings: dict) -> Path | None:
    """The record of a run of these settings whose files stand, unless all is to be drawn again."""
    if args.again or ":" in settings["attention"]:  # a function of the user's own may have changed
        return None
    wanted = json.loads(json.dumps({name: value for name, value in settings.items() if name not in FOUND}))
    return next((path for found, path in finished(args.out, settings["verb"]) if found == wanted), None)


@contextmanager
def _numbered(folder: Path) -> Iterator[int]:
    """The next free number of a folder; other processes wait for theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        taken = (re.match(r"(\d{4,9})-", path.name) for path in folder.iterdir())
        yield 1 + max((int(found[1]) for found in taken if found), default=0)
    finally:
        os.close(held)


def write(
    folder: Path,
    name: str,
    pictures: dict,
    settings: dict,
    found: dict,
    seconds: float,
    said: tuple = (),
    rows: Sequence[dict] = (),
) -> None:
    """Pictures, a JSON and maybe a CSV of one run, their names a number and `name`; says what was noted and written.

    said: notes that were printed before. The JSON comes last: where it stands, the run is complete.
    """
    for note in found["notes"]:
        if note in said:
            continue
        print(f"  note: {shown(note, 1000)}")
    import torch

    with _numbered(folder) as number:
        files = {kind: folder / f"{number:04d}-{name}{kind}.png" for kind in pictures}
        for kind, path in files.items():
            image.save(path, pictures[kind], settings)
        if rows:
            files = {"csv": folder / f"{number:04d}-{name}{settings['verb']}.csv", **files}
            image.write_whole(files["csv"], lambda part: _write_csv(part, rows))
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        record = {**settings, **found, "seconds": round(seconds, 2), "versions": versions}
        record["files"] = {kind: path.name for kind, path in files.items()}
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        path = folder / f"{number:04d}-{name}{settings['verb']}.json"
        image.write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    *others, last = files.values()  # the last picture is what one opens
    cost = f", {found['unet_rows']:,} rows of the UNet" if "unet_rows" in found else ""
    print(f"  {seconds:.1f} s{cost}; wrote {', '.join(map(str, [*others, path, last]))}")


def _write_csv(path: Path, rows: Sequence[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
