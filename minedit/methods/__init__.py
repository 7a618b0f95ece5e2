"""How each method edits: its settings, and its rules of each step.

Read in this order:
```
plan.py      the rules of each step, for a schedule of tokens
p2p.py       Prompt-to-Prompt
wordmaps.py  what attention says about words: maps, similarity, τ
adapedit.py  AdapEdit: a time per word (FWT), a weight per pixel (DPS)
onepass.py   AdapEdit without a statistics pass
```
"""
