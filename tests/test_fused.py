"""The fused kernels and layers. Oracle: torch's formulas in float64; the measure is torch's error in the same dtype.

Where there is no GPU they run in Triton's interpreter: conftest.py asks for it.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from seeded import fill, normal, relative
from small_model import TOKENS, small_model
from torch import nn

pytest.importorskip("triton")
from minedit.attention.inside import Gate  # noqa: E402
from minedit.attention.rules import Attn, Edit, Rule  # noqa: E402
from minedit.speed import fast as fast_file  # noqa: E402
from minedit.speed import fused, group_norm, layers  # noqa: E402
from minedit.speed.fast import lay_out  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def assert_as_good(ours, plain, *inputs, dtype):
    """Twice torch's error, or a few roundings: torch may be lucky. Triton's interpreter cuts bfloat16 off."""
    inputs = [x.to(DEVICE, dtype) if isinstance(x, (torch.Tensor, nn.Module)) else x for x in inputs]
    exact = [x.double() if isinstance(x, torch.Tensor) else copy.deepcopy(x) for x in inputs]
    exact = [x.double() if isinstance(x, nn.Module) else x for x in exact]
    found, reference, expected = ours(*inputs), plain(*inputs), plain(*exact)
    if isinstance(found, torch.Tensor):
        found, reference, expected = [found], [reference], [expected]
    for a, b, c in zip(found, reference, expected, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        floor = {torch.float32: 4, torch.float16: 1, torch.bfloat16: 2}[dtype] * torch.finfo(dtype).eps
        assert relative(a, c) <= max(2 * relative(b, c), floor)


def norm_of(groups, channels):
    return fill(nn.GroupNorm(groups, channels, eps=1e-6)).requires_grad_(False)


# rows, channels, groups, height, width: Stable Diffusion v1.4's widths, those of the embedded model, and odd ones
SMALL = ((2, 320, 32, 6, 5), (1, 640, 32, 4, 4), (1, 960, 32, 3, 3), (1, 1280, 32, 2, 3), (1, 1920, 32, 2, 2),
         (1, 2560, 32, 2, 2), (4, 32, 8, 5, 7), (2, 192, 16, 3, 3), (2, 12, 4, 1, 1))  # fmt: skip
LARGE = ((1, 80, 8, 9, 31), (2, 32, 8, 20, 9), (1, 60, 2, 17, 19), (1, 160, 2, 8, 33), (3, 12, 4, 7, 9))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SMALL, *LARGE], ids=str)
def test_group_norm(shape, dtype, monkeypatch):
    b, c, groups, h, w = shape
    if shape in LARGE:  # the interpreter is slow: smaller maps, in as many pieces
        monkeypatch.setattr(group_norm, "IN_REGISTERS", 0)
        monkeypatch.setattr(group_norm, "TILE", 1024)
        monkeypatch.setattr(group_norm, "LARGE", 200)
        monkeypatch.setattr(group_norm, "CHUNKS", 4)
        monkeypatch.setattr(group_norm, "MANY", 8)
    x = normal(f"{shape}", b, c, h, w) * 2 + 3  # far from 0: squares of x would lose digits
    for silu, shift in ((True, normal("shift", b, 2 * c)[:, c:]), (False, None)):
        assert_as_good(
            group_norm.group_norm, group_norm.plain_group_norm, x, norm_of(groups, c), silu, shift, dtype=dtype
        )


def test_group_norm_takes_what_lies_anyhow_and_gives_channels_last(monkeypatch):
    norm, whole = norm_of(4, 16).to(DEVICE), normal("whole", 2, 32, 12, 10).to(DEVICE)
    shift = normal("one", 1, 16).to(DEVICE)
    for limit in (group_norm.IN_REGISTERS, 0):
        monkeypatch.setattr(group_norm, "IN_REGISTERS", limit)
        for x in (
            whole[:, 8:24, 2:9, ::2],
            whole[:, :16].transpose(2, 3),
            whole.to(memory_format=torch.channels_last)[:, :16],
        ):
            ours, plain = group_norm.group_norm(x, norm, True, shift), group_norm.plain_group_norm(x, norm, True, shift)
            assert relative(ours, plain) < 1e-6 and ours.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(ours, group_norm.group_norm(x, norm, True, shift))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add(dtype):
    for b, c, h, w in ((2, 320, 3, 5), (1, 12, 7, 3), (3, 96, 2, 2)):
        x, y = normal("x", b, c, h, w), normal("y", b, c, w, h).transpose(2, 3)
        assert_as_good(fused.add, fused.plain_add, x, y, normal("bias", c), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_layer_norm(dtype):
    for b, n, c in ((2, 9, 320), (1, 3, 1280), (4, 1025, 4) if dtype == torch.float16 else (4, 5, 16)):
        x, h, norm = normal("x", b, n, c) + 3, normal("h", b, n, 2 * c)[..., :c], fill(nn.LayerNorm(c))
        norm.requires_grad_(False)
        assert_as_good(fused.add_layer_norm, fused.plain_add_layer_norm, x, h, norm, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_geglu(dtype):
    for b, n, c in ((2, 9, 1280), (1, 17, 300), (3, 5, 16)):
        x = normal("x", b, 2 * c, n).transpose(1, 2) * 3
        assert_as_good(fused.geglu, fused.plain_geglu, x, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n,c,centre", [(70, 320, True), (33, 12, True), (5, 64, False), (1, 16, False)])
def test_gate(n, c, centre, dtype):
    hidden, key = (normal("h", n, c) + 2).to(DEVICE, dtype), normal("key", c).to(DEVICE)
    made = Gate(key / key.norm(), 0.95, 1.3, centre)
    x = hidden.double()
    x = x - x.mean(0) if centre else x
    expected = 0.95 * (1.3 * x @ made.key.to(dtype).double() / x.norm(dim=1)).clamp(0, 1)
    found = fused.gate(made, hidden)
    assert found.dtype == torch.float32 and relative(found, expected) <= 4e-6
    assert expected.gt(0).any()


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """By torch's default a GPU rounds what float32 convolutions read to 10 bits, and each algorithm does otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def sd():
    return small_model(device=DEVICE)


def fused_copy(module, parts=layers.PARTS):
    module = copy.deepcopy(module)
    lay_out(module)
    layers.fuse(module, parts)
    return module


def maps(unet, x, t, context):
    """What the way down and the middle hand to the way up: what a ControlNet adds to."""
    found = []
    blocks = [*unet.input_blocks, unet.middle_block]
    handles = [block.register_forward_hook(lambda _, inputs, out: found.append(out)) for block in blocks]
    unet(x, t, context)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("parts", [*([part] for part in layers.PARTS), layers.PARTS], ids=str)
def test_a_fused_unet_is_the_same_but_for_rounding(sd, parts):
    unet = fused_copy(sd.unet, parts)
    x, t, context = (
        each.to(DEVICE) for each in (normal("x", 2, 4, 4, 4), torch.tensor([500, 20]), normal("c", 2, TOKENS, 16))
    )
    cross = [site for site in sd.unet.sites if site.kind == "cross"]
    watch = {site.name: True for site in cross}
    gate = Gate(torch.nn.functional.normalize(normal("key", cross[0].channels), dim=0).to(DEVICE), 0.9, 1.5, True)
    some = torch.linspace(0, 1, TOKENS, device=DEVICE)
    edited = Rule(edits=(Edit(1, 0, None, some * 0, some, 1 - some, gate),))
    rules = {"output_blocks.1.0": Rule(v_rows=(0, 0)), cross[0].name: edited}
    with torch.inference_mode():
        ours, plain = (Attn(rules=rules, watch=watch, seen={}) for _ in range(2))
        assert relative(unet(x, t, context, ours), sd.unet(x, t, context, plain)) < 1e-5
        if parts == layers.PARTS:  # what a ControlNet adds
            more = [normal(str(i), *found.shape).to(DEVICE) for i, found in enumerate(maps(sd.unet, x, t, context))]
            steered = [each(x, t, context, None, more) for each in (unet, sd.unet)]
            assert relative(*steered) < 1e-5 < relative(steered[1], sd.unet(x, t, context))
    for name, seen in plain.seen.items():
        assert relative(ours.seen[name].hidden, seen.hidden) < 1e-5
        assert relative(ours.seen[name].columns, seen.columns) < 1e-5
    state = unet.state_dict()
    assert state.keys() == sd.unet.state_dict().keys()
    assert all(torch.equal(state[name], each) for name, each in sd.unet.state_dict().items())


def test_a_fused_autoencoder_is_the_same_but_for_rounding_and_can_be_copied(sd):
    """Pictures are decoded again by a copy in float32 where half precision overflows."""
    vae, z = fused_copy(sd.vae), normal("z", 1, 4, 2, 3).to(DEVICE)
    again = copy.deepcopy(vae)
    for p in vae.parameters():
        p.data.zero_()
    picture = sd.vae.decode(z)
    assert relative(again.decode(z), picture) < 1e-5
    assert relative(again.encode(picture), sd.vae.encode(picture)) < 1e-5


def test_without_triton_the_layers_stay_torchs(monkeypatch):
    assert fast_file.fusing(torch.device(DEVICE)) is layers.fuse
    monkeypatch.setattr(layers, "geglu", None)
    assert fast_file.fusing(torch.device(DEVICE)) is None
    monkeypatch.setitem(sys.modules, "minedit.speed.layers", None)
    monkeypatch.delattr("minedit.speed.layers")
    assert fast_file.fusing(torch.device(DEVICE)) is None


def test_they_compile_without_spilling(tmp_path):
    """For GPUs that need not be here; `make kernels` has those of float32 too, which take as long again."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    verb = [sys.executable, "-m", "minedit", "kernels", "compiled", "fused", "--out", tmp_path]
    done = subprocess.run([*verb, "--dtype", "float16"], env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("sm_")]
    assert len(rows) > 15 and {row[-1] for row in rows} == {"0"}


def test_a_kernel_that_gives_other_numbers_is_not_used(monkeypatch):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert layers.runs(device)
    monkeypatch.setattr(layers, "geglu", lambda x: layers.plain_geglu(x) * 1.01)
    assert not layers.runs(device)
