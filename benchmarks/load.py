"""How much memory and time it takes to load a model: each container and dtype in a process of its own. Linux only.

    python benchmarks/load.py [--model sd14] [--dtype float32 float16] [--repeats 3]

Makes files with random weights in a temporary folder (sd14: 15 GB with diffusers' folder), or in --folder, where they
stay for another time; loads each and prints a table; rows go to benchmarks/load.csv. Where diffusers can be imported,
its folder and from_pretrained are measured too; both readers load CLIP's tokenizer. The files have just been read or
written, so most of them are in the page cache. "peak" is all that was resident at once (VmHWM) above what the libraries
take, over the model's bytes; "anon" what is resident in the end and no page of a file (RssAnon), likewise. A model that
stays in its file has none of its weights in memory yet: they come in at their first use.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import load_file
from table import append

from minedit.attention.choose import backend
from minedit.config import PICTUREBOOK, SD14, Config
from minedit.files import checkpoint
from minedit.files.checkpoint import Model
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

MODELS = {"sd14": SD14, "picturebook": PICTUREBOOK}
TABLE = Path(__file__).with_suffix(".csv")
FOLDER = "diffusers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*MODELS], default="sd14")
    parser.add_argument("--dtype", choices=[*checkpoint.DTYPES], nargs="+", default=["float32", "float16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made, and stay")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        work, *rest = args.child
        {"make": make, "make_diffusers": make_diffusers, "measure": measure}[work](MODELS[args.model], *rest)
        return
    cpu = platform.processor() or platform.machine()
    told = {"date": date.today().isoformat(), "device": f"{cpu}, {torch.get_num_threads()} threads"}
    told |= {"python": platform.python_version(), "torch": torch.__version__, "model": args.model}
    print(", ".join(f"{key} {value}" for key, value in told.items()))
    print(f"{'file':21}{'GB':>6}  {'reader':10}{'dtype':9}{'s':>7}{'peak':>7}{'anon':>7}{'libraries, GB':>15}")
    rows = []
    readers = ["minedit"] + ["diffusers"] * bool(importlib.util.find_spec("diffusers"))
    with tempfile.TemporaryDirectory() if args.folder is None else nullcontext(args.folder) as folder:
        Path(folder).mkdir(exist_ok=True)
        if not Path(folder, "model.ckpt").exists():
            child(args.model, "make", str(folder))
        if "diffusers" in readers and not Path(folder, FOLDER).exists():
            child(args.model, "make_diffusers", str(folder))
        for file in sorted(Path(folder).iterdir()):
            for reader in readers if file.name == FOLDER else readers[:1]:
                for dtype in args.dtype:
                    found = [child(args.model, "measure", str(file), reader, dtype) for _ in range(args.repeats)]
                    rows.append(told | row(file, reader, dtype, found))
    append(TABLE, rows)


def row(file: Path, reader: str, dtype: str, found: list[dict]) -> dict:
    """The median time and the largest memory of several runs; prints its line."""
    parts = [path for path in (file.rglob("*") if file.is_dir() else [file]) if path.is_file()]
    size, model = sum(path.stat().st_size for path in parts), found[0]["model"]
    peak, anon, libraries = (max(run[key] for run in found) for key in ("peak", "anon", "libraries"))
    seconds = statistics.median(run["seconds"] for run in found)
    above = {"peak": (peak - libraries) / model, "anon": (anon - found[0]["libraries_anon"]) / model}
    print(
        f"{file.name:21}{size / 1e9:6.2f}  {reader:10}{dtype:9}{seconds:7.2f}{above['peak']:7.2f}{above['anon']:7.2f}"
        f"{libraries / 1e9:15.2f}",
        flush=True,
    )
    numbers = {"model_bytes": model, "peak_bytes": peak, "anon_bytes": anon, "libraries_bytes": libraries}
    ratios = {name: f"{value:.3f}" for name, value in above.items()}
    return (
        {"file": file.name, "bytes": size, "reader": reader, "dtype": dtype, "seconds": f"{seconds:.3f}"}
        | numbers
        | ratios
    )


# --- in a process of its own -----------------------------------------------------------------------------------------


def child(model: str, *work: str) -> dict:
    command = [sys.executable, __file__, "--model", model, "--child", *work]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout or "{}")


def make(config: Config, folder: str) -> None:
    """The model with torch's initial weights: as .safetensors, as float16 and as the .ckpt of a training run."""
    modules = UNet(config.unet), VAE(config.vae), TextEncoder(config.text)
    tokens, cpu = checkpoint.tokenizer(config), torch.device("cpu")
    model = Model(*modules, tokens, config, backend("auto"), "auto", cpu, torch.float32)
    whole = Path(folder, "model.safetensors")
    checkpoint.save(model, whole)
    checkpoint.save(model, Path(folder, "half.safetensors"), "float16")
    torch.save({"state_dict": load_file(whole), "epoch": 1, "global_step": 1}, Path(folder, "model.ckpt"))


def make_diffusers(config: Config, folder: str) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet, vae, text = config.unet, config.vae, TextEncoder(config.text).clip
    kinds = ["CrossAttn" if attends else "" for attends in unet.attention]
    theirs = UNet2DConditionModel(
        block_out_channels=unet.channels,
        layers_per_block=unet.blocks,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        cross_attention_dim=unet.context_dim,
        attention_head_dim=unet.heads,
        norm_num_groups=unet.norm_groups,
    )
    theirs.save_pretrained(Path(folder, FOLDER, "unet"))
    AutoencoderKL(
        block_out_channels=vae.channels,
        layers_per_block=vae.blocks,
        down_block_types=["DownEncoderBlock2D"] * len(vae.channels),
        up_block_types=["UpDecoderBlock2D"] * len(vae.channels),
        latent_channels=vae.z_channels,
        norm_num_groups=vae.norm_groups,
    ).save_pretrained(Path(folder, FOLDER, "vae"))
    text.save_pretrained(Path(folder, FOLDER, "text_encoder"))


def measure(config: Config, file: str, reader: str, dtype: str) -> None:
    """Prints what one load takes, as JSON."""
    checkpoint.SD14 = config  # a file without metadata says nothing of sizes
    kind = checkpoint.DTYPES[dtype]
    if reader == "diffusers":
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    before = {"libraries": memory("VmRSS"), "libraries_anon": memory("RssAnon")}
    began = time.perf_counter()
    if reader == "diffusers":
        CLIPTokenizer.from_pretrained(checkpoint.weights_folder() / "tokenizer")
        modules = [each.from_pretrained(Path(file, part), torch_dtype=kind) for part, each in classes.items()]
    else:
        model = checkpoint.load(file, dtype=dtype)
        modules = [model.unet, model.vae, model.text]
    seconds = time.perf_counter() - began
    found = before | {"seconds": seconds, "peak": memory("VmHWM"), "anon": memory("RssAnon")}
    print(json.dumps(found | {"model": sum(p.nbytes for module in modules for p in module.parameters())}))


def memory(field: str) -> int:
    """Of this process, in bytes."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    main()
