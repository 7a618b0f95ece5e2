"""LPIPS v0.1 (Zhang et al., CVPR 2018): how unlike two pictures look to a network that was trained on photographs.

Features of some of its layers, each pixel's scaled to length 1, are subtracted, squared, weighed channel by channel by
a trained head, averaged over the picture and summed over the layers. Networks: AlexNet, as most papers have it, and
SqueezeNet 1.1, as PIE-Bench has it; by torchvision's names, which the files of both have. AlexNet's features and the
heads of both come with this project; SqueezeNet's features are the user's to give.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minedit.config import MineditError
from minedit.files.checkpoint import weights_folder
from minedit.files.formats import named, read_other
from minedit.files.stored import Stored
from minedit.metrics.pixels import averaged

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of a picture in [-1,1]
TINY = 1e-10  # added to a length, so that nothing is divided by 0
LEAST = 32  # pixels a side: of fewer, the last layers see none
TAPS = {"alex": (1, 4, 7, 9, 11), "squeeze": (1, 4, 7, 9, 10, 11, 12)}  # layers that are compared
WIDTHS = {"alex": (64, 192, 384, 256, 256), "squeeze": (64, 128, 256, 384, 384, 512, 512)}  # their channels
EXPECTED = "expected torchvision's alexnet or squeezenet1_1: tensors features.0.weight ..."
FILE = "lpips.safetensors"  # of weights/


class Fire(nn.Module):
    """SqueezeNet's module: few channels, then many, by 1 × 1 and by 3 × 3."""

    def __init__(self, channels: int, few: int, many: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, few, 1)
        self.expand1x1 = nn.Conv2d(few, many, 1)
        self.expand3x3 = nn.Conv2d(few, many, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


def _alexnet() -> nn.Sequential:
    def convolution(a: int, b: int, side: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(a, b, side, stride, 2 if side > 3 else 1), nn.ReLU()]

    first, second = convolution(3, 64, 11, 4), convolution(64, 192, 5)
    rest = [*convolution(192, 384, 3), *convolution(384, 256, 3), *convolution(256, 256, 3)]
    return nn.Sequential(*first, nn.MaxPool2d(3, 2), *second, nn.MaxPool2d(3, 2), *rest)


def _squeezenet() -> nn.Sequential:
    smaller = nn.MaxPool2d(3, 2, ceil_mode=True)
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), smaller, Fire(64, 16, 64), Fire(128, 16, 64)),
        *(smaller, Fire(128, 32, 128), Fire(256, 32, 128), smaller, Fire(256, 48, 192), Fire(384, 48, 192)),
        *(Fire(384, 64, 256), Fire(512, 64, 256)),
    )


class LPIPS(nn.Module):
    """Pictures a, b [B,3,H,W] in [0,1], of LEAST pixels a side or more -> [B], 0 for the same and about 1 at most.

    inside [B,1,H,W] of 0 and 1: over its pixels alone, with the layers' maps stretched over the picture. Raises
    MineditError for smaller pictures.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        self.net = net
        self.features = _alexnet() if net == "alex" else _squeezenet()
        self.heads = nn.ParameterList([nn.Parameter(torch.zeros(1, width, 1, 1)) for width in WIDTHS[net]])

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor, inside: Tensor | None = None) -> Tensor:
        if min(a.shape[2:]) < LEAST:
            raise MineditError(
                f"pictures of {a.shape[3]} x {a.shape[2]} pixels; LPIPS expects {LEAST} or more each way"
            )
        found = 0
        for one, other, head in zip(self._seen(a), self._seen(b), self.heads, strict=True):
            apart = ((one - other) ** 2 * head).sum(1, keepdim=True)  # [B, 1, h, w]
            if inside is not None:
                apart = F.interpolate(apart, size=a.shape[2:], mode="bilinear", align_corners=False)
            found = found + averaged(apart, inside)
        return found

    def _seen(self, x: Tensor) -> list[Tensor]:
        """Features of the layers, of length 1 at each pixel."""
        shift, scale = (x.new_tensor(each)[:, None, None] for each in (SHIFT, SCALE))
        x, seen = (2 * x - 1 - shift) / scale, []
        for at, layer in enumerate(self.features[: TAPS[self.net][-1] + 1]):
            x = layer(x)
            if at in TAPS[self.net]:
                seen.append(x / ((x**2).sum(1, keepdim=True).sqrt() + TINY))
        return seen


def load_lpips(path: str | os.PathLike | None = None, device: str | torch.device = "cpu") -> LPIPS:
    """LPIPS in float32 by the embedded AlexNet, or by the network in a file, which says by its shapes which one it is.

    A file that has heads too, `lin0.model.1.weight` ... as the lpips package names them, takes those. Raises
    MineditError for a file that is no such network.
    """
    own = read_other(weights_folder() / FILE, EXPECTED)[0]
    if path is None:
        given = {name.removeprefix("alex."): tensor for name, tensor in own.items() if name.startswith("alex.")}
    else:
        path = named(path, EXPECTED)
        given = read_other(path, EXPECTED)[0]
    first = given.get("features.0.weight")
    net = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "squeeze"}.get(tuple(first.shape) if first else ())
    if net is None:
        raise MineditError(f"{path} is no network of LPIPS; {EXPECTED}")
    found = LPIPS(net)
    heads = {f"heads.{at}": f"lin{at}.model.1.weight" for at in range(len(found.heads))}
    state = {}
    for name, like in found.state_dict().items():
        stored = given.get(heads.get(name, name)) or own.get(f"{net}.{heads.get(name, name)}")
        state[name] = _fitting(stored, name, like, path)
    found.load_state_dict(state)
    return found.to(device).eval().requires_grad_(False)


def _fitting(stored: Stored | None, name: str, like: Tensor, path: object) -> Tensor:
    if stored is None or tuple(stored.shape) != tuple(like.shape):
        held = "lacks" if stored is None else f"has of shape {list(stored.shape)}"
        raise MineditError(f"{path} {held} {name}, which is {list(like.shape)}; {EXPECTED}")
    return stored.read(torch.float32)
