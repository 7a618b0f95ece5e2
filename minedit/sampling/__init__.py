"""Noise → latents → pictures: one generator of steps.

Read in this order:
```
numbers.py   seeds, steps, sides: what a run may be asked for
coded.py     pictures ↔ latents, by the VAE
ddim.py      the noise schedule, a sampling step and its inverse
guidance.py  noise predictions with and without the prompt → one
memory.py    whether a picture's memory is there
rows.py      noise from fewer rows of the UNet
lcm.py       a sampling step of latent consistency models
tapped.py    noise as a recorder or a patch leaves it
loop.py      the sampling loop
way.py       what an edit may do in it
together.py  several edits of one source in one batch
```
"""
