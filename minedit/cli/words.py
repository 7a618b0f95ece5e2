"""`minedit words`: the words that the embedded model was trained on, by kind."""

import re
import textwrap

from minedit.cli.options import Formatter, Parser


def main(argv: list[str]) -> int:
    Parser("minedit words", description=__doc__, formatter_class=Formatter).parse_args(argv)
    for kind, words in kinds().items():
        print(textwrap.fill(", ".join(words), 100, initial_indent=f"{kind:13}", subsequent_indent=" " * 13))
    print("\nOther words are spelt in pieces that mean nothing to the model; they are named when they are used.")
    return 0


def kinds() -> dict[str, list[str]]:
    """Every word once, by the first kind it is of; what is of none is "between", the comma left out."""
    from minedit.picturebook.world.captions import COUNTS, HOLDING, PLURAL, WORDS  # they draw, too
    from minedit.picturebook.world.factors import SIZES, SUBJECTS
    from minedit.picturebook.world.looks import POSES, TINTS
    from minedit.picturebook.world.places import PLACES, TIMES
    from minedit.picturebook.world.still import SUPPORTS, THINGS

    plurals = (PLURAL.get(thing, f"{thing}s") for thing in THINGS)
    phrases = {
        "people, pets": SUBJECTS,
        "things": (*THINGS, *plurals),
        "poses": (pose for poses in POSES.values() for pose in poses),
        "colours": TINTS,
        "sizes": SIZES,
        "counts": (each.removeprefix("a ") for options in COUNTS.values() for each in options if each != "a"),
        "clothes": ("shirt", "dress"),
        "held, worn": HOLDING,
        "places": (*PLACES, *SUPPORTS),
        "times": TIMES,
        "between": WORDS,
    }
    seen, found = {","}, {}
    for kind, texts in phrases.items():
        words = dict.fromkeys(word for text in texts for word in re.findall("[a-z]+", text))
        found[kind] = [word for word in words if word in WORDS and word not in seen]
        seen |= {*found[kind]}
    return found
