"""The same model, faster. In: a Model. Out: that Model, with other layers.

Read in this order:
```
threads.py   how many threads, beside other programs
cpu.py       what this CPU is good at
winograd.py  3×3 convolutions with fewer products, for a CPU
packed.py    convolutions whose filters are laid out once, for a CPU
graphs.py    a step of the UNet recorded on a CUDA GPU and replayed
group_norm.py  GroupNorm and what stands beside it: Triton kernels
fused.py     and others: additions, LayerNorm, GEGLU, AdapEdit's gate
layers.py    the layers of a UNet and a VAE by those
fast.py      which of them a device wants
```
"""
