"""Tensors ↔ text that a page holds: float16 in base64, with the shape beside it. NaN: there is no such value."""

import base64
import io

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

QUALITY = 92  # of JPEG, for the many pictures


def packed(x: Tensor) -> dict:
    """{"shape", "half"}: the values in float16, little-endian, the last axis fastest."""
    half = x.detach().cpu().to(torch.float16).contiguous().numpy().astype("<f2")
    return {"shape": list(x.shape), "half": base64.b64encode(half.tobytes()).decode()}


def unpacked(found: dict) -> Tensor:
    """Float32 values of what `packed` made."""
    flat = np.frombuffer(base64.b64decode(found["half"]), "<f2").astype(np.float32)
    return torch.from_numpy(flat).view(found["shape"])


def taken(*shapes: tuple[int, ...]) -> int:
    """How many letters tensors of these shapes take in a page."""
    return sum(4 * -(-2 * int(np.prod(shape)) // 3) for shape in shapes)


def data_url(image: Image, exact: bool = False) -> str:
    """A picture as an address that holds it. exact: as PNG, else as JPEG."""
    file, kind = io.BytesIO(), "png" if exact else "jpeg"
    image.save(file, kind, **({"optimize": True} if exact else {"quality": QUALITY, "subsampling": 0}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
