"""Pictures for the notebooks: maps and latents as colours, figures as curves. In: tensors. Out: PIL pictures."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minedit.image import FONT, to_pil
from minedit.stack.model import Model

DARK_TO_BRIGHT = ((8, 6, 30), (90, 20, 110), (190, 50, 85), (245, 130, 30), (252, 230, 130))  # a map's colours
PENS = ("#1f5fa8", "#c8381e", "#2e8b45", "#8a4fb0", "#b07a10", "#555555")
FINE = 3  # curves are drawn this much larger, then reduced


def heat(x: Tensor, side: int = 128, high: float | None = None) -> Image.Image:
    """A map [h,w] in colours from 0, dark, to `high`, its largest value if not given: a picture of `side` pixels."""
    x = (x.float() / (x.max() if high is None else high)).clamp(0, 1) * (len(DARK_TO_BRIGHT) - 1)
    colours = torch.tensor(DARK_TO_BRIGHT, dtype=torch.float32)
    low = x.floor().clamp(max=len(DARK_TO_BRIGHT) - 2)
    rgb = torch.lerp(colours[low.long()], colours[low.long() + 1], (x - low)[..., None])  # [h, w, 3]
    return Image.fromarray(rgb.round().to(torch.uint8).numpy()).resize((side, side), Image.Resampling.NEAREST)


def over(picture: Image.Image, x: Tensor) -> Image.Image:
    """A map [h,w] over the picture, which shows through dimly."""
    colours = heat(x, picture.width).resize(picture.size, Image.Resampling.BICUBIC)
    return Image.blend(picture.convert("L").convert("RGB"), colours, 0.65)


def latent(z: Tensor, side: int = 128) -> Image.Image:
    """The first three channels of a latent [4,h,w] as red, green and blue; grey is 0, the ends are -2 and 2."""
    rgb = ((z[:3].float() / 4 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(rgb.cpu().numpy()).resize((side, side), Image.Resampling.NEAREST)


def curves(
    lines: Mapping[str, Sequence[float]],
    across: Sequence[float] | None = None,
    x: str = "",
    y: str = "",
    size: tuple[int, int] = (520, 240),
) -> Image.Image:
    """Figures as lines over `across` (default: 0, 1 ...), named at the right; x and y say what the axes are."""
    across = list(range(max(map(len, lines.values()))) if across is None else across)
    values = [float(value) for line in lines.values() for value in line]
    low, high = min(values), max(values)
    low = 0.0 if 0 < low < high / 4 else low
    high += (high == low) * 1.0
    font, (width, height) = ImageFont.truetype(FONT, 11 * FINE), (side * FINE for side in size)
    names = max(font.getlength(name) for name in lines)
    left, top, right, bottom = 52 * FINE, 20 * FINE, width - int(names) - 14 * FINE, height - 34 * FINE
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)

    def at(a: float, b: float) -> tuple[float, float]:
        share = (a - across[0]) / ((across[-1] - across[0]) or 1)
        return left + share * (right - left), bottom - (b - low) / (high - low) * (bottom - top)

    pen.line([(left, top), (left, bottom), (right, bottom)], fill="#888888", width=FINE)
    for value in (low, (low + high) / 2, high):
        pen.text((left - 4 * FINE, at(across[0], value)[1]), f"{value:.3g}", "black", font, "rm")
    for value in (across[0], across[-1]):
        pen.text((at(value, low)[0], bottom + 4 * FINE), f"{value:g}", "black", font, "ma")
    pen.text(((left + right) / 2, bottom + 16 * FINE), x, "black", font, "ma")
    pen.text((left, 2 * FINE), y, "black", font, "la")
    taken: list[float] = []
    for (name, line), colour in zip(lines.items(), PENS, strict=False):
        points = [at(a, float(b)) for a, b in zip(across, line, strict=False)]
        pen.line(points, fill=colour, width=2 * FINE, joint="curve")
        place = points[-1][1]
        while any(abs(place - other) < 13 * FINE for other in taken):
            place -= FINE
        taken.append(place)
        pen.text((right + 6 * FINE, place), name, colour, font, "lm")
    return sheet.resize(size, Image.Resampling.LANCZOS)


@torch.inference_mode()
def decoded(sd: Model, latents: Tensor) -> Image.Image:
    """Latents of unit variance [1,4,h,w], as a step has them -> picture."""
    return to_pil(sd.vae.decode(latents.to(sd.device, sd.dtype) / sd.config.latent_scale))[0]
