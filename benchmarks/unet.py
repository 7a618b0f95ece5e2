"""How long a step of the UNet takes at the size of SD-v1.4: ours, diffusers', and edits of ours. On a CPU.

    python benchmarks/unet.py [--side 64] [--batch 1 4] [--repeats 3] [--threads 2]

Random weights, float32, latents of side x side, 77 tokens. The works of a batch size are timed in turn, `repeats` times
after a warm-up; a row is the median, with ratios to ours, and goes to benchmarks/unet.csv. "of ceiling" is the step's
floating-point operations a second over those of the fastest of several large matrix products. The works of batch 4 are
the four rows of an edit: unconditional and conditional, source and target. diffusers is measured where it can be
imported.

Memory is the peak of one step above what is resident before it, in a process of its own whose malloc gives every large
block back when it is freed. As it is by default it keeps some for later, how many depends on the order of sizes, and an
edited step that never needs more than a plain one can look 14 % larger.

"p2p" and "edit" edit every cross-attention and inject self-attention, "edit" through pixel gates. "one-pass" is "edit"
and what AdapEdit in one pass does beside it after every second step. "stored maps" is attention as the public
Prompt-to-Prompt code does it, for contrast: probabilities materialised, the source's put in place of the target's, and
those of every map up to 32 x 32 added to a store. "fast" of ours is what `--fast` does on a CPU; "kept" are the filters
it keeps beside the weights. Operations are counted as without it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from table import append
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minedit.attention.rules import Attn, Edit, Gate, Rule
from minedit.attention.sdpa import sdpa
from minedit.config import SD14
from minedit.files.checkpoint import weights_folder
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.plan import SELF_RULE, SOURCE, TARGET, injected_sites
from minedit.methods.running import Running
from minedit.methods.wordmaps import watched
from minedit.speed.fast import spare_products
from minedit.speed.winograd import Winograd
from minedit.stack.model import Model
from minedit.stack.tokens import Tokenizer
from minedit.stack.unet import UNet

TABLE = Path(__file__).with_suffix(".csv")
WORKS = {1: ("minedit", "minedit fast", "diffusers", "diffusers channels-last")}
WORKS[4] = (*WORKS[1], "p2p", "edit", "one-pass", "edit fast", "stored maps")
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # glibc's, in bytes
PAIR = "a boy in the park", "a sitting boy in the park"
Step = Callable[[Tensor, Tensor, Tensor], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--side", type=int, default=64, help="of the latents; pictures have 8 times as many pixels a side"
    )
    parser.add_argument("--batch", type=int, nargs="+", choices=[*WORKS], default=[*WORKS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", metavar="WORK", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        if args.memory:
            print(json.dumps(peak(args.memory, args.batch[0], args.side)))
            return
        rows = [row for batch in args.batch for row in measured(batch, args)]
    append(TABLE, rows)


def measured(batch: int, args: argparse.Namespace) -> list[dict]:
    theirs = importlib.util.find_spec("diffusers") is not None
    names = [name for name in WORKS[batch] if theirs or "diffusers" not in name]
    memories = {name: memory(name, batch, args) for name in names}  # first: the works below fill 16 GB
    works = {name: work(name) for name in names}
    told = {"date": date.today().isoformat(), "device": f"{platform.machine()}, {args.threads} threads"}
    told |= {"torch": torch.__version__, "diffusers": version("diffusers") if theirs else "", "side": args.side}
    top, flops = ceiling(), operations(batch, args.side)
    print(f"batch {batch}, {args.side} x {args.side}: {flops / 1e12:.2f} TFLOP a step; ceiling {top / 1e9:.0f} GFLOP/s")
    took: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(args.repeats + 1):  # the first is the warm-up
        for name, step in works.items():
            seconds = timed(step, batch, args.side)
            if repeat:
                took[name].append(seconds)
    rows, base = [], statistics.median(took["minedit"])
    for name, times in took.items():
        seconds = statistics.median(times)
        figures = {"seconds": f"{seconds:.2f}", "ratio": f"{seconds / base:.3f}"}
        figures |= {"of_ceiling": f"{flops / seconds / top:.2f}", "ceiling_gflop_s": f"{top / 1e9:.0f}"}
        (top_bytes, kept_bytes), (base_bytes, _) = memories[name], memories["minedit"]
        figures |= {"peak_mb": round(top_bytes / 1e6), "memory": f"{top_bytes / base_bytes:.3f}"}
        figures |= {"kept_mb": round(kept_bytes / 1e6)}
        rows.append({**told, "batch": batch, "work": name, **figures})
        print(f"  {name:24}{seconds:7.2f} s {seconds / base:6.2f} x ours {figures['of_ceiling']:>6} of ceiling "
              f"{figures['peak_mb']:>6} MB {figures['memory']:>6} x ours, {figures['kept_mb']} MB kept")  # fmt: skip
    return rows


def timed(step: Step, batch: int, side: int) -> float:
    inputs = step_inputs(batch, side)
    began = time.perf_counter()
    step(*inputs)
    return time.perf_counter() - began


def step_inputs(batch: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, context = (torch.randn(batch, *shape, generator=draw) for shape in ((4, side, side), (77, 768)))
    return x, torch.full((batch,), 500), context


def ceiling() -> float:
    """FLOP/s of the fastest of several large products."""
    a, times = torch.randn(2048, 2048), []
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(times)


def operations(batch: int, side: int) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        UNet(SD14.unet)(torch.randn(batch, 4, side, side), torch.zeros(batch), torch.randn(batch, 77, 768))
    return counted.get_total_flops()


# --- the works -------------------------------------------------------------------------------------------------------


def work(name: str) -> Step:
    if name.startswith("diffusers"):
        from diffusers import UNet2DConditionModel

        theirs = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8).eval()
        theirs = theirs.to(memory_format=torch.channels_last) if "channels-last" in name else theirs
        return lambda x, t, context: theirs(x, t, context).sample
    unet = fast_unet() if "fast" in name else ours()
    if name == "one-pass":
        return one_pass(unet)
    if name == "p2p" or name.startswith("edit"):
        rules = edited(unet, gated=name != "p2p")
        return lambda x, t, context: unet(x, t, context, Attn(sdpa, rules))
    if name == "stored maps":
        store: dict[str, Tensor] = {}
        attends = [StoredMaps(store, site.name) for site in unet.sites]
        for layer in (m for m in unet.modules() if hasattr(m, "site")):
            attach(layer, attends.pop(0))
        return lambda x, t, context: unet(x, t, context)
    return lambda x, t, context: unet(x, t, context)


@cache
def weights() -> dict[str, Tensor]:
    unet = UNet(SD14.unet)
    for p in unet.parameters():
        if not p.any():  # layers that start as zero would be nothing to compute with
            nn.init.normal_(p, std=0.01)
    return unet.state_dict()


def ours() -> UNet:
    with torch.device("meta"):
        unet = UNet(SD14.unet).eval()
    unet.load_state_dict(weights(), strict=True, assign=True)  # shared by all works: four copies would not fit
    return unet


@cache
def fast_unet() -> UNet:
    """One for all works, as are its filters."""
    unet = ours()
    spare_products(unet)
    return unet


def kept() -> int:
    """Bytes of the filters that the fast UNet has made so far."""
    layers = [m.forward for m in fast_unet().modules() if isinstance(m.forward, Winograd)]
    return sum(4 * filters.numel() for layer in layers for filters in layer.filters.values())


def edited(unet: UNet, gated: bool = True) -> dict[str, Rule]:
    """An early step of AdapEdit: some tokens pinned, some gated at every cross-attention, self-attention injected."""
    tokens = torch.arange(77)
    pin, own = (tokens % 3 == 0).float(), (tokens % 3 == 1).float()
    rules = dict.fromkeys(injected_sites(unet.sites, SD14), SELF_RULE)
    for site in unet.sites:
        if site.kind == "cross":
            gate = Gate(F.normalize(torch.ones(site.channels), dim=0), 0.95, 1.0, True)
            edit = Edit(TARGET, SOURCE, torch.eye(77), pin, 1 - pin - own, own, gate if gated else None)
            rules[site.name] = Rule(edits=(edit,))
    return rules


def one_pass(unet: UNet) -> Step:
    tokenizer, rules = Tokenizer(weights_folder() / "tokenizer", 77), edited(unet)
    model = Model(unet, None, None, tokenizer, SD14, sdpa, "sdpa", torch.device("cpu"), torch.float32)
    settings = AdapEditConfig(fwt="one-pass")
    running = Running(model, *map(tokenizer.encode, PAIR), 50, settings)

    def step(x: Tensor, t: Tensor, context: Tensor) -> None:
        attn = Attn(sdpa, rules, watched(model, settings))
        unet(x, t, context, attn)
        running.add(attn.seen, tuple(x.shape[-2:]))

    return step


class StoredMaps:
    """One layer's attention in the style of the public controllers."""

    def __init__(self, store: dict[str, Tensor], name: str) -> None:
        self.store, self.name = store, name

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None) -> Tensor:
        b, heads, n, d = q.shape
        q, k, v = (x.reshape(b * heads, -1, d) for x in (q, k, v))
        maps = (torch.bmm(q, k.transpose(1, 2)) * d**-0.5).softmax(-1)  # [B·H, N, T]
        rows = maps.view(b, heads, n, -1)
        if n <= 32**2:
            conditional = rows[b // 2 :].clone()
            before = self.store.get(self.name)
            self.store[self.name] = conditional if before is None else before + conditional
        if k.shape[1] == 77 or n <= 16**2:
            rows[TARGET] = rows[SOURCE]
        return torch.bmm(maps, v).view(b, heads, n, d)


def attach(layer: nn.Module, attend: StoredMaps) -> None:
    """Make one layer call `attend`, whatever the step's Attn says."""
    plain = layer.forward
    layer.forward = lambda x, context, attn: plain(x, context, Attn(attend))


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(name: str, batch: int, args: argparse.Namespace) -> tuple[int, int]:
    """`peak` in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, "--batch", str(batch), "--side", str(args.side)]
    command += ["--threads", str(args.threads)]
    done = subprocess.run(command, env=os.environ | GIVES_BACK, stdout=subprocess.PIPE, text=True, check=True)
    return tuple(json.loads(done.stdout))


def peak(name: str, batch: int, side: int) -> tuple[int, int]:
    """Bytes that one step takes above what is resident before it, and bytes it keeps. Linux only."""
    step, inputs, before = work(name), step_inputs(batch, side), status("VmRSS")
    if "fast" in name:
        step(*inputs)  # the first makes the filters
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    step(*inputs)
    keeps = kept() if "fast" in name else 0
    return status("VmHWM") - before - keeps, keeps


def status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    main()
