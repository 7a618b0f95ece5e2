"""AdapEdit (Ma, Jia, Zhou 2024) as a Plan: per-word release times (FWT, eq. 5-7) and a per-pixel gate (DPS, eq. 8-9).

A statistics pass samples the target prompt alone from the edit's own noise and looks at cross-attention (`measure` in
wordmaps.py makes numbers of it); `plan` turns them into rules.

Where we read the paper: a word follows the source while s < tau * steps (s counts up from pure noise) and is blended
afterwards; key words are never pinned. Where we add to it, as settings: centring, averages over all steps, a shorter
statistics pass or none. With removals only there are no key words in the target: the source prompt is measured instead,
its removed words are the keys, and a target word takes the tau of the source word it is aligned with.

The source's attention of a replaced word (M^c of eq. 8) is that of the old word: token by token where they have as
many, else the mean over the old word's tokens; where runs of words differ in length, over those of the whole run.

One pass, which the paper claims without saying how: the rules of each step come from averages over the steps before it.
The row of the measured prompt is watched at every second step while it is edited; the columns it shows are those before
any edit. Until the first step is over every word with a source follows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from minedit.attention.rules import Gate, Rule, Seen
from minedit.config import MineditError
from minedit.methods import Job, Told, Way, WordPlan
from minedit.methods.plan import (
    SOURCE,
    TARGET,
    Plan,
    cross_sites,
    first_steps,
    injected_sites,
    per_token,
    unedited,
)
from minedit.methods.wordmaps import Average, Statistics, measure, spatial, statistics, subject, watched
from minedit.sampling.ddim import TRAIN_STEPS
from minedit.sampling.loop import Step
from minedit.settings import Settings, setting
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt, align, column_map

ONE_PASS = "one-pass"
PASS_STEPS = 10  # tau moves by 0.03 on average and a judge reads the edits as before: benchmarks/one_pass.csv
LOOK_EVERY = 2  # steps, in one pass: looking costs some percent of a step of the embedded model, averages change slowly
COMMON_TAU = 0.8  # of fwt=False: Prompt-to-Prompt's default cross_steps


@dataclass(frozen=True)
class AdapEditConfig(Settings):
    """AdapEdit's settings; every default lives here. Symbols are the paper's.

    Figure 7 has lambda_sv 0.8 ... 1 and lambda_s 0.9 ... 0.98. Hidden states share one large direction: without
    centring every cosine is near 1, every tau near 0 and the gate nearly flat. rest and rest_tau are the authors'
    script, max(0, rest - share of words with tau < rest_tau); the paper is silent.
    """

    lambda_tau: float = setting(1.0, "λ_τ: smaller lets words go earlier, for a stronger edit", low=0)
    lambda_sv: float = setting(1.0, "λ_S[V]: slope of the pixels' gate", low=0)
    lambda_s: float = setting(0.95, "λ_S: the most that a pixel may follow the target", low=0, high=1)
    alpha_m: float = setting(0.03, "α_m: attention below is masked; as for 77 tokens", low=0, high=1)
    fwt: bool | str = setting(
        True, "a τ for each word; one-pass: found during the edit; without, one for all", choices=(ONE_PASS,)
    )
    dps: bool = setting(True, "a weight for each pixel; without, words that were let go follow the target")
    mask: bool = setting(True, "mask the word maps that the pixels' gate is made from")
    tau: float | None = setting(
        None, "one τ for every word, as a fraction of the steps", float, low=0, high=1, none="found by FWT"
    )
    centre: bool = setting(True, "subtract the mean over pixels from features before they are compared")
    statistics: str = setting("last", "steps whose word maps are used; mean is sharper", choices=("last", "mean"))
    fwt_steps: int | None = setting(
        None, "steps of the statistics pass", int, low=1, high=TRAIN_STEPS, none=f"{PASS_STEPS}, at most --steps"
    )
    inserted: str = setting(
        "own", "attention of inserted words: own, or gated by the pixels' weights", choices=("own", "gated")
    )
    rest: float = setting(
        0.8, "fraction of the steps that begin, end and padding follow the source, at most", low=0, high=1
    )
    rest_tau: float = setting(0.1, "words with a smaller τ shorten --rest by their share of all words", low=0, high=1)
    sigma: float | None = setting(
        None, "fraction of the steps with the source's self-attention", float, low=0, high=1, none="follows --rest"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fwt == ONE_PASS and self.fwt_steps is not None:
            raise MineditError(f"fwt_steps is {self.fwt_steps}, expected None: one-pass has no statistics pass")

    @property
    def common_tau(self) -> float | None:
        """The tau of every token, or None where FWT decides."""
        return self.tau if self.tau is not None or self.fwt else COMMON_TAU

    @property
    def measures(self) -> bool:
        """Whether word statistics are needed."""
        return self.dps or self.common_tau is None

    @property
    def one_pass(self) -> bool:
        """Whether they are taken in the edit itself."""
        return self.measures and self.fwt == ONE_PASS

    def pass_steps(self, steps: int) -> int:
        """Steps of the statistics pass of an edit of `steps`."""
        return self.fwt_steps or min(PASS_STEPS, steps)

    def prepare(self, job: Job) -> Way:
        if job.alignment.identical:
            return unedited(job)
        found, pair, steps = None, (job.source, job.target), job.run.steps
        if self.measures and not self.one_pass:
            job.tick.total += self.pass_steps(steps)
            found = measure(job.sd, *pair, job.seed, job.run, self, job.tick)
        running = Running(job.sd, *pair, steps, self, found)
        return Way(rules=running.rules, watch=running.watch, after=running.after, told=running.told)


class Running:
    """The plan of a pair as it is known so far, and what the edit's gates let through at three of its steps."""

    def __init__(
        self,
        model: Model,
        source: Prompt,
        target: Prompt,
        steps: int,
        settings: AdapEditConfig,
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
        return dict.fromkeys(self.plan.gates, False) if step in self.shown else {}

    def after(self, step: Step) -> None:
        latent = step.latents.shape[-2:]
        if step.index in self.shown:
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
        found = self.found and replace(self.found, spatial=tuple(self.spatial))
        return Told(self.plan.words, first + self.plan.notes, found)


def plan(
    model: Model, source: Prompt, target: Prompt, steps: int, settings: AdapEditConfig, found: Statistics | None
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
        pinned=per_token(target, [first_steps(t, steps) for t in tau], first_steps(rest, steps)),
        gated=tuple(bool(has) or gated for has in has_source),
        gates=gates,
        self_steps=first_steps(sigma, steps),
        words=tuple(WordPlan(target.words[p.word].text, p.kind, t) for p, t in zip(alignment.pairs, tau, strict=True)),
        notes=tuple(notes),
    )
