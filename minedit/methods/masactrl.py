"""MasaCtrl (Cao et al., ICCV 2023): mutual self-attention, the target's pixels look into the source picture.

From `start_step` and `start_layer` on the target's self-attention reads the source's keys and values, in both halves of
guidance: what things look like comes from the source, where they stand from the target's own queries. Four rows of the
UNet a step, with a photograph too.

Agrees with the released code (TencentARC/MasaCtrl) and counts steps and layers as it does, from 0; layers in the order
in which they run. For a UNet of another number of layers than Stable Diffusion v1's 16 `start_layer` is as large a
share of them, rounded: 6 of the embedded model's 10. There as here half the way up is left alone.

With `foreground` the word's pixels read foreground alone, the others background, by the cross-attention maps of this
very step: of the conditional rows, mean over heads and layers, sum over the word's tokens, scaled to 0 ... 1, as in the
released MutualSelfAttentionControlMaskAuto; the maps are those of side `self_size`, 16 for Stable Diffusion v1, of the
layers that ran before. The released code asks for the tokens of both prompts; here the source's are those of the words
that the target's word stands for. Where a kind of pixel has no key (the released code then weighs all keys alike,
scores or not) it reads all, as without a mask.

The released notebook inverts a photograph by an empty prompt with guidance 7.5; here by the source prompt, without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minedit.methods import Job, Way
from minedit.sampling.numbers import TRAIN_STEPS
from minedit.settings import Settings, setting

if TYPE_CHECKING:
    from minedit.stack.tokens import Prompt, Tokenizer

LAYERS = 16  # of self-attention in Stable Diffusion v1


@dataclass(frozen=True)
class MasaCtrlConfig(Settings):
    """MasaCtrl: the target's pixels look into the source picture by self-attention, for other poses of the same thing.

    The defaults are those of the released code. Steps count from 0, and so do the layers, in the order in which they
    run.
    """

    start_step: int = setting(4, "step from which on the target reads the source", low=0, high=TRAIN_STEPS)
    start_layer: int = setting(
        10, "self-attention layer from which on it does, of 16, or as large a share of others", low=0, high=LAYERS
    )
    foreground: str | None = setting(
        None,
        "word or phrase of the target: its pixels read those of the source words it stands for, others the rest",
        str,
        none="every pixel reads all",
    )
    foreground_level: float = setting(0.1, "attention that makes a pixel foreground, of the largest", low=0, high=1)

    def off(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        return {} if self.foreground else {("foreground",): ("foreground_level",)}

    def check_words(self, tokenizer: Tokenizer, source: Prompt, target: Prompt) -> None:
        """Raises MineditError where the foreground is no word of the target, or stands for none of the source."""
        from minedit.methods.injected import foreground_words

        if self.foreground is not None:
            foreground_words(tokenizer, source, target, self.foreground)

    def prepare(self, job: Job) -> Way:
        from minedit.methods.injected import mutual  # torch's: settings are read without it
        from minedit.methods.plan import unedited

        return unedited(job) if job.alignment.identical else mutual(job, self, LAYERS)
