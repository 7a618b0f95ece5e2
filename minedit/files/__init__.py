"""Any file of weights ↔ a model, without running any code in it.

Read in this order:
```
stored.py      a tensor in a file: where it lies, and reading it
pickles.py     what a pickle describes, without running it
torchfile.py   a file by `torch.save` → its tensors
formats.py     any file or folder of weights → its tensors
layouts.py     the names in a file of weights → this project's
sizes.py       the sizes of a UNet of fewer layers
declared.py    what a file says of how its model was trained: honoured, or refused
vae.py         a VAE's file or folder → its tensors
products.py    the factors of a change to a layer → the change
lorafile.py    a LoRA's file or folder → its tensors and their alpha
lora.py        a LoRA → a model with it merged
control.py     a ControlNet's file → the network
taesd.py       TAESD's file → the network
torchnames.py  names of number types and devices → torch's
written.py     tensors → a file
variant.py     what a variant of a model changes → the variant
checkpoint.py  weights ↔ a model; nothing is left over, nothing is missing
```
"""
