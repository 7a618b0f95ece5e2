"""FreePromptEditing (Liu et al., CVPR 2024): the source's self-attention maps, and nothing else.

For the first `map_steps` of the run the target reads the source's queries and keys in every self-attention layer whose
map is small enough: layout and shapes are the source's, all that words say is the target's own. The conditional row
alone reads. Four rows of the UNet a step, three with a photograph and direct inversion.

Agrees with the released code (alibaba/EasyNLP, diffusion/FreePromptEditing), whose application has these defaults; its
notebooks replace maps for 0.8 of the steps. It counts the pixels of a map, 32 x 32, of latents of 64 a side; here
`map_side` is as large a share of other latents, at the size that the model was trained for: 8 of the embedded 16.

It is Prompt-to-Prompt's self-attention at up to 32 a side (there 16) with cross-attention left alone.
"""

from dataclasses import dataclass

from minedit.methods import Job, Way
from minedit.settings import Settings, setting

SIDE = 64  # of the latents of Stable Diffusion v1


@dataclass(frozen=True)
class FreePromptConfig(Settings):
    """FreePromptEditing: the source's self-attention maps, and the target's words. For layouts that stay.

    The defaults are those of the released application; its notebooks have 0.8 of the steps.
    """

    map_steps: float = setting(0.4, "fraction of the steps with the source's self-attention maps", low=0, high=1)
    map_side: int = setting(
        32, "side of the largest of them, of latents of 64 a side or as large a share of others", low=0, high=SIDE
    )

    def prepare(self, job: Job) -> Way:
        from minedit.methods.injected import maps  # torch's: settings are read without it
        from minedit.methods.plan import unedited

        return unedited(job) if job.alignment.identical else maps(job, self, SIDE)
