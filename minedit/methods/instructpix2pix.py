"""InstructPix2Pix (Brooks, Holynski, Efros, CVPR 2023): a UNet that was trained to follow an instruction.

It reads eight channels: the noisy latents, and the photograph's, which are the mean of the posterior *without* the
scale of 0.18215. Its prompt is the instruction, "make the boy sit", where other methods' says what the edit shows.
Guidance is eq. 3 of the paper: --guidance leads towards the text, `image_guidance` towards the photograph.

Agrees with diffusers' pipeline. Three rows of the UNet a step: with text and photograph, with the photograph, with
neither. No attention is edited.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minedit.config import MineditError
from minedit.methods import Job, Told, Way
from minedit.settings import Settings, setting

if TYPE_CHECKING:
    from torch import Tensor

    from minedit.attention.rules import Attn


ROWS = {0: 2, 1: 0}  # of a picture's two, without text and with it, among the three


@dataclass(frozen=True)
class InstructPix2PixConfig(Settings):
    """InstructPix2Pix: a photograph is edited by an instruction, by a model that was trained to (`--model`, of eight
    channels). TARGET is the instruction, "make the boy sit", unless `instruction` is given; SOURCE is not read.
    `guidance` leads towards the text; at 0 nothing is asked for."""

    image_guidance: float = setting(1.5, "scale of the guidance towards the photograph; more keeps more of it", low=0)
    instruction: str | None = setting(None, "what is to be done, for pairs of captions", str, none="the target prompt")

    inverts, reads_photo, alone = False, True, True  # a photo is there, and eight channels; no source is drawn

    def prepare(self, job: Job) -> Way:
        import torch  # settings are read without it

        from minedit.methods.plan import unscheduled
        from minedit.sampling.guidance import three_way

        text = job.target.text if self.instruction is None else self.instruction
        if not job.sd.tokenizer.encode(text).words:
            raise MineditError("the instruction has no words; say what is to be done")
        model, photo = job.sd, job.photo.latents / job.sd.config.latent_scale

        def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
            shown = torch.cat([photo, photo, torch.zeros_like(photo)])
            batch = torch.cat([latents.expand(3, -1, -1, -1), shown], dim=1).to(model.dtype)  # [3, 8, h, w]
            times = torch.full((3,), t, device=latents.device)
            texts = context[[1, 0, 0]]  # of context: without text, with it
            eps = model.unet(batch, times, texts, replace(attn, rows=ROWS)).float()
            full, image, neither = eps.chunk(3)
            return three_way(neither, image, full, job.run.guidance, self.image_guidance)

        told = Told(unscheduled(job), (f"the instruction: {text}",))
        return Way(lambda: told, (text,), predict=predict, source=job.photo.latents)
