"""Every argument of the public face, given what it is not: a result, or a MineditError of one line. Nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from inspect import Parameter, signature
from pathlib import Path

import torch
from PIL import Image
from small_model import small_model

import minedit
from minedit.config import MineditError
from minedit.stack.model import Model

BOY, PAIR = "a boy", {"source": "a boy", "target": "a red boy"}
WRONG = (None, 5, 0.5, "x", b"x", [1], ["x"], {5: 1}, object(), torch.zeros(2))
ABSENT = ("load_control", "Tape.read", "Preview()")  # doors of which nothing right is at hand
UNREAD = {("word_maps", "sd"), ("word_maps", "prompt")}  # of what was drawn
SLOW = (5, "x", [1], object(), torch.zeros(2))


def doors(sd: Model, folder: Path) -> Iterator[tuple[str, Callable, dict, Callable | None, tuple[str, ...]]]:
    """(name, function, arguments that are right, how it is called, more names of arguments)."""
    edited = {"sd": sd, **PAIR, "method": "fixed-seed", "steps": 1}
    result, shown = minedit.edit(**edited), minedit.preview(sd)
    minedit.save(sd, folder / "saved")
    with minedit.recorded(sd, "x0") as tape:
        minedit.generate(sd, BOY, steps=1, on_step=shown)
    maps, page = minedit.word_maps(result, "boy"), minedit.xray(**edited)
    picture = {"of": Image.new("RGB", (64, 64)), "words": BOY, "sd": sd, "prompt": BOY}

    def looked_at(of: object, words: object, **more: object) -> object:
        return minedit.word_maps(of, words, **more)

    def drawing(manager: Callable[..., AbstractContextManager]) -> Callable[..., None]:
        def call(**given: object) -> None:
            with manager(**given):
                minedit.generate(sd, BOY, steps=1)

        return call

    part = {"kind": "layers", "layers": "middle_block.1.*attn1"}
    yield "generate", minedit.generate, {"sd": sd, "prompts": BOY, "steps": 1}, None, ()
    yield "edit", minedit.edit, edited, None, ()
    yield "edits", minedit.edits, {"sd": sd, "source": BOY, "targets": ["a dog"], "steps": 1}, None, ("tau",)
    yield "sweep", minedit.sweep, edited | part, None, ()
    yield "xray", minedit.xray, edited, None, ()
    yield "recorded", minedit.recorded, {"sd": sd}, drawing(minedit.recorded), ()
    yield "patched", minedit.patched, {"sd": sd, "patches": {"x0": lambda x, _: x}}, drawing(minedit.patched), ()
    yield "preview", minedit.preview, {"sd": sd}, None, ()
    yield "word_maps", minedit.word_maps, {"of": result, "words": "boy"}, looked_at, ()
    yield "word_maps of a picture", minedit.word_maps, picture, looked_at, ()
    yield "save", minedit.save, {"model": sd, "path": folder / "again"}, None, ()
    yield "load", minedit.load, {"path": folder / "saved"}, None, ()
    yield "load_control", minedit.load_control, {"path": folder / "saved", "model": sd}, None, ()
    yield "UNet", minedit.UNet, {"cfg": sd.config.unet}, None, ()
    yield "VAE", minedit.VAE, {"cfg": sd.config.vae}, None, ()
    yield "Config.from_json", minedit.SD14.from_json, {"text": minedit.SD14.to_json()}, None, ()
    yield "Tape", minedit.Tape, {}, lambda **given: len(minedit.Tape(**given)), ()
    yield "Tape.read", minedit.Tape.read, {"path": folder / "saved"}, None, ()
    yield "tape[]", tape.__getitem__, {"name": "x0"}, lambda name: (name in tape, tape[name]), ()
    yield "Values.at", tape["x0"].at, {"step": 0}, None, ("row", "word", "channel")
    yield "Values.mean", tape["x0"].mean, {"axes": "step"}, lambda axes: tape["x0"].mean(axes), ("axes",)
    yield "WordMaps.map", maps.map, {}, None, ()
    yield "WordMaps.overlay", maps.overlay, {}, None, ()
    yield "Preview.strip", shown.strip, {}, None, ()
    yield "Preview()", shown, {}, None, ()
    yield "Page.save", page.save, {"path": folder / "page.html"}, None, ()
    for name, kind in {**minedit.METHODS, **minedit.INVERSIONS}.items():
        yield name, kind, {}, None, ()


def _named(function: Callable) -> list[str]:
    kinds = Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL
    names = [name for name, each in signature(function).parameters.items() if each.kind not in kinds]
    handed_on = _named(minedit.edits)[4:] if function in (minedit.edit, minedit.sweep, minedit.xray) else ()
    return [name for name in names if name not in handed_on or name in ("steps", "progress")]


def test_what_is_refused_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, refused = [], {}
    for name, function, right, call, more in doors(small_model(), tmp_path):
        if name not in ABSENT:
            (call or function)(**right)
        for argument in (*_named(function), *more):
            refused[name, argument] = 0
            for wrong in SLOW if name == "load" else WRONG:
                try:
                    (call or function)(**right | {argument: wrong})
                except MineditError as error:
                    refused[name, argument] += 1
                    if "\n" in str(error) or len(str(error)) > 700:
                        found.append(f"{name}({argument}={wrong!r}) is refused by more than a line")
                except Exception as error:
                    found.append(f"{name}({argument}={wrong!r}): {type(error).__name__}: {error}")
    assert not found, "\n".join(found)
    assert {each for each, times in refused.items() if not times} == UNREAD
    public = {name for name in minedit.__all__ if callable(getattr(minedit, name))} - {"MineditError"}
    assert public <= {name for name, _ in refused}
