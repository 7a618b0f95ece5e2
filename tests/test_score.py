"""The score of an edit. Oracles: the renderer's counterfactuals, scores counted by hand, the normal law."""

import numpy as np
import pytest

from minedit.files.checkpoint import weights_folder
from minedit.picturebook.score import Score, kept, mean, read, rendered, score, scored
from minedit.picturebook.training.judge_net import load_judge
from minedit.picturebook.world.edits import Pair, pairs
from minedit.picturebook.world.factors import Factors
from minedit.picturebook.world.shown import LABELS, shown

BOY, SITTING = (Factors("boy", "park", "red", pose=pose) for pose in ("standing", "sitting"))
STAYS = {"subject", "place", "colour", "size", "time", "held", "skin", "hair"}


def pair(before, after, factor, kind="pose"):
    return Pair("a", kind, "", "", 7, before, after, factor)


def test_a_score_is_counted():
    asked, truth = pair(BOY, SITTING, "pose"), shown(BOY, 7)
    assert set(kept(asked)) == STAYS
    assert scored(asked, truth, truth | {"pose": "sitting"}) == Score(1.0, 1.0, 1.0)
    assert scored(asked, truth, truth) == Score(0.0, 1.0, 1.0)  # a copy
    other = {"pose": "sitting", "place": "snow", "hair": next(each for each in LABELS["hair"] if each != truth["hair"])}
    found = scored(asked, truth, truth | other | {"count": 3})  # nobody counts boys
    assert found == Score(1.0, 6 / 8, 1 / 2) and found.o == pytest.approx((6 / 8) ** 0.5) and found.sp == 6 / 8


def test_only_what_shows_the_same_is_to_be_kept():
    big, one = (Factors("apple", "table", "red", "big", count=count) for count in (2, 1))
    assert set(kept(pair(big, one, "count"))) == {"subject", "place", "colour"}
    small, medium = (Factors("apple", "table", "red", size, count=2) for size in ("small", "medium"))
    assert scored(pair(small, big, "size"), shown(small, 7), shown(big, 7)).s == 1
    assert scored(pair(medium, big, "size"), shown(medium, 7), shown(big, 7)) == Score(None, 1.0, None)
    cake = Factors("cake", "table", None, "big")
    assert set(kept(pair(one, cake, "subject"))) == {"place", "count", "size"}


def test_counterfactuals_are_edits_and_copies_are_not():
    judge = load_judge(weights_folder() / "picturebook-judge.safetensors")
    asked = pairs("tune")[::3][:60]
    sources, edits = zip(*(rendered(each) for each in asked), strict=True)
    found = score(judge, asked, sources, edits)
    assert mean([each.s for each in found])[0] >= 0.97 and mean([each.p for each in found])[0] >= 0.97
    copies = score(judge, asked, sources, sources)
    assert all(each.p == 1 and each.identity in (None, 1) for each in copies)
    assert mean([each.s for each in copies])[0] <= 0.05  # a cup overlooked is a cup removed
    assert read(judge, list(sources), batch=7) == read(judge, list(sources))


def test_intervals_are_those_of_the_mean():
    """Oracle: the normal law, ± 1.96 standard errors."""
    values = np.random.default_rng(3).binomial(1, 0.3, 400).astype(float)
    at, low, high, count = mean([*values, None])
    error = 1.96 * values.std() / 20
    assert at == values.mean() and count == 400 and mean(values) == mean(values)
    assert at - low == pytest.approx(error, rel=0.15) and high - at == pytest.approx(error, rel=0.15)
    assert mean([1.0, 1.0]) == (1, 1, 1, 2) and np.isnan(mean([None])[0])
