"""What the command line asks: argv -> argparse.Namespace, in one line where it cannot be. The verbs' files do it.

`--from PICTURE` takes the settings stored in a picture as the defaults of everything the command line leaves out.
"""

import argparse

from minedit.cli.options import parser, setting_names
from minedit.config import MineditError, shown
from minedit.inversion.choose import INVERSIONS
from minedit.methods.choose import METHODS
from minedit.sampling.numbers import SEED, Numbers
from minedit.settings import Setting, settings

TEXT = Setting("", str)
HASH = Setting("", str, none="not known")
# all that a picture can set beside the numbers of its run and its method's settings; and `prompts` and `lora`
STORED = {
    **dict.fromkeys(("verb", "source", "target", "method", "device", "dtype", "attention"), TEXT),
    **dict.fromkeys(("model", "vae"), Setting("", str, none="that of the model")),
    **dict.fromkeys(("weights", "minedit", "photo"), HASH),
    **dict.fromkeys(("image", "inversion"), Setting("", str, none="of no photograph")),
    "fast": Setting("", bool),
    "threads": Setting("", int, 1, 1000),
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of `generate` or `edit`. Method settings that were not given are absent.

    Raises MineditError for arguments that cannot be, and for a picture that `--from` cannot use.
    """
    args = parser({}).parse_args(argv)
    if args.origin is None:
        args.lora, args.made = args.lora or [], {}
        return args
    stored, merged = _stored(args)
    made = {name: stored.pop(name, None) for name in ("weights", "minedit", "photo")}
    if ":" in str(stored["attention"]):  # code: run only what this command line names
        stored["attention"] = None
    args = parser(stored).parse_args(argv)
    if args.verb == "edit" and args.method != stored["method"]:  # whose settings the stored ones are
        args = parser({name: value for name, value in stored.items() if name not in setting_names()}).parse_args(argv)
    if args.attention is None:
        raise MineditError(f"{args.origin} was made with its user's own attention function; name one: --attention")
    made["loras"] = {file: hashed for file, _, hashed in merged if hashed}
    args.made = made  # by which weights, version and LoRAs, of which photograph
    args.lora = [(file, scale) for file, scale, _ in merged] if args.lora is None else args.lora  # in their place
    return args


def _stored(args: argparse.Namespace) -> tuple[dict, list[tuple[str, float, str | None]]]:
    """What the picture of --from sets, every value of its kind; its LoRAs apart, with hashes. Raises MineditError."""
    from minedit import image  # a picture's reader, only where there is one

    stored = image.settings(args.origin)
    verb, keys = stored.get("verb"), {"generate": {"prompts"}, "edit": {"source", "target", "method"}}
    if not isinstance(verb, str) or verb not in keys or not keys[verb] | {"seed", "model", "attention"} <= set(stored):
        raise MineditError(f"the settings in {args.origin} are not those of a minedit command; expected a PNG of one")
    if verb != args.verb:
        raise MineditError(f"{args.origin} was made by minedit {verb}; run: minedit {verb} --from {args.origin}")
    kinds = METHODS.get(str(stored.get("method"))), INVERSIONS.get(str(stored.get("inversion")))
    known = {"seed": SEED, **settings(Numbers), **STORED}
    known |= {name: each for kind in kinds if kind for name, each in settings(kind).items()}
    loras, prompts = stored.get("lora", []), stored.get("prompts", [])
    stored = {name: value for name, value in stored.items() if name in known}
    for name in stored:
        stored[name] = known[name].check(f"the {name} in {args.origin}", stored[name])
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        raise MineditError(f"the prompts in {args.origin} are {shown(repr(prompts), 60)}, expected a list of texts")
    stored |= {"seed": [stored["seed"]], **({"prompts": prompts} if verb == "generate" else {})}
    try:
        scale = Setting("", float)
        merged = [
            (TEXT.check("", file), float(scale.check("", number)), HASH.check("", more[0] if more else None))
            for file, number, *more in loras
        ]
    except (TypeError, ValueError, MineditError):
        raise MineditError(f"the LoRAs in {args.origin} are damaged; name them: --lora") from None
    return stored, merged
