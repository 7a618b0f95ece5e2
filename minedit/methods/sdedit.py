"""SDEdit (Meng et al., ICLR 2022): noise is added to the picture, and the target prompt is drawn from there.

Agrees with diffusers' image-to-image pipeline and its DDIM scheduler, in how it counts steps too: the last
int(steps · strength) of them are done. Theirs draws a sample of the autoencoder's posterior; here, as everywhere, it is
the mean, and the noise is that of the seed.

Two rows of the UNet a step that is done, of the target. A source that is drawn costs a run of its own, two rows a step.
"""

from dataclasses import dataclass

from minedit.config import MineditError
from minedit.methods import Job, Told, Way
from minedit.settings import Settings, setting


@dataclass(frozen=True)
class SDEditConfig(Settings):
    """SDEdit: the picture is noised part of the way, and the target prompt drawn from there. No attention is edited, so
    whatever the noise hides is drawn anew. A photograph needs no inversion."""

    strength: float = setting(0.8, "fraction of the steps that are drawn anew; 1 keeps next to nothing", low=0, high=1)

    inverts, alone = False, True  # the target is (record/drawn.py)

    def prepare(self, job: Job) -> Way:
        from minedit.methods.plan import unedited, unscheduled  # torch's: settings are read without it
        from minedit.sampling import ddim, lcm

        steps = job.run.steps
        drawn = int(steps * self.strength)
        if not drawn:
            least = f"{1 / steps:.4f}".rstrip("0")
            raise MineditError(
                f"strength is {self.strength:g} of {steps} steps: none is left to draw; expected {least} or more"
            )
        if job.alignment.identical and not job.photo:
            return unedited(job)
        lcm.refuse(job.sd, "SDEdit")
        picture, first = job.picture(), steps - drawn
        noise = ddim.noise(job.seed, *picture.shape[2:]).to(picture)
        start = ddim.diffuse(picture, noise, ddim.timesteps(steps)[first])
        told = Told(
            unscheduled(job), (f"the target prompt draws the last {drawn} of {steps} steps, from the noised source",)
        )
        return Way(lambda: told, (job.target.text,), start=start, first=first, source=picture)
