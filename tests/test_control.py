"""ControlNet in runs. Oracles: diffusers' classes (tests/parity/test_control.py), the plain UNet, one row at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import save_file
from seeded import fill, normal, weight
from small_model import TOKENS, small_model
from test_graphs import repeated

import minedit
from minedit import cli, image, photo
from minedit.config import SD14, MineditError
from minedit.files import checkpoint
from minedit.files.control import load_control
from minedit.image import to_pil
from minedit.inversion.embedding import Forgetful, forgetful
from minedit.sampling import memory
from minedit.speed import fast
from minedit.speed.graphs import Recorded
from minedit.stack.control import Controlled, ControlNet
from minedit.stack.unet import UNet

PAIR = "a boy in the park", "a sitting boy in the park"
RUN = {"steps": 4, "guidance": 3.0}
BACK = {"direct", "edict", "edit-friendly"}  # the source is put back on its course, or comes back by itself


@pytest.fixture(scope="module")
def sd():
    return small_model()


@pytest.fixture(scope="module")
def file(sd, tmp_path_factory):
    path = tmp_path_factory.mktemp("control") / "control_edges.safetensors"
    save_file({f"control_model.{name}": x for name, x in state(sd).items()}, path)
    return path


@pytest.fixture(scope="module")
def control(sd, file):
    return load_control(file, sd)


@pytest.fixture(scope="module")
def hint():
    return to_pil(normal("hint", 1, 3, 64, 64))[0]


def state(sd):
    return {name: weight(name, *x.shape) for name, x in ControlNet(sd.config.unet).state_dict().items()}


def same(a, b):
    return torch.equal(a.latents, b.latents)


def test_the_names_and_shapes_are_those_of_the_released_files():
    """Oracle: the tensors and numbers of diffusers' ControlNetModel in Stable Diffusion v1's size, counted."""
    with torch.device("meta"):
        found = {name: tuple(x.shape) for name, x in ControlNet(SD14.unet).state_dict().items()}
    assert found["input_hint_block.0.weight"] == (16, 3, 3, 3) and found["input_hint_block.14.bias"] == (320,)
    assert found["zero_convs.11.0.weight"] == (1280, 1280, 1, 1) and found["middle_block_out.0.bias"] == (1280,)
    assert "zero_convs.12.0.weight" not in found and len(found) == 340
    assert sum(torch.Size(shape).numel() for shape in found.values()) == 361_279_120


def test_a_new_one_and_a_scale_of_nothing_change_nothing(sd, control, hint):
    plain = minedit.generate(sd, PAIR[0], **RUN)
    fresh = ControlNet(sd.config.unet).eval().requires_grad_(False)
    assert same(minedit.generate(sd, PAIR[0], control=fresh, hint=hint, **RUN), plain)
    assert same(minedit.generate(sd, PAIR[0], control=control, hint=hint, control_scale=0, **RUN), plain)
    steered = minedit.generate(sd, PAIR[0], control=control, hint=hint, **RUN)
    assert (steered.latents - plain.latents).abs().mean() > 0.1
    black = Image.new("RGB", hint.size)
    assert not same(minedit.generate(sd, PAIR[0], control=control, hint=black, **RUN), steered)


@torch.no_grad()
def test_residuals_are_added_where_the_way_up_reads(sd, control):
    """Of the middle, and of the last map of the way down, each alone: against hooks on the plain UNet's blocks."""
    x, t, context = normal("x", 2, 4, 8, 8), torch.tensor([500, 20]), normal("context", 2, TOKENS, 16)
    found = control(x, t, context, normal("hint", 1, 3, 64, 64).sigmoid())
    zero = [torch.zeros_like(each) for each in found]
    assert len(found) == len(sd.unet.input_blocks) + 1
    assert torch.equal(sd.unet(x, t, context, None, zero), sd.unet(x, t, context))
    unet = copy.deepcopy(sd.unet)
    handle = unet.middle_block.register_forward_hook(lambda _, inputs, out: out + found[-1])
    assert torch.equal(unet(x, t, context), sd.unet(x, t, context, None, [*zero[:-1], found[-1]]))
    handle.remove()
    width = found[-2].shape[1]

    def more(_, inputs):
        joined, *rest = inputs
        return torch.cat([joined[:, :-width], joined[:, -width:] + found[-2]], dim=1), *rest

    unet.output_blocks[0].register_forward_pre_hook(more)
    assert torch.equal(unet(x, t, context), sd.unet(x, t, context, None, [*zero[:-2], found[-2], zero[-1]]))
    with pytest.raises(ValueError):
        sd.unet(x, t, context, None, found[:-1])


def test_every_row_is_steered_alike(sd, control, hint):
    """A picture does not depend on its neighbours, and the source of an edit is the picture of its prompt."""
    more = {"control": control, "hint": hint, **RUN}
    alone = [minedit.generate(sd, prompt, seed=seed, **more).latents for prompt, seed in zip(PAIR, (3, 4), strict=True)]
    together = minedit.generate(sd, PAIR, seed=[3, 4], **more).latents
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    for method in ("p2p", "adapedit", "fixed-seed"):
        res = minedit.edit(sd, *PAIR, method, seed=3, **more)
        assert torch.allclose(res.source_latent, alone[0], atol=1e-4), method
        assert not torch.allclose(res.edited_latent, res.source_latent, atol=1e-2)
    assert res.settings["control"].endswith("control_edges.safetensors") and res.settings["control_scale"] == 1.0
    assert len(res.settings["control_weights"]) == 12 and res.settings["hint_pixels"] == photo.digest(hint.tobytes())
    assert "control" not in minedit.edit(sd, *PAIR, "fixed-seed", **RUN).settings
    other = load_control(rewritten(sd, control.file), sd)
    assert other.weights != control.weights


def rewritten(sd, file):
    path = f"{file}.other"
    save_file({name: x + 1 for name, x in state(sd).items()}, path)
    return path


@pytest.mark.parametrize("inversion", list(minedit.INVERSIONS))
def test_a_photograph_is_inverted_as_it_is_drawn(sd, control, hint, inversion):
    """Under control the source comes back to the photograph; the hint takes the run's size."""
    given, wide = to_pil(normal("photo", 1, 3, 64, 64) / 3)[0], hint.resize((200, 90))
    run = {"image": given, "inversion": inversion, "steps": 4, "guidance": 1.0}
    run |= {"inner_steps": 2} if inversion == "null-text" else {}
    res = minedit.edit(sd, *PAIR, "p2p", control=control, hint=wide, **run)
    assert res.edited.size == (64, 64)
    plain = minedit.edit(sd, *PAIR, "p2p", **run)
    assert torch.allclose(res.source_latent, plain.source_latent, atol=1e-3) is (inversion in BACK)
    assert not torch.allclose(res.edited_latent, plain.edited_latent, atol=1e-2)


@pytest.mark.parametrize("method", [name for name in minedit.METHODS if name != "instruct-pix2pix"])
def test_every_method_is_steered(sd, control, hint, method):
    res = minedit.edit(sd, *PAIR, method, control=control, hint=hint, **RUN)
    plain = minedit.edit(sd, *PAIR, method, **RUN)
    assert not torch.allclose(res.source_latent, plain.source_latent, atol=1e-2)
    assert not torch.allclose(res.edited_latent, plain.edited_latent, atol=1e-2)


@torch.enable_grad()
def test_a_forgetful_twin_is_steered_alike_and_has_the_same_gradients(sd, control):
    x, t, text = normal("x", 1, 4, 8, 8), torch.tensor([500]), normal("context", 1, TOKENS, 16).requires_grad_()
    unet = Controlled(sd.unet, control, normal("hint", 1, 3, 64, 64).sigmoid(), 1.0)
    twin = forgetful(unet)
    kept = [sum(isinstance(m, Forgetful) for m in part.modules()) for part in (twin.unet, twin.control, unet)]
    assert kept == [len(sd.unet.input_blocks) + len(sd.unet.output_blocks) + 1, len(sd.unet.input_blocks) + 1, 0]
    ours, plain = (torch.autograd.grad(each(x, t, text).square().sum(), text)[0] for each in (twin, unet))
    assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-7 * plain.abs().max().item())


def test_the_hint_gives_pictures_its_shape(sd, control, hint):
    wide = hint.resize((256, 128))
    assert minedit.generate(sd, PAIR[0], control=control, hint=wide, **RUN).images[0].size == (96, 48)
    with_size = minedit.generate(sd, PAIR[0], control=control, hint=wide, height=64, width=64, **RUN)
    fitted = minedit.generate(sd, PAIR[0], control=control, hint=photo.fitted(wide, 64, 64), **RUN)
    assert same(with_size, fitted)


def test_a_recorded_unet_is_steered_too(sd, control, hint):
    unet = copy.deepcopy(sd.unet)
    unet.forward = Recorded(unet.forward, repeated)
    replayed = replace(sd, unet=unet)
    for seed, scale in ((0, 1.0), (1, 0.5)):
        more = {"control": control, "hint": hint, "control_scale": scale, "seed": seed, **RUN}
        ours, plain = (minedit.edit(model, *PAIR, "p2p", **more) for model in (replayed, sd))
        assert torch.equal(ours.edited_latent, plain.edited_latent)
    assert same(*(minedit.generate(model, PAIR[0], **RUN) for model in (replayed, sd)))  # and without, afterwards


def test_a_fast_model_is_steered_too(sd, file, hint):
    quick = fast.fast(small_model())
    control = load_control(file, quick)
    ours, plain = (
        minedit.generate(model, PAIR[0], control=guide, hint=hint, **RUN).latents
        for model, guide in ((quick, control), (sd, load_control(file, sd)))
    )
    assert (ours - plain).abs().max() < 1e-3 * plain.abs().max()


def test_files_are_read_with_and_without_a_prefix(sd, control, file, tmp_path):
    own = state(sd)
    whole = {f"control_model.{name}": x for name, x in own.items()}
    whole |= {"model.diffusion_model.out.2.bias": torch.zeros(4), "betas": torch.zeros(9)}
    whole |= {"cond_stage_model.transformer.x": torch.zeros(1), "first_stage_model.y": torch.zeros(1)}
    for name, tensors in (("bare", own), ("whole", whole)):
        save_file(tensors, tmp_path / name)
        read = load_control(tmp_path / name, sd)
        assert all(torch.equal(x, own[at]) for at, x in read.state_dict().items()) and not read.training
        assert read.weights == control.weights
    half = load_control(file, replace(sd, dtype=torch.bfloat16))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in half.parameters())


def test_what_is_none_is_refused_in_a_line(sd, tmp_path):
    own = state(sd)
    last = "middle_block_out.0.bias"
    files = {
        "lacking": ({name: x for name, x in own.items() if name != last}, f"it lacks 1 tensor ({last})"),
        "besides": (own | {"label_emb.0.0.weight": torch.zeros(1)}, "it has besides 1 tensor (label_emb.0.0.weight)"),
        "other": (own | {last: torch.zeros(3)}, f"it differs in the shape of 1 tensor ({last} [3] float32 for [32])"),
        "lora": (
            {f"control_model.{n}": x for n, x in own.items()} | {"lora_controlnet": torch.zeros(1)},
            "(lora_controlnet)",
        ),
        "unet": ({"model.diffusion_model.out.2.bias": torch.zeros(4)}, "holds no ControlNet: it has 1 tensor"),
        "nothing": ({}, "holds no ControlNet: it has 0 tensors"),
    }
    for name, (tensors, says) in files.items():
        save_file(tensors, tmp_path / name)
        with pytest.raises(MineditError) as error:
            load_control(tmp_path / name, sd)
        text = str(error.value)
        assert says in text and "expected a ControlNet of Stable Diffusion v1" in text and "\n" not in text
    with pytest.raises(MineditError, match="absent does not exist; expected a ControlNet"):
        load_control(tmp_path / "absent", sd)
    eight = replace(sd, config=replace(sd.config, unet=replace(sd.config.unet, in_channels=8)))
    with pytest.raises(MineditError, match="reads 8 channels at 1/8 .*steers a model that reads 4"):
        load_control(tmp_path / "nothing", eight)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"control": None}, "control is missing, expected what minedit.load_control returns"),
        ({"control": "edges.safetensors"}, "control is 'edges.safetensors', expected what minedit.load_control"),
        ({"hint": None}, "hint is missing, expected a PIL picture"),
        ({"hint": "edges.png"}, "hint is 'edges.png', expected a PIL picture"),
        ({"control_scale": -1}, "control_scale is -1, expected a number of 0 or more"),
        ({"control_scale": float("nan")}, "control_scale is nan, expected a number of 0 or more"),
        ({"control_scale": True}, "control_scale is True, expected a number of 0 or more"),
        ({"height": 60}, "height is 60, expected a multiple of 8"),
    ],
)
def test_mistakes_are_said_in_a_line(sd, control, hint, wrong, says):
    given = {"control": control, "hint": hint, **RUN, **wrong}
    for call in (lambda: minedit.generate(sd, PAIR[0], **given), lambda: minedit.edit(sd, *PAIR, "p2p", **given)):
        with pytest.raises(MineditError) as error:
            call()
        assert says in str(error.value) and "\n" not in str(error.value)


def test_one_of_another_model_is_refused(sd, file, hint):
    wide = replace(sd.config.unet, channels=(16, 48))
    for control, says in (
        (ControlNet(wide), "control was loaded for another model than small"),
        (load_control(file, replace(sd, dtype=torch.bfloat16)), "control is of torch.bfloat16 on cpu, the model of"),
    ):
        with pytest.raises(MineditError, match=says):
            minedit.generate(sd, PAIR[0], control=control, hint=hint, **RUN)
    steered = Controlled(fill(UNet(wide)), fill(ControlNet(wide)), torch.zeros(1, 3, 64, 64), 1.0)
    with pytest.raises(MineditError, match="the hint is of 64 x 64 pixels, expected those of the picture, 64 x 72"):
        steered(torch.zeros(1, 4, 8, 9), torch.tensor([1]), torch.zeros(1, TOKENS, 16))


@pytest.mark.parametrize("verb, name", [(("generate", PAIR[0]), "image"), (("edit", *PAIR), "edited")])
def test_a_picture_says_what_steered_it_and_is_made_again(sd, file, hint, tmp_path, monkeypatch, capsys, verb, name):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(sd, "small.safetensors")
    hint.resize((128, 96)).save("edges.png")

    def run(*argv: object) -> int:
        return cli.main([str(word) for word in argv])

    few = ("--model", "small.safetensors", "--steps", 3)
    steer = ("--control", file, "--hint", "edges.png", "--control-scale", 0.5)
    assert run(*verb, *few, *steer) == 0 and "steered by" in capsys.readouterr().out
    made = image.settings(f"out/0001-{name}.png")
    assert (made["control"], made["hint"], made["control_scale"]) == (str(file), str(tmp_path / "edges.png"), 0.5)
    with Image.open(f"out/0001-{name}.png") as picture:
        assert picture.size == (80, 48)  # the hint's shape, the trained area
        call = {"hint": photo.read("edges.png"), "control": load_control(file, sd), "control_scale": 0.5, "steps": 3}
        ours = (
            minedit.edit(sd, *PAIR, **call).edited if len(verb) > 2 else minedit.generate(sd, PAIR[0], **call).images[0]
        )
        assert not ImageChops.difference(picture, ours).getbbox()
    assert run(verb[0], "--from", f"out/0001-{name}.png", "--out", "again") == 0
    assert image.settings(f"again/0001-{name}.png") == made and "expect another" not in capsys.readouterr().out
    assert Path(f"again/0001-{name}.png").read_bytes() == Path(f"out/0001-{name}.png").read_bytes()
    hint.save("edges.png")
    assert run(verb[0], "--from", f"out/0001-{name}.png", "--out", "other") == 0
    assert "was made by another hint" in capsys.readouterr().out
    for wrong, says in (
        ()
        if len(verb) > 2
        else (
            (steer[:2], "--control without --hint PICTURE"),
            (steer[2:4], "--hint without --control FILE"),
            (steer[4:], "--control-scale is 0.5 of no ControlNet"),
            (("--control", file, "--hint", "none.png"), "none.png"),
            (("--control", "small.safetensors", "--hint", "edges.png"), "small.safetensors holds no ControlNet"),
        )
    ):
        assert run(*verb, *few, *wrong) == 2
        assert says in (said := capsys.readouterr().err) and said.count("\n") == 1


@torch.no_grad()
def test_a_latent_consistency_model_is_steered_by_the_time_alone(sd, control):
    """Its ControlNet is told no guidance scale: what it adds is that of another model's at the same time."""
    unet = fill(UNet(replace(sd.config.unet, guidance_dim=8)))
    x, t, context = normal("x", 1, 4, 8, 8), torch.tensor([[500.0, 8.0]]), normal("context", 1, TOKENS, 16)
    seen = normal("hint", 1, 3, 64, 64).sigmoid()
    steered = Controlled(unet, control, seen, 1.0)(x, t, context)
    assert torch.equal(steered, unet(x, t, context, None, control(x, t[:, 0], context, seen)))
    assert not torch.allclose(steered, unet(x, t, context), atol=1e-2)


def test_a_steered_picture_asks_for_more_memory(sd, control):
    steered = replace(sd, unet=Controlled(sd.unet, control, torch.zeros(1, 3, 64, 64), 1.0))
    with torch.no_grad():
        maps = control(
            torch.zeros(2, 4, 8, 8), torch.tensor([1, 1]), torch.zeros(2, TOKENS, 16), torch.zeros(1, 3, 64, 64)
        )
    assert memory.of_unet(steered, 1, 64, 64) - memory.of_unet(sd, 1, 64, 64) >= 4 * sum(map(torch.numel, maps))


def test_a_steered_unet_is_recorded(sd, control, hint):
    """Every name but the ControlNet's own layers, and no bit changes; its word maps are those of the steered run."""
    steer = {"control": control, "hint": hint, "steps": 2}
    before = minedit.edit(sd, *PAIR, "p2p", **steer)
    with minedit.recorded(sd, "*") as tape:
        after = minedit.edit(sd, *PAIR, "p2p", **steer)
    assert torch.equal(before.edited_latent, after.edited_latent)
    assert all(tape[name].tensor.isfinite().all() for name in tape)
    with minedit.recorded(sd, "*.attn2.columns", words=["boy"], rows="target.cond") as tape:
        minedit.edit(sd, *PAIR, "p2p", **steer)
    ours, theirs = minedit.word_maps(before, "boy").map(picture="target"), minedit.word_maps(tape).map()
    plain = minedit.word_maps(minedit.edit(sd, *PAIR, "p2p", steps=2), "boy").map(picture="target")
    assert torch.allclose(ours, theirs, atol=1e-7) and not torch.allclose(ours, plain, atol=1e-4)
