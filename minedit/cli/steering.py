"""What `--control FILE --hint PICTURE` asks of `generate` and `edit`: checked, loaded, and told of in the pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from minedit import photo
from minedit.config import MineditError, shown

if TYPE_CHECKING:
    from minedit.stack.model import Model


def check(args: argparse.Namespace) -> None:
    """Before a model is loaded. Raises MineditError for one without the other, or a hint that cannot be read."""
    if (args.control is None) != (args.hint is None):
        given, missing = ("--control", "--hint PICTURE") if args.hint is None else ("--hint", "--control FILE")
        raise MineditError(f"{given} without {missing}; expected both: what a ControlNet reads, and the ControlNet")
    if args.control is None and args.control_scale != 1:
        raise MineditError(f"--control-scale is {args.control_scale:g} of no ControlNet; expected --control FILE")
    if args.hint is not None:
        photo.read(args.hint)


def load(args: argparse.Namespace, sd: Model) -> tuple[dict, dict]:
    """(arguments of `generate` and `edit`, what a picture's settings say); both empty without --control."""
    if args.control is None:
        return {}, {}
    from minedit.files.control import load_control  # torch's
    from minedit.verbs.steered import settings

    control, hint = load_control(args.control, sd), photo.upright(photo.read(args.hint))
    told = settings(control, hint, args.control_scale) | {"hint": str(Path(args.hint).absolute())}
    print(f"  steered by {shown(args.control, 300)}, scale {args.control_scale:g}, hint {shown(args.hint, 300)}")
    for name, what in (("control_weights", "another ControlNet"), ("hint_pixels", "another hint")):
        made = args.made.get(name)
        if made and made != told[name]:
            print(f"  note: {shown(args.origin)} was made by {what} ({made}; this is {told[name]}): expect another")
    return {"control": control, "hint": hint, "control_scale": args.control_scale}, told
