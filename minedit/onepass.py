"""AdapEdit in one pass: the rules of each step from averages over the steps before it, with no statistics pass.

The paper claims one pass and does not say how. Here the row of the measured prompt (the target's; the source's where
words are only removed) is watched while it is edited; the columns it shows are those before any edit. Until the first
step is over every word with a source follows it. N pixels, T tokens, C channels.
"""

from collections.abc import Mapping

from torch import Tensor

from minedit import adapedit
from minedit.adapedit import AdapEditConfig, Statistics
from minedit.attention import Rule, Seen
from minedit.checkpoint import Model
from minedit.plan import SOURCE, TARGET
from minedit.tokens import Prompt


class Running:
    """The plan of a pair as it is known so far. For each step: `rules` before it, `add` after it."""

    def __init__(self, model: Model, source: Prompt, target: Prompt, steps: int, settings: AdapEditConfig) -> None:
        self.model, self.pair, self.steps, self.settings = model, (source, target), steps, settings
        self.prompt, self.key_words, _ = adapedit.subject(source, target)
        self.row = SOURCE if self.prompt is source else TARGET
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}  # of each watched layer: columns [N, T], hidden [N, C]
        self.found: Statistics | None = None
        self.plan = adapedit.plan(model, source, target, steps, settings, None)

    def rules(self, step: int) -> dict[str, Rule]:
        return self.plan.rules(step)

    def add(self, step: int, seen: Mapping[str, Seen], latent: tuple[int, int]) -> None:
        """Take in what step 0, 1 ... saw of `adapedit.watched`; latent: height and width of the latents."""
        for name, at in seen.items():
            now = at.columns[self.row].float(), at.hidden[self.row].float()
            before = self.sums.get(name)
            self.sums[name] = now if before is None else (before[0] + now[0], before[1] + now[1])
        means = {
            name: (columns.cpu() / (step + 1), hidden.cpu() / (step + 1))
            for name, (columns, hidden) in self.sums.items()
        }
        self.found = adapedit.statistics(self.model, self.prompt, self.key_words, means, self.settings, latent)
        self.plan = adapedit.plan(self.model, *self.pair, self.steps, self.settings, self.found)
