"""Where a word looks: a penalty on attention maps that leave what their word names.

The idea is TokenCompose's (Wang et al., arXiv:2312.03626), with the renderer's own masks in place of a segmenter's. The
denoising loss alone leaves the maps of a short training diffuse, and every edit of this project lives on local ones.
"""

import torch
from torch import Tensor

from minedit.picturebook.world.captions import COUNTS, noun
from minedit.picturebook.world.factors import SUBJECTS, Factors
from minedit.picturebook.world.looks import POSES, TINTS
from minedit.picturebook.world.places import PLACES, TIMES
from minedit.picturebook.world.still import SUPPORTS, THINGS
from minedit.stack.tokens import Tokenizer


def _inside() -> frozenset[str]:
    """Words for what the mask covers. Hats, cups, balloons and umbrellas are not in it and stay free."""
    things = {noun(Factors(thing, "table", count=count)) for thing in THINGS for count in COUNTS}
    phrases = {*SUBJECTS, *things, *TINTS, *(pose for poses in POSES.values() for pose in poses)}
    counts = {option for count, options in COUNTS.items() if count > 1 for option in options}
    return frozenset(" ".join(phrases | counts | {"shirt", "dress", "small", "big"}).split())


INSIDE = _inside()
OUTSIDE = frozenset({*PLACES, *SUPPORTS, *TIMES})


def side(word: str) -> float:
    """1 for a word that belongs to the subject, -1 for one of the setting, 0 for all others."""
    return float(word in INSIDE) - float(word in OUTSIDE)


class Grounding:
    """Remembers which tokens of a caption should look at the subject and which elsewhere."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, Tensor] = {}

    def sides(self, captions: list[str]) -> Tensor:
        """[B,T]: the `side` of each token's word."""
        for text in captions:
            if text not in self.known:
                prompt = self.tokenizer.encode(text)
                row = torch.zeros(len(prompt.ids))
                for word in prompt.words:
                    row[list(word.tokens)] = side(word.text)
                self.known[text] = row
        return torch.stack([self.known[text] for text in captions])

    def __call__(self, captions: list[str], masks: Tensor, columns: Tensor) -> Tensor:
        """`astray` of B captions."""
        return astray(self.sides(captions).to(columns), masks, columns)


def astray(sides: Tensor, masks: Tensor, columns: Tensor) -> Tensor:
    """Mean squared share of its map that a word spends on the wrong side; a scalar, 0 where no word has a side.

    Args:
        sides: [B,T], of each token, see `side`.
        masks: [B,N], the share of each map cell that the subject covers, in [0,1].
        columns: [B,N,T] cross-attention probabilities.
    """
    inside = (columns * masks[..., None]).sum(1) / columns.sum(1)  # [B, T]
    wrong = torch.where(sides > 0, 1 - inside, inside)
    return (wrong.square() * sides.abs()).sum() / sides.abs().sum().clamp(min=1)
