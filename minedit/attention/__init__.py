"""What an attention layer is, and what an edit of it is. In: q, k, v and a Rule. Out: what the layer hands on.

Read in this order:
```
inside.py  what only the UNet can tell as it runs
tap.py     what looks at a run or changes it
rules.py   what each layer does at one step, as data
eager.py   the specification: what a Rule means, to the letter
sdpa.py    its algebra on torch's fused kernels
kernel.py  the same as one fused Triton kernel
triton.py  how that kernel is called
flash.py   self-attention of heads of odd widths as one Triton kernel
choose.py  names of attention functions → functions
```
"""
