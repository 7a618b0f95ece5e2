"""DDIM inversion (Song, Meng, Ermon 2020): the run starts where the sampler's steps backwards lead from the photo.

Exact for infinitely many steps without guidance. Guidance of 7.5 while the picture is drawn again, as an edit has it,
leads far from the photo: the other inversions mend that.
"""

from dataclasses import dataclass

from minedit.sampling.way import Job, Told, Way
from minedit.settings import Settings


@dataclass(frozen=True)
class DDIMConfig(Settings):
    """The sampler's steps backwards, without guidance. With guidance the photograph is not drawn again as it was: that
    is what the others mend. DDIM inversion has no settings.
    """

    def prepare(self, job: Job) -> Way:
        from minedit.inversion.course import course  # torch's: settings are read without it

        return Way(start=course(job)[0], told=lambda: Told(()))
