"""Writes tests/golden/diffusers.safetensors: what diffusers and transformers answer at the size of tests/tiny.py.

    .venv-parity/bin/python tests/parity/make_golden.py

tests/test_golden.py compares with it where diffusers is not installed. Weights and inputs are regenerated from their
names, so the file holds outputs only.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

import diffusers  # noqa: E402
import oracles  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from seeded import fill, normal, weight  # noqa: E402
from tiny import GUIDANCE, IDS, ODD, STEPS, TINY  # noqa: E402

from minedit.stack.unet import UNet  # noqa: E402
from minedit.stack.vae import VAE  # noqa: E402


@torch.no_grad()
def main() -> None:
    # Of our modules only the names and shapes are used.
    shapes = {kind: kind(cfg).state_dict() for kind, cfg in ((UNet, TINY.unet), (VAE, TINY.vae))}
    state = {kind: {name: weight(name, *x.shape) for name, x in names.items()} for kind, names in shapes.items()}
    unet, vae = oracles.unet(TINY.unet, state[UNet]), oracles.vae(TINY.vae, state[VAE])
    text = fill(oracles.text(TINY.text), lambda name: name.removeprefix("text_model."))
    context = text(input_ids=torch.tensor(IDS)).last_hidden_state
    side = TINY.latent_size
    golden = {
        "text": context,
        "unet": unet(normal("x", 2, 4, side, side), torch.tensor([981, 21]), context).sample,
        "unet of odd sides": unet(normal("odd", 2, 4, *ODD), torch.tensor([981, 21]), context).sample,
        "moments": vae.encode(normal("image", 1, 3, 64, 64).clamp(-1, 1)).latent_dist.parameters,
        "image": vae.decode(normal("z", 1, 4, 4, 4)).sample,
        "latents": oracles.sample(unet, normal("latents", 1, 4, side, side), context, STEPS, GUIDANCE),
    }
    path = TESTS / "golden" / "diffusers.safetensors"
    save_file(golden, path, metadata={"diffusers": diffusers.__version__, "transformers": transformers.__version__})
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
