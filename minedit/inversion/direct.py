"""Direct inversion (Ju et al., ICLR 2024): after every step the source is put back on the course of its inversion.

The authors add the difference between the stored latents and their own; what comes out is the stored latents, so here
they are written. The source's own prediction is then needed by nobody: a row of the UNet that no attention rule lets
the target read is not computed (spared.py), three rows a step in place of four for most methods.
"""

from dataclasses import dataclass

from minedit.sampling.way import Job, Told, Way
from minedit.settings import Settings


@dataclass(frozen=True)
class DirectConfig(Settings):
    """The source is put back on its course after every step: what is drawn again is the photograph itself, as far as
    the autoencoder goes. The quickest of the exact ones: a row of the UNet a step to invert, three to edit. Direct
    inversion has no settings.
    """

    spares = True  # rows of the source that nobody reads (record/drawn.py)

    def prepare(self, job: Job) -> Way:
        from minedit.inversion.course import course  # torch's: settings are read without it
        from minedit.inversion.spared import along, back_on, spared

        trajectory = course(job)
        predict, after = spared(job, along(trajectory)), back_on(trajectory)
        return Way(start=trajectory[0], predict=predict, after=after, told=lambda: Told(()))
