"""Training of the embedded model, on networks of a few hundred weights.

Oracles: an uninterrupted run, transformers' own CLIP, the arithmetic written out.
"""

import random
import re
from pathlib import Path

import pytest
import torch
import torch.distributed.run
from seeded import fill, normal
from torch import nn

from minedit.attention.sdpa import sdpa
from minedit.cli import train as train_command
from minedit.config import PICTUREBOOK, Config, MineditError, TextConfig, UNetConfig, VAEConfig
from minedit.files.checkpoint import load, tokenizer
from minedit.picturebook.training import train, train_text, train_unet, train_vae
from minedit.picturebook.training.fit import Training
from minedit.picturebook.training.grounding import INSIDE, OUTSIDE, Grounding
from minedit.picturebook.training.train_judge import Coded, train_judge
from minedit.picturebook.training.train_text import Ids, clip_model
from minedit.picturebook.training.train_vae import psnr, reconstruct, standardise
from minedit.picturebook.world.captions import WORDS
from minedit.picturebook.world.dataset import Drawings, drawings
from minedit.picturebook.world.factors import Factors
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

ROOT = Path(__file__).parent.parent
VAE_CONFIG = VAEConfig(channels=(8, 16, 16, 24), blocks=1, norm_groups=8)
TEXT = PICTUREBOOK.text
SMALL = Config(
    "small",
    UNetConfig(channels=(16, 32), blocks=1, attention=(True, True), heads=2, context_dim=16, norm_groups=8),
    VAE_CONFIG,
    TextConfig(TEXT.vocab_size, 16, 1, 2, 32, TEXT.context_length, TEXT.bos, TEXT.eos),
    image_size=32,
)
FIGURE, APPLES = Factors("boy", "park", "red", pose="standing"), Factors("apple", "table", "red", count=2)


class Pictures(list):
    """What training asks of `Drawings`: a picture [3,H,W] each, their factors and seeds."""

    name, factors, seeds = "pictures", [FIGURE, APPLES] * 12, range(24)

    def tensor(self, picked):
        return torch.stack([self[i] for i in picked])


@pytest.fixture(scope="module")
def pictures():
    return drawings(random.Random(0), 24, 64)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return Drawings(tmp_path_factory.mktemp("data"), 24, 32, 0)


def test_drawings_draw_one_stream_at_a_time(pictures):
    assert pictures.shape == (24, 3, 64, 64) and -1 <= pictures.min() < -0.5 < 0.5 < pictures.max() <= 1
    assert torch.equal(pictures[:3], drawings(random.Random(0), 3, 64))


def test_standardise_keeps_reconstructions_and_fits_the_latents_to_the_unet(pictures):
    vae = fill(VAE(VAE_CONFIG))
    mean, logvar = vae.encode(pictures).chunk(2, dim=1)
    before = reconstruct(vae, pictures)
    standardise(vae, pictures, scale=0.18215)
    assert (reconstruct(vae, pictures) - before).abs().max() <= 1e-5 * before.abs().max()
    z, z_logvar = vae.encode(pictures).chunk(2, dim=1)
    latents = z * 0.18215
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    grown = (z.std((0, 2, 3)) / mean.std((0, 2, 3))).log()  # the posterior's width grows as the means do
    assert torch.allclose((z_logvar - logvar) / 2, grown[:, None, None].expand_as(logvar), atol=1e-4)


def test_psnr_of_known_errors():
    black = torch.full((2, 3, 8, 8), -1.0)
    off = black + torch.tensor([2.0, 0.02])[:, None, None, None]
    assert torch.allclose(psnr(black, off), torch.tensor([0.0, 40.0]), atol=1e-3)
    assert psnr(black, black - 1).isinf().all()  # clamped, as a picture is


def test_whole_pictures_weigh_their_subjects_more(drawn):
    images, weight = train_vae.wholes(drawn, random.Random(0), 5)
    picked = [random.Random(0).randrange(24)]
    assert torch.equal(images[:1], drawn.tensor(picked)) and images.shape == (5, 3, 32, 32)
    assert weight.shape == (5, 1, 32, 32) and weight.min() == 1 and 1 < weight.max() <= 1 + train_vae.SUBJECT_WEIGHT
    subject = torch.from_numpy(drawn.masks[picked[0]] > 0).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert (weight[0, 0][subject] > 1).all()


def test_crops_are_windows_of_the_pictures(drawn):
    windows, _ = train_vae.crops(drawn, random.Random(0), 40, 16)
    assert windows.shape == (40, 3, 16, 16)
    tiles = drawn.tensor(range(24)).unfold(2, 16, 1).unfold(3, 16, 1).permute(0, 2, 3, 1, 4, 5)  # [24, y, x, 3, 16, 16]
    for window in windows:
        assert (tiles == window).all(-1).all(-1).all(-1).any()


def test_a_begun_autoencoder_keeps_its_latents(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(train_vae, "PROBE", 2)
    vae = fill(VAE(VAE_CONFIG)).requires_grad_(False)
    before = {name: p.clone() for name, p in vae.named_parameters()}
    train_vae.train_vae(SMALL, drawn, Training(tmp_path, 2), batch=2, begun=vae)
    for name, p in vae.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith(("encoder.", "quant_conv.")), name


def test_latents_are_cached_in_any_memory_format(tmp_path, pictures):
    """The autoencoder trains channels-last, and safetensors writes contiguous tensors only."""
    vae = fill(VAE(VAE_CONFIG)).to(memory_format=torch.channels_last)
    first = train_unet.cached_latents(vae, Pictures(pictures[:5]), tmp_path / "latents.safetensors", 0.5, batch=3)
    mean, logvar = vae.encode(pictures[:5]).chunk(2, dim=1)
    for kept, expected in zip(first, (mean * 0.5, (logvar / 2).exp() * 0.5), strict=True):
        assert kept.dtype == torch.float16 and torch.allclose(kept.float(), expected, rtol=2e-3, atol=1e-3)
    again = train_unet.cached_latents(None, None, tmp_path / "latents.safetensors", 0.5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_matmul_attention_is_attention():
    q, k, v = (normal(name, 2, 4, n, 8) for name, n in (("q", 9), ("k", 5), ("v", 5)))
    for ours, expected in zip(
        train_unet.matmul_attention(q, k, v, columns=True), sdpa(q, k, v, columns=True), strict=True
    ):
        assert torch.allclose(ours, expected, atol=1e-6)
    assert torch.equal(train_unet.matmul_attention(q, k, v), train_unet.matmul_attention(q, k, v, columns=True)[0])


def test_grounding_knows_the_side_of_a_word():
    tokens, text = tokenizer(SMALL), "a photo of a sitting boy with a hat in the park"
    prompt, sides = tokens.encode(text), Grounding(tokens).sides([text, ""])
    found = {word.text: sides[0, list(word.tokens)].unique().tolist() for word in prompt.words}
    free = {word.text: [0.0] for word in prompt.words}
    assert found == free | {"sitting": [1.0], "boy": [1.0], "park": [-1.0]}
    assert not sides[1].any() and not sides[0, prompt.length - 1 :].any()
    assert not INSIDE & OUTSIDE and INSIDE | OUTSIDE < set(WORDS)


def test_grounding_is_the_squared_share_on_the_wrong_side():
    """By hand: of 4 cells the subject has the first whole and half of the second."""
    tokens, texts = tokenizer(SMALL), ["boy", "boy on grass"]
    (boy,), (_, _, grass) = ([word.tokens[0] for word in tokens.encode(text).words] for text in texts)
    columns = torch.full((2, 4, SMALL.text.context_length), 0.5)
    columns[0, :, boy] = torch.tensor([0.3, 0.1, 0.1, 0.0])  # wrong: half of the second cell and the third
    columns[1, :, boy] = torch.tensor([0.2, 0.0, 0.0, 0.0])  # wrong: nothing
    columns[1, :, grass] = torch.tensor([0.0, 0.2, 0.2, 0.4])  # wrong: half of the second
    masks = torch.tensor([[1, 0.5, 0, 0]]).expand(2, 4)
    expected = ((0.15 / 0.5) ** 2 + 0 + (0.1 / 0.8) ** 2) / 3
    assert Grounding(tokens)(texts, masks, columns).item() == pytest.approx(expected, rel=1e-5)
    assert Grounding(tokens)([""], masks[:1], columns[:1]).item() == 0


@pytest.mark.parametrize("share", (0.0, 1.0))
def test_blinded_captions_keep_their_words_and_lose_their_ends(share, monkeypatch):
    monkeypatch.setattr(train_unet, "BLIND", share)
    text, tokens = fill(TextEncoder(SMALL.text)), tokenizer(SMALL)
    captions = ["a boy in the park", "", "two red apples"]
    states = train_unet.conditions(text, tokens, "cpu")(captions, random.Random(0))
    (rows, lengths), empty = Ids(tokens)(captions), text(torch.tensor([tokens.encode("").ids]))[0]
    for row, length, state in zip(rows, lengths, states, strict=True):
        whole = text(row[None])[0]
        assert torch.allclose(state[: length - 1], whole[: length - 1], atol=1e-6)  # begin and words
        assert torch.allclose(state[length - 1 :], (empty if share else whole)[length - 1 :], atol=1e-6)


def test_ids_are_the_tokenizers():
    tokens, texts = tokenizer(SMALL), ["a boy", "a photo of two red apples", "a boy"]
    ids, lengths = Ids(tokens)(texts)
    for text, row, length in zip(texts, ids.tolist(), lengths.tolist(), strict=True):
        prompt = tokens.encode(text)
        assert tuple(row) == prompt.ids and length == prompt.length


def log(run):
    """The last row of a training's log, as numbers."""
    columns, *_, last = (run.folder / "log.csv").read_text().splitlines()
    return dict(zip(columns.split(","), map(float, last.split(",")), strict=True))


def test_every_stage_takes_its_steps(tmp_path, monkeypatch, drawn, pictures):
    monkeypatch.setattr(train_vae, "PROBE", 2)
    monkeypatch.setattr(train_vae, "STATISTICS", 4)
    monkeypatch.setattr(train_text, "PROBE", 4)
    run = {stage: Training(tmp_path / stage, 2) for stage in train.STEPS}
    train_vae.train_vae(SMALL, drawn, run["vae"], batch=2)
    train_text.train_text(SMALL, tokenizer(SMALL), drawn, drawn, run["text"], batch=4)
    text = fill(TextEncoder(SMALL.text))
    before = {name: p.clone() for name, p in text.named_parameters()}
    latents = normal("means", 24, 4, 4, 4).half(), normal("stds", 24, 4, 4, 4).abs().half()
    train_unet.train_unet(SMALL.unet, text, tokenizer(SMALL), drawn, latents, run["unet"], batch=2)
    assert all(not torch.equal(p, before[name]) for name, p in text.named_parameters() if "embed" in name)
    large = Pictures(nn.functional.interpolate(pictures, size=128))
    train_judge([(large, 3), (Coded(large, 2, VAE(SMALL.vae), tmp_path, run["judge"]), 1)], large, run["judge"])
    assert log(run["vae"])["psnr"] > 0 and log(run["unet"])["mse"] > 0 and 0 < log(run["unet"])["astray"] < 1
    assert log(run["text"])["recall_at_1_of_4"] in (0, 0.25, 0.5, 0.75, 1)
    assert 0 <= log(run["judge"])["pose_accuracy"] <= 1


def keep_parts(runs):
    """Random networks where the stages leave their trained ones."""
    parts = {
        "vae": VAE(SMALL.vae),
        "text": clip_model(SMALL),
        "unet": UNet(SMALL.unet),
        "tower": TextEncoder(SMALL.text),
    }
    for stage, module in parts.items():
        (runs / stage).mkdir()
        train._keep(module, runs / stage)
    return parts


def test_the_text_tower_is_clips(tmp_path):
    clip, ids = keep_parts(tmp_path)["text"], Ids(tokenizer(SMALL))(["a boy in the park"])[0]
    assert torch.equal(train.text_tower(SMALL, tmp_path)(ids), clip.text_model(input_ids=ids).last_hidden_state)


def test_assemble_writes_a_checkpoint_that_loads(tmp_path, capsys):
    parts = keep_parts(tmp_path)
    train.assemble(SMALL, tmp_path, tmp_path)
    model = load(tmp_path / "picturebook.safetensors")
    assert model.config == SMALL and "picturebook-clip.safetensors" in capsys.readouterr().out
    for name, p in model.unet.state_dict().items():
        assert torch.equal(p, parts["unet"].state_dict()[name].half().float()), name


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["vae", "--scenes", "255"], "--scenes: found '255', expected a whole number, 256 or more"),
        (["vae", "--steps", "0"], "--steps: found '0', expected a whole number, 1 or more"),
        (["unet"], "final.safetensors is not there yet; run `minedit train vae` first"),
        (["judge", "--from", "x"], "found stage judge, expected unet, vae or instruct"),
        (["assemble"], "final.safetensors is not there yet; run `minedit train unet` first"),
    ],
)
def test_training_says_what_is_missing(arguments, named, tmp_path):
    with pytest.raises(MineditError, match=named):
        train_command.main([*arguments, "--runs", str(tmp_path)])
    assert not any(tmp_path.rglob("*.safetensors"))


def test_torchrun_takes_the_pages_command():
    """Torchrun reads even the script's options as abbreviations of its own, and refuses those that could be several."""
    page = (ROOT / "docs" / "training.md").read_text()
    command = re.search(r"torchrun (.*?)```", page, re.DOTALL)[1].replace("\\\n", " ")
    told = torch.distributed.run.get_args_parser().parse_args(command.split())
    assert told.nproc_per_node == "2" and told.training_script == "minedit"
    args = train_command._arguments(told.training_script_args[1:])
    assert args.stage == "unet" and args.compile and Path(args.start) == Path("weights/picturebook.safetensors")
