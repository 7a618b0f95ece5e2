"""How the embedded model was trained, stage by stage.

Read in this order:
```
stages.py       their names, and steps
workers.py      several processes
muon.py         an optimiser
log.py          a training's figures, as a table
fit.py          one training run that resumes where it was stopped
vocabulary.py   CLIP's tokenizer, trimmed
grounding.py    attention that leaves what its word names costs
train_vae.py    the autoencoder
train_text.py   CLIP
train_unet.py   the UNet
judge_net.py    the judge
train_judge.py  how it learns
lowrank.py      learning by low-rank changes
train_instruct.py  InstructPix2Pix: the UNet learns to follow instructions
train.py        all stages, and the checkpoint they make
```
"""
