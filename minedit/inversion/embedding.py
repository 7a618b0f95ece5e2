"""The unconditional text of each step, optimised so that guidance leads along a course. `settings` are null-text's."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minedit.attention.rules import Attn
from minedit.config import MineditError
from minedit.sampling import ddim, loop
from minedit.sampling.coded import overflow
from minedit.sampling.guidance import two_way
from minedit.sampling.loop import Predict
from minedit.sampling.memory import check_memory
from minedit.sampling.way import Job
from minedit.settings import Settings
from minedit.stack.unet import UNet

RISE = 1e-3  # of the loss to stop at, over a run: 2e-5 a step for 50
SCALE = 2.0**14  # of the loss, for gradients that float16 can hold; a power of two, so that float32 has the same digits


@torch.inference_mode(False)
@torch.enable_grad()
def optimised(job: Job, trajectory: Tensor, settings: Settings) -> tuple[Tensor, tuple[str, ...]]:
    """(embeddings [steps, 1, T, width] float32 of the latents [steps + 1, 1, 4, h, w] before and after, notes).

    The embedding and the loss are float32, whatever the model is. Raises MineditError where gradients overflow, where
    the memory is not there, and for a model that cannot have any.
    """
    model, guidance = job.sd, job.run.guidance
    if model.fast and model.device.type == "cuda":
        raise MineditError("null-text inversion needs gradients, which a model made for speed has none of; omit --fast")
    check_memory(model, 1, *(side * model.config.vae.factor for side in trajectory.shape[3:]), gradients=True)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    unet, attn, schedule = forgetful(model.unet), Attn(attend=model.attend), ddim.schedule(job.run.steps)
    trajectory = trajectory.clone()  # tensors of an inference mode outside would have no gradients
    with torch.no_grad():
        empty, text = (row.clone() for row in loop.context(model, [job.source.text], job.run.negative_prompt).split(1))

    def noise(net: nn.Module, x: Tensor, t: int, text: Tensor, attn: Attn) -> Tensor:
        return net(x.to(model.dtype), torch.full((1,), t, device=x.device), text.to(model.dtype), attn).float()

    found, taken, latents = [], 0, trajectory[0]
    job.tick.total += len(schedule) * settings.inner_steps
    for index, (t, t_prev) in enumerate(schedule):
        share, before = index / len(schedule), taken
        with torch.no_grad():
            cond = noise(model.unet, latents, t, text, attn)
        empty = empty.detach().float().clone().requires_grad_()
        adam = torch.optim.Adam([empty], lr=settings.learning_rate * (1 - share / 2))
        for _ in range(settings.inner_steps):
            eps = two_way(noise(unet, latents, t, empty, Attn()), cond, guidance)  # sdpa: kernels have no gradients
            loss = F.mse_loss(ddim.step(latents, eps, t, t_prev)[0], trajectory[index + 1])
            (empty.grad,) = (grad / SCALE for grad in torch.autograd.grad(loss * SCALE, empty))
            if not empty.grad.isfinite().all():
                raise overflow("the gradients of null-text inversion", model.dtype)
            adam.step()
            taken += 1
            job.tick()
            if loss.item() < settings.early_stop + share * RISE:
                break
        job.tick.total -= before + settings.inner_steps - taken
        found.append(empty.detach())
        with torch.no_grad():
            eps = two_way(noise(model.unet, latents, t, found[-1], attn), cond, guidance)
            latents = ddim.step(latents, eps, t, t_prev)[0]
    notes = (f"null-text: {taken} steps of optimisation of {len(schedule) * settings.inner_steps} at most",)
    if model.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(model.device) / 1e9
        notes += (f"null-text: {peak:.1f} GB of GPU memory were taken at once, the model among them",)
    return torch.stack(found), notes


def read_from(job: Job, texts: Tensor) -> Predict:
    """`loop.guided` away from the text of each step, [steps, 1, T, width]."""
    guided = loop.guided(job.sd, job.run.guidance)

    def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        text = texts[step].to(context.dtype).expand(len(latents), -1, -1)
        return guided(latents, step, t, attn, torch.cat([text, context[len(latents) :]]))

    return predict


class Forgetful(nn.Module):
    """A block that keeps its inputs alone, and computes the rest again where gradients ask for it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: object) -> Tensor:
        return checkpoint(self.block, *inputs, use_reentrant=False)


def forgetful(unet: UNet) -> UNet:
    """The UNet, of the same layers, in blocks that are Forgetful; the one given is left as it is."""
    twin = copy.copy(unet)
    twin._modules = dict(unet._modules)
    twin.__dict__.pop("forward", None)  # in whose place something may stand that runs the other one
    for name in ("input_blocks", "output_blocks"):
        setattr(twin, name, nn.ModuleList(Forgetful(block) for block in getattr(unet, name)))
    twin.middle_block = Forgetful(unet.middle_block)
    return twin
