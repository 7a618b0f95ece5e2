"""EDICT (Wallace, Gokul, Naik, CVPR 2023, arXiv:2211.12446): two coupled latents, whose steps can be undone exactly.

A step moves each latent by the noise that is predicted from the other, which is known where the step is undone, then
mixes the two. The latents are float64; the UNet is as the model is, where the released code has it in float64 too.

As released (salesforce/EDICT): which latent moves first alternates from step to step, and four fifths of the steps are
drawn. Released, guidance is 3 both ways; here it is that of the run, both ways. What a method changes in the latents
after a step is changed in both.

Costs twice two rows of the UNet for each step to invert, twice four to edit.
"""

from dataclasses import dataclass

from minedit.config import MineditError
from minedit.sampling.way import Job, Told, Way
from minedit.settings import Settings, setting

RELEASED = 3.0  # guidance: with more, what the target does not share with the source comes apart


@dataclass(frozen=True)
class EDICTConfig(Settings):
    """Two coupled latents, whose steps can be undone exactly, guidance and all. The authors draw with --guidance 3; an
    edit with 7.5 comes apart. Its steps are deterministic: eta has to be 0.
    """

    mix: float = setting(0.93, "share of its own that each latent keeps when the two are mixed", low=0.5, high=1)
    strength: float = setting(0.8, "fraction of the steps that are drawn, the last ones: few keep more", low=0, high=1)

    def prepare(self, job: Job) -> Way:
        from minedit.inversion.coupled import inverted, redrawn  # torch's: settings are read without it

        if job.run.eta:
            raise MineditError(f"eta is {job.run.eta:g}, expected 0: EDICT undoes steps without noise")
        first = job.run.steps - int(round(self.strength * job.run.steps, 6))
        pair = inverted(job, self.mix, first)
        predict, after = redrawn(job, self.mix, first, pair)
        much = job.run.guidance > RELEASED
        notes = (f"EDICT: guidance is {job.run.guidance:g} both ways, the authors' {RELEASED:g}",) if much else ()
        return Way(start=pair[0].float(), first=first, predict=predict, after=after, told=lambda: Told((), notes))
