"""The kernel lab: attention functions against float64, and timed, on the shapes of Stable Diffusion v1.4.

Read in this order:
```
names.py     names of rules, of a compiler's languages
forms.py     rules of every form
traps.py     inputs that many a function gets wrong
cases.py     shapes with traps in them, and those of Stable Diffusion
oracle.py    the float64 answer
hints.py     what may be wrong, from how it differs
manners.py   what a function must not do beside
check.py     the verdict on a function
bounds.py    a Triton kernel's addresses, in the interpreter
clock.py     measured: warm, cold, as a graph; memory
bench.py     its time, and of which ceiling
made.py      compiled kernels in a folder, two folders compared
compiled.py  what the compiler makes of a call's kernels
calls.py     the calls whose kernels are compiled
flex.py       FlexAttention, a baseline
rows.py      what a row is called, and the file of rows
roofline.py   a picture of rows
table.py     all functions on all cases, in a table
```
"""
