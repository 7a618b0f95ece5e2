"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al., CVPR 2024, arXiv:2304.06140): noise maps of a photo.

The photo is noised to every time of the run, anew for each; a noise map is what a step of ancestral sampling (eta 1)
from one of these latents lacks to arrive at the next. The target is drawn with the source's maps, which hold the
photo's layout, from a later step on.

As released (inbarhub/DDPM_inversion), but for this: the map of the last step is kept, so that the source is exact;
released, it is left out. A map is kept times its standard deviation. The source is written and not drawn (spared.py).
`steps` of a method's schedule count from pure noise, also those left out; in the released combination with
Prompt-to-Prompt they count from where the run begins. The released defaults are 100 steps and guidance 15.

Costs two rows of the UNet for each step that is drawn to find the maps, then three.
"""

from dataclasses import dataclass

from minedit.config import MineditError
from minedit.sampling.way import Job, Told, Way
from minedit.settings import Settings, setting


@dataclass(frozen=True)
class EditFriendlyConfig(Settings):
    """Noise maps of ancestral sampling that hold the photograph, for the target to be drawn with. The authors draw it
    with --steps 100 --guidance 15. Its steps draw their own noise: eta has to be 0.
    """

    skip: float = setting(0.36, "fraction of the steps left out, the noisiest: more keeps more", low=0, high=1)
    source_guidance: float = setting(3.5, "guidance while the noise maps are found", low=0)

    spares = True  # rows of the source that nobody reads (record/drawn.py)

    def prepare(self, job: Job) -> Way:
        from minedit.inversion.maps import found, redrawn  # torch's: settings are read without it

        if job.run.eta:
            raise MineditError(f"eta is {job.run.eta:g}, expected 0: edit-friendly inversion has noise of its own")
        first = int(round(self.skip * job.run.steps, 6))
        maps = found(job, self.source_guidance, first)
        predict, after = redrawn(job, maps)
        return Way(start=maps.course[first], first=first, predict=predict, after=after, told=lambda: Told(()))
