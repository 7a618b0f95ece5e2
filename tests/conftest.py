"""Where there is no GPU, Triton interprets its kernels; it decides so once, when it is first imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
