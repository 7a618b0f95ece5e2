"""The command line: one verb per job. In: arguments. Out: pictures and JSON in a folder; on the terminal, what it did.

Exit status: 0 done, 1 a kernel that `minedit kernels` finds wrong, 2 a mistake that one line on stderr explains, 130
interrupted. A file appears whole or not at all, and every picture carries the settings that make it again (`--from`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from minedit import __version__, arguments, checkpoint, image, lora
from minedit.attention import resolve
from minedit.checkpoint import Model
from minedit.config import SD14, MineditError
from minedit.edit import OnStep, edit, generate, method_settings
from minedit.sample import Step
from minedit.taesd import load_taesd, save_preview

PAIR = '{"source": "a boy", "target": "a sitting boy"}'
PREVIEW_EVERY = 5  # steps


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. argv: without the program's name; None for this process's own."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without τ shows a question mark
    try:
        if argv[:1] and argv[0] in arguments.ELSEWHERE:
            return importlib.import_module(f"minedit.{arguments.ELSEWHERE[argv[0]][0]}").main(argv[1:]) or 0
        args = arguments.parse(argv)
        (_generate if args.verb == "generate" else _edit)(args)
    except MineditError as error:
        return _failed(" ".join(str(error).splitlines()))
    except torch.OutOfMemoryError:
        return _failed("the device ran out of memory; try --dtype float16 or another --device")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU's allocator has no exception of its own
            raise
        return _failed("memory ran out; try a smaller --height and --width, or fewer prompts at once")
    except KeyboardInterrupt:
        print("\nminedit: interrupted", file=sys.stderr)
        return 130
    return 0


def _failed(line: str) -> int:
    print(f"minedit: error: {line}", file=sys.stderr)
    return 2


def _generate(args: argparse.Namespace) -> None:
    if not args.prompts:
        raise MineditError("no prompt; expected what the picture shows: minedit generate 'a boy in the park'")
    pairs = [(prompt, seed) for prompt in args.prompts for seed in dict.fromkeys(args.seed)]
    with _folder(args.out):
        sd = _load(args)
        preview = _preview(args, sd)
        _check_prompts(sd, {prompt: "" for prompt in args.prompts})
        for number, (prompt, seed) in enumerate(pairs, 1):
            began = time.perf_counter()
            run = _run(args, seed)
            print(f"\n{prompt!r}\n  seed {seed}, {args.steps} steps, guidance {args.guidance}")
            with _progress() as progress:
                out = generate(sd, prompt, progress=progress, on_step=preview, **run)
            settings = {"verb": "generate", "prompts": [prompt], **run, **_model_settings(args, sd)}
            name = f"{number:02d}-seed{seed}-" if len(pairs) > 1 else ""
            seconds = time.perf_counter() - began
            _write(args.out, name, {"image": out.images[0]}, settings, {"notes": list(out.notes)}, seconds)


def _edit(args: argparse.Namespace) -> None:
    overrides = {name: getattr(args, name) for name in arguments.SETTING_NAMES if hasattr(args, name)}
    method_settings(args.method, None, overrides)
    pairs = _pairs(args)
    runs = [(pair, seed) for pair in pairs for seed in dict.fromkeys(args.seed)]
    with _folder(args.out):
        sd = _load(args)
        preview = _preview(args, sd)
        _check_prompts(sd, {text: pair.where for pair in pairs for text in (pair.source, pair.target)})
        for pair, seed in runs:
            run = _run(args, seed)
            print(f"\n{pair.source!r} -> {pair.target!r}")
            print(f"  {args.method}, seed {seed}, {args.steps} steps, guidance {args.guidance}")
            with _progress() as progress:
                calls = {"progress": progress, "on_step": preview}
                res = edit(sd, pair.source, pair.target, args.method, **calls, **run, **overrides)
            width = max(len(word.text) for word in res.words)
            print(f"  {'word':{width}}  kind      τ, fraction of the steps")
            for word in res.words:
                print(f"  {word.text:{width}}  {word.kind:8}  {word.tau:.2f}")
            pictures = {"source": res.source, "edited": res.edited}
            pictures["grid"] = image.grid([res.source, res.edited], [pair.source, pair.target])
            settings = {"verb": "edit", **res.settings, **_model_settings(args, sd)}
            found = {"words": [asdict(word) for word in res.words], "notes": list(res.notes), **pair.more}
            name = (f"{pair.number:02d}-" if len(pairs) > 1 else "") + f"seed{seed}-" if len(runs) > 1 else ""
            _write(args.out, name, pictures, settings, found, res.seconds)


def _run(args: argparse.Namespace, seed: int) -> dict:
    """Arguments of generate and edit."""
    return {"seed": seed} | {name: getattr(args, name) for name in ("steps", "guidance", "eta", "height", "width")}


# --- what goes in ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    number: int
    source: str
    target: str
    where: str  # "pairs.jsonl line 3: ", for messages
    more: dict  # what else the line says, for the JSON


def _pairs(args: argparse.Namespace) -> list[_Pair]:
    """The prompt pairs, from the command line or a file of JSON lines."""
    if args.pairs is None:
        if args.source is None or args.target is None:
            raise MineditError("a prompt is missing; expected SOURCE and TARGET, or --pairs FILE")
        return [_Pair(1, args.source, args.target, "", {})]
    if args.source is not None and args.again is None:
        raise MineditError("prompts and --pairs; expected one or the other")
    try:
        lines = args.pairs.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise MineditError(f"cannot read {args.pairs} ({reason}); expected lines such as {PAIR}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        where = f"{args.pairs} line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise MineditError(f"{where} is not JSON ({error.msg}); expected {PAIR}") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("source", "target")):
            raise MineditError(f"{where} lacks a text for source or target; expected {PAIR}")
        more = {"pair": row} if set(row) - {"source", "target"} else {}
        pairs.append(_Pair(len(pairs) + 1, row["source"], row["target"], f"{where}: ", more))
    if not pairs:
        raise MineditError(f"{args.pairs} is empty; expected lines such as {PAIR}")
    return pairs


def _check_prompts(sd: Model, prompts: dict[str, str]) -> None:
    """Every prompt, before the first is drawn; its value says where it stands."""
    for text, where in prompts.items():
        try:
            words = sd.tokenizer.encode(text).words
        except MineditError as error:
            raise MineditError(f"{where}{error}") from error
        if not words:
            raise MineditError(f"{where}prompt {text!r} has no words; write what the picture shows")


def _load(args: argparse.Namespace) -> Model:
    began = time.perf_counter()
    sd = checkpoint.load(args.model, args.device, args.dtype, args.attention, args.lora, args.fast)
    chosen = f" ({resolve(sd.attention, sd.device)})" if sd.attention == "auto" else ""
    where = "embedded" if args.model is None else args.model
    print(f"model {sd.config.name} ({where}), loaded in {time.perf_counter() - began:.1f} s")
    print(f"  device {sd.device}, dtype {args.dtype}, attention {sd.attention}{chosen}{', made for speed' * sd.fast}")
    for file, scale in sd.lora:
        print(f"  with the LoRA {file}, scale {scale:g}")
    return sd


def _preview(args: argparse.Namespace, sd: Model) -> OnStep | None:
    """What writes preview.png every few steps, if --preview asks for it."""
    if args.preview is None:
        return None
    if sd.config.vae != SD14.vae:
        raise MineditError(
            f"--preview is for Stable Diffusion v1, and {sd.config.name} has latents of its own; omit it"
        )
    tiny = load_taesd(args.preview, sd.device)

    def show(step: Step) -> None:
        if (step.index + 1) % PREVIEW_EVERY == 0:
            save_preview(tiny, step.x0, args.out / "preview.png")

    return show


# --- what comes out --------------------------------------------------------------------------------------------------


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """A folder that takes files, made if need be; unmade if what follows fails before it writes any."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise MineditError(f"cannot write to {path} ({error.strerror or error}); choose another --out") from error
    try:
        yield
    except BaseException:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr: a function of the steps done and the steps in all."""
    with tqdm(unit="step", leave=False, ncols=80, mininterval=0.5) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _model_settings(args: argparse.Namespace, sd: Model) -> dict:
    """Which model made a picture, in the words of the command line."""
    model = {
        "model": args.model,
        "device": args.device,
        "dtype": args.dtype,
        "attention": args.attention,
        "fast": args.fast,
    }
    return {**model, **lora.settings(sd), "model_name": sd.config.name, "minedit": __version__}


def _write(folder: Path, name: str, pictures: dict, settings: dict, found: dict, seconds: float) -> None:
    """Pictures and a JSON of one run, their names beginning with `name`; says what was noted and written."""
    for note in found["notes"]:
        print(f"  note: {note}")
    files = {kind: folder / f"{name}{kind}.png" for kind in pictures}
    for kind, path in files.items():
        image.save(path, pictures[kind], settings)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    record = {**settings, **found, "seconds": round(seconds, 2), "versions": versions}
    record["files"] = {kind: path.name for kind, path in files.items()}
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    path = folder / f"{name}{settings['verb']}.json"
    image.write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(f"  {seconds:.1f} s; wrote {', '.join(map(str, [*files.values(), path]))}")
