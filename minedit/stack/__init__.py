"""Stable Diffusion v1.4, with the checkpoint's names. In: prompts, latents, times. Out: noise, pictures.

Read in this order:
```
tokens.py   prompt → token ids; word → tokens; the alignment of two prompts
text.py     token ids → embeddings, through transformers' CLIP
times.py    a timestep as the UNet is told it
feed_forward.py  the layers of a transformer block that are no attention
unet.py     the noise predictor
control.py  a picture that steers it
vae.py      the autoencoder
preview.py  latents → small pictures, by a matrix fitted to it
model.py    what a loaded model is
taesd.py    a tiny autoencoder, for previews
```
"""

import warnings

from tqdm import TqdmWarning

# transformers' bars, none of which is shown, ask for ipywidgets in every notebook
warnings.filterwarnings("ignore", "IProgress not found", TqdmWarning)
