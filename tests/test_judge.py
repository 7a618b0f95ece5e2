"""The judge, and what it is asked. Oracles: the factors that were drawn, and a judge whose mistakes are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import fill, normal
from torch import nn

from minedit.config import PICTUREBOOK, MineditError
from minedit.files.checkpoint import tokenizer
from minedit.picturebook import judge
from minedit.picturebook.judge import judged, prompts
from minedit.picturebook.training.train_judge import IGNORED, LABELS, Judge, accuracy, labels, load_judge, save_judge
from minedit.picturebook.world.factors import HELD_OUT, Factors, held_out
from minedit.picturebook.world.scene import scene

FIGURE, APPLES = Factors("boy", "park", "red", pose="standing"), Factors("apple", "table", "red", count=2)


def test_labels_ignore_what_a_subject_has_not():
    found = labels([FIGURE, APPLES, Factors("bird", "snow", "white", "big", "flying", "night")])
    values = {name: [LABELS[name][i] if i >= 0 else i for i in row.tolist()] for name, row in found.items()}
    assert IGNORED == nn.CrossEntropyLoss().ignore_index
    assert values == {
        "subject": ["boy", "apple", "bird"],
        "place": ["park", "table", "snow"],
        "colour": ["red", "red", "white"],
        "pose": ["standing", IGNORED, "flying"],
        "count": [IGNORED, 2, IGNORED],
        "size": ["medium", "medium", "big"],
        "time": ["day", IGNORED, "night"],
        "held": [None, IGNORED, None],
    }
    assert labels([Factors("cake", "plate")])["colour"].tolist() == [IGNORED]


def test_the_judge_reads_labels_and_survives_its_file(tmp_path):
    network, images = fill(Judge()), normal("images", 3, 3, 128, 128)
    save_judge(network, tmp_path / "judge.safetensors")
    kept = load_judge(tmp_path / "judge.safetensors")
    for factor, values in LABELS.items():
        read = network.read(images, factor)
        assert len(read) == 3 and set(read) <= set(values)
        assert torch.allclose(kept(images)[factor], network(images)[factor], atol=0.05)
    with pytest.raises(MineditError, match="no judge at .*; train one with `minedit train judge`"):
        load_judge(tmp_path / "absent")


class Knows(nn.Module):
    """A judge that reads the factors themselves, but takes every dog for a cat."""

    def __init__(self, factors):
        super().__init__()
        self.factors, self.p = factors, nn.Parameter(torch.zeros(()))

    def forward(self, indices):
        want = labels([self.factors[i] for i in indices.tolist()])
        want["subject"][want["subject"] == LABELS["subject"].index("dog")] = LABELS["subject"].index("cat")
        return {name: nn.functional.one_hot(row.clamp(min=0), len(LABELS[name])) for name, row in want.items()}


class Numbered:
    """Drawings whose pictures are their numbers."""

    def __init__(self, factors):
        self.factors = factors

    def __len__(self):
        return len(self.factors)

    def tensor(self, picked):
        return torch.tensor(picked)


def test_accuracy_counts_what_was_asked():
    factors = [FIGURE, APPLES, Factors("dog", "park", "brown", pose="lying"), FIGURE]
    data = Numbered(factors)
    found = accuracy(Knows(factors), data, 4, batch=3)
    assert found.pop("subject") == 0.75 and set(found.values()) == {1.0}
    assert accuracy(Knows(factors), data, 2)["subject"] == 1.0


def test_the_judges_prompts_are_of_held_out_compositions():
    asked = prompts(200, 3)
    assert asked == prompts(200, 3) != prompts(200, 4)
    assert all(held_out(factors) and "place" in said.named for factors, said in asked)
    assert {factors.subject for factors, _ in asked} == {subject for subject, _, _ in HELD_OUT}


def test_judged_counts_the_factors_that_captions_name(monkeypatch):
    """Oracle: a reader that knows everything but the subject."""
    asked = prompts(12, 5)
    blank = SimpleNamespace(images=[Image.new("RGB", (128, 128))] * len(asked))
    seeds = []
    monkeypatch.setattr(judge, "generate", lambda model, texts, seed, **how: seeds.extend(seed) or blank)
    reader = SimpleNamespace(
        read=lambda images, factor: [None if factor == "subject" else getattr(f, factor) for f, _ in asked]
    )
    named = {name: sum(name in said.named for _, said in asked) for name in LABELS}
    expected = {name: (0 if name == "subject" else n, n) for name, n in named.items() if n}
    assert judged(None, reader, asked) == expected and {"subject", "place", "pose"} <= expected.keys()
    assert seeds == list(range(12))


@pytest.mark.parametrize("right", (True, False))
def test_a_map_on_the_subject_is_local(monkeypatch, right):
    """The subject word's map is the subject's mask, the place word's all else; or the other way round."""
    model = SimpleNamespace(config=PICTUREBOOK, tokenizer=tokenizer(PICTUREBOOK))

    def columns(model, image, text, seed):
        words = {word.text: word.tokens[0] for word in model.tokenizer.encode(text).words}
        mask = scene(FIGURE, seed, PICTUREBOOK.image_size).mask.reduce(8)
        inside = (np.asarray(mask).ravel() >= 128).astype(np.float32)
        found = np.zeros((inside.size, PICTUREBOOK.text.context_length), np.float32)
        found[:, words["boy"]], found[:, words["park"]] = (inside, 1 - inside) if right else (1 - inside, inside)
        return found

    monkeypatch.setattr(judge, "_columns", columns)
    monkeypatch.setattr(judge, "factors_of", lambda seed, index: FIGURE)
    assert judge._locality(model, 0, 1) == (right, right, float(right))
