"""What an edit may do in a run, and what it is to know of what was asked. methods/ and inversion/ make Ways of Jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from minedit.attention.rules import Rule
    from minedit.sampling.loop import Predict, Run, Step, Ticks
    from minedit.stack.model import Model
    from minedit.stack.tokens import Alignment, Prompt


@dataclass(frozen=True, eq=False)
class Way:
    """What a method does in a run. A part that is left out leaves the run alone."""

    told: Callable[[], Told]  # called after the last step
    prompts: tuple[str, ...] = ()  # of the rows drawn, the source's first and the edit's last; empty: those two
    rules: Callable[[int], Mapping[str, Rule]] | None = None  # of a step, by the name of any layer that reads its own
    watch: Callable[[int], Mapping[str, bool]] | None = None  # layers that report at a step, and whether with columns
    after: Callable[[Step], Tensor | None] | None = None  # sees each step done; may give other latents to go on from
    start: Tensor | None = None  # [1 or B, 4, h, w], in place of the seed's noise
    first: int = 0  # the step to begin at
    source: Tensor | None = None  # [1, 4, h, w] the source's latents, where no row draws it
    predict: Predict | None = None  # latents → noise: other rows, texts, channels, another guidance

    def on(self, found: Way) -> Way:
        """This way from where an inversion leads: what it leaves out is as found; both `after` act, that one first."""

        def after(step: Step) -> Tensor | None:
            changed = found.after(step)
            more = self.after(step if changed is None else replace(step, latents=changed))
            return changed if more is None else more

        def told() -> Told:
            own = self.told()
            return replace(own, notes=(*own.notes, *found.told().notes))

        both = after if self.after and found.after else self.after or found.after
        start, first = (found.start, found.first) if self.start is None else (self.start, self.first)
        return replace(self, told=told, start=start, first=first, after=both, predict=self.predict or found.predict)


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture that is edited, in place of one drawn from the source prompt."""

    image: Image | None  # as it was given, in the size of the run; None where latents were given
    latents: Tensor  # [1, 4, h, w] float32 of unit variance, on the model's device
    digest: str  # of what was given


@dataclass(frozen=True, eq=False)
class Job:
    """An edit that is asked for."""

    sd: Model
    source: Prompt
    target: Prompt
    alignment: Alignment
    seed: int
    run: Run  # steps, guidance, eta, size
    tick: Ticks  # to be called after each step of a pass of one's own, whose steps are added to `tick.total` before
    photo: Photo | None = None
    found: Way | None = None  # what the inversion of the photo found, for a method to look at; the run goes on from it
    methods: Mapping[str, type] = field(default_factory=dict)  # all by name, for one that takes the rules of another
    inversions: Mapping[str, type] = field(default_factory=dict)  # all by name, for a method that chooses its own
    drawn: dict[str, Tensor] = field(default_factory=dict)  # what jobs of one source, seed and run draw but once

    def picture(self) -> Tensor:
        """The source's latents [1, 4, h, w]: the photo's, or those of a run of its own."""
        if self.photo:
            return self.photo.latents
        if "picture" not in self.drawn:
            self.tick.total += self.run.steps
            for step in self.run(self.sd, [self.source.text], [self.seed], self.tick):
                self.drawn["picture"] = step.latents
        return self.drawn["picture"]


@dataclass(frozen=True)
class Told:
    """What there is to know of an edit."""

    words: tuple[WordPlan, ...]
    notes: tuple[str, ...] = ()  # of how it was decided, a sentence each
    statistics: object = None  # a method's own measurements


@dataclass(frozen=True)
class WordPlan:
    """One word of the target prompt."""

    text: str
    kind: str  # "kept", "replaced" or "inserted"
    tau: float  # fraction of the steps, 0 ... 1, for which the word reads the source's attention
