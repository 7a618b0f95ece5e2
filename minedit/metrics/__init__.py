"""Edits, measured: figures of pictures, and of whole benchmarks.

Every function takes pictures [B,3,H,W] in [0,1], or vectors, and returns a figure of each, [B]. Where a figure is
published in a way that flatters, or by an accident, both are here: as it is published, and the honest one.

Read in this order:
```
pixels.py    MSE, PSNR, SSIM, of a part of the pictures too
lpips.py     how unlike two pictures look
foreign.py   networks in transformers' folders
clip.py      how well a picture fits a text
dino.py      how far a picture's structure moved
columns.py   what the figures are called, and what they are
asked.py     what benchmarks ask for
closed.py    the closed world's own figures
measured.py  an edit → its figures
kept.py      rows that stay
evaluate.py  a benchmark, methods and a model → rows
table.py     rows → means and their intervals
paper.py     these beside the AdapEdit paper's Table 1
piebench.py  these beside what others publish of PIE-Bench
charts.py    these as pictures
```
"""
