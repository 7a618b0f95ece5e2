"""`minedit weights fetch`: a published file, whole and checked, or a line."""

import hashlib
import os
import re
from contextlib import suppress
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from huggingface_hub import constants, get_token
from tqdm import tqdm

from minedit import __version__
from minedit.config import MineditError, shown

# What `fetch` knows -> its repository, file and sha256.
SOURCES = {
    "sd-v1-4": (
        "CompVis/stable-diffusion-v-1-4-original",
        "sd-v1-4.ckpt",
        "fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556",
    )
}
SIZES = {SOURCES["sd-v1-4"][2]: 4_265_380_512}  # bytes, by the sha256: a server may send without end
BLOCK = 2**20  # bytes read at once
PATIENCE = 60  # seconds that a server may be silent


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
