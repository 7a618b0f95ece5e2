"""`minedit compare`: one edit by several methods and seeds, side by side in one labelled picture, with their times."""

import argparse
import time

from minedit.cli import options
from minedit.cli.parser import Parser, parser_of
from minedit.config import MineditError, shown
from minedit.inversion.choose import inversion_settings
from minedit.methods.choose import METHODS


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    args.made, args.lora = {}, args.lora or []
    from minedit import image, photo  # and what draws, once the arguments are right
    from minedit.cli import output

    picture = photo.upright(photo.read(args.image)) if args.image else None
    if args.inversion:
        inversion_settings(picture is not None, None, args.inversion, {})
    from minedit.verbs.edit import edit  # and torch, once the photograph is read

    with output.folder(args.out):
        sd = output.load(args)
        cells, captions, rows, failed = [], [], [], None
        print(f"\n{shown(repr(args.source), 400)} -> {shown(repr(args.target), 400)}")
        output.forewarn(sd, args.source, args.target, inverted=picture is not None)
        output.check_letters(args.source, args.target)
        began = time.perf_counter()
        for seed in args.seed:
            run = output.arguments(args, seed)
            for method in args.methods:
                chosen = {"image": picture} if picture else {}
                if picture and getattr(METHODS[method], "inverts", True):
                    chosen["inversion"] = args.inversion
                try:
                    with output.progress() as progress:
                        res = edit(sd, args.source, args.target, method, progress=progress, **run, **chosen)
                except MineditError as error:  # a method that this model cannot do is no reason to show none
                    print(f"  {method} cannot draw this: {shown(error, 400)}")
                    args.methods, failed = [name for name in args.methods if name != method], error
                    continue
                if not any(row["seed"] == seed for row in rows):
                    cells.append(res.source)
                    captions.append("the photograph" if picture else f"seed {seed}")
                print(f"  seed {seed}  {method:20} {res.seconds:6.1f} s  {res.rows:6,} rows of the UNet")
                cells.append(res.edited)
                captions.append(f"{method}\u00a0{res.seconds:.1f}\u00a0s")
                rows.append({"seed": seed, "method": method, "seconds": round(res.seconds, 2), "unet_rows": res.rows})
        if not rows:
            raise failed
        columns = len(cells) // len({row["seed"] for row in rows})
        sheet = image.grid(cells, captions, columns, f"{args.source} \u2192 {args.target}")
        pair = {"source": args.source, "target": args.target, "methods": args.methods}
        settings = {"verb": "compare", **pair, **output.arguments(args, 0), **output.model_settings(args, sd)}
        settings["seed"] = args.seed
        settings |= {"image": str(args.image.absolute()), "inversion": args.inversion} if picture else {}
        seconds = time.perf_counter() - began
        output.write(args.out, "", {"compare": sheet}, settings, {"rows": rows, "notes": []}, seconds)


def _parser() -> Parser:
    parser = parser_of("compare", __doc__)
    parser.add_argument("source", metavar="SOURCE", help="prompt of the picture to start from")
    parser.add_argument("target", metavar="TARGET", help="prompt of the edited picture")
    text = f"all, or some of {', '.join(METHODS)}, with commas between; each by its default settings"
    parser.add_argument("--methods", metavar="NAMES", type=_methods, default=list(METHODS), help=text)
    options.add_photo(parser)
    options.add_numbers(parser)
    options.add_seeds(parser)
    options.add_model(parser)
    return parser


def _methods(text: str) -> list[str]:
    names = list(METHODS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"found {shown(repr(text))}, expected all, or some of {', '.join(METHODS)}")
    return names
