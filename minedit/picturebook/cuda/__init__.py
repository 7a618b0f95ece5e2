"""The embedded model trained further in minutes, by the clock, on a CUDA GPU. A model in, a better one out.

Read in this order:
```
data.py    scenes drawn by many processes while others train on them
record.py  a step of training as one CUDA graph
learn.py   the loop: one flat vector of parameters, Muon in batches
losses.py  what is minimised, with nothing that waits for the device
pieces.py  a large file in small ones
train.py   all of it: `python -m minedit.picturebook.cuda.train`
```
"""
