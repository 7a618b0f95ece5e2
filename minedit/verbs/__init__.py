"""The public verbs. `generate`: prompts → pictures. `edit`: a prompt pair → the source picture and its edit.

Both pictures of a pair come from one run. How it goes is the method's to say, through the one face that all methods
have (methods/__init__.py); a photograph's inversion says where it begins, through the same (inversion/__init__.py).

Read in this order:
```
results.py    what is given back: pictures, their settings, notes
asked.py      arguments, checked
steered.py    a ControlNet's, and the model that it steers
counted.py    what an edit costs
preview.py    every step, shown while it draws
generate.py
edit.py
```
"""
