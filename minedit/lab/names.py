"""The names of the rules that attention functions are tried on; forms.py makes them. Importing it is quick."""

RULES = (
    *("plain", "replace", "refine", "reweight", "fwt", "dps", "dps-mix", "dps-end", "dps-mix-end"),
    *("inject", "masactrl", "masked", "two-rows", "general", "all"),
)
