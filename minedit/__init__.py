"""minedit: text-driven image editing with Stable Diffusion v1.4 and AdapEdit.

sd = minedit.load()
res = minedit.edit(sd, "a boy in the park", "a sitting boy in the park", seed=0)
"""

from minedit.config import IP2P, PICTUREBOOK, SD14, MineditError
from minedit.edit import edit, generate
from minedit.files.checkpoint import load, save
from minedit.methods.choose import METHODS
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

__all__ = ["IP2P", "METHODS", "PICTUREBOOK", "SD14", "VAE", "MineditError", "UNet", "edit", "generate", "load", "save"]
__version__ = "0.2.0"
