"""The fixed seed: the target prompt from the source's noise, with no edit of attention."""

from dataclasses import dataclass

from minedit.methods import Job, Way
from minedit.settings import Settings


@dataclass(frozen=True)
class FixedSeedConfig(Settings):
    """The target prompt from the source's noise, and nothing else: what every other method has to beat. No settings."""

    def prepare(self, job: Job) -> Way:
        from minedit.methods.plan import unedited  # torch's: settings are read without it

        return unedited(job)
