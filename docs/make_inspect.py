"""docs/inspect.webp, the page of an edit with its parts numbered, by a Chromium that is here: `make inspect`."""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

import minedit

ROOT = Path(__file__).parent.parent
EDIT = "a boy in the park", "a sitting boy in the park"
WIDTH, EVERY, SEED = 1200, 5, 16
WORD = 5  # "park", which source and target both have
PARTS = (".scrub", "#h-pair", "#h-x0", "#h-words", "#h-maps", "#h-spatial", "#h-unet")  # as docs/inspect.md counts them
NUMBER = """{s}.forEach((at, i) => {
  const mark = document.createElement("b");
  mark.textContent = i + 1;
  mark.style = "display:inline-block;width:1.5em;line-height:1.5em;border-radius:50%;text-align:center;" +
    "margin-right:.4em;background:#1d1f24;color:#fff;font-size:1rem";
  document.querySelector(at).prepend(mark);
})"""


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from chromium import Tab, found

    program = found()
    if program is None:
        raise SystemExit("no Chromium here; BROWSER_BIN=... names one")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        minedit.xray(minedit.load(), *EDIT, seed=SEED, every=EVERY).save(page)
        tab = Tab(program, Path(folder) / "profile")
        tab.size(WIDTH, 900)
        tab.open(page)
        tab.run(NUMBER.replace("{s}", str(list(PARTS))))
        tab.run(f"choose({{word: {WORD}}})")
        tab.settle()
        picture = Image.open(io.BytesIO(tab.picture(whole=True))).convert("RGB")
        tab.close()
    picture.save(Path(__file__).with_name("inspect.webp"), quality=65, method=6)


if __name__ == "__main__":
    main()
