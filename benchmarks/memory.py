"""What a picture of Stable Diffusion v1's size takes beside the weights, measured, and what sampling/memory.py expects.

    python benchmarks/memory.py ATTENTION SIDE ROWS [--csv FILE]

On a CPU of Linux, in float32; weights are zero, none are needed. Rows go to benchmarks/memory.csv, or to --csv.

A step of the UNet (with and without the prompt), then the decoder, then gradients of the text as null-text inversion
asks for them (a row for each picture): the peak of anonymous memory, as /proc has it.
"""

import argparse
import re
import threading
import time
from datetime import date
from pathlib import Path

import torch
from table import append
from torch import Tensor

from minedit.attention.choose import backend
from minedit.attention.rules import Attn
from minedit.config import SD14
from minedit.inversion.embedding import forgetful
from minedit.sampling import memory
from minedit.sampling.loop import guided
from minedit.stack.model import Model
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

EVERY = 0.004  # seconds


def held() -> int:
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def peak(work) -> int:
    """Bytes that `work` takes at most."""
    before, tops, done = held(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            tops[0] = max(tops[0], held())
            time.sleep(EVERY)

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return tops[0] - before


def gradients(sd: Model, latents: Tensor, text: Tensor) -> None:
    with torch.enable_grad():
        text = text.clone().requires_grad_()
        eps = forgetful(sd.unet)(latents, torch.full((len(latents),), 981), text, Attn())
        torch.autograd.grad(eps.square().mean(), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attention")
    parser.add_argument("side", type=int, help="of the pictures, in pixels")
    parser.add_argument("rows", type=int, help="pictures")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args()
    append(args.csv, measured(args.attention, args.side, args.rows))


@torch.no_grad()
def measured(attention: str, side: int, rows: int) -> list[dict]:
    """A row for each work, in bytes; prints its line."""
    parts = []
    for kind, config in ((UNet, SD14.unet), (VAE, SD14.vae)):
        with torch.device("meta"):
            part = kind(config)
        parts.append(part.to_empty(device="cpu"))
        for weight in part.requires_grad_(False).parameters():
            weight.zero_()
    attend, device = backend(attention, "cpu"), torch.device("cpu")
    sd = Model(*parts, None, None, SD14, attend, attention, device, torch.float32)
    latents = torch.randn(rows, 4, side // SD14.vae.factor, side // SD14.vae.factor)
    predict, context = guided(sd, 7.5), torch.randn(2 * rows, SD14.text.context_length, SD14.text.width)
    attn = Attn(attend=attend, rules={}, watch={}, seen={})
    works = {"of_unet": lambda: predict(latents, 0, 981, attn, context), "of_decoder": lambda: sd.vae.decode(latents)}
    works["of_gradients"] = lambda: gradients(sd, latents, context[:rows])
    told = {"date": date.today().isoformat(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    told |= {"attention": attention, "side": side, "rows": rows}
    lines = []
    for name, work in works.items():
        found, expected = peak(work), getattr(memory, name)(sd, rows, side, side)
        print(f"{attention}, {rows} of {side}x{side}, {name}: {found / 1e6:.0f} MB, expected {expected / 1e6:.0f}")
        lines.append({**told, "of": name, "bytes": found, "expected bytes": expected})
    return lines


if __name__ == "__main__":
    main()
