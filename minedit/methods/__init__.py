"""How each method edits. In: a `Job`, an edit that is asked for. Out: a `Way`, what is done while the pair is drawn.

A method is a class of settings (settings.py) with one function, `prepare(job) -> Way`; a pass of its own is a call of
`job.run` in it. choose.py names the methods, and `minedit.METHODS["mine"] = Mine` adds one. To edit a photograph, a
method goes on from what an inversion found, a Way too (inversion/); one whose class says `inverts = False` takes
`job.photo` as it is.

Read in this order:
```
plan.py       the rules of each step, for a schedule of tokens
p2p.py        Prompt-to-Prompt
wordmaps.py   what attention says about words: maps, similarity, τ
running.py    word statistics → a plan
adapedit.py   AdapEdit: a time per word (FWT), a weight per pixel (DPS); with a statistics pass or without
fixedseed.py  the target prompt from the same noise
choose.py     names → methods
```
"""

from minedit.sampling.way import Job, Photo, Told, Way, WordPlan

__all__ = ["Job", "Photo", "Told", "Way", "WordPlan"]
