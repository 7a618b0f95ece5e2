"""What a CPU is good at, and what `--fast` makes of it. Oracles: the flags of known processors; torch's convolution."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from seeded import normal, relative
from small_model import small_model
from torch import nn

import minedit
from minedit import cli, image
from minedit.files import checkpoint
from minedit.picturebook.training.fit import Training
from minedit.sampling.coded import pictures
from minedit.speed import cpu, packed
from minedit.speed.cpu import CPU, instructions, judged
from minedit.speed.fast import fast, pack, said
from minedit.speed.packed import Packed
from minedit.speed.winograd import Winograd

BOY, SITTING = "a boy in the park", "a sitting boy in the park"
# some of the flags that Linux shows for these
HASWELL = "fpu sse4_2 fma avx avx2 bmi2"
COOPER_LAKE = "fpu fma avx2 avx512f avx512_vnni avx512_bf16"
SAPPHIRE_RAPIDS = "fpu fma avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8"
GRAVITON2, GRAVITON3 = "fp asimd atomics fphp asimddp", "fp asimd asimddp sve asimdfhm i8mm bf16 svebf16"
OLD, HALF, TILES = CPU(), CPU("avx512_bf16"), CPU("AMX", tiles=True)
RUNS = all(map(packed.runs, (torch.float32, torch.bfloat16)))
packs = pytest.mark.skipif(not RUNS, reason="this torch lays out no filters")


def never() -> float:
    raise AssertionError("asked for a measurement where instructions tell")


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [
        *((HASWELL, "x86_64", OLD), (COOPER_LAKE, "x86_64", HALF), (SAPPHIRE_RAPIDS, "AMD64", TILES)),
        *(("", "x86_64", OLD), (GRAVITON2, "aarch64", OLD)),
    ],
)
def test_instructions_tell(flags, machine, expected):
    assert judged(flags.split(), machine, True, never) == expected


@pytest.mark.parametrize("flags", [GRAVITON3, ""])
@pytest.mark.parametrize(("ratio", "faster"), [(2.6, True), (1.1, False), (0.02, False)])
def test_where_they_do_not_a_convolution_does(flags, ratio, faster):
    found = judged(flags.split(), "arm64", True, lambda: ratio)
    assert bool(found.bfloat16) == faster and not found.tiles
    assert not faster or "2.6 times as fast as float32, measured" in found.bfloat16


def test_without_onednn_nothing_uses_the_instructions_of_x86():
    assert judged(SAPPHIRE_RAPIDS.split(), "x86_64", False, never) == OLD


@pytest.mark.parametrize("label", ["flags\t\t", "Features\t"])
def test_names_by_linux(tmp_path, label):
    file = tmp_path / "cpuinfo"
    file.write_text(
        f"processor\t: 0\nmodel name\t: flags: none\n{label}: fma bf16\n\nprocessor\t: 1\n{label}: fma bf16\n"
    )
    assert instructions(file, SimpleNamespace()) == {"fma", "bf16"}


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (SimpleNamespace(), set()),
        (SimpleNamespace(_is_avx512_bf16_supported=lambda: True, _is_amx_tile_supported=bool), {"avx512_bf16"}),
        (SimpleNamespace(_is_avx512_bf16_supported=bool, _is_amx_tile_supported=lambda: True), {"amx_bf16"}),
        (
            SimpleNamespace(get_capabilities=lambda: {"amx_bf16": False, "avx512_bf16": True, "l2_cache_size": 1}),
            {"avx512_bf16"},
        ),
    ],
    ids=["no queries", "older", "older, with tiles", "get_capabilities"],
)
def test_names_by_torch_of_any_version(tmp_path, asked, names):
    assert instructions(tmp_path / "none", asked) == names


def test_this_cpu():
    assert 0 < cpu.measured() < 100
    assert cpu.this() is cpu.this()  # found once


# --- fast ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    checkpoint.save(small_model(), path)
    return path


@pytest.mark.parametrize(
    ("here", "dtype", "way", "words"),
    [
        (OLD, "float32", Winograd, "made for speed: float32, fewer products in 3×3 convolutions"),
        (HALF, "float32", Winograd, "3×3 convolutions; --dtype bfloat16 is faster here (avx512_bf16)"),
        pytest.param(
            *(TILES, "float32", Packed, "float32, filters laid out once; --dtype bfloat16 is faster here (AMX)"),
            marks=packs,
        ),
        (OLD, "bfloat16", None, "--fast knows nothing for bfloat16 on this CPU; --dtype float32 is faster here"),
        pytest.param(HALF, "bfloat16", Packed, "made for speed: bfloat16, filters laid out once", marks=packs),
        pytest.param(TILES, "bfloat16", Packed, "made for speed: bfloat16, filters laid out once", marks=packs),
        (TILES, "float16", None, "--fast knows nothing for float16 on this CPU"),
    ],
)
def test_the_command_says_what_it_chose(here, dtype, way, words, weights, tmp_path, monkeypatch, capsys):
    """And changes no dtype: neither the one given nor, in its absence, the one that is always the default."""
    monkeypatch.setattr(cpu, "this", lambda: here)
    monkeypatch.setattr("minedit.speed.winograd.NARROW", 8)
    heard, load = [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda *args: heard.append(load(*args)) or heard[-1])
    given = [] if dtype == "float32" else ["--dtype", dtype]
    command = ["generate", BOY, "--steps", "1", "--model", str(weights), "--out", str(tmp_path), "--fast", *given]
    assert cli.main(command) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  device"))
    assert f"dtype {dtype}," in line and f"{words}, threads" in line
    (sd,) = heard
    assert {p.dtype for p in sd.unet.parameters()} == {getattr(torch, dtype)} and sd.fast == (way is not None)
    ways = {type(m.forward) for m in sd.unet.modules() if isinstance(m, nn.Conv2d)} & {Winograd, Packed}
    assert ways == ({way} if way else set())
    stored = image.settings(tmp_path / "0001-image.png")
    assert stored["dtype"] == dtype and stored["fast"] is True
    assert cli.main(["generate", "--from", str(tmp_path / "0001-image.png"), "--out", str(tmp_path)]) == 0
    first, again = (json.loads((tmp_path / f"000{n}-generate.json").read_text()) for n in (1, 2))
    assert again["dtype"] == dtype and again["fast"] and first["seed"] == again["seed"]
    same = [(tmp_path / f"000{n}-image.png").read_bytes() for n in (1, 2)]
    assert same[0] == same[1]


def test_a_gpu_is_not_asked_what_the_cpu_is_good_at():
    sd = small_model()
    assert said(replace(sd, device=torch.device("cuda"))) == "made for speed"
    unet = copy.copy(sd.unet)
    unet.unfused = True
    assert said(replace(sd, device=torch.device("cuda"), unet=unet)).endswith("as Triton does not run here")


# --- filters laid out once -------------------------------------------------------------------------------------------


@packs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", [(3, 1, 1), (3, 2, 1), (1, 1, 0), (3, 2, 0)])
def test_it_is_the_convolution(dtype, geometry):
    kernel, stride, padding = geometry
    layer = nn.Conv2d(12, 20, kernel, stride, padding).to(dtype).requires_grad_(False)
    with torch.no_grad():
        layer.weight.copy_(normal("weight", *layer.weight.shape))
        ours = Packed(layer)
        for size in ((2, 12, 9, 13), (1, 12, 16, 16)):  # the second finds the filters laid out for the first
            x = normal("x", *size).to(dtype)
            exact = copy.deepcopy(layer).double()(x.double())
            for laid in (x, x.contiguous(memory_format=torch.channels_last)):
                assert relative(ours(laid), exact) <= 2 * relative(layer(x), exact) + torch.finfo(dtype).eps / 4
        assert ours.filters is not None


def test_gradients_are_the_layers_own():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    x = normal("x", 1, 4, 8, 8)
    assert torch.equal(Packed(layer)(x), layer(x))
    Packed(layer)(x).sum().backward()
    assert layer.weight.grad is not None


@packs
def test_an_overflowing_decoder_still_decodes_again_in_float32():
    """With filters laid out in bfloat16, which a copy in float32 must not use."""
    parts = {part: copy.deepcopy(getattr(small_model(), part)).bfloat16() for part in ("unet", "vae", "text")}
    sd = replace(small_model(), **parts, dtype=torch.bfloat16)
    z = normal("z", 1, 4, 4, 4)
    plain = copy.deepcopy(sd.vae).float()
    for part in (sd.unet, sd.vae):
        pack(part)
    with torch.inference_mode():
        assert pictures(sd, z)[1] == ()
        sd.vae.decoder.conv_out.register_forward_hook(
            lambda _module, _inputs, out: out * torch.inf if out.dtype == torch.bfloat16 else out
        )
        found, notes = pictures(sd, z)
        assert "decoded again in float32" in notes[0]
        assert found[0].tobytes() == image.to_pil(plain.decode(z))[0].tobytes()


@packs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_edit_is_the_same_but_for_rounding(dtype, monkeypatch):
    monkeypatch.setattr(cpu, "this", lambda: TILES)
    sd, model = small_model(dtype=dtype), fast(small_model(dtype=dtype))
    assert fast(model) is model and isinstance(model.unet.out[2].forward, Packed)
    assert all(torch.equal(x, model.unet.state_dict()[name]) for name, x in sd.unet.state_dict().items())
    ours, plain = (minedit.edit(each, BOY, SITTING, steps=3, guidance=3.0).edited_latent for each in (model, sd))
    exact = minedit.edit(small_model(), BOY, SITTING, steps=3, guidance=3.0).edited_latent
    assert relative(ours, exact) <= 2 * relative(plain, exact) + 1e-5


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("here", "dtype"), [(OLD, torch.float32), (HALF, torch.bfloat16), (TILES, torch.bfloat16)])
def test_training_computes_in_what_is_faster_and_says_so(here, dtype, monkeypatch):
    monkeypatch.setattr(cpu, "this", lambda: here)
    run = Training(Path("nowhere"), 1)
    with run.bfloat16():
        assert nn.Linear(4, 4)(torch.ones(1, 4)).dtype == dtype
    assert run.told().startswith("cpu, " + str(dtype).removeprefix("torch."))
    assert Training(Path("nowhere"), 1, "cuda").told() == "cuda, bfloat16"
