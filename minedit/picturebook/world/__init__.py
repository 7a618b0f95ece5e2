"""The picture book. In: a seed. Out: scenes with masks, and their captions.

Read in this order:
```
draw.py      pens, colours, streams of randomness
looks.py     people and animals: names, poses, clothes
places.py    backgrounds
still.py     things on a table
people.py    a person, drawn
animals.py   an animal, drawn
factors.py   what can differ between scenes
captions.py  a scene in words
scene.py     factors → a picture and the mask of its subject
shown.py     factors → what can be seen of them, skin and hair, too
edits.py     pairs of captions that differ in one factor
dataset.py   scenes on disk
instructions.py  what changes between two scenes, in words
```
"""
