"""Several edits of one source in one batch. Oracle: each edit drawn alone."""

import pytest
import torch
from small_model import small_model

import minedit
from minedit.attention.rules import Edit, Rule
from minedit.config import MineditError

SOURCE = "a boy in the park"
TARGETS = (
    "a sitting boy in the park",
    {"target": "a running boy in the park", "method": "p2p", "cross_steps": 0.6},
    {"target": "a boy on the beach", "fwt": "one-pass"},
    {"target": "a red boy in the park", "method": "fixed-seed"},
    SOURCE,
)


@pytest.mark.parametrize("photo", (False, True), ids=("drawn", "photograph"))
def test_edits_of_one_batch_are_those_drawn_alone(photo):
    sd, run = small_model(), {"seed": 3, "steps": 6, "guidance": 2.0}  # more would magnify rounding
    image = minedit.generate(sd, SOURCE, seed=1, steps=2).images[0] if photo else None
    rows = []
    sd.unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    found = minedit.edits(sd, SOURCE, TARGETS, image=image, **run)
    assert max(rows) == (2 * 4 + 1 if photo else 2 * 5)  # with a photo nobody reads its unconditional row
    for each, res in zip(TARGETS, found, strict=True):
        own = dict(each) if isinstance(each, dict) else {"target": each}
        target, method = own.pop("target"), own.pop("method", "adapedit")
        alone = minedit.edit(sd, SOURCE, target, method, image=image, **run, **own)
        assert (res.edited_latent - alone.edited_latent).abs().max() < 1e-4 * alone.edited_latent.std()
        assert (res.source_latent - alone.source_latent).abs().max() < 1e-4 * alone.source_latent.std()
        assert res.settings == alone.settings and res.notes == alone.notes
        assert [word.tau for word in res.words] == pytest.approx([word.tau for word in alone.words], abs=1e-4)


def test_what_the_targets_must_be():
    sd = small_model()
    wrong = {"expected a list": "a dog", "is \\[\\], expected a list": [], "a target is 3": [3]}
    wrong |= {"a target is {": [{"method": "p2p"}], "no setting size": [{"target": "a dog", "size": 3}]}
    for fault, targets in wrong.items():
        with pytest.raises(MineditError, match=fault):
            minedit.edits(sd, SOURCE, targets)
    with pytest.raises(MineditError, match="minedit.edits takes several"):
        minedit.edit(sd, SOURCE, ["a dog"])


def test_a_rule_moved_means_the_same():
    """Oracle: the eager specification on the rows as they were, moved afterwards."""
    from minedit.attention.eager import eager

    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 2, 6, 8) for _ in range(3))
    share = torch.rand(3, 6)
    rule = Rule((0, 1, 2, 2), (0, 0, 2, 2), None, (Edit(3, 2, torch.rand(6, 6), *share, torch.rand(6)),))
    to = {0: 4, 1: 0, 2: 2, 3: 5}
    wide = [torch.randn(6, 2, 6, 8) for _ in range(3)]
    for row, at in to.items():
        for moved, x in zip(wide, (q, k, v), strict=True):
            moved[at] = x[row]
    whole = eager(*wide, rule.moved(to, 6))
    torch.testing.assert_close(whole[[to[row] for row in range(4)]], eager(q, k, v, rule))
    torch.testing.assert_close(whole[[1, 3]], eager(*wide, None)[[1, 3]])
    assert rule.reads(3) == {2} and rule.reads(1) == {0} and rule.reads(2) == set()
    with pytest.raises(KeyError):
        rule.moved({3: 0}, 1)
