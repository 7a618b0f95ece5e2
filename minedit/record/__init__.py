"""See and change any tensor. In: names. Out: a tape of values with named axes, a run that is changed, word maps.

Nothing is put into the model, and nothing is global: what is held is held for one model in one thread, while the `with`
lasts (attention/tap.py). A tap sees the runs that pictures are drawn by; statistics passes and inversions go unseen.

Read in this order:
```
names.py     what has a name, with its shape
axes.py      a tensor whose axes have names
maps.py      probabilities that a fused kernel never had
tap.py       what a run tells of itself
select.py    which steps, rows and words are meant
store.py     memory or a file, laid out before the run
recorder.py  names → a tape
patches.py   names → other values
sheet.py     numbers and maps → labelled pictures
words.py     where a word looks, as a picture
drawn.py     what an edit draws, for these
sweeps.py    what an edit owes to a head, a layer, a word, a step
```
"""
