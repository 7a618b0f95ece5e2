"""Mutual self-attention that is measured before it acts (adapedit_plus.py, whose settings these are)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from minedit.attention.rules import Attn, Rule
from minedit.methods import Job, Told, Way
from minedit.methods.injected import EACH, self_attention
from minedit.methods.offset import offset
from minedit.methods.plan import first_steps, unscheduled
from minedit.sampling.loop import guided
from minedit.settings import Settings


def probed(job: Job, settings: Settings) -> Way:
    """The way of the edit: that of offset.py, whose first step decides on the rules of the later ones."""
    steps, found = job.run.steps, Found()
    begin, first = (first_steps(share, steps) for share in (settings.mutual_start, settings.skipped))
    begin = max(begin, first)
    if begin == steps or job.alignment.identical:
        return offset(job, settings, None)
    chosen = mutual(job)

    def rules(step: int) -> Mapping[str, Rule]:
        return chosen if found.used and step >= begin else {}

    def told() -> Told:
        what = f"used in the last {steps - begin} of {steps} steps" if found.used else "not used"
        note = f"mutual self-attention keeps {found.kept:.2f} of what the target asks for: {what}"
        return Told(unscheduled(job), (note,))

    way = offset(job, settings, Way(told, rules=rules))
    own = way.predict or guided(job.sd, job.run.guidance)

    def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        eps = own(latents, step, t, attn, context)
        if step > first:
            return eps
        shared = own(latents, step, t, replace(attn, rules=chosen, watch={}, seen={}), context)
        found.kept = kept(eps[1] - eps[0], shared[1] - shared[0])
        found.used = settings.mutual_level == 0 or found.kept >= settings.mutual_level
        return shared if found.used and begin == first else eps

    return replace(way, predict=predict)


@dataclass
class Found:
    """What the first step said."""

    kept: float = 0.0
    used: bool = False


def kept(own: Tensor, shared: Tensor) -> float:
    """How much of the difference `own` is in `shared`: its projection, as a share; 0 where nothing differs."""
    own, shared = own.double(), shared.double()
    size = float(own.square().sum())
    return float((own * shared).sum()) / size if size else 0.0


def mutual(job: Job) -> dict[str, Rule]:
    """Both halves of guidance read the source's keys and values in the self-attention of the way up."""
    return {site.name: Rule(k_rows=EACH, v_rows=EACH) for site in self_attention(job) if site.place == "up"}
