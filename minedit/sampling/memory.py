"""Whether a picture's memory is there: asked before a run, since the system ends a process that takes too much."""

import os
from contextlib import suppress
from pathlib import Path

import torch

from minedit.config import MineditError
from minedit.stack.model import Model

# activations of their largest kind that are held at once; benchmarks/memory.py. GRADIENTS: in a row that asks for those
# of the text, its blocks keeping their inputs alone; SD-v1.4 held 350 MB for 512 x 512 pixels, 146 MB for 256 x 256
UNET, VAE, EAGER, GRADIENTS = 34, 4, 3, 90


def check_memory(sd: Model, rows: int, height: int, width: int, gradients: bool = False) -> None:
    """Raises MineditError where `rows` pictures of this size need more memory than their device has free.

    gradients: of the text, by one row of the UNet for each picture.
    """
    needs, there = needed(sd, rows, height, width, gradients), free(sd.device)
    if there is not None and needs > there:
        what = f"{rows} pictures of {height}x{width} pixels need" if rows > 1 else f"{height}x{width} pixels need"
        found = f"{what} about {needs / 1e9:,.1f} GB of memory, {there / 1e9:,.1f} GB are free on {sd.device}"
        raise MineditError(f"{found}; choose a smaller --height and --width, or fewer prompts at once")


def needed(sd: Model, rows: int, height: int, width: int, gradients: bool = False) -> int:
    """Bytes beside the weights: the most that the UNet or the decoder holds at once, about."""
    if gradients:
        return of_gradients(sd, rows, height, width)
    return max(of_unet(sd, rows, height, width), of_decoder(sd, rows, height, width))


def of_gradients(sd: Model, rows: int, height: int, width: int) -> int:
    """Of the text, in a row of the UNet for each picture; and of one convolution's weights, in another order."""
    activations = GRADIENTS * rows * (height * width // sd.config.vae.factor**2) * sd.config.unet.channels[0]
    return (activations + max(weight.numel() for weight in sd.unet.parameters())) * sd.dtype.itemsize


def of_unet(sd: Model, rows: int, height: int, width: int) -> int:
    """Of `rows` pictures, each with and without its prompt; and of one convolution's weights, in another order."""
    size, latents = sd.dtype.itemsize, height * width // sd.config.vae.factor**2
    unet = UNET * 2 * rows * latents * sd.config.unet.channels[0] * size
    if sd.attention == "eager" and sd.config.unet.attention[0]:
        unet += EAGER * 2 * rows * sd.config.unet.heads * latents**2 * 4
    return unet + max(weight.numel() for weight in sd.unet.parameters()) * size


def of_decoder(sd: Model, rows: int, height: int, width: int) -> int:
    size, pixels = sd.dtype.itemsize, height * width
    decoder = VAE * rows * pixels * max(sd.config.vae.channels[:2]) * size
    if sd.device.type == "cpu":  # its attention has all scores at once there, and their softmax
        decoder = max(decoder, 2 * rows * (pixels // sd.config.vae.factor**2) ** 2 * size)
    return decoder


def free(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device; None where that cannot be said."""
    if device.type == "cuda":
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + own
    found = []
    with suppress(OSError, ValueError, KeyError):
        system = _numbers(Path("/proc/meminfo"))  # in KiB
        found.append((system["MemAvailable:"] + system["SwapFree:"]) * 1024)
    with suppress(OSError, ValueError, KeyError):  # of a container
        group = Path("/sys/fs/cgroup")
        most, now = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(most - now + _numbers(group / "memory.stat")["inactive_file"])
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=None)


def _numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
