"""Writes tests/golden/p2p.safetensors: final latents by google/prompt-to-prompt on the model of tests/p2p_model.py.

    P2P=path/to/prompt-to-prompt .venv-parity/bin/python tests/parity/make_golden_p2p.py

tests/test_localblend.py compares with it where neither diffusers nor that code is. It holds their outputs only.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

import diffusers  # noqa: E402
import oracles  # noqa: E402
from p2p_model import CONFIG, GOLDEN, GOLDEN_STEPS, model  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from test_p2p import released_latents  # noqa: E402


def main() -> None:
    ours = model()
    pair = ours, oracles.unet(CONFIG.unet, {name: x.clone() for name, x in ours.unet.state_dict().items()})
    golden = {name: released_latents(pair, name, GOLDEN_STEPS) for name in GOLDEN}
    path = TESTS / "golden" / "p2p.safetensors"
    save_file(golden, path, metadata={"diffusers": diffusers.__version__, "code": "google/prompt-to-prompt"})
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
