"""One edit as one page: a file of HTML that shows every step, word and block, and loads nothing.

In: a model and two prompts. Out: the page. page.html, page.css and page.js are its template, live.html that of one
whose settings are dragged.

Read in this order:
```
arrays.py   tensors ↔ text that a page holds
gather.py   what is taken while the edit is drawn
blocks.py   the UNet's blocks: layers, parameters, times
preview.py  latents → a picture, by one matrix or by the VAE
page.py     all of it → HTML
studio.py   settings that change → pages, one at a time
live.py     such pages, served to this machine's browsers
```
"""
