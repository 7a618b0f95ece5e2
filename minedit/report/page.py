"""An edit → one page that shows it from inside. In: what `edit` takes. Out: HTML that loads nothing."""

from __future__ import annotations

import html
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F

from minedit.config import MineditError, __version__, shown
from minedit.image import write_whole
from minedit.methods.choose import DEFAULT
from minedit.methods.plan import map_shape
from minedit.methods.wordmaps import Spatial, Statistics
from minedit.record.sheet import HEAT
from minedit.record.tap import listening
from minedit.report.arrays import data_url, packed
from minedit.report.blocks import BATCH, blocks
from minedit.report.gather import FINEST, KINDS, LIMIT, NUMBERS, SPREAD, Gathered, coarse, decoded_most, words_of
from minedit.report.preview import decoded, linear
from minedit.settings import Setting
from minedit.stack.model import Model, check_model
from minedit.verbs.asked import read_prompt
from minedit.verbs.edit import edit, spelled
from minedit.verbs.results import EditResult

HERE = Path(__file__).parent
EVERY = Setting("show every N-th step of the run, and the last", int, 1, 1000)
BYTES = Setting("of the page, at most", float, 1, unit="bytes")


@dataclass(frozen=True, eq=False)
class Page:
    html: str
    data: dict  # what it shows, as JSON values
    result: EditResult

    @property
    def bytes(self) -> int:
        return len(self.html.encode())

    def save(self, path: str | os.PathLike) -> None:
        """One file, for any browser. Raises MineditError where it cannot be written."""
        write_whole(path, lambda part: part.write_text(self.html, encoding="utf-8"))


@spelled
def xray(
    sd: Model, source: str, target: str, method: str = DEFAULT, *, every: int = 1, limit: int = LIMIT, **more: object
) -> Page:
    """Draw an edit and show it from inside: `xray(sd, source, target).save("page.html")`.

    every: of the run's steps, those that are shown; limit: bytes of the page; more: as of `edit`.

    Raises MineditError where the page would be larger, before the edit is drawn where that can be told.
    """
    check_model(sd)
    every, limit = EVERY.check("every", every), BYTES.check("limit", limit)
    photo = more.get("image") is not None
    pair = read_prompt(sd, source, empty=photo), read_prompt(sd, target)
    gathered = Gathered(sd, words_of(*pair), every, limit)
    with listening(sd, gathered):
        res = edit(sd, source, target, method, **more)
    data = _data(sd, res, gathered)
    page = Page(_filled(data), data, res)
    if page.bytes > limit:
        what = f"the page takes {page.bytes / 1e6:.1f} MB, expected {limit / 1e6:g} at most"
        raise MineditError(f"{what}; show fewer steps: --every {every + max(1, every * page.bytes // limit)}")
    return page


def _data(sd: Model, res: EditResult, of: Gathered) -> dict:
    decode, rgb = _previews(sd, of)
    found, missing = res.statistics if isinstance(res.statistics, Statistics) else None, []
    if "source" not in of.rows:
        missing.append("the source's latents, maps and norms: this method draws the edit alone")
    if "target" not in of.rows:
        missing.append("the edit's latents, maps and norms: the prompts are the same words, one picture is both")
    if "source" in of.rows and all(maps[:, 0].isnan().all() for maps in of.maps.values()):
        missing.append("the source's word maps and norms: this run needs no noise predicted for the source")
    if found is None:
        missing.append("A, the words' likeness to the key words: only AdapEdit's statistics have it")
    if not (found and found.spatial):
        missing.append("S, the weight of each pixel: only AdapEdit with DPS has it")
    likeness = dict(enumerate(found.similarity)) if found else {}
    return {
        "version": __version__,
        "source": res.settings["source"],
        "target": res.settings["target"],
        "method": res.settings["method"],
        "settings": {name: _plain(value) for name, value in res.settings.items()},
        "notes": list(res.notes),
        "seconds": round(res.seconds, 2),
        "missing": missing,
        "pictures": {"source": data_url(res.source, exact=True), "edited": data_url(res.edited, exact=True)},
        "steps": of.steps,
        "times": [of.times[step] for step in of.steps],
        "first": of.first,
        "all": of.all,
        "words": _words(of, res, found, likeness),
        "kinds": list(KINDS),
        "finest": FINEST,
        "maps": [{"site": name, **_place(sd, name, of.sides), **packed(of.maps[name])} for name in of.sites],
        "x0": packed(of.x0),
        "rgb": rgb,
        "decoded": decode,
        "spatial": [_gate(each) for each in (found.spatial if found else ()) if each.step in of.steps],
        "blocks": blocks(sd, of.sides),
        "batch": BATCH,
        "device": f"{sd.device}, {str(sd.dtype).removeprefix('torch.')}",
        "numbers": {"names": list(NUMBERS), **packed(of.numbers)},
        "counts": {"spread": SPREAD, **packed(of.counts)},
        "apart": packed(of.apart),
        "heat": [[int(x) for x in colour] for colour in HEAT],
    }


def _words(of: Gathered, res: EditResult, found: Statistics | None, likeness: dict[int, float]) -> list[dict]:
    """Of each word its kind, τ and A; of a removed one, A of the source's statistics, and no τ."""
    measured = found and found.prompt == res.settings["source"] and "source" or "target"
    words, plans = [], list(res.words)
    removed = 0
    for at, word in enumerate(of.words):
        each = {"text": word.text, "kind": word.kind, "was": word.was, "tau": None, "A": None}
        each |= {"in_source": bool(word.source), "in_target": bool(word.target)}
        if at < len(plans):
            each |= {"tau": plans[at].tau, "A": likeness.get(at) if measured == "target" else None}
        elif measured == "source" and found:
            keys = found.key_words
            each["A"] = likeness.get(keys[removed]) if removed < len(keys) else None
            removed += 1
        words.append(each)
    return words


def _gate(of: Spatial) -> dict:
    """S of a layer at a step; size: height, width, which may be finer than what is in the page."""
    shape = tuple(of.map.shape)
    small = F.adaptive_avg_pool2d(of.map[None], coarse(shape))[0]
    return {"site": of.site, "step": of.step, "size": shape, "mean": of.mean, "spread": of.spread, **packed(small)}


def _place(sd: Model, name: str, sides: tuple[int, int]) -> dict:
    """size: height, width of its maps, which may be finer than those in the page."""
    site = next(each for each in sd.unet.sites if each.name == name)
    return {"place": site.place, "heads": site.heads, "size": list(map_shape(site, sides))}


def _previews(sd: Model, of: Gathered) -> tuple[dict, dict]:
    """({step: [source, edit]}, the matrix): pictures of some steps by the VAE, the rest by what is fitted to them."""
    pixels = of.sides[0] * of.sides[1] * sd.config.vae.factor**2
    count = min(len(of.steps), decoded_most(pixels))
    at = sorted({round(k * (len(of.steps) - 1) / max(count - 1, 1)) for k in range(count)})
    rows = [r for r in range(2) if not of.x0[at, r].isnan().any()]
    x0 = of.x0[at][:, rows].flatten(0, 1)
    images = decoded(sd, x0)
    matrix, r2 = linear(x0, images)
    urls = {str(of.steps[s]): [None, None] for s in at}
    for k, image in enumerate(images):
        urls[str(of.steps[at[k // len(rows)]])][rows[k % len(rows)]] = data_url(image)
    return urls, {"matrix": matrix.tolist(), "r2": round(r2, 4)}


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else shown(json.dumps(value, default=str), 200)


def _filled(data: dict) -> str:
    """The template with its style, its program and what it shows. Every text of a user's is JSON, and no markup."""
    text = json.dumps(_finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    page = (HERE / "page.html").read_text(encoding="utf-8")
    title = f"{data['source']} \u2192 {data['target']}"
    parts = {"TITLE": html.escape(title), "STYLE": _file("page.css"), "PROGRAM": _file("page.js"), "DATA": text}
    head, *rest = page.split("{{")
    return head + "".join(parts[each.partition("}}")[0]] + each.partition("}}")[2] for each in rest)


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _finite(x: object) -> object:
    """JSON has no NaN: null."""
    if isinstance(x, dict):
        return {name: _finite(each) for name, each in x.items()}
    if isinstance(x, list):
        return [_finite(each) for each in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
