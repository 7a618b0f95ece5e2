"""Any file of weights ↔ a model, without running any code in it.

Read in this order:
```
stored.py      a tensor in a file: where it lies, and reading it
pickles.py     what a pickle describes, without running it
torchfile.py   a file by `torch.save` → its tensors
formats.py     any file or folder of weights → its tensors
layouts.py     the names in a file of weights → this project's
lora.py        a LoRA's file → a model with it merged
taesd.py       TAESD's file → the network
checkpoint.py  weights ↔ a model; nothing is left over, nothing is missing
```
"""
