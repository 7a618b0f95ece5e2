"""How each method edits. In: a `Job`, an edit that is asked for. Out: a `Way`, what is done while the pair is drawn.

A method is a class of settings (settings.py) with one function, `prepare(job) -> Way`; a pass of its own is a call of
`job.run` in it. choose.py names the methods, and `minedit.METHODS["mine"] = Mine` adds one. To edit a photograph, a
method goes on from what an inversion found, a Way too (inversion/); one whose class says `inverts = False` takes
`job.photo` as it is, and of one that says `draws_both = True` it is known before `prepare` that all steps draw both.

Read in this order:
```
plan.py             the rules of each step, for a schedule of tokens
named.py            words that a user names → words of a prompt
localblend.py       what attention says of words → where the edit may differ from the source
blending.py         the same as settings of any method
p2p.py              Prompt-to-Prompt
wordmaps.py         what attention says about words: maps, similarity, τ
running.py          word statistics → a plan
adapedit.py         AdapEdit: a time per word (FWT), a weight per pixel (DPS); with a statistics pass or without
injected.py         layers of the target that read the source: the rules of the next three
masactrl.py         the target's pixels look into the source picture
freeprompt.py       the source's self-attention maps, and nothing else
plugandplay.py      the source's self-attention maps and features of the way up
fixedseed.py        the target prompt from the same noise
sdedit.py           the target prompt from the source, noised
offset.py           what a difference of predictions adds to the source, step by step
flow.py             the source moved by that difference, with no inversion
probed.py           mutual self-attention, measured at the first step before it acts
adapedit_plus.py    the source moved so, which the target looks into where that is measured to fit
hterm.py            h-Edit's term: what leads from the source to the target, on the source's course
hedit.py            h-Edit, by that term and Prompt-to-Prompt's rules
instructpix2pix.py  an instruction, by a model of eight channels
choose.py           names → methods
```
"""

from minedit.sampling.way import Job, Photo, Told, Way, WordPlan

__all__ = ["Job", "Photo", "Told", "Way", "WordPlan"]
