"""The embedded world and the model of it: drawn, trained, judged.

Read in this order:
```
world/      scenes, and what captions say about them
training/   how the embedded model was trained
judge.py    what it can do, measured
score.py    how good an edit of the world is, as the judge reads it
cuda/       trained further in minutes, on a GPU
```
"""
