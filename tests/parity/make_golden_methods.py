"""Writes tests/golden/methods.safetensors: what the authors' code of three methods draws by tests/deep.py.

    MASACTRL=... FREEPROMPT=... PNP=... .venv-parity/bin/python tests/parity/make_golden_methods.py

The folders are those of released.py. tests/test_injected.py compares with it where neither they nor diffusers are.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

import diffusers  # noqa: E402
import oracles  # noqa: E402
import released  # noqa: E402
import torch  # noqa: E402
from deep import DEEP, FOREGROUND, GUIDANCE, STEPS, context, course  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from seeded import weight  # noqa: E402

from minedit.stack.unet import UNet  # noqa: E402


def unet() -> UNet2DConditionModel:
    """A new one each time: the released code changes the one that it is given."""
    shapes = UNet(DEEP.unet).state_dict()  # of our module only the names and shapes are used
    return oracles.unet(DEEP.unet, {name: weight(name, *x.shape) for name, x in shapes.items()})


def main() -> None:
    run = course()[0], context(), STEPS, GUIDANCE
    layers = {"start_step": 1, "start_layer": 10}
    golden = {
        "masactrl": released.masactrl(unet(), *run, **layers),
        "masactrl, foreground": released.masactrl(unet(), *run, tokens=FOREGROUND, **layers),
        "freeprompt": released.freeprompt(unet(), *run, share=0.4, side=8),
    }
    scheduler = oracles.scheduler()
    scheduler.set_timesteps(STEPS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "photo"
        place.mkdir()
        for t, latents in zip(scheduler.timesteps, course(), strict=False):
            torch.save(latents, place / f"noisy_latents_{t}.pt")
        features = int(0.8 * STEPS)
        golden["plug-and-play"] = released.pnp(unet(), *run[1:], place, maps=STEPS // 2, features=features)
    path = TESTS / "golden" / "methods.safetensors"
    save_file(golden, path, metadata={"diffusers": diffusers.__version__})
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
