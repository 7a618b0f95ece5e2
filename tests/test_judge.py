"""The judge, and what it is asked. Oracles: the factors that were drawn, and a judge whose mistakes are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import fill, normal
from torch import nn

from minedit.config import PICTUREBOOK, MineditError
from minedit.files.checkpoint import tokenizer, weights_folder
from minedit.image import to_tensor
from minedit.picturebook import judge
from minedit.picturebook.judge import judged, prompts
from minedit.picturebook.training.judge_net import PARTS, Judge, load_judge, save_judge
from minedit.picturebook.training.train_judge import IGNORED, _cells, _colours, _where, accuracy, confusion, labels
from minedit.picturebook.world.dataset import Drawings
from minedit.picturebook.world.factors import HELD_OUT, Factors, held_out
from minedit.picturebook.world.looks import HAIR, SKIN, look
from minedit.picturebook.world.scene import scene
from minedit.picturebook.world.shown import HAIRS, LABELS, SKINS, shown

FIGURE, APPLES = Factors("boy", "park", "red", pose="standing"), Factors("apple", "table", "red", count=2)


def test_labels_ignore_what_a_subject_has_not():
    own = look(5)
    found = labels([FIGURE, APPLES, Factors("bird", "snow", "white", "big", "flying", "night")], [5, 6, 7])
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
        "skin": [SKINS[SKIN.index(own.skin)], IGNORED, IGNORED],
        "hair": [HAIRS[HAIR.index(own.hair)], IGNORED, IGNORED],
    }
    assert labels([Factors("cake", "plate")], [0])["colour"].tolist() == [IGNORED]


def pixels(factors, seed):
    return np.asarray(scene(factors, seed).image)


def test_what_does_not_show_is_the_same_picture():
    """Oracle: the renderer. Several big things are medium ones; the hat of a horse that jumps is above the picture."""
    for count in (1, 2, 3):
        sizes = {size: Factors("peach", "table", None, size, count=count) for size in ("small", "medium", "big")}
        drawn = {size: pixels(f, 3) for size, f in sizes.items()}
        assert np.array_equal(drawn["medium"], drawn["big"]) == (count > 1)
        assert not np.array_equal(drawn["medium"], drawn["small"])
        assert [shown(f, 3)["size"] for f in sizes.values()] == ["small", "medium", "medium" if count > 1 else "big"]
    for pose in ("jumping", "standing"):
        hat, bare = (Factors("horse", "snow", "black", "big", pose, held=held) for held in ("hat", None))
        assert np.array_equal(pixels(hat, 4), pixels(bare, 4)) == (pose == "jumping")
        assert shown(hat, 4)["held"] == (None if pose == "jumping" else "hat")


def test_where_skin_hair_and_things_are():
    """Oracle: the renderer's mask of the subject, of which skin and hair are parts and what is held is none."""
    held = [Factors("girl", "beach", "blue", "big", "standing", time, "balloon") for time in ("day", "night", "sunset")]
    for f, seed in zip([*held, APPLES], range(4), strict=True):
        drawn = scene(f, seed)
        found = _where(to_tensor(drawn.image), _colours(f, seed)[None])
        inside = (found * torch.from_numpy(np.asarray(drawn.mask.reduce(4)) > 0)).sum((2, 3))[0] / found.sum((2, 3))[0]
        assert (found.sum((2, 3)) > 0).all() != f.still and found.max() <= 1
        assert f.still or (inside[:2].min() > 0.97 and inside[2] < 0.2)
        cells = _cells(found, labels([f], [seed]))
        told, names = shown(f, seed), [value for name in PARTS for value in LABELS[name]]
        assert torch.allclose(cells.sum(1), torch.ones(1, 32, 32)) and cells.shape[1] == len(names)
        parts = {names[i] for i in range(len(names)) if cells[0, i].sum() > 1}  # cells
        assert parts == {None, *(told[name] for name in PARTS if name in told)}


def test_skin_and_hair_are_those_in_the_picture():
    """Oracle: the colours of the renderer's pixels by day, where light leaves them as they are."""
    for seed in range(12):
        colours = {tuple(colour) for colour in pixels(FIGURE, seed).reshape(-1, 3)}
        told = shown(FIGURE, seed)
        assert [SKINS[SKIN.index(each)] for each in SKIN if each in colours] == [told["skin"]]
        assert [HAIRS[HAIR.index(each)] for each in HAIR if each in colours] == [told["hair"]]


def test_the_judge_reads_labels_and_survives_its_file(tmp_path):
    network, images = fill(Judge()), normal("images", 3, 3, 128, 128)
    save_judge(network, tmp_path / "judge.safetensors")
    kept = load_judge(tmp_path / "judge.safetensors")
    for factor, values in LABELS.items():
        read = network.read(images, factor)
        assert len(read) == 3 and set(read) <= set(values)
        assert read == [each[factor] for each in network.read_all(images)]
        assert torch.allclose(kept(images)[factor], network(images)[factor], atol=0.05)
    with pytest.raises(MineditError, match="no judge at .*; train one with `minedit train judge`"):
        load_judge(tmp_path / "absent")


def test_the_embedded_judge_reads_what_hands_hold(tmp_path):
    """Oracle: the renderer, of people whose hands are most often full."""
    found = accuracy(
        load_judge(weights_folder() / "picturebook-judge.safetensors"), Drawings(tmp_path, 160, 128, 9, hands=True), 160
    )
    assert {name: share for name, share in found.items() if share < 0.96} == {} and set(PARTS) <= found.keys()


class Knows(nn.Module):
    """A judge that reads the factors themselves, but takes every dog for a cat."""

    def __init__(self, factors):
        super().__init__()
        self.factors, self.p = factors, nn.Parameter(torch.zeros(()))

    def forward(self, indices):
        want = labels([self.factors[i] for i in indices.tolist()], indices.tolist())
        want["subject"][want["subject"] == LABELS["subject"].index("dog")] = LABELS["subject"].index("cat")
        return {name: nn.functional.one_hot(row.clamp(min=0), len(LABELS[name])) for name, row in want.items()}


class Numbered:
    """Drawings whose pictures are their numbers."""

    def __init__(self, factors):
        self.factors, self.seeds = factors, range(len(factors))

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
    table = confusion(Knows(factors), data, 4, batch=3)
    names = LABELS["subject"]
    read = {(names[a], names[b]): table["subject"][a, b].item() for a, b in table["subject"].nonzero()}
    assert read == {("boy", "boy"): 2, ("apple", "apple"): 1, ("dog", "cat"): 1}
    assert table["held"].sum() == 3 and table["skin"].sum() == 2 and table["count"].sum() == 1


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
        read_all=lambda images: [{name: getattr(f, name, "?") for name in LABELS} | {"subject": None} for f, _ in asked]
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
