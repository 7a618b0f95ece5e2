"""How well the embedded CLIP reads its world: held-out renderings and their captions, and pairs of the closed world.

    python benchmarks/clip.py [FOLDER]

Recall: of 64 renderings, whether a caption's own is first, or among the first five. Pairs: whether the renderer's
counterfactual fits the target's caption better than the source does, and the direction of the two, by kind.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from table import append

from minedit.files.checkpoint import weights_folder
from minedit.metrics.clip import direction, load_clip, score
from minedit.metrics.measured import OWN_CLIP
from minedit.picturebook.score import mean, rendered
from minedit.picturebook.world.captions import caption
from minedit.picturebook.world.dataset import Drawings
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.edits import KINDS, pairs

COUNT, AMONG = 1024, 64


def main() -> None:
    clip = load_clip(sys.argv[1] if len(sys.argv) > 1 else weights_folder() / OWN_CLIP)
    drawn, rng = Drawings(Path("runs/data"), COUNT, 128, 0, unseen=True), stream(0, "clip probe")
    first, among = [], []
    for start in range(0, COUNT, AMONG):
        picked = range(start, start + AMONG)
        images = clip.images([Image.fromarray(drawn.images[at].copy()) for at in picked])
        fits = clip.texts([caption(drawn.factors[at], rng).text for at in picked]) @ images.T
        best, own = fits.topk(5).indices, torch.arange(AMONG)[:, None]
        first += best[:, :1].eq(own).any(1).tolist()
        among += best.eq(own).any(1).tolist()
    rows = [{"what": f"recall of {AMONG}", "count": COUNT, "first": mean(first)[0], "second": mean(among)[0]}]
    found: dict[str, list[tuple[bool, float]]] = {kind: [] for kind in KINDS}
    for pair in pairs("test"):
        before, after = rendered(pair)
        if before.tobytes() != after.tobytes():  # what is asked for does not always show
            images, texts = clip.images([before, after]), clip.texts([pair.source, pair.target])
            better = score(images[1:], texts[1:]) > score(images[:1], texts[1:])
            toward = direction(images[:1], images[1:], texts[:1], texts[1:])
            found[pair.kind].append((better.item(), toward.item()))
    found["all"] = [each for kind in KINDS for each in found[kind]]
    for kind, each in found.items():
        better, toward = (mean(values)[0] for values in zip(*each, strict=True))
        rows.append({"what": kind, "count": len(each), "first": better, "second": toward})
    for row in rows:
        row |= {name: f"{row[name]:.3f}" for name in ("first", "second")}
        print(*row.values(), sep="  ")
    append(Path(__file__).with_suffix(".csv"), rows)


if __name__ == "__main__":
    main()
