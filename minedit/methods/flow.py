"""Difference-driven edits: how the noise predicted for two prompts differs moves the picture. Nothing is inverted.

With z = x/√ᾱ and σ = √((1 - ᾱ)/ᾱ), the source is the picture noised, z_s = x0 + σn, at every step anew, and the target
is z_t = z_s + d, from d = 0. After each step, in form "ode", d ← d + (ε_t - ε_s)(σ' - σ), where σ' is the next; in form
"re-estimated", d ← x̂0(z_t) - x̂0(z_s). The edit is x0 + d; where no step moves d, it is the source itself.

"ode" is FlowEdit (Kulikov et al., ICCV 2025), whose released code moves a rectified flow: there the time is
τ = σ/(1 + σ), the velocity ε - x̂0 and the state (1 - τ)d, and the step comes out the same. Tests run theirs. Its last
steps may be those of plain sampling (n_min, 0 in its settings); here they are not. "re-estimated" is the virtual
inversion of InfEdit (Xu et al., CVPR 2024), written from its formula: with a consistency model a few steps do.

Of 18 pairs of the embedded model at 25 steps, read by a judge, 17, 16 and 15 changed as asked with .2, .3 and .4 of the
steps skipped, and .85, .89 and .91 of what should stay did; Prompt-to-Prompt: 14 and .83. With .2 poses change more
cleanly, and two renderings edited as photographs got ghosts. Two draws cost twice, for .88; AdapEdit's rules kept .94
and changed 13. The re-estimated form changed pictures more than it had to at so many steps (benchmarks/flow.csv).
`local` is adapedit_plus.py's, and 0 here: the papers have none.

Rows of the UNet a step: 4, as of every pair (plan.py), times `draws`; 3 where `source_guidance` is 1. The first
`skipped` of the steps cost nothing. A source that is drawn costs a run of its own, two rows a step.
"""

from dataclasses import dataclass

from minedit.config import MineditError
from minedit.methods import Job, Way
from minedit.settings import Settings, setting


@dataclass(frozen=True)
class FlowConfig(Settings):
    """Difference-driven edits: at every step the source is its picture, noised, and what the target's prediction has
    beside the source's moves the edit. A photograph needs no inversion, and stays what it is. `rules` lets the
    attention rules of another method, with its defaults, act on the same rows."""

    form: str = setting(
        "ode", "ode: a step by the difference; re-estimated: clean pictures differ", choices=("ode", "re-estimated")
    )
    noise: str = setting("fresh", "noise of the source: another each step, or one kept", choices=("fresh", "kept"))
    draws: int = setting(1, "noises a step, whose predictions are averaged", low=1, high=64)
    skipped: float = setting(0.3, "fraction of the steps left out at the start; more keeps more", low=0, high=1)
    local: float = setting(
        0.0,
        "share of the edit's largest change that a pixel must have to keep its own; one of half of it goes back to the "
        "source, at every step; 0: none does",
        low=0,
        high=1,
    )
    source_guidance: float | None = setting(
        None, "guidance of the source's prediction", float, low=0, none="that of the run"
    )
    rules: str | None = setting(
        None, "a method whose attention rules act too, such as p2p or adapedit", str, none="no rules"
    )

    inverts = False

    def prepare(self, job: Job) -> Way:
        from minedit.methods.offset import offset  # torch's: settings are read without it
        from minedit.methods.plan import unedited

        alike = self.source_guidance in (None, job.run.guidance)
        if job.alignment.identical and alike and not job.photo:
            return unedited(job)
        return offset(job, self, self.ruling(job))

    def ruling(self, job: Job) -> Way | None:
        """The way whose rules act on the same rows. Raises MineditError for a method that has none."""
        if self.rules is None or job.alignment.identical:
            return None
        kind = job.methods[self.rules]
        way = kind().prepare(job) if getattr(kind, "inverts", True) else None
        if way is None or way.prompts or way.predict or way.start is not None or not (way.rules or way.after):
            raise MineditError(f"rules is {self.rules!r}, which edits no attention of a pair; expected p2p or the like")
        return way
