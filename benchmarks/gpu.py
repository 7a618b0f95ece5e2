"""What minedit does on a CUDA GPU at the size of SD-v1.4, with random weights. Without one it says so and stops.

    python benchmarks/gpu.py [--dtype float16] [--repeats 5]

Pictures and edits of 512 x 512, 50 steps; the fused attention of an edit beside one plain call of torch's and beside
`eager`; the ten costliest kernels of an edited step. Times are CUDA events' medians after a warm-up. Rows go to
benchmarks/gpu.csv; goals are for one H200.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from table import append

import minedit
from minedit.attention.choose import backend
from minedit.attention.eager import eager
from minedit.config import SD14
from minedit.files.checkpoint import DTYPES, tokenizer
from minedit.lab.cases import cases, real_shapes
from minedit.speed.fast import fast
from minedit.stack.model import Model
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

TABLE = Path(__file__).with_suffix(".csv")
PAIR = ("a boy in the park", "a sitting boy in the park")
STEPS = 50
RULE = "dps"  # pins and a gate: the most that an edit asks of a layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=[*DTYPES], default="float16")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: torch finds no CUDA GPU here, and these figures are of one")
        return
    told = {"date": date.today().isoformat(), "device": torch.cuda.get_device_name(), "dtype": args.dtype}
    told |= {"torch": torch.__version__, "triton": _version("triton"), "minedit": minedit.__version__}
    print(", ".join(f"{key} {value}" for key, value in told.items()))
    with torch.inference_mode():
        rows = [*attention(DTYPES[args.dtype], args.repeats), *pictures(DTYPES[args.dtype], args.repeats)]
    append(TABLE, [told | row for row in rows])


def attention(dtype: torch.dtype, repeats: int) -> list[dict]:
    """The fused kernel, on every cross-attention shape of 512 x 512."""
    fused, rows = backend("triton", "cuda"), []
    for shape in (shape for shape in real_shapes()[:4] if shape.kind == "cross"):
        (case,) = cases(shape, [RULE], dtype, "cuda")
        plain = milliseconds(lambda: F.scaled_dot_product_attention(case.q, case.k, case.v), repeats)  # noqa: B023
        took = {
            name: milliseconds(lambda: attend(case.q, case.k, case.v, case.rule), repeats)  # noqa: B023
            for name, attend in (("fused", fused), ("sdpa", backend("sdpa")), ("eager", eager))
        }
        rows.append(row(f"fused edit / plain call, {shape}", took["fused"] / plain, "x", "<= 1.25"))
        rows.append(row(f"eager edit / fused edit, {shape}", took["eager"] / took["fused"], "x", ">= 3"))
        rows.append(row(f"sdpa edit / fused edit, {shape}", took["sdpa"] / took["fused"], "x", ""))
    return rows


def pictures(dtype: torch.dtype, repeats: int) -> list[dict]:
    rows = []
    for laid_out in (False, True):
        sd, what = model(dtype, laid_out), " --fast" * laid_out
        one = milliseconds(lambda: minedit.generate(sd, PAIR[0], steps=STEPS), repeats)  # noqa: B023
        rows.append(
            row(f"steps of a picture a second, guidance, decoding included{what}", STEPS / one * 1e3, "it/s", ">= 105")
        )
        for method, settings in (("p2p", {}), ("adapedit", {}), ("adapedit", {"fwt": "one-pass"})):
            took = milliseconds(lambda: minedit.edit(sd, *PAIR, method, steps=STEPS, **settings), repeats)  # noqa: B023
            name = f"edit by {method}{' one-pass' * bool(settings)}{what}"
            rows.append(row(name, took / 1e3, "s", "<= 0.6"))
    costliest(sd)
    return rows


def model(dtype: torch.dtype, laid_out: bool) -> Model:
    torch.manual_seed(0)
    with torch.device("cuda"):
        modules = [kind(cfg) for kind, cfg in ((UNet, SD14.unet), (VAE, SD14.vae), (TextEncoder, SD14.text))]
    modules = [module.to(dtype).eval().requires_grad_(False) for module in modules]
    built = Model(*modules, tokenizer(SD14), SD14, backend("auto", "cuda"), "auto", torch.device("cuda"), dtype)
    return fast(built) if laid_out else built


def costliest(sd: Model, count: int = 10) -> None:
    """Print the kernels that take longest in three steps of an edit."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        minedit.edit(sd, *PAIR, "p2p", steps=3)
    print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=count, max_name_column_width=80))


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of `work()`; short works are repeated within a measurement."""
    work()
    calls = 1 if _events(work, 1) > 20 else 50
    return statistics.median(_events(work, calls) for _ in range(repeats))


def _events(work: Callable[[], object], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / calls


def row(what: str, value: float, unit: str, goal: str) -> dict:
    """A row of the table; prints its line."""
    print(f"  {what:72}{value:9.3f} {unit:5}{'goal ' * bool(goal)}{goal}", flush=True)
    return {"what": what, "value": f"{value:.4f}", "unit": unit, "goal": goal}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
