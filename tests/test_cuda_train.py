"""Training by the clock, in miniature and on a CPU, through the code that a GPU runs.

Oracles: the tokenizer, the optimisers of fit.py, the arithmetic written out, the embedded model for a whole run.
"""

import copy
import csv
import random

import pytest
import torch
import torch.nn.functional as F
from seeded import fill, normal, relative
from test_picturebook_training import SMALL, VAE_CONFIG
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from minedit.config import MineditError
from minedit.files.checkpoint import load, tokenizer
from minedit.picturebook.cuda import losses, pieces, train
from minedit.picturebook.cuda.data import CAPTIONS, Scenes, Spelling
from minedit.picturebook.cuda.learn import Learner
from minedit.picturebook.cuda.record import Dice
from minedit.picturebook.training.fit import _optimisers
from minedit.picturebook.training.grounding import Grounding
from minedit.picturebook.training.muon import all_orthogonalised, orthogonalised
from minedit.picturebook.training.train_unet import hidden, objective, times
from minedit.picturebook.world.captions import caption
from minedit.picturebook.world.dataset import Drawings, factors_of
from minedit.picturebook.world.factors import held_out
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes():
    made = Scenes(12, 32, Spelling(tokenizer(SMALL)), 0, 2)
    made.start()
    made.to(CPU)
    assert made.take_in(at_least=12) == 12
    return made


def test_spelling_is_the_tokenizers():
    tokens, rng = tokenizer(SMALL), random.Random(0)
    spelling, ground = Spelling(tokens), Grounding(tokens)
    for text in ["", *(caption(factors_of(0, i), rng).text for i in range(300))]:
        ids, sides = spelling(text)
        assert tuple(ids) == tokens.encode(text).ids, text
        assert sides == ground.sides([text])[0].tolist(), text


def test_processes_draw_what_drawings_draws(scenes, tmp_path):
    drawn = Drawings(tmp_path, 12, 32, 0)
    order = [i for row in scenes.on["images"] for i in range(12) if (drawn.images[i] == row.numpy()).all()]
    assert sorted(order) == list(range(12)) and not any(held_out(factors_of(0, i)) for i in order)
    assert torch.equal(scenes.on["masks"], torch.from_numpy(drawn.masks[order]))
    assert torch.equal(scenes.pictures(torch.arange(12)), drawn.tensor(order))
    assert scenes.on["ids"].shape == (12, CAPTIONS, SMALL.text.context_length)


@pytest.mark.parametrize("shape", ((6, 20), (20, 6), (8, 8)))
def test_all_orthogonalised_is_orthogonalised_of_each(shape):
    matrices = normal("many", 5, *shape)
    expected = torch.stack([orthogonalised(matrix) for matrix in matrices])
    assert relative(all_orthogonalised(matrices), expected) <= 1e-5


def test_objective_of_the_unet_by_hand():
    """Written as train_unet had it before both trainings shared it."""
    predicted, eps = normal("predicted", 3, 4, 4, 4), normal("eps", 3, 4, 4, 4)
    a, masks = torch.tensor([0.99, 0.5, 0.01])[:, None, None, None], normal("masks", 3, 4, 4).sigmoid()
    columns, sides = normal("columns", 3, 16, 5).softmax(-1), torch.tensor([[0, 1, -1, 0, 0]] * 3).float()
    square, snr = (predicted - eps).square().mean(1), (a / (1 - a))[:, 0]
    near = F.max_pool2d(masks[:, None], 3, stride=1, padding=1)[:, 0]
    weighted = (square * snr.rsqrt().clamp(max=12) * (1 + 3 * near * snr / (snr + 0.5))).mean()
    inside = (columns * masks.flatten(1)[..., None]).sum(1) / columns.sum(1)
    wrong = ((1 - inside[:, 1]).square().sum() + inside[:, 2].square().sum()) / 6
    found = objective(predicted, eps, a, masks, sides, columns)
    assert found["loss"].item() == pytest.approx((weighted + 0.1 * wrong).item(), rel=1e-5)
    assert found["mse"].item() == pytest.approx(square.mean().item(), rel=1e-6)
    assert (times(torch.tensor([0.0, 0.999, 0.5, 0.2])) // 250).tolist() == [0, 1, 2, 3]


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 24), nn.Linear(24, 16), nn.Conv2d(4, 16, 3)
        self.twin, self.embedding = nn.Linear(16, 24), nn.Embedding(5, 6)

    def forward(self, x):
        y = self.b(F.silu(self.a(x)) + self.twin(x)) + self.embedding.weight.sum()
        return y.square().mean() + self.c(x.reshape(-1, 4, 2, 2).repeat(1, 1, 2, 2)).square().mean()


def test_a_learner_steps_as_fit_does():
    module = fill(Toy()).double()
    twin, learner = copy.deepcopy(module), Learner(module, lambda name: "embedding" not in name, torch.float64, 0.1)
    optimisers = _optimisers(twin, 0.01, 0.1, lambda name: "embedding" not in name)
    learner.rate.fill_(0.01), learner.share.fill_(1.0)  # the average is the last
    for step in range(4):
        x = 10 * normal(f"x{step}", 64, 16).double()
        learner.step(lambda work, x=x: {"loss": work(x)})
        twin.zero_grad()
        twin(x).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
    before, after = dict(fill(Toy()).named_parameters()), dict(learner.averaged().named_parameters())
    for name, p in twin.named_parameters():
        assert (after[name] - p).norm() <= 1e-6 * (p - before[name]).norm(), name
        assert torch.equal(learner.work.get_parameter(name), after[name])


def test_a_gradient_that_is_not_finite_moves_nothing_far():
    learner = Learner(fill(Toy()), lambda name: True, torch.float32)
    learner.rate.fill_(0.01), learner.share.fill_(0.1)
    learner.step(lambda work: {"loss": work(normal("x", 8, 16)) * float("nan")})
    assert learner.skipped.item() == 1 and learner.master.isfinite().all() and learner.average.isfinite().all()


class Watched(TorchDispatchMode):
    """Refuses what would make a GPU wait or copies from the host: neither can be in a CUDA graph."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "unique"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_steps_could_be_recorded(scenes, dtype):
    dice, vae = Dice(CPU, 0), fill(VAE(VAE_CONFIG))
    both = nn.ModuleDict({"unet": UNet(SMALL.unet), "text": TextEncoder(SMALL.text)})
    fill(both)
    latents = losses.encoded(vae, scenes, 0.2, batch=5)
    mean, _ = vae.encode(scenes.pictures(torch.arange(12))).chunk(2, dim=1)
    assert torch.allclose(latents[0].float(), mean * 0.2, atol=2e-2)
    both_parts = (
        (Learner(vae, losses.inner, dtype), losses.vae_loss(scenes, torch.tensor(12.0), dice, 4, dtype)),
        (Learner(both, hidden, dtype), losses.unet_loss(both, scenes, latents, dice, 4, dtype)),
    )
    for learner, loss in both_parts:
        learner.rate.fill_(1e-3)
        learner.step(loss)
        before = learner.master.clone()
        with Watched():
            values = learner.step(loss)
        assert values["loss"].isfinite() and (learner.master != before).float().mean() > 0.5


def test_a_whole_run_in_miniature(tmp_path, capsys):
    out, runs = tmp_path / "out", tmp_path / "runs"
    told = ["--tiny", "--out", str(out), "--runs", str(runs), "--workers", "1", "--device", "cpu"]
    # a high rate, so that the few steps of a busy machine move what is stored in float16
    assert train.main([*told, "--seconds", "12", "--vae-peak", "0.004", "--unet-peak", "0.004"]) == 0
    assert len(list(out.iterdir())) <= 6 and all(f.stat().st_size <= pieces.LARGEST for f in out.iterdir())
    assert "subject" in capsys.readouterr().out and (out / "sheet.png").is_file()
    with (out / "log.csv").open() as file:
        parts = [row["part"] for row in csv.DictReader(file)]
    assert {"begun", "vae", "vae done", "encoded", "unet", "done"} <= set(parts)
    assert train.main(["--join", str(out)]) == 0
    model, old = load(out / "picturebook.safetensors"), load()
    assert model.config == old.config
    for part in ("unet", "vae", "text"):
        new, kept = getattr(model, part).state_dict(), getattr(old, part).state_dict()
        moved = [not torch.equal(new[name], kept[name]) for name in new if new[name].is_floating_point()]
        assert sum(moved) > 0.8 * len(moved), part
    piece = out / "picturebook.safetensors.01"
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.raises(MineditError, match="copy them again"):
        pieces.join(out)
