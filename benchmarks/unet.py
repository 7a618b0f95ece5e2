"""How long a step of the UNet takes at the size of SD-v1.4: ours, diffusers', and edits of ours. On a CPU.

    python benchmarks/unet.py [--side 64] [--batch 1 4] [--repeats 3] [--threads 2] [--only bfloat16]

Random weights, latents of side x side, 77 tokens; float32 unless a row says bfloat16. The works of a batch size are
timed in turn, `repeats` times after a warm-up; a row is the median, with ratios to ours, and goes to unet.csv beside.
At one thread seconds are those that the process computed, which other programs lengthen little. "of ceiling" is the
step's floating-point operations a second over those of the fastest of several large matrix products. The works of batch
4 are the four rows of an edit: unconditional and conditional, source and target. diffusers is measured where it can be
imported. Those in bfloat16 have a process each; their ratios are to ours in bfloat16, as is their ceiling.

Memory is the peak of one step above what is resident before it, in a process of its own whose malloc gives every large
block back when it is freed. As it is by default it keeps some for later, how many depends on the order of sizes, and an
edited step that never needs more than a plain one can look 14 % larger.

"p2p" and "edit" edit every cross-attention and inject self-attention, "edit" through pixel gates. "one-pass" is "edit"
and what AdapEdit in one pass does beside it after every second step. "stored maps" is attention as the public
Prompt-to-Prompt code does it, for contrast: probabilities materialised, the source's put in place of the target's, and
those of every map up to 32 x 32 added to a store. "fast" of ours is what `--fast` does in float32 on a CPU without AMX,
in bfloat16 on one that multiplies it; "kept" are the filters it keeps beside the weights. Operations are counted as
without it.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cache, partial
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
from minedit.speed.fast import pack, spare_products
from minedit.speed.packed import Packed
from minedit.speed.winograd import Winograd
from minedit.stack.model import Model
from minedit.stack.tokens import Tokenizer
from minedit.stack.unet import UNet

TABLE = Path(__file__).with_suffix(".csv")
WORKS = {1: ("minedit", "minedit fast", "diffusers", "diffusers channels-last")}
WORKS[4] = (*WORKS[1], "p2p", "edit", "one-pass", "edit fast", "stored maps")
HALF = ("minedit bfloat16", "minedit fast bfloat16", "diffusers bfloat16")  # at batch 1
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
    parser.add_argument("--only", choices=["float32", "bfloat16"], help="the works in this dtype")
    parser.add_argument("--memory", metavar="WORK", help=argparse.SUPPRESS)
    parser.add_argument("--serve", metavar="WORK", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        if args.memory:
            print(json.dumps(peak(args.memory, args.batch[0], args.side)))
            return
        if args.serve:
            serve(args.serve, args.batch[0], args.side)
            return
        rows = []
        for batch in args.batch:
            rows += measured(WORKS[batch], batch, args) if args.only != "bfloat16" else []
            rows += measured(HALF, batch, args) if args.only != "float32" and batch == 1 else []
    append(TABLE, rows)


def measured(names: Sequence[str], batch: int, args: argparse.Namespace) -> list[dict]:
    theirs = importlib.util.find_spec("diffusers") is not None
    names = [name for name in names if theirs or "diffusers" not in name]
    memories = {name: memory(name, batch, args) for name in names}  # first: the works below fill 16 GB
    told = {"date": date.today().isoformat(), "device": f"{platform.machine()}, {args.threads} threads"}
    told |= {"torch": torch.__version__, "diffusers": version("diffusers") if theirs else "", "side": args.side}
    top, flops = ceiling(dtype_of(names[0])), operations(batch, args.side)
    print(f"batch {batch}, {args.side} x {args.side}: {flops / 1e12:.2f} TFLOP a step; ceiling {top / 1e9:.0f} GFLOP/s")
    took: dict[str, list[float]] = {name: [] for name in names}
    with (apart if names[0] in HALF else together)(names, batch, args) as works:
        for repeat in range(args.repeats + 1):  # the first is the warm-up
            for name, once in works.items():
                seconds = once()
                if repeat:
                    took[name].append(seconds)
    rows, base = [], statistics.median(took[names[0]])
    for name, times in took.items():
        seconds = statistics.median(times)
        figures = {"seconds": f"{seconds:.2f}", "ratio": f"{seconds / base:.3f}"}
        figures |= {"of_ceiling": f"{flops / seconds / top:.2f}", "ceiling_gflop_s": f"{top / 1e9:.0f}"}
        (top_bytes, kept_bytes), (base_bytes, _) = memories[name], memories[names[0]]
        figures |= {"peak_mb": round(top_bytes / 1e6), "memory": f"{top_bytes / base_bytes:.3f}"}
        figures |= {"kept_mb": round(kept_bytes / 1e6)}
        rows.append({**told, "batch": batch, "work": name, **figures})
        print(f"  {name:24}{seconds:7.2f} s {seconds / base:6.2f} x ours {figures['of_ceiling']:>6} of ceiling "
              f"{figures['peak_mb']:>6} MB {figures['memory']:>6} x ours, {figures['kept_mb']} MB kept")  # fmt: skip
    return rows


@contextmanager
def together(names: Sequence[str], batch: int, args: argparse.Namespace) -> Iterator[dict[str, Callable[[], float]]]:
    """What takes a step of each work in this process, and says how long it took."""
    yield {name: partial(timed, step, name, batch, args.side) for name, step in [(name, work(name)) for name in names]}


@contextmanager
def apart(names: Sequence[str], batch: int, args: argparse.Namespace) -> Iterator[dict[str, Callable[[], float]]]:
    """The same, each in a process of its own, which waits for its turn."""
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    served = {name: subprocess.Popen(command("--serve", name, batch, args), **pipe) for name in names}

    def once(name: str) -> float:
        served[name].stdin.write("\n")
        return float(served[name].stdout.readline())

    try:
        yield {name: partial(once, name) for name in names}
    finally:
        for process in served.values():
            process.stdin.close()
            process.wait()


def serve(name: str, batch: int, side: int) -> None:
    """A step for each line that comes in."""
    step = work(name)
    for _ in sys.stdin:
        print(timed(step, name, batch, side), flush=True)


def command(what: str, name: str, batch: int, args: argparse.Namespace) -> list[str]:
    run = ["--batch", str(batch), "--side", str(args.side), "--threads", str(args.threads)]
    return [sys.executable, __file__, what, name, *run]


def timed(step: Step, name: str, batch: int, side: int) -> float:
    inputs = step_inputs(batch, side, dtype_of(name))
    began = clock()
    step(*inputs)
    return clock() - began


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def dtype_of(name: str) -> torch.dtype:
    return torch.bfloat16 if name in HALF else torch.float32


def step_inputs(batch: int, side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, context = (torch.randn(batch, *shape, generator=draw).to(dtype) for shape in ((4, side, side), (77, 768)))
    return x, torch.full((batch,), 500), context


def ceiling(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several large products."""
    a, times = torch.randn(2048, 2048).to(dtype), []
    for _ in range(10):
        began = clock()
        a @ a
        times.append(clock() - began)
    return 2 * 2048**3 / min(times)


def operations(batch: int, side: int) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        UNet(SD14.unet)(torch.randn(batch, 4, side, side), torch.zeros(batch), torch.randn(batch, 77, 768))
    return counted.get_total_flops()


# --- the works -------------------------------------------------------------------------------------------------------


def work(name: str) -> Step:
    if name.startswith("diffusers"):
        from diffusers import UNet2DConditionModel

        settings = {"cross_attention_dim": 768, "attention_head_dim": 8}
        if name in HALF:
            theirs = filled(partial(UNet2DConditionModel, **settings))
        else:
            theirs = UNet2DConditionModel(**settings).eval()
        theirs = theirs.to(memory_format=torch.channels_last) if "channels-last" in name else theirs
        return lambda x, t, context: theirs(x, t, context).sample
    unet = fast_unet(dtype_of(name)) if "fast" in name else ours(dtype_of(name))
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


def filled(build: Callable[[], nn.Module]) -> nn.Module:
    """In bfloat16, its weights the same random numbers over and over: soon made."""
    with torch.device("meta"):
        module = build().eval().bfloat16()
    numbers = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    state = module.to_empty(device="cpu").state_dict()
    for p in state.values():
        p.copy_(numbers.repeat(-(-p.numel() // len(numbers)))[: p.numel()].view_as(p))
    return module


def ours(dtype: torch.dtype) -> UNet:
    if dtype == torch.bfloat16:
        return filled(partial(UNet, SD14.unet))
    with torch.device("meta"):
        unet = UNet(SD14.unet).eval()
    unet.load_state_dict(weights(), strict=True, assign=True)  # shared by all works: four copies would not fit
    return unet


@cache
def fast_unet(dtype: torch.dtype) -> UNet:
    """One for all works, as are its filters."""
    unet = ours(dtype)
    (spare_products if dtype == torch.float32 else pack)(unet)
    return unet


def kept(dtype: torch.dtype) -> int:
    """Bytes of the filters that the fast UNet has made so far."""
    layers = [m.forward for m in fast_unet(dtype).modules()]
    made = [filters for layer in layers if isinstance(layer, Winograd) for filters in layer.filters.values()]
    made += [layer.filters for layer in layers if isinstance(layer, Packed) and layer.filters is not None]
    return sum(filters.numel() * filters.element_size() for filters in made)


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
    environment, line = os.environ | GIVES_BACK, command("--memory", name, batch, args)
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return tuple(json.loads(done.stdout))


def peak(name: str, batch: int, side: int) -> tuple[int, int]:
    """Bytes that one step takes above what is resident before it, and bytes it keeps. Linux only."""
    step, inputs, before = work(name), step_inputs(batch, side, dtype_of(name)), status("VmRSS")
    if "fast" in name:
        step(*inputs)  # the first makes the filters
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    step(*inputs)
    keeps = kept(dtype_of(name)) if "fast" in name else 0
    return status("VmHWM") - before - keeps, keeps


def status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    main()
