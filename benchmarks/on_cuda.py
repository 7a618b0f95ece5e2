"""Everything that only a CUDA GPU can show, in one command without a network: `make cuda`.

    python benchmarks/on_cuda.py [--out out/cuda] [--parts tests bench ...] [--again] [--tiny]

Parts that only check run side by side, in two waves so that the CPU keeps up with what they compile, then those that
measure run one by one with the GPU to themselves. A part that
fails, or takes too long, is reported and the rest goes on; a part that is done is not done again unless --again says
so. In the folder: report.txt (a line a part), log.txt (all they printed), parts.json, the tables and the pictures.
--tiny rehearses it on any machine, kernels interpreted, sizes tiny; its figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
GPU = torch.cuda.is_available()
GRACE = 8  # seconds for a part that is told to stop
DTYPES = ("float32", "float16", "bfloat16")
TINY_TESTS = "without_a_rule or returned or other_numbers or users_own_attention_function_is"
SANITIZERS = ("memcheck", "racecheck", "synccheck")


@dataclass(frozen=True, eq=False)
class Part:
    name: str
    command: list[str]
    seconds: int  # at most
    table: Path | None = None  # of its own, added to check.csv when it ends: several processes would lose rows there
    alone: bool = False  # it measures time
    needs: str = ""  # why it cannot run here
    wave: int = 0  # of those that run side by side


def parts(out: Path, tiny: bool) -> list[Part]:
    py, own = sys.executable, [sys.executable, str(Path(__file__)), "--out", str(out)] + ["--tiny"] * tiny
    lab = [py, "-m", "minedit", "kernels"]
    size = ["--quick", "--rules", "plain,dps"] if tiny else []
    spread = ["-n", "3"] if find_spec("xdist") and not tiny else []  # each compiles its own variants of the kernel
    found = [Part("smallest", [*own, "--do", "smallest"], 90)]
    # a file each: a fault of the GPU ends a process, and no test after it in that process tells anything
    for name in ("kernels", "fused", "graphs", "flash", "record"):
        command = [py, "-m", "pytest", "-q", "-p", "no:cacheprovider", *spread, f"tests/test_{name}.py"]
        found.append(Part(f"tests-{name}", [*command, "-k", TINY_TESTS] if tiny else command, 150))
    for dtype in DTYPES[:1] if tiny else DTYPES:
        table = out / f"check-{dtype}.csv"
        command = [*lab, "check", "--dtype", dtype, *size, "--csv", str(table)]
        found.append(Part(f"check-{dtype}", command, 150, table, wave=1))
    tool = sanitizer()
    for kind in SANITIZERS:
        # of every kernel: a filter by name that no longer fits would find nothing
        command = [tool or "compute-sanitizer", "--tool", kind, "--error-exitcode", "9"]
        absent = "" if tool and GPU else "needs a CUDA GPU and compute-sanitizer"
        found.append(Part(f"sanitizer-{kind}", [*command, *own, "--do", "smallest"], 120, needs=absent, wave=1))
    found.append(Part("edits", [*own, "--do", "edits"], 150, wave=1))
    found.append(Part("graphs", [*own, "--do", "graphs"], 90))
    half = ["--repeats", "5"] + (size or ["--shapes", "real", "--dtype", "float16"])
    found.append(Part("bench", [*lab, "bench", *half, "--csv", str(out / "kernels.csv")], 90, alone=True))
    gpu = [py, str(ROOT / "benchmarks" / "gpu.py"), "--csv", str(out / "gpu.csv"), "--repeats", "1" if tiny else "3"]
    gpu += ["--dtype", "float32", "--tiny"] if tiny else []
    for part, seconds in (("attention", 40), ("steps", 100), ("pictures", 90), ("profile", 40)):
        found.append(Part(f"gpu-{part}", [*gpu, "--parts", part], seconds, alone=True))
    tiles = [
        py,
        str(ROOT / "benchmarks" / "tiles.py"),
        "--out",
        str(out),
        *(["--tiny"] if tiny else ["--seconds", "40"]),
    ]
    found.append(Part("tiles", tiles, 60, alone=True))
    return found


def sanitizer() -> str | None:
    beside = sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer")) + [None]
    return shutil.which("compute-sanitizer") or beside[0] and str(beside[0])


# --- running them ----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/cuda"))
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="names, or their beginnings; else all")
    parser.add_argument("--again", action="store_true", help="what is done already as well")
    parser.add_argument("--tiny", action="store_true", help="rehearse it anywhere")
    parser.add_argument("--do", choices=[*DO], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.do:
        DO[args.do](args)
        return
    if not GPU and not args.tiny:
        print("skipped: torch finds no CUDA GPU here, and these checks are of one")
        return
    asked = [p for p in parts(args.out.resolve(), args.tiny) if chosen(p.name, args.parts)]
    print(about(), flush=True)
    state = Ledger(args.out, args.again)
    todo = [part for part in asked if not state.done(part)]
    for wave in (0, 1):
        together([part for part in todo if not part.alone and part.wave == wave], state)
    for part in (part for part in todo if part.alone):
        together([part], state)
    print(state.report(), flush=True)
    sys.exit(any(state.entries[part.name]["status"] not in ("done", "skipped") for part in asked))


def chosen(name: str, asked: list[str] | None) -> bool:
    return not asked or any(name.startswith(beginning) for beginning in asked)


def about() -> str:
    name = torch.cuda.get_device_name() if GPU else "no GPU: kernels are interpreted"
    return f"{name}, torch {torch.__version__}, python {sys.version.split()[0]}, {os.cpu_count()} CPU cores"


class Ledger:
    """What is done, in parts.json, and all that was printed, in log.txt."""

    def __init__(self, out: Path, again: bool) -> None:
        self.out, self.file, self.log = out, out / "parts.json", out / "log.txt"
        known = self.file.exists() and not again
        self.entries: dict[str, dict] = json.loads(self.file.read_text()) if known else {}

    def done(self, part: Part) -> bool:
        return self.entries.get(part.name, {}).get("status") == "done"

    def add(self, part: Part, status: str, seconds: float, printed: str) -> None:
        lines = [line for line in printed.splitlines() if line.strip()]
        last = lines[-1].strip()[:160] if lines else ""
        self.entries[part.name] = {"status": status, "seconds": round(seconds, 1), "last": last}
        with self.log.open("a") as log:
            log.write(f"\n===== {part.name}: {status}, {seconds:.1f} s =====\n$ {' '.join(part.command)}\n{printed}\n")
        self.file.write_text(json.dumps(self.entries, indent=1))
        (self.out / "report.txt").write_text(self.report() + "\n")
        print(f"{part.name:20} {status:8} {seconds:6.1f} s  {last}", flush=True)

    def report(self) -> str:
        rows = [f"{name:20} {e['status']:8} {e['seconds']:6.1f} s  {e['last']}" for name, e in self.entries.items()]
        return "\n".join([about(), *rows])


def together(some: list[Part], state: Ledger) -> None:
    """Run the parts side by side and write each into the ledger when it ends."""
    began, running = time.monotonic(), {}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if GPU:
        environment["CUDA_LAUNCH_BLOCKING"] = "0" if any(part.alone for part in some) else "1"  # a fault names its call
    else:
        environment["TRITON_INTERPRET"] = "1"
    for part in some:
        if part.needs:
            state.add(part, "skipped", 0, part.needs)
            continue
        file = (state.out / f".{part.name}").open("w+")
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        running[part] = process, file
    while running:
        time.sleep(0.2)
        for part, (process, file) in list(running.items()):
            took = time.monotonic() - began
            late = process.poll() is None and took > part.seconds
            if late:
                stop(process)
            if process.poll() is None:
                continue
            file.seek(0)
            status = "too long" if late else "done" if process.returncode == 0 else f"failed {process.returncode}"
            state.add(part, status, took, file.read())
            file.close()
            Path(file.name).unlink()
            if part.table and part.table.exists():
                merge(part.table, state.out / "check.csv")
            del running[part]


def merge(table: Path, into: Path) -> None:
    header, *rows = table.read_text().splitlines(keepends=True)
    with into.open("a") as file:
        file.writelines(rows if file.tell() else [header, *rows])
    table.unlink()


def stop(process: subprocess.Popen) -> None:
    """As Ctrl-C does, so that what was measured is kept; then the hard way."""
    for what in (signal.SIGINT, signal.SIGKILL):
        os.killpg(process.pid, what)
        try:
            process.wait(GRACE)
            return
        except subprocess.TimeoutExpired:
            continue


# --- parts of its own ------------------------------------------------------------------------------------------------


def smallest(args: argparse.Namespace) -> None:
    """The kernel on the smallest shapes with every rule: for compute-sanitizer, beneath which it is slow."""
    from minedit.attention.choose import backend
    from minedit.attention.eager import eager
    from minedit.lab.cases import RULES, cases, small_shapes

    device, worst = "cuda" if GPU else "cpu", 0.0
    attend = backend("triton", device)
    for shape in [s for s in small_shapes() if s.kind == "cross" and s.N <= 65 and not s.note][: 1 if args.tiny else 4]:
        for case in cases(shape, ["plain", "dps"] if args.tiny else RULES, torch.float16, device):
            found = attend(case.q, case.k, case.v, case.rule, columns=True)
            plain = eager(case.q, case.k, case.v, case.rule, columns=True)
            worst = max(worst, *((a.float() - b.float()).abs().max().item() for a, b in zip(found, plain, strict=True)))
    print(f"largest difference from eager in float16: {worst:.2g}")
    if not worst < 0.05:
        raise SystemExit("that is no rounding")


def graphs(args: argparse.Namespace) -> None:
    """Edits by a model made for speed against the plain one, at full size with random weights."""
    import gpu

    import minedit

    size = argparse.Namespace(tiny=args.tiny, dtype="float16")
    for method, settings in (*gpu.METHODS, ("fixed-seed", {})):
        latents = []
        for laid_out in (False, True):
            sd = gpu.model(size, laid_out)
            res = minedit.edit(sd, *gpu.PAIR, method, steps=2 if args.tiny else 6, guidance=2.0, **settings)
            latents.append(res.edited_latent)
            recorded = len(getattr(sd.unet.forward, "recordings", ()))
        plain, quick = latents
        error = ((plain - quick).abs().max() / plain.abs().max()).item()
        name = f"{method}{' one-pass' * bool(settings)}"
        print(f"{name}: {recorded} recordings, max |fast - plain| / max |plain| {error:.2g}", flush=True)
        if not error < 0.1:
            raise SystemExit(f"{name}: that is no rounding")


EDITS = (
    ("a boy in the park", "a sitting boy in the park", "adapedit", {}, 9),
    ("a boy in the park", "a sitting boy in the park", "p2p", {}, 9),
    ("a boy in the park", "a sitting boy in the park", "fixed-seed", {}, 9),
    ("a dog on the beach", "a cat on the beach", "p2p", {}, 1),
    ("a dog on the beach", "a running dog on the beach", "adapedit", {}, 2),
    ("a dog on the beach", "a running dog on the beach", "adapedit", {"fwt": "one-pass"}, 2),
    ("a red apple on the table", "a green apple on the table", "adapedit", {}, 3),
    ("an apple on the table", "three apples on the table", "adapedit", {}, 4),
    ("a bird in the forest", "a flying bird in the forest", "adapedit", {}, 5),
    ("a girl in the snow", "a girl on the beach", "p2p", {"reweight": {"girl": 1.5}}, 6),
    ("a boy in the park", "a sitting boy in the park", "masactrl", {"foreground": "boy"}, 7),
    ("a dog on the beach", "a cat on the beach", "plug-and-play", {}, 1),
    ("a dog on the beach", "a running dog on the beach", "adapedit+", {}, 2),
    ("a red apple on the table", "a green apple on the table", "h-edit", {}, 3),
)


def edits(args: argparse.Namespace) -> None:
    """Ten edits by the embedded model on the GPU beside the CPU's: float32 and float16, pictures to edits.png."""
    import numpy as np
    from PIL import Image

    import minedit

    torch.set_num_threads(min(2, torch.get_num_threads()))  # more would wait for each other beside the other parts
    device, some, steps = "cuda" if GPU else "cpu", EDITS[:2] if args.tiny else EDITS, 2 if args.tiny else 20
    half = minedit.load(device=device, dtype="float16" if GPU else "float32")
    ways = {"float32": minedit.load(device=device), "float16": half}
    ways["fast"] = minedit.load(device=device, fast=True)
    cpu, rows, worst = minedit.load(), [], 0.0
    for source, target, method, settings, seed in some:
        run = lambda sd: minedit.edit(sd, source, target, method, seed=seed, steps=steps, **settings)  # noqa: B023, E731
        made, told = [run(cpu)], []
        for name, sd in ways.items():
            res = run(sd)
            pairs = ((res.source, made[0].source), (res.edited, made[0].edited))
            off = [np.abs(np.asarray(a, float) - np.asarray(b, float)) for a, b in pairs]
            mean, most = max(x.mean() for x in off), max(x.max() for x in off)
            told.append(f"{name} {mean:.3f} ({most:.0f})")
            worst = max(worst, mean if name != "float16" else 0)
            made.append(res)
        print(f"{method} {settings or ''} {target!r}: mean (largest) difference of 255: {', '.join(told)}", flush=True)
        rows.append(np.hstack([np.asarray(x) for res in made for x in (res.source, res.edited)]))
    Image.fromarray(np.vstack(rows)).save(args.out / "edits.png")
    print(f"largest mean difference from the CPU's pictures in float32: {worst:.3f} of 255")
    # a mean: τ decides in whole steps, so that rounding can move an edit by a step, and single pixels by much
    if worst > 1:
        raise SystemExit("that is no rounding")


DO: dict[str, Callable[[argparse.Namespace], None]] = {"smallest": smallest, "graphs": graphs, "edits": edits}


if __name__ == "__main__":
    main()
