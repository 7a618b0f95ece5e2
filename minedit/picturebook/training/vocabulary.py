"""A closed word list -> CLIP's tokenizer cut down to it: the same pieces for those words, far fewer embedding rows.

Kept are the 512 base symbols of byte-level BPE (Sennrich et al., arXiv:1508.07909), each byte with and without the end
mark, and the merges that spell the listed words. Any other text still has a spelling, in bytes and short pieces.
"""

import json
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from minedit.stack.tokens import Tokenizer

Merge = tuple[str, str]
BASE = 512  # entries of CLIP's vocabulary before the first merge


def merges_for(symbols: list[str], ranks: dict[Merge, int]) -> list[Merge]:
    """The merges BPE applies to `symbols`, in order.

    Any set of merges that holds these and is ranked alike gives the same spelling: at each step the best pair of the
    full list is in the smaller one too, and no better pair has been added.
    """
    applied = []
    while len(symbols) > 1:
        best = min(pairwise(symbols), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        applied.append(best)
        merged, i = [], 0
        while i < len(symbols):
            found = tuple(symbols[i : i + 2]) == best
            merged.append("".join(best) if found else symbols[i])
            i += 2 if found else 1
        symbols = merged
    return applied


def trim_tokenizer(source_folder: str | Path, words: Iterable[str], out_folder: str | Path) -> int:
    """Writes vocab.json, merges.txt, words.txt and CLIP's licence to `out_folder`; returns the vocabulary's size.

    An entry of `words` that CLIP's pre-tokenizer splits ("t-shirt") counts as its parts. Ids: the base symbols, the
    merges by rank, begin of text, end of text.
    """
    source, out = Path(source_folder), Path(out_folder)
    full = Tokenizer(source, context_length=77)
    vocabulary = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    _, *lines = (source / "merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}

    listed = sorted({word.text for entry in words for word in full.encode(entry).words})
    needed: set[Merge] = set()
    for word in listed:
        spelt = "".join(full.pieces(word)).removesuffix("</w>")  # one character a byte, as in the vocabulary
        needed.update(merges_for([*spelt[:-1], spelt[-1] + "</w>"], ranks))
    merges = sorted(needed, key=ranks.__getitem__)

    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    entries = [*by_id[:BASE], *map("".join, merges), *by_id[-2:]]
    out.mkdir(parents=True, exist_ok=True)
    ids = {entry: i for i, entry in enumerate(entries)}
    (out / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), encoding="utf-8")
    (out / "words.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    shutil.copyfile(source / "LICENSE", out / "LICENSE")
    return len(ids)
