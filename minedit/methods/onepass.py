"""AdapEdit in one pass: the rules of each step from averages over the steps before it, with no statistics pass.

The paper claims one pass and does not say how. Here the row of the measured prompt (the target's; the source's where
words are only removed) is watched at every second step while it is edited; the columns it shows are those before any
edit. Until the first step is over every word with a source follows it.
"""

from collections.abc import Mapping

from minedit.attention.rules import Rule, Seen
from minedit.methods import adapedit
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.plan import SOURCE, TARGET
from minedit.methods.wordmaps import Average, Statistics
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt

LOOK_EVERY = 2  # steps: looking costs some percent of a step of the embedded model, and averages change slowly


class Running:
    """The plan of a pair as it is known so far: `rules` before each step, `add` after those in `looks`."""

    def __init__(self, model: Model, source: Prompt, target: Prompt, steps: int, settings: AdapEditConfig) -> None:
        self.model, self.pair, self.steps, self.settings = model, (source, target), steps, settings
        self.prompt, self.key_words, _ = adapedit.subject(source, target)
        self.row = SOURCE if self.prompt is source else TARGET
        self.looks, self.average = range(0, steps, LOOK_EVERY), Average()
        self.found: Statistics | None = None
        self.plan = adapedit.plan(model, source, target, steps, settings, None)

    def rules(self, step: int) -> dict[str, Rule]:
        return self.plan.rules(step)

    def add(self, seen: Mapping[str, Seen], latent: tuple[int, int]) -> None:
        """Take in what a step saw of `adapedit.watched`; latent: height and width of the latents."""
        self.average.add(seen, self.row)
        means = self.average.means()
        self.found = adapedit.statistics(self.model, self.prompt, self.key_words, means, self.settings, latent)
        self.plan = adapedit.plan(self.model, *self.pair, self.steps, self.settings, self.found)
