"""`minedit ablate-heads`, `-layers`, `-words`, `-steps`, `minedit swap`: what an edit owes to each part of its run.

Comes out: a labelled picture, a table of numbers with the edits that changed most; and a CSV of all.
"""

import time

from minedit.cli import options
from minedit.cli.pairs import asked
from minedit.cli.parser import Parser, parser_of
from minedit.config import shown
from minedit.inversion.choose import name_of
from minedit.methods.choose import DEFAULT, METHODS


def main(argv: list[str]) -> None:
    verb = argv[0]
    args = _parser(verb).parse_args(argv[1:])
    args.made, args.lora = {}, args.lora or []
    (each,) = asked(args)
    from minedit import photo  # and what draws, once the arguments are right
    from minedit.cli import output
    from minedit.cli.edit import prepared

    if each.image:
        photo.read(each.image)
    from minedit.record.sweeps import sweep  # and torch, once the photograph is read
    from minedit.verbs.results import record

    pair, kind = (each.source, each.target, each.method), verb.removeprefix("ablate-")
    with output.folder(args.out):
        sd = output.load(args)
        each.check(sd)
        numbers, given, digest = prepared(args, each, sd, {})
        for seed in each.seeds:
            began = time.perf_counter()
            print(f"\n{shown(repr(each.source), 400)} -> {shown(repr(each.target), 400)}")
            by = f" by inversion {name_of(each.inverse)}" if each.inverse else ""
            print(f"  {options.SWEEPS[verb]}: {each.method}{by}, seed {seed}, {numbers.steps} steps each")
            said = output.forewarn(sd, each.source, each.target, inverted=bool(each.inverse))
            with output.progress() as progress:
                more = {"settings": each.settings, "seed": seed, "progress": progress, **given}
                found = sweep(sd, kind, *pair, layers=args.layers, **more)
            settings = {"verb": verb, **record(sd, *pair, seed, numbers, each.settings, digest, each.inverse)}
            settings |= {"layers": args.layers, **({"image": str(each.image.absolute())} if each.image else {})}
            settings |= output.model_settings(args, sd)
            name = f"seed{seed}-" if len(each.seeds) > 1 else ""
            seconds, notes = time.perf_counter() - began, {"notes": [], "edits": len(found.cases) + 1}
            output.write(args.out, name, {verb: found.picture()}, settings, notes, seconds, said, found.rows)


def _parser(verb: str) -> Parser:
    text = options.SWEEPS[verb]
    parser = parser_of(verb, text[0].upper() + text[1:] + ", and measure what changes.")
    parser.add_argument("source", metavar="SOURCE", help="prompt of the picture to start from")
    parser.add_argument("target", metavar="TARGET", help="prompt of the edited picture")
    parser.add_argument("--method", default=DEFAULT, help=f"how to edit: {', '.join(METHODS)}")
    options.add_photo(parser)
    parser.set_defaults(pairs=None, origin=None, layers=None)
    if verb != "ablate-steps":
        text = "layers, by names or globs such as 'output_blocks.*'; all, if not given"
        parser.add_argument("--layers", metavar="GLOB", nargs="+", type=str, help=text)
    options.add_numbers(parser)
    options.add_settings(parser)
    options.add_model(parser)
    return parser
