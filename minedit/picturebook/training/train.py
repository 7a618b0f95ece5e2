"""The stages of training, each from what the ones before it left in `runs`; then the checkpoint, assembled."""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from minedit.attention.sdpa import sdpa
from minedit.config import Config, MineditError
from minedit.files.checkpoint import Model, load, save, tokenizer, write
from minedit.files.variant import VARIANTS
from minedit.picturebook.training.fit import Training, fingerprint
from minedit.picturebook.training.judge_net import load_judge, save_judge
from minedit.picturebook.training.stages import FEWEST, STEPS
from minedit.picturebook.training.train_instruct import pairs, train_instruct, widened, write_variant
from minedit.picturebook.training.train_judge import lessons, train_judge
from minedit.picturebook.training.train_text import clip_model, train_text, write_clip
from minedit.picturebook.training.train_unet import cached_latents, train_unet
from minedit.picturebook.training.train_vae import train_vae
from minedit.picturebook.training.workers import first_worker_first, worker
from minedit.picturebook.world.dataset import Drawings
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

UNSEEN = 2048  # held-out renderings for evaluation


def train(stage: str, config: Config, args: argparse.Namespace) -> None:
    steps = args.steps or STEPS[stage]
    run = Training(args.runs / stage, steps, args.device, args.seed, warmup=args.warmup, compile=args.compile)
    data, size = args.runs / "data", config.image_size
    if stage == "instruct":
        _instruct(load(args.start), data, args.scenes, replace(run, save_every=100), args.batch)
        return
    begun = load(args.start) if args.start else None
    if begun and begun.config != config:
        raise MineditError(f"{args.start} is {begun.config.name}; expected a model of the picture book to go on with")
    if stage == "unet":
        if begun:
            _keep_encoder(begun.vae, config, args.runs / "vae")
        vae = _trained(VAE(config.vae), args.runs / "vae").to(run.device, memory_format=torch.channels_last)
        text, unet = (begun.text, begun.unet) if begun else (text_tower(config, args.runs), None)
        with first_worker_first():
            seen = Drawings(data, args.scenes, size, run.seed)
            # of another encoder they would be no latents of this one
            file = data / f"latents-{seen.name}-{fingerprint(encoder(vae))}.safetensors"
            latents = cached_latents(vae, seen, file, config.latent_scale)
        _keep(train_unet(config.unet, text, tokenizer(config), seen, latents, run, unet=unet), run.folder)
        _keep(text, args.runs / "tower")
        return
    with first_worker_first():
        seen = Drawings(data, args.scenes, size, run.seed)
        unseen = None if stage == "vae" else Drawings(data, UNSEEN, size, run.seed, unseen=True)
    if stage == "vae":
        _keep(train_vae(config, seen, run, begun=begun and begun.vae), run.folder)
    elif stage == "text":
        _keep(train_text(config, tokenizer(config), seen, unseen, run), run.folder)
    elif stage == "clip":
        clip = train_text(replace(config, text=replace(config.text, layers=2)), tokenizer(config), seen, unseen, run)
        if worker() == 0:
            write_clip(clip, run.folder / "picturebook-clip")
    else:
        vae = _trained(VAE(config.vae), args.runs / "vae") if (args.runs / "vae").is_dir() else load().vae
        with first_worker_first():
            half = max(FEWEST, args.scenes // 2)
            kept = Drawings(data, half, size, run.seed + 1, unseen=True)
            hands = Drawings(data, half, size, run.seed + 2, hands=True)
            parts = lessons(seen, kept, hands, vae.to(run.device, memory_format=torch.channels_last), data, run)
        judge = train_judge(parts, unseen, run)
        if worker() == 0:
            save_judge(judge, run.folder / "judge.safetensors")


def _instruct(model: Model, data: Path, scenes: int, run: Training, batch: int) -> None:
    """Train the variant of a model that follows instructions; its file is written into the run's folder."""
    cfg = model.config
    vae = model.vae.to(run.device, memory_format=torch.channels_last)
    with first_worker_first():
        seen = pairs(vae, data, scenes, cfg.image_size, cfg.latent_scale, run)
    wide, tower = widened(model.unet), copy.deepcopy(model.text)
    learnt = train_instruct(wide, tower, model.tokenizer, seen, cfg.latent_scale, run, batch)
    if worker() == 0:
        write_variant(learnt, model, run.folder / VARIANTS["instruct-pix2pix"])


def text_tower(config: Config, runs: Path) -> TextEncoder:
    """The text encoder of the trained CLIP, with which stage 3 begins. Raises MineditError where there is none yet."""
    clip, text = _trained(clip_model(config), runs / "text"), TextEncoder(config.text)
    wanted = text.clip.state_dict()
    tower = {name.removeprefix("text_model."): tensor for name, tensor in clip.text_model.state_dict().items()}
    text.clip.load_state_dict({name: tower[name.removeprefix("text_model.")] for name in wanted})
    return text


def assemble(config: Config, runs: Path, out: Path) -> None:
    """Write `picturebook.safetensors` (float16), and CLIP and judge where they are trained; print their sizes.

    Raises MineditError where a part is not trained yet.
    """
    unet, vae = _trained(UNet(config.unet), runs / "unet"), _trained(VAE(config.vae), runs / "vae")
    text = _trained(TextEncoder(config.text), runs / "tower")
    model = Model(unet, vae, text, tokenizer(config), config, sdpa, "sdpa", torch.device("cpu"), torch.float32)
    save(model, out / "picturebook.safetensors", dtype="float16")
    if (runs / "text" / "final.safetensors").exists():
        clip = _trained(clip_model(config), runs / "text").half().state_dict()
        write({name: t for name, t in clip.items() if t.is_floating_point()}, out / "picturebook-clip.safetensors")
    if (runs / "judge" / "judge.safetensors").exists():
        save_judge(load_judge(runs / "judge" / "judge.safetensors"), out / "picturebook-judge.safetensors")
    for file in sorted(out.glob("picturebook*.safetensors")):
        print(f"{file}  {file.stat().st_size / 2**20:.1f} MiB")


def _keep(module: nn.Module, folder: Path) -> None:
    """The first worker writes; nobody goes on before it has."""
    with first_worker_first():
        if worker() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write(module.state_dict(), folder / "final.safetensors")


def encoder(vae: VAE) -> nn.Module:
    """The part that makes latents; what reads them may be another."""
    return nn.ModuleList([vae.encoder, vae.quant_conv])


def _keep_encoder(vae: VAE, config: Config, folder: Path) -> None:
    """The autoencoder, unless one of the same encoder is there, whose decoder may have learned more.

    Raises MineditError where that of another encoder is there: its latents would be no latents of this one.
    """
    file = folder / "final.safetensors"
    if not file.is_file():
        _keep(vae, folder)
    elif fingerprint(encoder(_trained(VAE(config.vae), folder))) != fingerprint(encoder(vae)):
        raise MineditError(f"{file} has another encoder than the model to go on with; say --runs, or remove it")


def _trained(module: nn.Module, folder: Path) -> nn.Module:
    """`module` with what `_keep` wrote."""
    file = folder / "final.safetensors"
    if not file.is_file():
        raise MineditError(f"{file} is not there yet; run `minedit train {folder.name}` first")
    module.load_state_dict(load_file(file))
    return module
