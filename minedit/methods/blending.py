"""Local blend as settings, which a method's settings extend. localblend.py does it, and says what agrees with whom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minedit.config import MineditError, shown
from minedit.methods import Job, Way
from minedit.methods.named import everywhere
from minedit.settings import SHOWN, Settings, setting

if TYPE_CHECKING:
    from minedit.stack.tokens import Prompt, Tokenizer


@dataclass(frozen=True)
class Blending(Settings):
    """Local blend's settings, of methods that draw the source beside the target."""

    draws_both = True

    blend: tuple[str, ...] = setting(
        (), "words or phrases of either prompt: beyond what they draw, the picture stays the source's", list
    )
    blend_subtract: tuple[str, ...] = setting((), "words of either prompt whose place is not to change", list)
    blend_threshold: float = setting(
        0.3, "attention to the blend words, as a share of its maximum, above which a pixel may change", low=0, high=1
    )
    subtract_threshold: float = setting(0.3, "the same of --blend-subtract, whose pixels may not", low=0, high=1)
    blend_start: float = setting(
        0.2, "fraction of the steps before the first blend; Prompt-to-Prompt's first release: 0", low=0, high=1
    )
    blend_maps: str = setting(
        "edited", "the target's attention, as edited or as its own before", choices=("edited", "own")
    )
    blend_size: int | None = setting(
        None,
        "side of the attention maps, at the trained size",
        int,
        low=1,
        high=1024,
        unit="pixels",
        none="the largest of injected self-attention: 16 of Stable Diffusion",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blend_subtract and not self.blend:
            raise MineditError("blend_subtract has words, and blend has none to subtract them from; give both")

    def off(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        if not self.blend:
            return {("blend",): ("blend_threshold", "subtract_threshold", "blend_start", "blend_maps", "blend_size")}
        return {} if self.blend_subtract else {("blend_subtract",): ("subtract_threshold",)}

    def blended(self, job: Job, way: Way) -> Way:
        """The way, with local blend where words are given. Raises MineditError."""
        if not self.blend:
            return way
        from minedit.methods.localblend import LocalBlend  # torch's: settings are read without it

        blend = LocalBlend(job, way, self, blend_words(job.sd.tokenizer, job.source, job.target, self))
        return replace(way, rules=blend.rules, watch=blend.watch, after=blend.after, told=blend.told)

    def check_blend(self, job: Job) -> None:
        """Raises MineditError where `blended` would: to be asked before a pass of one's own."""
        if self.blend:
            from minedit.methods.localblend import layers

            layers(job.sd, self.blend_size)
            blend_words(job.sd.tokenizer, job.source, job.target, self)

    def check_words(self, tokenizer: Tokenizer, source: Prompt, target: Prompt) -> None:
        """Raises MineditError where a setting names a word that is not in the prompts."""
        blend_words(tokenizer, source, target, self)


def blend_words(
    tokenizer: Tokenizer, source: Prompt, target: Prompt, settings: Blending
) -> tuple[tuple[list[int], list[int]], ...]:
    """The words to blend and those to subtract, each as words of the source and words of the target.

    Raises MineditError for a text that stands in neither.
    """
    pair, both = (source, target), []
    for name in ("blend", "blend_subtract"):
        named = [], []
        for text in getattr(settings, name):
            found = [everywhere(tokenizer, prompt, text) for prompt in pair]
            if not any(found):
                words = dict.fromkeys(word.text for prompt in pair for word in prompt.words)
                raise MineditError(
                    f"{name}: {shown(repr(text), SHOWN)} is in neither prompt; expected {', '.join(words)}"
                )
            for own, more in zip(named, found, strict=True):
                own += more
        both.append(named)
    return tuple(both)
