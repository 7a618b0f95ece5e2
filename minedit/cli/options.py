"""What the command line asks: argv -> argparse.Namespace, in one line where it cannot be. The verbs' files do it.

`--from PICTURE` takes the settings stored in a picture as the defaults of everything the command line leaves out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from minedit import __version__, image
from minedit.config import MineditError
from minedit.edit import METHODS
from minedit.methods.adapedit import ONE_PASS, AdapEditConfig
from minedit.methods.p2p import P2PConfig
from minedit.sampling.ddim import TRAIN_STEPS

ELSEWHERE = {  # verbs that read their own arguments
    "train": "train the parts of the embedded model",
    "judge": "measure what the embedded model draws",
    "kernels": "check and time attention functions, your own too",
    "weights": "verify, convert or fetch a file of weights",
}
LARGEST_SEED = 2**63 - 1


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a MineditError."""

    def error(self, message: str) -> NoReturn:
        raise MineditError(f"{message}; see {self.prog} --help")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the defaults, where there are any."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """How to read a finite number of `kind` from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if low <= value <= high and math.isfinite(value):
            return value
        limit = f"from {low} to {high}" if high <= 2**14 else f"{low} or more" if low >= 0 else "not infinite"
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a {'whole ' * (kind is int)}number, {limit}")

    return read


def factor(text: str) -> tuple[str | int, float]:
    """How to read a word, or its index, and its factor."""
    word, _, value = text.rpartition("=")
    if not word:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected WORD=FACTOR, such as red=2")
    return int(word) if word.isdigit() else word, number(float, -math.inf, math.inf)(value)


def lora(text: str) -> tuple[str, float]:
    """How to read a file and its scale; a name that ends in a colon and a number needs a scale behind it."""
    file, _, scale = text.rpartition(":")
    try:
        value = float(scale) if file else 1.0
    except ValueError:
        return text, 1.0
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a finite scale behind the colon, such as {file}:1")
    return (file, value) if file else (text, 1.0)


STEPS, SEED, SIDE = number(int, 1, TRAIN_STEPS), number(int, 0, LARGEST_SEED), number(int, 1, 2**14)
FRACTION, POSITIVE = number(float, 0, 1), number(float, 0, math.inf)
# Settings of the methods: how to read one (None: a switch), what it is. Their defaults stand in the dataclasses.
SETTINGS: dict[type, dict[str, tuple[Callable | None, str]]] = {
    AdapEditConfig: {
        "lambda_tau": (POSITIVE, "λ_τ, 0 or more: smaller lets words go earlier, for a stronger edit"),
        "lambda_s": (FRACTION, "λ_S, 0 to 1: the most that a pixel may follow the target"),
        "lambda_sv": (POSITIVE, "λ_S[V], 0 or more: slope of the pixels' gate"),
        "alpha_m": (FRACTION, "α_m, 0 to 1: attention below is masked; as for 77 tokens"),
        "fwt": (None, "a τ for each word; one-pass: found during the edit; without, one for all"),
        "dps": (None, "a weight for each pixel; without, words that were let go follow the target"),
        "mask": (None, "mask the word maps that the pixels' gate is made from"),
        "tau": (FRACTION, "one τ for every word, as a fraction of the steps, instead of FWT"),
        "centre": (None, "subtract the mean over pixels from features before they are compared"),
        "statistics": (str, "steps whose word maps are used: last or mean"),
        "fwt_steps": (STEPS, "steps of the statistics pass; None: 10, at most --steps"),
        "inserted": (str, "attention of inserted words: own, or gated by the pixels' weights"),
        "rest": (FRACTION, "fraction of the steps that begin, end and padding follow the source, at most"),
        "rest_tau": (FRACTION, "words with a smaller τ shorten --rest by their share of all words"),
        "sigma": (FRACTION, "fraction of the steps with the source's self-attention; None: follows --rest"),
    },
    P2PConfig: {
        "cross_steps": (FRACTION, "fraction of the steps with the source's cross-attention"),
        "self_steps": (FRACTION, "fraction of the steps with the source's self-attention"),
        "reweight": (factor, "WORD=FACTOR: weight of a target word; a repeated word by its index"),
    },
}
SETTING_NAMES = {name for settings in SETTINGS.values() for name in settings}
STORED = {  # all that a picture can set
    *("verb", "prompts", "source", "target", "method", "seed", "steps", "guidance", "eta", "height", "width"),
    *("model", "vae", "lora", "device", "dtype", "fast", "attention", *SETTING_NAMES),
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of `generate` or `edit`. Method settings that were not given are absent.

    Raises MineditError for arguments that cannot be, and for a picture that `--from` cannot use.
    """
    args = _parser({}).parse_args(argv)
    if args.again is None:
        args.lora = args.lora or []
        return args
    stored = image.settings(args.again)
    verb, keys = stored.get("verb"), {"generate": {"prompts"}, "edit": {"source", "target", "method"}}
    if verb not in keys or not keys[verb] | {"seed", "model", "attention"} <= set(stored):
        raise MineditError(f"the settings in {args.again} are not those of a minedit command; expected a PNG of one")
    if verb != args.verb:
        raise MineditError(f"{args.again} was made by minedit {verb}; run: minedit {verb} --from {args.again}")
    if not isinstance(stored["seed"], int):
        raise MineditError(f"the seed in {args.again} is {stored['seed']!r}, expected a whole number")
    stored = {name: value for name, value in stored.items() if name in STORED}
    stored["seed"] = [stored["seed"]]
    try:
        merged = [(str(file), float(scale)) for file, scale in stored.pop("lora", [])]
    except (TypeError, ValueError):
        raise MineditError(f"the LoRAs in {args.again} are damaged; name them: --lora") from None
    if ":" in str(stored["attention"]):  # code: run only what this command line names
        stored["attention"] = None
    args = _parser(stored).parse_args(argv)
    if verb == "edit" and args.method != stored["method"]:  # whose settings the stored ones are
        args = _parser({name: value for name, value in stored.items() if name not in SETTING_NAMES}).parse_args(argv)
    if args.attention is None:
        raise MineditError(f"{args.again} was made with an attention function of its user's own; name one: --attention")
    args.lora = merged if args.lora is None else args.lora  # argparse would add those given to a default
    return args


def _parser(defaults: dict) -> Parser:
    """The parser, with these in place of the defaults of generate and edit."""
    top = Parser("minedit", description="Edit pictures by prompts, with Stable Diffusion v1.4.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"minedit {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)

    draw = _verb(verbs, "generate", "draw a picture for each prompt and seed")
    draw.add_argument("prompts", metavar="PROMPT", nargs="*", help="what the picture shows")
    _run_options(draw)

    change = _verb(verbs, "edit", "draw SOURCE and edit it into TARGET")
    change.add_argument("source", metavar="SOURCE", nargs="?", help="prompt of the picture to start from")
    change.add_argument("target", metavar="TARGET", nargs="?", help="prompt of the edited picture")
    change.add_argument("--pairs", metavar="FILE", type=Path, help='an edit a line: {"source": "...", "target": "..."}')
    change.add_argument("--method", default="adapedit", help=f"how to edit: {', '.join(METHODS)}")
    _run_options(change)
    for kind, title in ((AdapEditConfig, "adapedit"), (P2PConfig, "p2p")):
        group = change.add_argument_group(f"settings of --method {title}")
        for field in fields(kind):
            read, text = SETTINGS[kind][field.name]
            how = {"action": argparse.BooleanOptionalAction} if read is None else {"type": read, "metavar": "X"}
            how |= {"nargs": "+"} if read is factor else {}
            if field.name == "fwt":  # a switch with one more position
                group.add_argument(
                    "--no-fwt", dest="fwt", action="store_false", default=argparse.SUPPRESS, help="without"
                )
                how = {"nargs": "?", "const": True, "choices": [ONE_PASS], "type": str}
            text += f" (default: {field.default})" if field.default != () else ""
            group.add_argument(f"--{field.name.replace('_', '-')}", default=argparse.SUPPRESS, help=text, **how)

    for verb in (draw, change):
        verb.set_defaults(**defaults)
    for name, text in ELSEWHERE.items():
        verbs.add_parser(name, help=text)
    return top


def _verb(verbs: argparse._SubParsersAction, name: str, text: str) -> Parser:
    parser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False, formatter_class=Formatter
    )
    parser.set_defaults(verb=name)
    return parser


def _run_options(parser: Parser) -> None:
    group = parser.add_argument_group("the run")
    group.add_argument("--seed", metavar="N", type=SEED, nargs="+", default=[0], help="a run each; prompts come first")
    group.add_argument("--steps", metavar="N", type=STEPS, default=50, help=f"DDIM steps, 1 to {TRAIN_STEPS}")
    group.add_argument("--guidance", metavar="X", type=POSITIVE, default=7.5, help="classifier-free guidance scale")
    group.add_argument("--eta", metavar="X", type=FRACTION, default=0.0, help="0 deterministic to 1 ancestral sampling")
    for side in ("height", "width"):
        group.add_argument(f"--{side}", metavar="N", type=SIDE, help="of the picture, in pixels; else as trained")
    group.add_argument("--from", metavar="PNG", dest="again", help="a picture whose stored settings are the defaults")
    group.add_argument("--out", metavar="FOLDER", type=Path, default=Path("out"), help="where the files go")
    text = "TAESD's weights: preview.png shows, every 5 steps, what the picture becomes (Stable Diffusion v1 only)"
    group.add_argument("--preview", metavar="FILE", help=text)
    group = parser.add_argument_group("the model")
    group.add_argument("--model", metavar="PATH", help=".ckpt, .safetensors or diffusers folder; else the embedded one")
    group.add_argument("--vae", metavar="PATH", help="a VAE's file or folder, for a model without one or in its place")
    text = "LoRA to merge, by its scale (1 without); may be given several times"
    group.add_argument("--lora", metavar="FILE[:SCALE]", type=lora, action="append", help=text)
    group.add_argument("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:1, mps")
    group.add_argument("--dtype", metavar="NAME", default="float32", help="float32, float16, bfloat16")
    text = "on a CPU, convolutions with fewer products, for memory (Winograd); on a GPU, another layout and CUDA graphs"
    group.add_argument("--fast", action=argparse.BooleanOptionalAction, default=False, help=text)
    group.add_argument("--attention", metavar="NAME", default="auto", help="auto, sdpa, eager, triton, module:function")
