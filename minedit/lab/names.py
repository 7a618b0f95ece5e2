"""The names of the rules that attention functions are tried on, which forms.py makes, and of a compiler's languages.

Importing it is quick.
"""

RULES = (
    *("plain", "replace", "refine", "reweight", "fwt", "dps", "dps-mix", "dps-end", "dps-mix-end"),
    *("inject", "masactrl", "masked", "two-rows", "general", "all"),
)
LANGUAGES = ("ttir", "ttgir", "ptx", "sass")  # a kernel's code on its way to the GPU
