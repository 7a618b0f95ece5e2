"""Photo → what a run goes on from, to draw the photo again. In: a `Job` with a photo. Out: a `Way`, as of methods.

An inversion is a class of settings with `prepare(job) -> Way`: where the run starts (`start`, `first`), what puts the
source back on its course (`after`), what predicts the noise (`predict`), for any number of rows of which the first is
the source. A method's Way then goes on from it (`Way.on`).

Read in this order:
```
course.py     the sampler's steps backwards
ddim.py       a run from where they lead
spared.py     rows of the UNet that nobody reads
direct.py     the source put back on its course after every step
negative.py   guidance away from the source prompt
embedding.py  the unconditional text of each step, optimised
nulltext.py   guidance away from that
maps.py       noise maps of a photo
friendly.py   ancestral steps with them
coupled.py    two latents, whose steps can be undone
edict.py      a run of these
choose.py     names → inversions
```
"""
