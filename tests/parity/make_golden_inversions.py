"""Writes tests/golden/inversions.safetensors: what released inversions find on the model of tests/inverted.py.

    P2P=path/to/prompt-to-prompt DDPM_INVERSION=path/to/DDPM_inversion EDICT=path/to/EDICT \\
        .venv-parity/bin/python tests/parity/make_golden_inversions.py

tests/test_inversion_golden.py compares with it where neither diffusers nor that code is. It holds their outputs only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

import diffusers  # noqa: E402
import oracles  # noqa: E402
import released_inversions as released  # noqa: E402
import torch  # noqa: E402
from inverted import FEW, GUIDANCE, SKIP, photo, small_model, texts  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def main() -> None:
    sd = small_model()
    unet = oracles.unet(sd.config.unet, {name: x.clone() for name, x in sd.unet.state_dict().items()})
    rows, latents = texts(sd), photo()
    course, found = released.null_text(os.environ["P2P"], unet.requires_grad_(False), latents, rows[1:3], inner=1)
    golden = {"null-text, the course": torch.stack(course[::-1]), "null-text": torch.stack(found)}
    named = {"": rows[:1], "source": rows[2:3], "target": rows[3:]}
    torch.manual_seed(0)
    _, drawn, _ = released.edit_friendly(os.environ["DDPM_INVERSION"], unet, latents, named, FEW, SKIP, GUIDANCE)
    golden["edit-friendly, but the last step"] = torch.stack(drawn[:-1])
    double = {prompt: text.double() for prompt, text in named.items()}
    strength = 1 - SKIP / FEW
    _, end = released.edict(os.environ["EDICT"], unet.double(), latents.double(), double, FEW, strength, GUIDANCE)
    golden["edict"] = end[0].float()
    path = TESTS / "golden" / "inversions.safetensors"
    told = {"diffusers": diffusers.__version__, "code": "prompt-to-prompt, DDPM_inversion, EDICT"}
    save_file({name: x.contiguous() for name, x in golden.items()}, path, metadata=told)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
