"""AdapEdit as a Plan: what word statistics become, at once or as they come in. `settings` are AdapEdit's throughout."""

from collections.abc import Mapping
from dataclasses import replace

from minedit.attention.rules import Gate, Rule, Seen
from minedit.attention.tap import GATES, tap_of
from minedit.methods import Told, WordPlan
from minedit.methods.plan import SOURCE, TARGET, Plan, cross_sites, first_steps, injected_sites, per_token
from minedit.methods.wordmaps import Average, Statistics, spatial, statistics, subject, watched
from minedit.sampling.loop import Step
from minedit.settings import Settings
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt, align, column_map

LOOK_EVERY = 2  # steps, in one pass: looking costs some percent of a step of the embedded model, averages change slowly


class Running:
    """The plan of a pair as it is known so far, and what the edit's gates let through: at three of its steps, and where
    a tap wants it."""

    def __init__(
        self,
        model: Model,
        source: Prompt,
        target: Prompt,
        steps: int,
        settings: Settings,
        found: Statistics | None = None,
    ) -> None:
        self.model, self.pair, self.steps, self.settings = model, (source, target), steps, settings
        self.prompt, self.key_words, _ = subject(source, target)
        self.row = SOURCE if self.prompt is source else TARGET
        self.looks = range(0, steps if settings.one_pass else 0, LOOK_EVERY)
        self.shown, self.spatial, self.average = (steps // 4, steps // 2, steps - 1), [], Average()
        self.found, self.plan = found, plan(model, source, target, steps, settings, found)

    def rules(self, step: int) -> dict[str, Rule]:
        return self.plan.rules(step)

    def watch(self, step: int) -> dict[str, bool]:
        if step in self.looks:
            return watched(self.model, self.settings)
        return dict.fromkeys(self.plan.gates, False) if self.shows(step) else {}

    def shows(self, step: int) -> bool:
        tap = tap_of(self.model.unet)
        return step in self.shown or (tap is not None and tap.wants(GATES, step))

    def after(self, step: Step) -> None:
        latent = step.latents.shape[-2:]
        if self.shows(step.index):
            hidden = {name: step.seen[name].hidden[TARGET] for name in self.plan.gates}
            self.spatial += spatial(self.model, self.plan.gates, step.index, hidden, latent)
        if step.index in self.looks:
            self.add(step.seen, latent)

    def add(self, seen: Mapping[str, Seen], latent: tuple[int, int]) -> None:
        """Take in what a step saw of the layers `watched`; latent: height and width of the latents."""
        self.average.add(seen, self.row)
        means = self.average.means()
        self.found = statistics(self.model, self.prompt, self.key_words, means, self.settings, latent)
        self.plan = plan(self.model, *self.pair, self.steps, self.settings, self.found)

    def told(self) -> Told:
        first = ("one pass: τ is that of the last step, and was another before",) if self.looks else ()
        shown = tuple(replace(each, map=each.map.cpu()) for each in self.spatial)
        found = self.found and replace(self.found, spatial=shown)
        return Told(self.plan.words, first + self.plan.notes, found)


def plan(
    model: Model, source: Prompt, target: Prompt, steps: int, settings: Settings, found: Statistics | None
) -> Plan:
    """The plan of one prompt pair; `found` is what `measure` returned.

    None: `settings.measures` is False, or nothing is known yet; then every word with a source follows it.
    """
    alignment = align(source, target)
    columns, has_source = column_map(source, target, alignment)
    measured, _, index = subject(source, target)
    common = settings.common_tau
    if common is not None or found is None:
        tau = [1.0 if common is None else common] * len(index)
    else:
        tau = [found.tau[i] for i in index]
    tau = [0.0 if pair.kind == "inserted" else t for pair, t in zip(alignment.pairs, tau, strict=True)]
    share = sum(t < settings.rest_tau for t in tau) / len(tau)
    rest = max(0.0, settings.rest - share) if common is None else common
    sigma = rest if settings.sigma is None else settings.sigma
    keys = found.keys if found and settings.dps else {}
    numbers = settings.lambda_s, settings.lambda_sv, settings.centre
    gates = {name: Gate(key.to(model.device), *numbers) for name, key in keys.items()}
    gated = settings.inserted == "gated"
    notes = [f"begin, end and padding follow the source for {rest:.2f} of the run, self-attention for {sigma:.2f}"]
    if common is not None:
        notes.append(f"no FWT: words with a source follow it for {common:.2f} of the run")
    if alignment.disjoint:
        notes.append("the prompts share no word: every word is a key word")
    if measured is source:
        notes.append("words are only removed: the statistics are those of the source prompt")
    if found and found.empty:
        notes.append("nothing above alpha_m, map unmasked: " + ", ".join(found.words[i] for i in found.empty))
    return Plan(
        cross_sites=cross_sites(model.unet.sites),
        self_sites=injected_sites(model.unet.sites, model.config),
        columns=columns.to(model.device),
        pinned=per_token(target, [(0, first_steps(t, steps)) for t in tau], (0, first_steps(rest, steps))),
        gated=tuple(bool(has) or gated for has in has_source),
        gates=gates,
        weights=per_token(target, settings.factors(model.tokenizer, target), 1.0) if settings.reweight else (),
        weighted=((0, steps),) * len(target.ids) if settings.reweight else (),
        self_steps=(0, first_steps(sigma, steps)),
        words=tuple(WordPlan(target.words[p.word].text, p.kind, t) for p, t in zip(alignment.pairs, tau, strict=True)),
        notes=tuple(notes),
    )
