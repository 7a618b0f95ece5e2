"""Train the embedded model further in minutes on one CUDA GPU: `python -m minedit.picturebook.cuda.train --out DIR`.

Processes draw scenes, the autoencoder learns on those that are there, all are encoded, UNet and text encoder learn on
the latents. Everything goes by the clock. DIR gets the model in pieces (`--join DIR` puts them together), a log and a
sheet of pictures; state, with which a run that was stopped goes on, is in `--runs`. Pieces are written only once the
UNet knows the latents of the new autoencoder: whatever pieces there are make a model that works.
"""

import argparse
import copy
import csv
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from minedit.attention.sdpa import sdpa
from minedit.config import PICTUREBOOK, Config, MineditError
from minedit.files.checkpoint import Model, load, save, tokenizer, torch_device, weights_folder
from minedit.image import grid, to_pil, to_tensor
from minedit.image import save as save_png
from minedit.picturebook.cuda.data import Scenes, Spelling
from minedit.picturebook.cuda.learn import Learner, learn
from minedit.picturebook.cuda.losses import ROUGH, encoded, inner, unet_loss, vae_loss
from minedit.picturebook.cuda.pieces import join, split
from minedit.picturebook.cuda.record import Dice
from minedit.picturebook.judge import judged, prompts, word_maps
from minedit.picturebook.training.judge_net import load_judge
from minedit.picturebook.training.train_unet import hidden
from minedit.picturebook.training.train_vae import psnr, reconstruct, standardise
from minedit.picturebook.world.dataset import drawings
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.scene import scene
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE
from minedit.verbs.generate import generate

VAE_SHARE, KEPT_SHARE, LAST_SHARE = 0.27, 0.15, 0.07  # of all seconds: until the autoencoder is done, after the UNet
VAE_PEAK, UNET_PEAK = 1e-3, 1.2e-3  # learning rates
COLUMNS = ("seconds", "part", "step", "loss", "mse", "l1", "kl", "astray", "samples_s", "rate", "skipped", "psnr")


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    scenes: int = 200_000  # at most; drawing ends when the autoencoder's time does
    first: int = 6000  # scenes with which the autoencoder begins
    vae_batch: int = 64
    unet_batch: int = 512
    probe: int = 128  # held-out renderings that the reconstruction is measured on
    statistics: int = 2048  # scenes that standardise the latents
    sheet: int = 24  # pictures of the sheet
    judged: int = 200  # held-out captions for the judge
    mapped: int = 60  # renderings for the maps of words
    steps: int = 25  # DDIM's, of judged pictures
    at_once: int = 100  # pictures generated together
    every: float = 3.0  # seconds between rows of the log
    save_every: float = 60.0  # seconds between checkpoints


TINY = Sizes(24, 8, 2, 2, 2, 4, 2, 2, 1, 2, 2, 1.0, 1.0)  # a rehearsal on a CPU


class Log:
    """log.csv in a folder, and a line on the screen for each of its rows."""

    def __init__(self, folder: Path, began: float) -> None:
        self.file, self.began = folder / "log.csv", began
        folder.mkdir(parents=True, exist_ok=True)
        if not self.file.exists():
            self.file.write_text(",".join(COLUMNS) + "\n")

    def __call__(self, row: dict[str, float | str]) -> None:
        row = {"seconds": time.monotonic() - self.began} | row
        shown = {key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()}
        with self.file.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(shown)
        print("  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)


def main(argv: list[str]) -> int:
    """Train, or join pieces. Raises MineditError for arguments that cannot be."""
    began, args = time.monotonic(), _arguments(argv)
    if args.join:
        print(join(args.join))
        return 0
    if not args.out:
        raise MineditError("say where the model goes: --out DIR")
    sizes, config = TINY if args.tiny else Sizes(), PICTUREBOOK
    count, spelling = min(args.scenes, sizes.scenes), Spelling(tokenizer(config))
    scenes = Scenes(count, config.image_size, spelling, args.seed, args.workers)
    scenes.start()  # processes are forked before CUDA is used
    _train(args, sizes, config, scenes, Log(args.out, began), began)
    return 0


def _train(args: argparse.Namespace, sizes: Sizes, config: Config, scenes: Scenes, log: Log, began: float) -> None:
    device, end = torch_device(args.device), began + args.seconds * (1 - LAST_SHARE)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, dice = _begun(args, config, device), Dice(device, args.seed)
    scenes.to(device)
    probe = drawings(stream(1, "reconstruction"), sizes.probe, config.image_size, unseen=True).to(device)
    log({"part": "begun", "psnr": psnr(probe, reconstruct(model.vae, probe)).mean().item()})
    if not scenes.take_in(at_least=sizes.first):
        raise MineditError("no scene was drawn; what the workers say is above")
    vae_end = began + args.seconds * (KEPT_SHARE if args.keep_vae else VAE_SHARE)
    vae = _vae(args, sizes, model, scenes, dice, dtype, vae_end - time.monotonic(), log, probe)
    log({"part": "drawn", "step": scenes.stop()})
    if "unet" not in args.parts:
        print(f"the autoencoder is in {args.runs}; without a UNet that knows its latents there is no model to write")
        return
    latents = encoded(vae, scenes, config.latent_scale)
    row = {"part": "encoded", "step": len(latents[0]), "mse": latents[0][:4096].float().std().item()}
    log(row | {"astray": latents[1][:4096].float().mean().item()})  # the latents' spread, the posterior's
    both = nn.ModuleDict({"unet": model.unet, "text": model.text}).train().requires_grad_(True)
    learner = Learner(both, hidden, dtype, weight_decay=0.05)
    batch = args.batch or sizes.unet_batch

    def publish() -> None:
        """The averaged networks as they are now, in pieces."""
        whole = args.runs / "picturebook.safetensors"
        learner.averaged()
        save(Model(both["unet"], vae, both["text"], *_rest(config, device)), whole, dtype="float16")
        split(whole, args.out)

    loss = unet_loss(both, scenes, latents, dice, batch, dtype)
    learn(
        "unet", learner, loss, dice, seconds=end - time.monotonic(), batch=batch, peak=args.unet_peak, log=log,
        file=args.runs / "unet.pt", kept=publish, every=sizes.every, save_every=sizes.save_every,
    )  # fmt: skip
    publish()
    both.eval().requires_grad_(False)
    _finish(Model(both["unet"], vae.eval(), both["text"], *_rest(config, device)), args, sizes, log, probe)


def _rest(config: Config, device: torch.device) -> tuple:
    """What a Model has beside its networks."""
    return tokenizer(config), config, sdpa, "sdpa", device, torch.float32


def _begun(args: argparse.Namespace, config: Config, device: torch.device) -> Model:
    """The embedded model, or one with random weights, channels-last on the device."""
    if args.from_scratch:
        torch.manual_seed(args.seed)
        parts = UNet(config.unet).to(device), VAE(config.vae).to(device), TextEncoder(config.text).to(device)
        model = Model(*parts, *_rest(config, device))
    else:
        model = load(args.start, device=str(device), attention="sdpa")
        if model.config != config:
            raise MineditError(f"{args.start} is {model.config.name}; expected a model of the picture book")
    model.vae.to(memory_format=torch.channels_last)
    return model


def _vae(
    args: argparse.Namespace, sizes: Sizes, model: Model, scenes: Scenes, dice: Dice, dtype: torch.dtype,
    seconds: float, log: Log, probe: Tensor,
) -> VAE:  # fmt: skip
    """The autoencoder after its share of the time, standardised; that of `model` where it came out worse."""
    vae, done = copy.deepcopy(model.vae), args.runs / "vae-final.pt"
    if done.exists():
        vae.load_state_dict(torch.load(done, map_location=probe.device, weights_only=True))
    elif "vae" in args.parts and seconds > 0:
        vae.train().requires_grad_(True)
        if args.keep_vae:
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        ready = torch.zeros((), device=probe.device)
        ready.fill_(scenes.ready)
        learner = Learner(vae, inner, dtype)
        loss = vae_loss(scenes, ready, dice, sizes.vae_batch, dtype, args.rough)
        learn(
            "vae", learner, loss, dice, seconds=seconds, batch=sizes.vae_batch, peak=args.vae_peak, log=log,
            file=args.runs / "vae.pt", between=lambda: ready.fill_(scenes.take_in()), every=sizes.every,
            save_every=sizes.save_every,
        )  # fmt: skip
        vae = learner.averaged().requires_grad_(False)
        if not args.keep_vae:
            rows = torch.arange(min(sizes.statistics, scenes.ready), device=probe.device)
            standardise(vae, scenes.pictures(rows), model.config.latent_scale)
        before, after = (psnr(probe, reconstruct(each, probe)).mean().item() for each in (model.vae, vae))
        log({"part": "vae done", "psnr": after})
        if not after > before - 0.3 and not args.tiny:
            print(f"the autoencoder came out worse, {after:.2f} dB after {before:.2f}: the old one stays", flush=True)
            vae = copy.deepcopy(model.vae)
        done.parent.mkdir(parents=True, exist_ok=True)
        torch.save(vae.state_dict(), done)
    return vae.requires_grad_(False)


def _finish(model: Model, args: argparse.Namespace, sizes: Sizes, log: Log, probe: Tensor) -> None:
    """The reconstruction, the sheet of pictures, what the judge reads and where words look."""
    log({"part": "done", "psnr": psnr(probe, reconstruct(model.vae, probe)).mean().item()})
    asked = prompts(sizes.sheet, args.seed)
    out = generate(model, [said.text for _, said in asked], seed=list(range(len(asked))), steps=min(20, sizes.steps))
    scenes = [scene(factors, i, model.config.image_size).image for i, (factors, _) in enumerate(asked)]
    backs = to_pil(reconstruct(model.vae, torch.cat([to_tensor(image) for image in scenes]).to(model.device)))
    pairs = list(zip(out.images, backs, strict=True))
    words = [text for _, said in asked for text in (said.text, "a rendering, reconstructed")]
    sheet = grid([image for pair in pairs for image in pair], words, columns=min(8, 2 * len(pairs)))
    save_png(args.out / "sheet.png", sheet, {"prompts": [said.text for _, said in asked]})
    judge = load_judge(weights_folder() / "picturebook-judge.safetensors")
    table = judged(model, judge, prompts(sizes.judged, 2026), sizes.steps, 7.5, sizes.at_once)
    read = {name: f"{right / total:.1%} of {total}" for name, (right, total) in table.items()}
    for told in (read, word_maps(model, sizes.mapped)):
        print("  ".join(f"{name} {value}" for name, value in told.items()), flush=True)


def _arguments(argv: list[str]) -> argparse.Namespace:
    how = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=how)
    parser.add_argument("--out", type=Path, help="folder of the pieces, the log and the sheet")
    parser.add_argument("--join", type=Path, metavar="DIR", help="only put the pieces in this folder together")
    parser.add_argument("--seconds", type=float, default=360.0, help="all of it, evaluation included")
    parser.add_argument("--runs", type=Path, default=Path("runs/cuda"), help="folder of the state to go on from")
    parser.add_argument("--from", dest="start", metavar="FILE", help="the model to begin with; the embedded one")
    parser.add_argument("--from-scratch", action="store_true", help="begin with random weights instead")
    parser.add_argument(
        "--keep-vae", action="store_true", help="keep the latents: of the autoencoder train the decoder"
    )
    parser.add_argument("--parts", nargs="+", choices=("vae", "unet"), default=["vae", "unet"], help="what is trained")
    parser.add_argument("--scenes", type=int, default=200_000, help="scenes to draw, at most")
    parser.add_argument("--batch", type=int, help="samples of a step of the UNet")
    parser.add_argument("--rough", type=float, default=ROUGH, help="largest noise on the decoder's latents")
    parser.add_argument("--vae-peak", type=float, default=VAE_PEAK, help="highest learning rate of the autoencoder")
    parser.add_argument("--unet-peak", type=float, default=UNET_PEAK, help="highest learning rate of UNet and text")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes that draw")
    parser.add_argument("--seed", type=int, default=5, help="of scenes, captions, chances and noise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal of everything in miniature")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MineditError as fault:
        sys.exit(f"minedit: error: {fault}")
