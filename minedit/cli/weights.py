"""`minedit weights`: verify a file of weights, convert it to .safetensors, fetch Stable Diffusion v1.4."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from minedit.cli.fetch import SOURCES, fetch, sha256
from minedit.cli.options import DTYPES, Formatter, Parser, path
from minedit.config import MineditError

if TYPE_CHECKING:
    from minedit.files.checkpoint import Found
    from minedit.files.stored import Stored

# Published files by their sha256, each found in several public projects that check it.
KNOWN = {
    SOURCES["sd-v1-4"][2]: "sd-v1-4.ckpt",
    "14749efc0ae8ef0329391ad4436feb781b402f4fece4883c7ad8d10556d8a36a": "sd-v1-4-full-ema.ckpt",
    "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516": "v1-5-pruned-emaonly.ckpt",
    "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa": "v1-5-pruned-emaonly.safetensors",
    "e1441589a6f3c5a53f5f54d0975a18a7feb7cdf0b0dee276dfc3331ae376a053": "v1-5-pruned.ckpt",
    "1a189f0be69d6106a48548e7626207dddd7042a418dbf372cefd05e0cdba61b6": "v1-5-pruned.safetensors",
}


def main(argv: list[str]) -> int:
    """Run one verb. Raises MineditError for arguments that cannot be, and as the verbs do."""
    args = _arguments(argv)
    if args.verb == "verify":
        verify(args.file, args.vae)
    elif args.verb == "convert":
        convert(args.source, args.out, args.dtype, args.vae)
    else:
        fetch(args.name, args.out)
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser("minedit weights", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)

    def verb(name: str, text: str) -> Parser:
        about = text[0].upper() + text[1:] + "."
        return verbs.add_parser(name, help=text, description=about, allow_abbrev=False, formatter_class=Formatter)

    check = verb("verify", "say what a file holds, whether it is a whole model, and its sha256")
    check.add_argument("file", metavar="FILE", type=path, help=".ckpt, .safetensors or diffusers folder")
    other = {"metavar": "PATH", "type": path, "help": "a VAE's file or folder, for a model without one or in its place"}
    check.add_argument("--vae", **other)
    change = verb("convert", "write a model as one .safetensors in the LDM layout")
    change.add_argument("source", metavar="IN", type=path, help=".ckpt, .safetensors or diffusers folder")
    change.add_argument("out", metavar="OUT.safetensors", type=path, help="the file to write; whole or not at all")
    kinds = f"{', '.join(DTYPES)}; not given: that of IN, or float32 if it has several"
    change.add_argument("--dtype", metavar="NAME", choices=[*DTYPES], help=kinds)
    change.add_argument("--vae", **other)
    get = verb("fetch", "download a model and check its sha256; a broken download goes on where it stopped")
    get.add_argument("name", metavar="NAME", choices=[*SOURCES], help=f"which: {', '.join(SOURCES)}, 4.27 GB")
    get.add_argument("--out", metavar="FILE", type=path, help="where it goes; not given: its own name, in this folder")
    return parser.parse_args(argv)


def verify(path: Path, vae: Path | None = None) -> None:
    """Print what the file holds. Raises MineditError where that is no whole model, as `checkpoint.load` would.

    vae: the file or folder of another VAE.
    """
    import torch  # and what takes it, once the arguments are right

    from minedit.files.checkpoint import examine
    from minedit.files.formats import named
    from minedit.files.layouts import first

    found, path = examine(path, vae), named(path)
    print(f"{path}: {found.config.name}, {found.layout}")
    for part, tensors in found.tensors.items():
        count = sum(torch.Size(tensor.shape).numel() for tensor in tensors.values())
        print(f"  {part:7}{len(tensors):5} tensors {count:13,} parameters  {', '.join(_dtypes(tensors.values()))}")
    for note in found.notes:
        print(f"  note: {note}")
    if found.extras:
        print(f"  not used by the model: {first(sorted(found.extras))}")
    for file in sorted({tensor.path for tensors in found.tensors.values() for tensor in tensors.values()}):
        name = f"{file.relative_to(path) if file.is_relative_to(path) else file}  " if file != path else ""
        try:
            digest = sha256(file)
        except OSError as error:
            raise MineditError(f"{file} cannot be read any more ({error.strerror or error}); try again") from error
        known = f"the published {KNOWN[digest]}" if digest in KNOWN else "not one of the published files known here"
        print(f"  sha256 {name}{digest}: {known}")


def convert(source: Path, out: Path, dtype: str | None = None, vae: Path | None = None) -> None:
    """Write the model of `source`, with its config, in `dtype`; if not given, in its own, or float32 if it has several.

    vae: the file or folder of the VAE that is written in place of its own.

    Raises MineditError as `checkpoint.load` and `checkpoint.save` do, and for numbers that `dtype` cannot hold.
    """
    if out.suffix != ".safetensors":
        raise MineditError(f"{out} does not end in .safetensors, which is what convert writes; choose another name")
    import torch

    from minedit.files import checkpoint
    from minedit.files.layouts import first

    kind = dtype or _own_dtype(checkpoint.examine(source, vae))
    model = checkpoint.load(source, dtype=kind, vae=vae)
    for part, module in (("unet", model.unet), ("vae", model.vae), ("text", model.text)):
        broken = [f"{part}.{name}" for name, x in module.state_dict().items() if not torch.isfinite(x).all()]
        if broken:
            raise MineditError(f"{source} has NaN, infinity or too large numbers for {kind} in {first(broken)}")
    checkpoint.save(model, out)
    print(f"wrote {out}: {model.config.name}, {kind}, {out.expanduser().stat().st_size:,} bytes")


def _own_dtype(found: Found) -> str:
    kinds = {name for tensors in found.tensors.values() for name in _dtypes(tensors.values())}
    return kinds.pop() if len(kinds) == 1 and kinds <= {*DTYPES} else "float32"


def _dtypes(tensors: Iterable[Stored]) -> list[str]:
    """The types of their numbers, the most frequent first."""
    return [str(kind).removeprefix("torch.") for kind, _ in Counter(x.dtype for x in tensors).most_common()]
