"""`minedit weights`: what verify says, what convert writes, and fetch against a server on loopback that misbehaves.

Oracles: hashlib, torch's own count of parameters, and what the server was asked.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from weight_files import SLIM, as_folder, in_shards, slim, with_config

from minedit import cli
from minedit.cli import fetch, weights
from minedit.config import Config
from minedit.files import checkpoint, written
from minedit.files.checkpoint import load, save

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "slim.safetensors"
    save(slim(), path)
    return path


def failed(capsys, *argv: object) -> str:
    """What a command that cannot be done says, in one line."""
    assert cli.main(["weights", *map(str, argv)]) == 2
    said = capsys.readouterr().err.strip("\r \n").splitlines()[-1]
    assert said.startswith("minedit: error: ")
    return said


# Verify.


def test_verify(saved, tmp_path, capsys, monkeypatch):
    tensors = load_file(saved) | {"betas": torch.zeros(2), "model_ema.decay": torch.zeros(1)}
    tensors |= {name: x.half() for name, x in tensors.items() if name.startswith("first_stage_model.")}
    path = with_config(tensors, tmp_path / "model.ckpt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert cli.main(["weights", "verify", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{path}: slim, an LDM file"
    for line, module, kind in zip(said[1:], (slim().unet, slim().vae, slim().text), ("32", "16", "32"), strict=False):
        count = sum(x.numel() for x in module.state_dict().values())
        assert f"{len(module.state_dict())} tensors" in line and f"{count:,} parameters  float{kind}" in line
    assert said[4] == "  not used by the model: 2 tensors (betas, model_ema.decay)"
    assert said[5] == f"  sha256 {digest}: not one of the published files known here" and len(said) == 6
    monkeypatch.setitem(weights.KNOWN, digest, "x.ckpt")
    weights.verify(path)
    assert capsys.readouterr().out.endswith(f"{digest}: the published x.ckpt\n")


def test_verify_a_folder_in_shards(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "SD14", SLIM)
    folder = as_folder(load_file(saved), tmp_path / "folder")
    in_shards(folder / "unet" / "diffusion_pytorch_model.safetensors")
    weights.verify(folder)
    said = capsys.readouterr().out
    assert f"{folder}: slim, a diffusers folder" in said
    for file in sorted(folder.rglob("*.safetensors")):
        assert f"sha256 {file.relative_to(folder)}  {hashlib.sha256(file.read_bytes()).hexdigest()}: " in said
    assert said.count("sha256") == 4


def test_verify_says_what_load_says(tmp_path, capsys):
    (tmp_path / "page").write_bytes(b"<!DOCTYPE html>")
    assert "is a web page" in failed(capsys, "verify", tmp_path / "page")
    assert "does not exist" in failed(capsys, "verify", tmp_path / "absent")


# Convert.


def ckpt(tensors: dict, path: Path) -> Path:
    torch.save({"state_dict": tensors, "global_step": 1}, path)
    return path


SOURCES = {
    "safetensors": lambda tensors, path: with_config(tensors, path / "in"),
    "ckpt": lambda tensors, path: ckpt(tensors, path / "in"),
    "folder": lambda tensors, path: as_folder(tensors, path / "in", old=True),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_convert(saved, tmp_path, capsys, monkeypatch, kind):
    monkeypatch.setattr(checkpoint, "SD14", SLIM)
    source, out = SOURCES[kind](load_file(saved), tmp_path), tmp_path / "out.safetensors"
    assert cli.main(["weights", "convert", str(source), str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}: slim, float32, {out.stat().st_size:,} bytes\n"
    with safe_open(out, "pt") as file:
        assert Config.from_json(file.metadata()["minedit.config"]) == SLIM
    found, expected = load_file(out), load_file(saved)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_convert_to_another_dtype_and_keep_it(saved, tmp_path, dtype):
    weights.convert(saved, tmp_path / "a.safetensors", dtype)
    weights.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    kind = getattr(torch, dtype)
    expected = {name: x.to(kind) for name, x in load_file(saved).items()}
    for file in ("a", "b"):
        found = load_file(tmp_path / f"{file}.safetensors")
        assert all(torch.equal(found[name], x) and found[name].dtype == kind for name, x in expected.items())


def test_convert_over_its_own_source(saved, tmp_path):
    path = with_config(load_file(saved), tmp_path / "model.safetensors")
    weights.convert(path, path, "float16")
    assert load(path).dtype == torch.float32
    assert {x.dtype for x in load_file(path).values()} == {torch.float16}


def test_convert_writes_float32_where_a_file_has_several(saved, tmp_path):
    tensors = load_file(saved)
    tensors[UNET + "out.0.bias"] = tensors[UNET + "out.0.bias"].half()
    weights.convert(with_config(tensors, tmp_path / "in"), tmp_path / "out.safetensors")
    assert {x.dtype for x in load_file(tmp_path / "out.safetensors").values()} == {torch.float32}


def test_what_cannot_be_converted_leaves_the_old_file(saved, tmp_path, capsys, monkeypatch):
    tensors, out = load_file(saved), tmp_path / "out.safetensors"
    tensors[UNET + "out.0.bias"] = torch.full_like(tensors[UNET + "out.0.bias"], 1e5)
    source = with_config(tensors, tmp_path / "in")
    out.write_bytes(b"old")
    before = set(tmp_path.iterdir())
    said = failed(capsys, "convert", source, out, "--dtype", "float16")
    assert "too large numbers for float16 in 1 tensor (unet.out.0.bias)" in said
    assert "does not end in .safetensors" in failed(capsys, "convert", source, tmp_path / "out.ckpt")
    assert "'float8'" in failed(capsys, "convert", source, out, "--dtype", "float8")
    assert "is damaged" in failed(capsys, "convert", with_damage(source), out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(written, "save_file", full)
    assert "cannot write" in failed(capsys, "convert", saved, out)
    assert out.read_bytes() == b"old" and set(tmp_path.iterdir()) == before


def with_damage(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-1])
    return path


# Fetch.

CONTENT = bytes(range(256)) * 40


class Hub(ThreadingHTTPServer):
    """Has one file; `answer` is how it gives it."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Request], None]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.answer = answer
        self.asked: list[tuple[str, str | None, str | None]] = []  # path, range, authorization
        self.url = f"http://127.0.0.1:{self.server_port}"


class Request(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Range"], self.headers["Authorization"]))
        self.server.answer(self)

    def log_message(self, *_: object) -> None: ...

    def send(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def begin(self) -> int:
        return int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def whole(request: Request) -> None:
    """As a server should: the file, or the rest of it."""
    begin = request.begin()
    if begin >= len(CONTENT):
        request.send(416)
    elif request.headers["Range"]:
        request.send(206, CONTENT[begin:], Content_Range=f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
    else:
        request.send(200, CONTENT)


def cut(request: Request) -> None:
    """Two thirds of what was asked for, then nothing."""
    rest = CONTENT[request.begin() :]
    where = {"Content_Range": f"bytes {request.begin()}-"} if request.headers["Range"] else {}
    request.send(206 if where else 200, rest[: len(rest) * 2 // 3], len(rest), **where)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    with Hub(whole) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(fetch, "get_token", lambda: None)
        monkeypatch.setattr(fetch.constants, "HF_HUB_OFFLINE", False)
        digest = hashlib.sha256(CONTENT).hexdigest()
        monkeypatch.setitem(fetch.SOURCES, "sd-v1-4", ("some/model", "model.ckpt", digest))
        yield server
        server.shutdown()


PATH = "/some/model/resolve/main/model.ckpt"


def test_fetch(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sha256, out = fetch.sha256, tmp_path / "model.ckpt"

    def not_there_yet(path: Path) -> str:
        assert not out.exists() and path.read_bytes() == CONTENT
        return sha256(path)

    monkeypatch.setattr(fetch, "sha256", not_there_yet)
    assert cli.main(["weights", "fetch", "sd-v1-4"]) == 0
    assert "wrote model.ckpt, and its sha256 is right" in capsys.readouterr().out
    assert out.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [out]
    assert hub.asked == [(PATH, None, None)]
    monkeypatch.setattr(fetch, "sha256", sha256)
    assert cli.main(["weights", "fetch", "sd-v1-4"]) == 0
    assert "is there already" in capsys.readouterr().out and len(hub.asked) == 1
    out.write_bytes(b"mine")
    assert "is there and is not model.ckpt" in failed(capsys, "fetch", "sd-v1-4")
    assert out.read_bytes() == b"mine" and len(hub.asked) == 1


def test_a_broken_download_goes_on_where_it_stopped(hub, tmp_path, capsys):
    out = tmp_path / "new" / "x.ckpt"
    hub.answer = cut
    for held in (6826, 9102):
        said = failed(capsys, "fetch", "sd-v1-4", "--out", out)
        assert f"stopped after {held:,} bytes (the connection broke); run it again to go on" in said
        assert not out.exists()
    hub.answer = whole
    weights.fetch("sd-v1-4", out)
    assert out.read_bytes() == CONTENT and list(out.parent.iterdir()) == [out]
    assert [begin for _, begin, _ in hub.asked] == [None, "bytes=6826-", "bytes=9102-"]


def test_ctrl_c_keeps_what_came(hub, tmp_path, capsys, monkeypatch):
    class Bar(fetch.tqdm):
        def update(self, n: float = 1) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "tqdm", Bar)
    monkeypatch.setattr(fetch, "BLOCK", 1000)
    out = tmp_path / "x.ckpt"
    assert cli.main(["weights", "fetch", "sd-v1-4", "--out", str(out)]) == 130
    assert "interrupted" in capsys.readouterr().err and not out.exists()
    monkeypatch.undo()
    assert (tmp_path / ".x.ckpt.part").read_bytes() == CONTENT[:1000]


def test_a_part_that_was_whole_already(hub, tmp_path):
    (tmp_path / ".x.ckpt.part").write_bytes(CONTENT)
    weights.fetch("sd-v1-4", tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt").read_bytes() == CONTENT
    assert hub.asked == [(PATH, f"bytes={len(CONTENT)}-", None)]


def test_a_server_that_sends_the_file_from_its_start(hub, tmp_path):
    (tmp_path / ".x.ckpt.part").write_bytes(b"something else")
    hub.answer = lambda request: request.send(200, CONTENT)
    weights.fetch("sd-v1-4", tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt").read_bytes() == CONTENT


def test_a_server_that_sends_another_part(hub, tmp_path, capsys):
    (tmp_path / ".x.ckpt.part").write_bytes(CONTENT[:100])
    hub.answer = lambda request: request.send(206, CONTENT[50:], Content_Range=f"bytes 50-{len(CONTENT) - 1}/10240")
    assert "another part than it was asked for" in failed(capsys, "fetch", "sd-v1-4", "--out", tmp_path / "x.ckpt")
    assert (tmp_path / ".x.ckpt.part").read_bytes() == CONTENT[:100]


@pytest.mark.parametrize("held", [b"", b"other bytes"])
def test_a_wrong_hash_is_not_kept(hub, tmp_path, capsys, held):
    if held:
        (tmp_path / ".x.ckpt.part").write_bytes(held)
    else:
        hub.answer = lambda request: request.send(200, b"<html>please log in</html>")
    said = failed(capsys, "fetch", "sd-v1-4", "--out", tmp_path / "x.ckpt")
    assert "what came for model.ckpt has sha256 " in said and "not kept; try again" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "accept the licence at {url}/some/model, then run `hf auth login`"),
        (403, "accept the licence at {url}/some/model, then run `hf auth login`"),
        (404, "answers 404 for {url}" + PATH),
        (503, "answers 503"),
    ],
)
def test_a_server_that_refuses(hub, tmp_path, capsys, status, says):
    hub.answer = lambda request: request.send(status, b"no")
    said = failed(capsys, "fetch", "sd-v1-4", "--out", tmp_path / "x.ckpt")
    assert says.format(url=hub.url) in said
    assert not list(tmp_path.iterdir())


def test_a_token_goes_to_its_host_alone(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "get_token", lambda: "secret")
    (tmp_path / ".x.ckpt.part").write_bytes(CONTENT[:10])
    with Hub(whole) as cdn:
        threading.Thread(target=cdn.serve_forever, args=(0.05,), daemon=True).start()
        ways = {PATH: f"{hub.url}/renamed", "/renamed": f"{cdn.url}/blob"}
        hub.answer = lambda request: request.send(302, Location=ways[request.path])
        weights.fetch("sd-v1-4", tmp_path / "x.ckpt")
        cdn.shutdown()
    assert hub.asked == [(path, "bytes=10-", "Bearer secret") for path in ways]
    assert cdn.asked == [("/blob", "bytes=10-", None)]
    assert (tmp_path / "x.ckpt").read_bytes() == CONTENT


def test_offline(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    argv = ("fetch", "sd-v1-4", "--out", tmp_path / "x.ckpt")
    assert "127.0.0.1:9 cannot be reached" in failed(capsys, *argv)
    monkeypatch.setenv("HF_ENDPOINT", "huggingface")
    assert "HF_ENDPOINT" in failed(capsys, *argv)
    monkeypatch.setattr(fetch.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in failed(capsys, *argv)
    assert not list(tmp_path.iterdir()) and not hub.asked


def test_fetch_where_nothing_can_be_written(hub, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "x.ckpt", tmp_path):
        assert "cannot write" in failed(capsys, "fetch", "sd-v1-4", "--out", out)


# The command.


def test_out_may_not_be_a_folder(hub, tmp_path, capsys, monkeypatch):
    """`--out .` has no name to put a dot before."""
    monkeypatch.chdir(tmp_path)
    for out in (".", "..", "/"):
        assert "it is a folder); name the file: --out" in failed(capsys, "fetch", "sd-v1-4", "--out", out)
    assert not hub.asked


@pytest.mark.parametrize(
    "address", ["http://[::1", "http://host:port", "http://", "http://a b", "ftp://x", "https://x:99999"]
)
def test_an_endpoint_that_is_no_address(tmp_path, capsys, monkeypatch, address):
    monkeypatch.setattr(fetch.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert "HF_ENDPOINT is" in failed(capsys, "fetch", "sd-v1-4", "--out", tmp_path / "x.ckpt")


@pytest.mark.parametrize("address", ["http://[::1", "http://host:port/", "ftp://x/y"])
def test_a_redirect_that_is_no_address(hub, tmp_path, capsys, address):
    hub.answer = lambda request: request.send(302, Location=address)
    said = failed(capsys, "fetch", "sd-v1-4", "--out", tmp_path / "x.ckpt")
    assert "check HF_ENDPOINT, or try later" in said and not list(tmp_path.iterdir())


def test_a_server_that_never_ends_is_left(hub, tmp_path, capsys, monkeypatch):
    """It would have filled the disk."""

    def endless(request: Request) -> None:
        request.send_response(200)
        request.end_headers()
        with suppress(OSError):
            while True:
                request.wfile.write(bytes(10**5))

    monkeypatch.setitem(fetch.SIZES, fetch.SOURCES["sd-v1-4"][2], len(CONTENT))
    for hub.answer in (endless, lambda request: request.send(200, b"", 10**9)):
        said = failed(capsys, "fetch", "sd-v1-4", "--out", tmp_path / "x.ckpt")
        assert f"{len(CONTENT):,}" in said and not (tmp_path / "x.ckpt").exists()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0
    hub.answer = whole
    assert cli.main(["weights", "fetch", "sd-v1-4", "--out", str(tmp_path / "x.ckpt")]) == 0


def test_help_and_mistakes(capsys):
    for argv, part in (
        (["--help"], "verify"),
        (["verify", "--help"], "FILE"),
        (["convert", "--help"], "float32, float16, bfloat16; not given: that of IN"),
        (["fetch", "--help"], "which: sd-v1-4, 4.27 GB"),
    ):
        with pytest.raises(SystemExit) as exit:
            cli.main(["weights", *argv])
        assert exit.value.code == 0 and part in " ".join(capsys.readouterr().out.split())
    assert "VERB" in failed(capsys)
    assert "'sd-v2'" in failed(capsys, "fetch", "sd-v2")


def test_known_files_are_told_by_whole_hashes():
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in weights.KNOWN)
    assert all(digest in weights.KNOWN for _, _, digest in fetch.SOURCES.values())
