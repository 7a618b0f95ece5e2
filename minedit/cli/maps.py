"""`minedit maps`: where words of a prompt look, over the picture that is drawn of it, or over one that is given."""

import re
import time

from minedit.cli import options
from minedit.cli.parser import Parser, parser_of
from minedit.config import MineditError, shown


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    args.made, args.lora = {}, args.lora or []
    if not args.words:
        raise MineditError("no word was given; expected some of the prompt: --words dog park")
    from minedit import photo  # and what draws, once the arguments are right
    from minedit.cli import output

    picture = photo.upright(photo.read(args.image)) if args.image else None
    from minedit.record.words import word_maps  # and torch, once the picture is read
    from minedit.verbs.asked import read_prompt
    from minedit.verbs.generate import generate

    with output.folder(args.out):
        sd = output.load(args)
        read_prompt(sd, args.prompt)
        for seed in args.seed:
            began, run = time.perf_counter(), output.arguments(args, seed)
            print(f"\n{shown(repr(args.prompt), 400)}, seed {seed}")
            said = output.forewarn(sd, args.prompt)
            with output.progress() as progress:
                of = picture or generate(sd, args.prompt, progress=progress, **run)
            maps = word_maps(of, *args.words, sd=sd, prompt=args.prompt, layers=args.layers, seed=seed)
            pictures = {} if picture else {"image": of.images[0]}
            names = maps.values.labels["word"]
            kinds = [re.sub(r"[^\w-]+", "-", word)[:40] or "word" for word in names]
            kinds = [kind if kinds.count(kind) == 1 else f"{kind}-{at}" for at, kind in enumerate(kinds)]
            pictures |= {f"map-{kind}": maps.overlay(word) for kind, word in zip(kinds, names, strict=True)}
            if len(names) > 1:
                pictures["maps"] = maps.overlay()
            settings = {"verb": "maps", "prompts": [args.prompt], "words": list(names), "layers": args.layers, **run}
            settings |= {"image": str(args.image.absolute())} if picture else {}
            found = {"peaks": {word: round(maps.map(word).max().item(), 4) for word in names}}
            for word, peak in found["peaks"].items():
                print(f"  {shown(word, 40)}: at most {100 * peak:.0f} % of a pixel's attention")
            name = f"seed{seed}-" if len(args.seed) > 1 else ""
            settings |= output.model_settings(args, sd)
            output.write(args.out, name, pictures, settings, found | {"notes": []}, time.perf_counter() - began, said)


def _parser() -> Parser:
    parser = parser_of("maps", __doc__)
    parser.add_argument("prompt", metavar="PROMPT", help="what the picture shows")
    text = "words or phrases of the prompt; all their tokens and places count, and dog is dogs"
    parser.add_argument("--words", metavar="WORD", nargs="+", type=str, help=text)
    text = "a picture that PROMPT describes, in place of one that is drawn: it is noised to several times"
    parser.add_argument("--image", metavar="FILE", type=options.path, help=text)
    text = "cross-attention layers, by a name or glob such as 'output_blocks.*'"
    parser.add_argument("--layers", metavar="GLOB", default="*", help=text)
    options.add_numbers(parser)
    options.add_model(parser)
    return parser
