"""The public verbs. `generate`: prompts → pictures. `edit`: a prompt pair → the source picture and its edit.

Both pictures of a pair come from one run. How it goes is the method's to say, through the one face that all methods
have (methods/__init__.py); a photograph's inversion says where it begins, through the same (inversion/__init__.py).

Read in this order:
```
results.py    what is given back: pictures, their settings, notes
asked.py      arguments, checked
counted.py    what an edit costs
generate.py
edit.py
```
"""
