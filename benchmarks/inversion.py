"""How near each inversion draws a photograph again, with guidance and without an edit.

    python benchmarks/inversion.py [--pictures 8] [--steps 50] [--guidance 7.5] [--only null-text ...]

The photographs are renderings of held-out compositions of the embedded world, inverted by their captions. "psnr": of
what is drawn against the rendering, in dB, the mean; "autoencoder": that of the rendering encoded and decoded, which no
inversion passes; "worst lost": the most that one picture lies below it; "latents": the largest difference of the
source's latents from the photograph's. Defaults of the inversions, but --strength 1 and --skip 0: with fewer steps
drawn, less is to be drawn again. Rows go to benchmarks/inversion.csv.
"""

from __future__ import annotations

import argparse
import time
from datetime import date
from pathlib import Path

import torch
from PIL.Image import Image
from table import append

import minedit
from minedit.image import psnr
from minedit.picturebook.world.captions import caption
from minedit.picturebook.world.dataset import factors_of
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.scene import scene
from minedit.sampling.coded import encode, pictures

TABLE = Path(__file__).with_suffix(".csv")
WHOLE = {"edict": {"strength": 1.0}, "edit-friendly": {"skip": 0.0}}  # all of the steps are drawn
SEED = 31


def photograph(index: int, size: int) -> tuple[Image, str]:
    """A rendering and its caption."""
    factors, rng = factors_of(SEED, index, unseen=True), stream(SEED, f"photograph:{index}")
    return scene(factors, SEED + index, size).image, caption(factors, rng).text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--only", nargs="+", default=list(minedit.INVERSIONS), choices=list(minedit.INVERSIONS))
    args = parser.parse_args()
    sd = minedit.load()
    told = {"date": date.today().isoformat(), "torch": torch.__version__, "steps": args.steps}
    told |= {"guidance": args.guidance, "pictures": args.pictures}
    for name in args.only:
        found = []
        for index in range(args.pictures):
            photo, text = photograph(index, sd.config.image_size)
            latents = encode(sd, photo) / sd.config.latent_scale
            limit = psnr(photo, pictures(sd, latents)[0][0])
            run = {"steps": args.steps, "guidance": args.guidance, **WHOLE.get(name, {})}
            began = time.perf_counter()
            res = minedit.edit(sd, text, text, "fixed-seed", image=photo, inversion=name, **run)
            seconds = time.perf_counter() - began
            apart = (res.source_latent - latents.cpu()).abs().max().item()
            found.append((psnr(photo, res.source), limit, limit - psnr(photo, res.source), apart, seconds))
            print(f"{name}, {text}: {found[-1][0]:.2f} dB of {limit:.2f}, {seconds:.0f} s", flush=True)
        near, limits, lost, apart, seconds = zip(*found, strict=True)
        row = {**told, "inversion": name, "psnr": f"{sum(near) / len(near):.2f}"}
        row |= {"autoencoder": f"{sum(limits) / len(limits):.2f}", "worst lost": f"{max(lost):.2f}"}
        row |= {"latents": f"{max(apart):.1e}", "seconds a picture": f"{sum(seconds) / len(seconds):.1f}"}
        print(*row.values(), sep="  ", flush=True)
        append(TABLE, [row])


if __name__ == "__main__":
    main()
