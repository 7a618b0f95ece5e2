"""TAESD. Oracles: the published numbers of parameters, the network written out in float64, a photo's round trip."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from seeded import fill, normal, relative
from torch import Tensor

from minedit.config import MineditError
from minedit.files.taesd import load_taesd
from minedit.image import to_tensor
from minedit.stack.taesd import TAESD, save_preview

# The real weights and a photo are the user's to bring: taesd*.safetensors and photo.jpg in this folder.
DATA = Path(os.environ.get("MINEDIT_TAESD", Path(__file__).parent.parent.parent / "shared" / "data" / "taesd"))


@pytest.fixture(scope="module")
def tiny() -> TAESD:
    return fill(TAESD())


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def block(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    h = x
    for i in (0, 2, 4):
        h = F.conv2d(h, weights[f"{name}.conv.{i}.weight"], weights[f"{name}.conv.{i}.bias"], padding=1)
        h = h.clamp(min=0) if i < 4 else h
    return (h + x).clamp(min=0)


def written_out(x: Tensor, weights: dict[str, Tensor], half: str) -> Tensor:
    """The layers of one half by their numbers in a file of AutoencoderTiny's."""

    def conv(x: Tensor, number: int, stride: int = 1) -> Tensor:
        name = f"{half}.layers.{number}"
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), stride, 1)

    blocks = {"encoder": (1, 3, 4, 5, 7, 8, 9, 11, 12, 13), "decoder": (2, 3, 4, 7, 8, 9, 12, 13, 14, 17)}[half]
    for number in range(19 if half == "decoder" else 15):
        if number in blocks:
            x = block(x, weights, f"{half}.layers.{number}")
        elif half == "decoder" and number == 1:
            x = x.clamp(min=0)
        elif half == "decoder" and number in (5, 10, 15):
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        else:
            x = conv(x, number, 2 if half == "encoder" and number in (2, 6, 10) else 1)
    return x


def test_against_the_network_written_out(tiny):
    weights = {name: x.double() for name, x in tiny.state_dict().items()}
    picture, latent = normal("picture", 2, 3, 32, 40).clamp(-1, 1), 4 * normal("latent", 2, 4, 4, 5)
    encoded = written_out(picture.double() / 2 + 0.5, weights, "encoder")
    decoded = written_out(3 * torch.tanh(latent.double() / 3), weights, "decoder") * 2 - 1
    assert encoded.shape == (2, 4, 4, 5) and relative(tiny.encode(picture), encoded) < 1e-5
    assert decoded.shape == (2, 3, 32, 40) and relative(tiny.decode(latent), decoded) < 1e-5


def test_parameters_are_as_many_as_published(tiny):
    """github.com/madebyollin/taesd, README."""
    assert sum(p.numel() for p in tiny.encoder.parameters()) == 1_222_532
    assert sum(p.numel() for p in tiny.decoder.parameters()) == 1_222_531


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn], ids=str)
def test_weights_of_any_dtype_are_read_in_float32(tiny, tmp_path, dtype):
    save_file({name: x.to(dtype) for name, x in tiny.state_dict().items()}, tmp_path / "file")
    loaded = load_taesd(tmp_path / "file")
    for name, x in loaded.state_dict().items():
        assert x.dtype == torch.float32 and torch.equal(x, tiny.state_dict()[name].to(dtype).float())
    assert not loaded.training and not [name for name, p in loaded.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("half, offset", [("encoder", 0), ("decoder", 1)])
def test_an_original_half_is_the_same_network(tiny, tmp_path, half, offset):
    tensors = {}
    for name, x in tiny.state_dict().items():
        if name.startswith(half):
            number, rest = name.removeprefix(f"{half}.layers.").split(".", 1)
            tensors[f"{int(number) + offset}.{rest}"] = x
    torch.save(tensors, tmp_path / f"taesd_{half}.pth")
    loaded = load_taesd(tmp_path / f"taesd_{half}.pth")
    x = normal("latent", 1, 4, 2, 2) if half == "decoder" else normal("picture", 1, 3, 16, 16)
    use, other = ("decode", "encode") if half == "decoder" else ("encode", "decode")
    assert torch.equal(getattr(loaded, use)(x), getattr(tiny, use)(x))
    with pytest.raises(MineditError, match=f"has no {other}r; load taesd_{other}r"):
        getattr(loaded, other)(x)


def test_what_is_none_is_refused_in_a_line(tiny, tmp_path):
    whole = tiny.state_dict()
    last = "decoder.layers.18.bias"
    files = {
        "lacking": ({name: x for name, x in whole.items() if name != last}, "lacks 1 tensor (decoder.layers.18.bias)"),
        "besides": (whole | {"decoder.layers.19.bias": torch.zeros(3)}, "shapes 1 tensor (decoder.layers.19.bias)"),
        "of sixteen": (whole | {"decoder.layers.0.weight": torch.zeros(64, 16, 3, 3)}, "shapes 1 tensor (decoder."),
        "vae": ({"first_stage_model.decoder.conv_in.bias": torch.zeros(1)}, "1 tensor (first_stage_model.decoder"),
        "nothing": ({}, "is empty"),
    }
    for name, (tensors, says) in files.items():
        save_file(tensors, tmp_path / name)
        with pytest.raises(MineditError) as error:
            load_taesd(tmp_path / name)
        text = str(error.value)
        assert f"{name} is no TAESD: it " in text and says in text and "expected a TAESD" in text and "\n" not in text
    with pytest.raises(MineditError, match="absent does not exist; expected a TAESD"):
        load_taesd(tmp_path / "absent")


def test_a_preview_shows_every_row_and_never_nan(tiny, tmp_path):
    path = tmp_path / "preview.png"
    save_preview(tiny, torch.full((1, 4, 4, 4), torch.nan), path)
    assert not path.exists()
    save_preview(tiny, normal("latent", 2, 4, 4, 4), path)
    with Image.open(path) as picture:
        assert picture.width > 2 * 32 and picture.height > 32 and picture.width < 3 * 32
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not DATA.is_dir(), reason="no TAESD weights: set MINEDIT_TAESD to a folder of them and photo.jpg")
def test_a_photo_survives_the_real_weights():
    """At 512 pixels, 28 dB or more; a VAE of Stable Diffusion v1 takes latents of about unit variance."""
    (file,) = DATA.glob("*.safetensors")
    taesd = load_taesd(file)
    with Image.open(DATA / "photo.jpg") as photo:
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        picture = to_tensor(
            photo.crop((left, top, left + side, top + side)).resize((512, 512), Image.Resampling.LANCZOS)
        )
    latent = taesd.encode(picture)
    again = taesd.decode(latent).clamp(-1, 1)
    psnr = -10 * np.log10(((again - picture) / 2).square().mean().item())
    print(f"PSNR {psnr:.2f} dB")
    assert latent.shape == (1, 4, 64, 64) and 0.5 < latent.std().item() < 2
    assert psnr >= 28
