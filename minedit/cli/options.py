"""What the command line may ask: a parser of it, and the options that verbs share."""

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import Field, fields
from pathlib import Path

from minedit import __version__
from minedit.cli.parser import Formatter, Parser, Several
from minedit.config import MineditError, shown
from minedit.inversion.choose import DEFAULT as INVERSION
from minedit.inversion.choose import INVERSIONS
from minedit.methods.choose import DEFAULT, METHODS
from minedit.sampling.numbers import SEED, Numbers
from minedit.settings import Setting, own_first, settings

DTYPES = ("float32", "float16", "bfloat16")
SWEEPS = {  # verb → what an edit is drawn without, in turn
    "ablate-heads": "draw an edit without each head of cross-attention in turn",
    "ablate-layers": "draw an edit without each attention layer in turn",
    "ablate-words": "draw an edit without each word of the target in turn",
    "ablate-steps": "draw an edit without guidance at each step in turn",
    "swap": "draw an edit with each layer's output of the source in turn",
}
NUMBERS = (int, float, tuple)  # kinds of settings that may be swept
FIGURES = {  # verb → one labelled picture of many edits
    "ablate": "draw an edit by AdapEdit, by AdapEdit without each of its parts, and by Prompt-to-Prompt",
    "sweep": "draw an edit at each of several values of one or two settings of a method",
    "gallery": "draw the edits of a file, a row for each source",
}
ELSEWHERE = {  # verbs that read their own arguments
    "compare": "draw one edit by several methods, side by side",
    **FIGURES,
    "evaluate": "measure methods on a benchmark",
    "maps": "show where words look, over the picture",
    **SWEEPS,
    "xray": "show an edit from inside, in one page of HTML",
    "live": "the same page, where dragged settings draw the edit again",
    "train": "train the parts of the embedded model",
    "judge": "measure what the embedded model draws",
    "kernels": "check and time attention functions, your own too",
    "words": "list the words that the embedded model knows",
    "weights": "verify, convert or fetch a file of weights",
}


def reader(*settings: Setting) -> Callable[[str], object]:
    """How to read what is one of these settings; several methods may have one of a name."""

    def read(text: str) -> object:
        for each in settings:
            with suppress(ValueError, MineditError):
                return each.read(text)
        raise argparse.ArgumentTypeError(f"found {shown(repr(text))}, expected {settings[0].typed}")

    return read


def number(kind: type, low: float = -math.inf, high: float = math.inf) -> Callable[[str], object]:
    """How to read a finite number of `kind` from `low` to `high`."""
    return reader(Setting("", kind, low, high))


def lora(text: str) -> tuple[str, float]:
    """How to read a file and its scale; a name that ends in a colon and a number needs a scale behind it."""
    file, _, scale = text.rpartition(":")
    try:
        value = float(scale) if file else 1.0
    except ValueError:
        return text, 1.0
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"found {shown(repr(text))}, expected a finite scale behind the colon")
    return (file, value) if file else (text, 1.0)


def path(text: str) -> Path:
    """How to read the name of a file or folder, ~ and all."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such user
        raise argparse.ArgumentTypeError(f"{shown(repr(text))} cannot be used ({error})") from error


def setting_names() -> set[str]:
    """Of all methods and inversions."""
    return {name for kind in (*METHODS.values(), *INVERSIONS.values()) for name in settings(kind)}


def parser(defaults: dict) -> Parser:
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
    text = 'an edit a line: {"source": "...", "target": "..."}, and settings of its own, such as "seed": 3'
    change.add_argument("--pairs", metavar="FILE", type=path, help=text)
    change.add_argument("--method", default=DEFAULT, help=f"how to edit: {', '.join(METHODS)}")
    add_photo(change)
    _run_options(change)
    add_settings(change)

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


def _option(group: argparse._ArgumentGroup, field: Field, absent: object, *named: Setting) -> None:
    """The option of a setting. absent: its value where it is not given; named: what methods have by this name."""
    each, flag = named[0], field.name.replace("_", "-")
    text = each.help + f", {each.range} {each.unit}".rstrip() * (each.kind in NUMBERS and bool(each.range))
    text += f"; None: {each.none}" * (bool(each.none) and field.default is not None)
    text += f" (default: {each.none if field.default is None else field.default})" * (field.default not in ((), ""))
    if each.kind is bool and each.choices:  # a switch with more positions
        group.add_argument(f"--no-{flag}", dest=field.name, action="store_false", default=absent, help="without")
        how = {"nargs": "?", "const": True, "choices": each.choices}
    elif each.kind is bool:
        how = {"action": argparse.BooleanOptionalAction}
    else:
        how = {"type": reader(*named), "metavar": each.form}
        how |= {"action": Several} if each.kind in (dict, list) else {}
        how |= {"nargs": "+"} if each.kind is dict else {}
    group.add_argument(f"--{flag}", default=absent, help=text.replace("%", "%%"), **how)


def add_settings(parser: Parser, several: bool = False) -> None:
    """Of all methods and inversions, absent where they are not given. several: values of numbers, commas between."""
    kinds = [(f"--method {name}", kind) for name, kind in METHODS.items()]
    kinds += [(f"--inversion {name}", kind) for name, kind in INVERSIONS.items()]
    for name, kind in kinds:
        group = parser.add_argument_group(f"settings of {name}")
        for field in own_first(kind):
            having = [other for _, other in kinds if field.name in settings(other)]
            if having[0] is not kind:
                continue  # its option is that of all
            owners = [settings(other)[field.name] for other in having]
            if several and owners[0].kind in NUMBERS:
                flag, text = field.name.replace("_", "-"), f"{owners[0].help}, {owners[0].range}".rstrip(", ")
                how = {"type": _values(reader(*owners)), "metavar": "X[,X]", "help": text.replace("%", "%%")}
                group.add_argument(f"--{flag}", default=argparse.SUPPRESS, **how)
            else:
                _option(group, field, argparse.SUPPRESS, *owners)


def _values(read: Callable[[str], object]) -> Callable[[str], list]:
    """How to read values with commas between; none twice."""
    return lambda text: list(dict.fromkeys(read(part.strip()) for part in text.split(",")))


def add_seeds(parser: Parser) -> None:
    text = "seeds, a row of the picture each, such as 0-3, in place of --seed"
    parser.add_argument("--seeds", metavar="N-M", dest="seed", type=_seeds, default=argparse.SUPPRESS, help=text)


def _seeds(text: str) -> list[int]:
    try:
        first, last = (SEED.check("seed", int(part)) for part in (text.split("-") * 2)[:2])
    except (ValueError, MineditError):
        first, last = 1, 0
    if not 0 <= last - first < 1000:
        raise argparse.ArgumentTypeError(f"found {shown(repr(text))}, expected seeds such as 0-3, 1000 at most")
    return list(range(first, last + 1))


def add_threads(parser: argparse._ActionsContainer) -> None:
    text = "threads of the CPU; as many as it has cores that other programs leave, if not given"
    parser.add_argument("--threads", metavar="N", type=number(int, 1, 1000), help=text)


def add_numbers(parser: Parser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("the run")
    group.add_argument("--seed", metavar="N", type=reader(SEED), nargs="+", action=Several, default=[0], help=SEED.help)
    for field in fields(Numbers):
        _option(group, field, field.default, field.metadata["setting"])
    group.add_argument("--out", metavar="FOLDER", type=path, default=Path("out"), help="where the files go, numbered")
    return group


def add_photo(parser: Parser) -> None:
    text = "a photograph to edit, in place of a picture of SOURCE; it is inverted by SOURCE, which says what it shows"
    parser.add_argument("--image", metavar="FILE", type=path, help=text)
    text = f"what the photograph is drawn again by: {', '.join(INVERSIONS)} (default: {INVERSION})"
    parser.add_argument("--inversion", metavar="NAME", help=text)


def _run_options(parser: Parser) -> None:
    group = add_numbers(parser)
    text = "a picture whose stored settings are the defaults"
    group.add_argument("--from", metavar="PNG", dest="origin", type=path, help=text)
    text = "of several runs, draw those too whose pictures, of the same settings, stand in the folder"
    group.add_argument("--again", action="store_true", help=text)
    text = "preview.png shows, every 5 steps, what the picture becomes: linear, of any model, or by a TAESD's weights"
    group.add_argument("--preview", metavar="linear|FILE", help=text)
    _control(parser)
    add_model(parser)


def _control(parser: Parser) -> None:
    group = parser.add_argument_group("a ControlNet")
    text = "a ControlNet's file or folder (Stable Diffusion v1's), to steer what is drawn by --hint"
    group.add_argument("--control", metavar="FILE", type=path, help=text)
    text = "a picture of the kind that it was trained on, such as edges; gives its shape if no --height and --width do"
    group.add_argument("--hint", metavar="PICTURE", type=path, help=text)
    text = "how much of what it adds"
    group.add_argument("--control-scale", metavar="X", type=number(float, 0), default=1.0, help=text)


def add_model(parser: Parser) -> None:
    group = parser.add_argument_group("the model")
    text = "a .ckpt, .safetensors or diffusers folder, or instruct-pix2pix; else the embedded one"
    group.add_argument("--model", metavar="PATH", help=text)
    group.add_argument("--vae", metavar="PATH", help="a VAE's file or folder, for a model without one or in its place")
    text = "LoRA to merge, by its scale (1 without); may be given several times"
    group.add_argument("--lora", metavar="FILE[:SCALE]", type=lora, action="append", help=text)
    group.add_argument("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:1, mps")
    add_threads(group)
    group.add_argument("--dtype", metavar="NAME", default="float32", help="float32, float16, bfloat16")
    text = "on a CPU, quicker convolutions, for memory, and a word on the faster --dtype; on a GPU, CUDA graphs"
    group.add_argument("--fast", action=argparse.BooleanOptionalAction, default=False, help=text)
    group.add_argument(
        "--attention",
        metavar="NAME",
        default="auto",
        help="auto, sdpa, eager, triton; module:function, file.py:function",
    )
