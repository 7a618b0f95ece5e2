"""`minedit ablate-heads`, `-layers`, `-words`, `-steps`, `minedit swap`: what an edit owes to each part of its run.

Comes out: a labelled picture, a table of numbers with the edits that changed most; and a CSV of all.
"""

import time

from minedit.cli import options
from minedit.cli.parser import Parser, parser_of
from minedit.config import MineditError, shown
from minedit.methods.choose import DEFAULT, METHODS


def main(argv: list[str]) -> None:
    verb = argv[0]
    args = _parser(verb).parse_args(argv[1:])
    args.made, args.lora = {}, args.lora or []
    if args.method not in list(METHODS):
        raise MineditError(f"method is {shown(repr(args.method))}, expected one of {', '.join(METHODS)}")
    from minedit.cli import output  # and what draws, once the arguments are right
    from minedit.record.sweeps import sweep

    with output.folder(args.out):
        sd = output.load(args)
        for seed in args.seed:
            began, run = time.perf_counter(), output.arguments(args, seed)
            print(f"\n{shown(repr(args.source), 400)} -> {shown(repr(args.target), 400)}")
            print(f"  {options.SWEEPS[verb]}: {args.method}, seed {seed}, {args.steps} steps each")
            said = output.forewarn(sd, args.source, args.target)
            pair, kind = (args.source, args.target, args.method), verb.removeprefix("ablate-")
            with output.progress() as progress:
                found = sweep(sd, kind, *pair, layers=args.layers, progress=progress, **run)
            settings = {"verb": verb, **dict(zip(("source", "target", "method"), pair, strict=True))}
            settings |= {"layers": args.layers, **run, **output.model_settings(args, sd)}
            name = f"seed{seed}-" if len(args.seed) > 1 else ""
            seconds, notes = time.perf_counter() - began, {"notes": [], "edits": len(found.cases) + 1}
            output.write(args.out, name, {verb: found.picture()}, settings, notes, seconds, said, found.rows)


def _parser(verb: str) -> Parser:
    text = options.SWEEPS[verb]
    parser = parser_of(verb, text[0].upper() + text[1:] + ", and measure what changes.")
    parser.add_argument("source", metavar="SOURCE", help="prompt of the picture to start from")
    parser.add_argument("target", metavar="TARGET", help="prompt of the edited picture")
    parser.add_argument("--method", default=DEFAULT, help=f"how to edit: {', '.join(METHODS)}")
    if verb != "ablate-steps":
        text = "layers, by names or globs such as 'output_blocks.*'; all, if not given"
        parser.add_argument("--layers", metavar="GLOB", nargs="+", type=str, help=text)
    else:
        parser.set_defaults(layers=None)
    options.add_numbers(parser)
    options.add_model(parser)
    return parser
