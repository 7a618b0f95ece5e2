"""`minedit edit`: a picture and its edit, for each pair of prompts and seed."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from minedit import image, photo
from minedit.cli import output, steering
from minedit.cli.pairs import Asked, asked
from minedit.config import shown
from minedit.inversion.choose import arguments, name_of

if TYPE_CHECKING:
    from minedit.sampling.numbers import Numbers
    from minedit.stack.model import Model


def run(args: argparse.Namespace) -> None:
    steering.check(args)
    edits = asked(args)
    runs = [(each, seed) for each in edits for seed in each.seeds]
    for each in edits:
        if each.image:
            photo.read(each.image)  # what cannot be read is said before anything is drawn
    from minedit.verbs.edit import edit  # and torch, once the arguments are right
    from minedit.verbs.results import record

    with output.folder(args.out):
        sd = output.load(args)
        steer, told = steering.load(args, sd)
        preview = output.preview(args, sd)
        for each in edits:
            each.check(sd)
        output.check_letters(*(text for each in edits for text in (each.source, each.target) if text))
        for each, seed in runs:
            what = each.source, each.target, each.method
            numbers, given, digest = prepared(args, each, sd, steer)
            settings = {"verb": "edit", **record(sd, *what, seed, numbers, each.settings, digest, each.inverse)}
            settings |= {"image": str(each.image.absolute())} if each.image else {}
            settings |= output.model_settings(args, sd) | told
            print(f"\n{shown(repr(each.source), 400)} -> {shown(repr(each.target), 400)}")
            if len(runs) > 1 and (stands := output.standing(args, settings)):
                print(f"  seed {seed} stands already: {stands}; --again draws it anew")
                continue
            by = f", of {shown(each.image, 300)}" if each.image else ""
            by += f" by inversion {name_of(each.inverse)}" if each.inverse else ""
            print(f"  {each.method}{by}, seed {seed}, {each.run.steps} steps, guidance {each.run.guidance}")
            said = output.forewarn(sd, each.source, each.target, inverted=bool(each.inverse))
            with output.progress() as progress:
                calls = {"progress": progress, "on_step": preview, "settings": each.settings, **given}
                res = edit(sd, *what, seed=seed, **calls)
            texts = [shown(word.text, 40) for word in res.words]
            width = max(map(len, texts), default=0)
            print(f"  {'word':{width}}  kind      τ, fraction of the steps")
            for text, word in zip(texts, res.words, strict=True):
                print(f"  {text:{width}}  {word.kind:8}  {word.tau:.2f}")
            pictures = {"source": res.source, "edited": res.edited}
            pictures["grid"] = image.grid([res.source, res.edited], [each.source, each.target])
            found = {"words": [asdict(word) for word in res.words], "notes": list(res.notes), "unet_rows": res.rows}
            output.write(
                args.out, f"seed{seed}-" * (len(runs) > 1), pictures, settings, found | each.more, res.seconds, said
            )


def prepared(args: argparse.Namespace, each: Asked, sd: Model, steer: dict) -> tuple[Numbers, dict, str | None]:
    """The run's numbers; what `edit` takes beside prompts, method, settings and seed; the photograph's hash."""
    from minedit.verbs.asked import sized

    picture, digest = _photograph(args, each)
    shape = picture or steer.get("hint")
    numbers = sized(sd, shape, each.run) if shape else each.run
    return numbers, {"image": picture, **steer, **arguments(each.inverse), **asdict(numbers)}, digest


def _photograph(args: argparse.Namespace, each: Asked) -> tuple:
    """The photograph and its hash; says so where it is not the one that the picture of --from was made of."""
    if each.image is None:
        return None, None
    picture = photo.upright(photo.read(each.image))
    digest = photo.digest(picture.tobytes())
    made = args.made.get("photo")
    if made and made != digest:
        print(f"  note: {shown(args.origin)} was made of another photograph ({made}; this is {digest}): expect another")
    return picture, digest
