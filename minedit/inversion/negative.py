"""Negative-prompt inversion (Miyake et al., arXiv:2305.16807): guidance leads away from the source prompt.

The source is then drawn without guidance, whatever its scale, as it was inverted; nothing is optimised. Its conditional
and its unconditional row are one: three rows of the UNet a step.
"""

from dataclasses import dataclass

from minedit.config import MineditError, shown
from minedit.sampling.way import Job, Told, Way
from minedit.settings import Settings


@dataclass(frozen=True)
class NegativePromptConfig(Settings):
    """Guidance leads away from the source prompt, so that the source is drawn without any, as it was inverted: near
    the photograph, for nothing. The target is led away from what the source prompt says, too. Negative-prompt inversion
    has no settings.
    """

    def prepare(self, job: Job) -> Way:
        from minedit.inversion.course import course  # torch's: settings are read without it
        from minedit.inversion.spared import led_from_source

        if job.run.negative_prompt:
            fault = f"negative_prompt is {shown(repr(job.run.negative_prompt), 60)}"
            raise MineditError(f"{fault}, in whose place negative-prompt inversion puts the source prompt; omit one")
        return Way(start=course(job)[0], predict=led_from_source(job), told=lambda: Told(()))
