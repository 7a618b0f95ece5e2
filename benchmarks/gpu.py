"""What minedit does on a CUDA GPU at the size of SD-v1.4, with random weights. Without one it says so and stops.

    python benchmarks/gpu.py [--dtype float16] [--repeats 5] [--csv FILE] [--parts attention steps pictures profile]

attention: the fused kernel of an edit beside one plain call of torch's and beside `eager`. steps: one step of the UNet,
as it is, recorded, with each kind of fused layers, compiled; decoding. pictures: pictures and edits of 512 x 512, 50
steps. profile: the ten costliest kernels of a plain step, of decoding and of an edit, and the share of launches. Times
are CUDA events' medians after a warm-up; goals are for one H100 or H200.
--tiny rehearses all of it anywhere with the embedded model and tells nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from table import append
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity

import minedit
from minedit.attention.choose import backend
from minedit.attention.eager import eager
from minedit.attention.rules import Attn
from minedit.config import SD14
from minedit.files.checkpoint import DTYPES, tokenizer
from minedit.lab.cases import cases, real_shapes, small_shapes
from minedit.lab.clock import CALLS, elapsed, peak, replayed
from minedit.sampling.loop import context
from minedit.speed.fast import fast, fusing, lay_out
from minedit.speed.graphs import Recorded
from minedit.stack.model import Model
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

PAIR = ("a boy in the park", "a sitting boy in the park")
RULE = "dps"  # pins and a gate: the most that an edit asks of a layer
PARTS = ("attention", "steps", "pictures", "profile")
FUSED = ("norm", "geglu", "tokens", "text")  # the parts of speed/layers.py
METHODS = (("p2p", {}), ("adapedit", {}), ("adapedit", {"fwt": "one-pass"}))
PARTLY = (  # what an edit's time is made of: four rows and no edit; words pinned; pixels gated all along
    ("four rows", ("fixed-seed", {})),
    ("pins alone", ("adapedit", {"tau": 0.8, "dps": False})),
    ("gates", ("adapedit", {"tau": 0.0, "fwt_steps": 1})),
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HERE = torch.device(DEVICE)
Rows = Iterator[dict]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=[*DTYPES], default="float16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--compile", action="store_true", help="steps: torch.compile as well, which takes minutes")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if DEVICE == "cpu" and not args.tiny:
        print("skipped: torch finds no CUDA GPU here, and these figures are of one")
        return
    told = {"date": date.today().isoformat(), "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"}
    told |= {"dtype": args.dtype, "torch": torch.__version__, "triton": _version("triton")}
    told |= {"minedit": minedit.__version__}
    print(", ".join(f"{key} {value}" for key, value in told.items()), flush=True)
    for part in args.parts:
        rows = []
        try:
            with torch.inference_mode():
                for found in globals()[part](args):
                    rows.append(told | found)
                    print(f"  {found['what']:72}{found['value']:>10} {found['unit']:5}{found['goal']}", flush=True)
        finally:
            if rows:
                append(args.csv, rows)


def attention(args: argparse.Namespace) -> Rows:
    """The fused kernel on every cross-attention shape of 512 x 512."""
    shapes = small_shapes()[:1] if args.tiny else [shape for shape in real_shapes()[:4] if shape.kind == "cross"]
    fused = backend("triton", DEVICE)
    for shape in shapes:
        (case,) = cases(shape, [RULE], DTYPES[args.dtype], DEVICE)
        took = {"plain": milliseconds(lambda: F.scaled_dot_product_attention(case.q, case.k, case.v), args)}  # noqa: B023
        for name, attend in (("fused", fused), ("sdpa", backend("sdpa")), ("eager", eager)):
            work = lambda: attend(case.q, case.k, case.v, case.rule)  # noqa: B023, E731
            took[name] = milliseconds(work, args)
            if DEVICE == "cuda":  # what a recorded step pays: no Python, no launches
                took[f"{name}, replayed"] = milliseconds(replayed(work, HERE), args) / CALLS
        if DEVICE == "cuda":
            plain = lambda: F.scaled_dot_product_attention(case.q, case.k, case.v)  # noqa: B023, E731
            took["plain, replayed"] = milliseconds(replayed(plain, HERE), args) / CALLS
        for name, ms in took.items():
            yield row(f"attention {name}, {shape}", ms * 1e3, "us")
        for how in ("", ", replayed"):
            if "fused" + how in took:
                ratio = lambda a, b: took[a + how] / took[b + how]  # noqa: B023, E731
                yield row(f"fused edit / plain call{how}, {shape}", ratio("fused", "plain"), "x", "<= 1.25")
                yield row(f"eager edit / fused edit{how}, {shape}", ratio("eager", "fused"), "x", ">= 3")
                yield row(f"sdpa edit / fused edit{how}, {shape}", ratio("sdpa", "fused"), "x")


def steps(args: argparse.Namespace) -> Rows:
    """One step of a picture with guidance: two rows of the UNet, in each way to run it."""
    dtype = DTYPES[args.dtype]
    for name, kind, tuned in (
        ("as it is", None, False),
        ("cudnn.benchmark", None, True),
        ("recorded", Recorded, False),
        ("recorded, cudnn.benchmark", Recorded, True),
        ("channels-last", "last", True),
        ("channels-last, recorded, cudnn.benchmark", (), True),
        *((f"the same, fused {part}", (part,), True) for part in FUSED),
        ("the same, fused all (--fast)", "fast", True),
        ("the same, fused all, attention cuDNN's before others", "cudnn", True),
        ("compiled", "compile", True),
        ("channels-last, compiled, recorded", "compile-last", True),
    ):
        if "compile" in str(kind) and not args.compile:
            continue
        first_choice = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        choice = sdpa_kernel(first_choice, set_priority=True) if kind == "cudnn" and DEVICE == "cuda" else nullcontext()
        with cudnn_benchmark(tuned), choice:
            sd = model(args, kind in ("fast", "cudnn"))
            unet, inputs = sd.unet, step_inputs(sd, 2, dtype)
            if kind in ("last", "compile-last"):
                unet.to(memory_format=torch.channels_last)
            if isinstance(kind, tuple):
                lay_out(unet)
                if kind and (fuse := fusing(sd.device)):
                    fuse(unet, kind)
            forward = unet.forward
            if "compile" in str(kind):
                forward = torch.compile(forward, dynamic=False)
            if (kind in (Recorded, "compile-last") or isinstance(kind, tuple)) and DEVICE == "cuda":
                forward = Recorded(forward)
            began = time.perf_counter()
            forward(*inputs)
            first = time.perf_counter() - began
            ms = milliseconds(lambda: forward(*inputs), args)  # noqa: B023
            held = peak(lambda: forward(*inputs), HERE) / 2**20  # noqa: B023
        yield row(f"step of 2 rows, {name}", ms, "ms")
        yield row(f"steps a second of 2 rows, {name}", 1e3 / ms, "it/s", ">= 150" * (kind == "fast"))
        yield row(f"peak memory of a step of 2 rows, {name}", held, "MB")
        yield row(f"first call, {name}", first, "s")
    for what in ("", " --fast"):
        sd = model(args, bool(what))
        for count in (1, 2):
            side = sd.config.latent_size
            z = torch.randn(count, sd.config.vae.z_channels, side, side, device=DEVICE).to(sd.dtype)
            yield row(f"decoding {count}{what}", milliseconds(lambda: sd.vae.decode(z), args), "ms")  # noqa: B023


def pictures(args: argparse.Namespace) -> Rows:
    """Whole pictures and edits, decoding included."""
    count = 2 if args.tiny else 50
    for laid_out in (False, True):
        sd, what = model(args, laid_out), " --fast" * laid_out
        one = milliseconds(lambda: minedit.generate(sd, PAIR[0], steps=count), args)  # noqa: B023
        yield row(f"steps of a picture a second, decoding included{what}", count / one * 1e3, "it/s", ">= 105")
        for method, settings in METHODS:
            work = lambda: minedit.edit(sd, *PAIR, method, steps=count, **settings)  # noqa: B023, E731
            name = f"edit by {method}{' one-pass' * bool(settings)}{what}"
            yield row(name, milliseconds(work, args) / 1e3, "s", "<= 0.6")
        for name, (method, settings) in PARTLY if laid_out else ():
            work = lambda: minedit.edit(sd, *PAIR, method, steps=count, **settings)  # noqa: B023, E731
            yield row(f"edit, {name}{what}", milliseconds(work, args) / 1e3, "s")
        encode = lambda: context(sd, PAIR)  # noqa: B023, E731
        yield row(f"encoding of three prompts{what}", milliseconds(encode, args), "ms")
        attn = lambda: sd.unet(*step_inputs(sd, 4, sd.dtype), Attn(sd.attend))  # noqa: B023, E731
        yield row(f"step of 4 rows, no edit{what}", milliseconds(attn, args), "ms")


def profile(args: argparse.Namespace) -> Rows:
    """Where the time of a plain step of 2 rows goes, of decoding, and that of an edit."""
    sd = model(args, DEVICE == "cuda")
    inputs, side = step_inputs(sd, 2, sd.dtype), sd.config.latent_size
    z = torch.randn(1, sd.config.vae.z_channels, side, side, device=DEVICE).to(sd.dtype)
    edit = lambda: minedit.edit(sd, *PAIR, "adapedit", steps=3, fwt_steps=2)  # noqa: E731
    yield from profiled("step of 2 rows", lambda: sd.unet(*inputs))
    yield from profiled("decoding of one picture", lambda: sd.vae.decode(z))
    yield from profiled("edit of 3 + 2 steps", edit)


def profiled(what: str, work: Callable[[], object]) -> Rows:
    """The table of its ten costliest kernels, printed; and rows of them."""
    work()
    activity = ProfilerActivity.CUDA if DEVICE == "cuda" else ProfilerActivity.CPU
    began = time.perf_counter()
    with torch.profiler.profile(activities=[activity]) as found:
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    wall = (time.perf_counter() - began) * 1e3
    sort = "self_cuda_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    table = found.key_averages()
    print(what, table.table(sort_by=sort, row_limit=10, max_name_column_width=90), sep="\n", flush=True)
    if DEVICE == "cuda":
        busy = sum(event.self_device_time_total for event in table) / 1e3
        count = sum(event.count for event in table if event.self_device_time_total > 0)
        yield row(f"kernels launched in a profiled {what}", count, "")
        yield row(f"time in kernels of a profiled {what}", busy, "ms")
        yield row(f"wall time of a profiled {what}", wall, "ms")
        for event in sorted(table, key=lambda event: -event.self_device_time_total)[:10]:
            share = event.self_device_time_total / 1e3 / busy
            kernel = event.key[:60].replace(",", ";")
            yield row(f"share of kernel time of a profiled {what}: {kernel} ({event.count}x)", share, "x")


def model(args: argparse.Namespace, laid_out: bool) -> Model:
    """SD-v1.4 with random weights, none of them zero; the embedded model for a rehearsal."""
    if args.tiny:
        return minedit.load(device=DEVICE, fast=laid_out)
    dtype = DTYPES[args.dtype]
    torch.manual_seed(0)
    with torch.device(DEVICE), torch.inference_mode(False):
        modules = [kind(cfg) for kind, cfg in ((UNet, SD14.unet), (VAE, SD14.vae), (TextEncoder, SD14.text))]
        for p in (p for module in modules for p in module.parameters() if p.ndim > 1 and not p.any()):
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    # .to: transformers makes a buffer of positions on the CPU even inside torch.device
    modules = [module.to(DEVICE, dtype).eval().requires_grad_(False) for module in modules]
    built = Model(*modules, tokenizer(SD14), SD14, backend("auto", DEVICE), "auto", torch.device(DEVICE), dtype)
    return fast(built) if laid_out else built


def step_inputs(sd: Model, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    side, text = sd.config.latent_size, sd.config.text
    with torch.device(DEVICE):
        x = torch.randn(rows, 4, side, side).to(sd.dtype)
        return x, torch.full((rows,), 501), torch.randn(rows, text.context_length, text.width).to(sd.dtype)


@contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def milliseconds(work: Callable[[], object], args: argparse.Namespace) -> float:
    """Median time of `work()`; short works are repeated within a measurement."""
    work()
    calls = 1 if args.tiny or elapsed(work, 1, HERE) > 0.02 else 50
    return statistics.median(elapsed(work, calls, HERE) for _ in range(args.repeats)) * 1e3 / calls


def row(what: str, value: float, unit: str, goal: str = "") -> dict:
    return {"what": what, "value": f"{value:.4g}", "unit": unit, "goal": goal}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
