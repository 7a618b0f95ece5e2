"""Plug-and-Play (Tumanyan et al., CVPR 2023): the source's self-attention maps and features of the way up.

From output block `start_block` on the target's self-attention reads the source's queries and keys, for the first
`attention_steps` of the run, and what the ResBlock of that block adds is the source's, for the first `feature_steps`:
shapes and places stay, the prompt decides the rest. Both halves of guidance read the source's unconditional row.

Agrees with the released code (MichalGeyer/pnp-diffusers), whose source row has an empty prompt, on its latents of each
step, which an inversion left behind: here those of inversion "direct", three rows of the UNet a step, two once nothing
is read. A picture that is drawn, and other inversions, have a source that guidance draws beside: four rows. Else:
- The source's row has the run's negative prompt where there is one, as the target's; released: none.
- Released, a photograph is inverted in 999 steps; here in those of the run.
- A latent consistency model has no unconditional row: its target reads the source's conditional one.
- For a UNet of another number of output blocks than Stable Diffusion v1's 12 `start_block` is as large a share of them,
  rounded: 2 of the embedded model's 6.
"""

from dataclasses import dataclass

from minedit.methods import Job, Way
from minedit.settings import Settings, setting

BLOCKS = 12  # on the way up in Stable Diffusion v1


@dataclass(frozen=True)
class PlugAndPlayConfig(Settings):
    """Plug-and-Play: self-attention maps and features of the source. For another look of the same layout.

    The defaults are those of the released code.
    """

    attention_steps: float = setting(
        0.5, "fraction of the steps with the source's self-attention maps on the way up", low=0, high=1
    )
    feature_steps: float = setting(0.8, "fraction of the steps with the source's features", low=0, high=1)
    start_block: int = setting(
        4,
        "output block whose features are read, and from which on maps are; of 12, or as large a share of others",
        low=0,
        high=BLOCKS - 1,
    )

    def prepare(self, job: Job) -> Way:
        from minedit.methods.injected import features  # torch's: settings are read without it
        from minedit.methods.plan import unedited

        return unedited(job) if job.alignment.identical else features(job, self, BLOCKS)
