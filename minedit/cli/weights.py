"""`minedit weights`: verify a file of weights, convert it to .safetensors, fetch Stable Diffusion v1.4."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from huggingface_hub import constants, get_token
from tqdm import tqdm

from minedit import __version__
from minedit.cli.options import DTYPES, Formatter, Parser, path
from minedit.config import MineditError, shown

if TYPE_CHECKING:
    from minedit.files.checkpoint import Found
    from minedit.files.stored import Stored

# What `fetch` knows -> its repository, file and sha256.
SOURCES = {
    "sd-v1-4": (
        "CompVis/stable-diffusion-v-1-4-original",
        "sd-v1-4.ckpt",
        "fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556",
    )
}
SIZES = {SOURCES["sd-v1-4"][2]: 4_265_380_512}  # bytes, by the sha256: a server may send without end
# Published files by their sha256, each found in several public projects that check it.
KNOWN = {
    SOURCES["sd-v1-4"][2]: "sd-v1-4.ckpt",
    "14749efc0ae8ef0329391ad4436feb781b402f4fece4883c7ad8d10556d8a36a": "sd-v1-4-full-ema.ckpt",
    "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516": "v1-5-pruned-emaonly.ckpt",
    "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa": "v1-5-pruned-emaonly.safetensors",
    "e1441589a6f3c5a53f5f54d0975a18a7feb7cdf0b0dee276dfc3331ae376a053": "v1-5-pruned.ckpt",
    "1a189f0be69d6106a48548e7626207dddd7042a418dbf372cefd05e0cdba61b6": "v1-5-pruned.safetensors",
}
BLOCK = 2**20  # bytes read at once
PATIENCE = 60  # seconds that a server may be silent


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


def sha256(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fetch(name: str, out: Path | None = None) -> None:
    """Download one of SOURCES from the Hugging Face Hub, or from HF_ENDPOINT, with the token of `hf auth login`.

    It gets its name when its sha256 is right. Until then it is a hidden file beside it, from which an interrupted
    download goes on; huggingface_hub's own keeps no such file. Raises MineditError.
    """
    repository, file, expected = SOURCES[name]
    out = Path(file) if out is None else out.expanduser()
    try:
        if out.is_dir():
            raise MineditError(f"cannot write {out} (it is a folder); name the file: --out {out / file}")
        part = out.with_name(f".{out.name}.part")
        if out.exists():
            if sha256(out) != expected:
                raise MineditError(f"{out} is there and is not {file}; move it away or choose another --out")
            print(f"{out} is there already, and its sha256 is right")
            return
        if constants.HF_HUB_OFFLINE:
            raise MineditError("HF_HUB_OFFLINE is set; unset it to download")
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        if not _address(endpoint):
            raise MineditError(f"HF_ENDPOINT is {shown(repr(endpoint))}, expected one such as https://huggingface.co")
        out.parent.mkdir(parents=True, exist_ok=True)
        _download(f"{endpoint}/{repository}", f"{endpoint}/{repository}/resolve/main/{file}", part, SIZES.get(expected))
        digest = sha256(part)
        if digest != expected:
            part.unlink()
            raise MineditError(f"what came for {file} has sha256 {digest}, expected {expected}: not kept; try again")
        part.replace(out)
    except OSError as error:
        raise MineditError(f"cannot write {out} ({error.strerror or error}); choose another --out") from error
    print(f"wrote {out}, and its sha256 is right")


def _address(text: str) -> bool:
    with suppress(ValueError):
        parts = urlsplit(text)  # as its port, raises ValueError for what is none
        return bool(parts.hostname and parts.port != 0 and re.fullmatch(r"https?://[^\s\x00-\x1f\x7f]+", text))
    return False


def _download(page: str, url: str, part: Path, most: int | None = None) -> None:
    """Bring `part` to the whole of `url`, of `most` bytes. Raises MineditError."""
    held = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"User-Agent": f"minedit/{__version__}"})
    if held:
        request.add_header("Range", f"bytes={held}-")
    if token := get_token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    host = urlsplit(url).netloc
    try:
        with build_opener(_Redirects).open(request, timeout=PATIENCE) as answer:
            _append(answer, part, held, most)
    except HTTPError as error:
        if error.code in (401, 403):
            what = f"{host} wants to know who you are ({error.code})"
            raise MineditError(f"{what}; accept the licence at {page}, then run `hf auth login`") from error
        if error.code != 416:  # which says that nothing is left to send
            raise MineditError(f"{host} answers {error.code} for {url}; check HF_ENDPOINT, or try later") from error
    except URLError as error:
        raise MineditError(f"{host} cannot be reached ({error.reason}); are you online?") from error
    except (InvalidURL, ValueError) as error:
        raise MineditError(
            f"{host} redirects to no address ({shown(error)}); check HF_ENDPOINT, or try later"
        ) from error
    except (OSError, HTTPException) as error:
        size = part.stat().st_size if part.exists() else 0
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MineditError(f"the download stopped after {size:,} bytes ({reason}); run it again to go on") from error


def _append(answer: HTTPResponse, part: Path, held: int, most: int | None) -> None:
    """Write the answer behind the `held` bytes, or in their place where the server sends the file from its start."""
    if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
        raise HTTPException("the server sent another part than it was asked for")
    start = held if answer.status == 206 else 0
    total = None if answer.length is None else start + answer.length
    if most is not None and max(start, total or 0) > most:
        raise MineditError(f"the server has {total or start:,} bytes, expected {most:,}: another file; try another")
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, leave=False, ncols=80, mininterval=0.5)
    with part.open("ab" if start else "wb") as file, bar:
        while block := answer.read(BLOCK):
            file.write(block)
            bar.update(len(block))
            if most is not None and file.tell() > most:
                file.truncate(0)
                raise MineditError(f"the server sends more than the {most:,} bytes of the file: not kept; try later")
    if total is not None and part.stat().st_size != total:
        raise HTTPException("the connection broke")


class _Redirects(HTTPRedirectHandler):
    """Follows redirects; the token goes along only to the host it is meant for."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not _address(newurl):
            raise ValueError(shown(newurl))
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if new is not None and token and urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]:
            new.add_unredirected_header("Authorization", token)
        return new
