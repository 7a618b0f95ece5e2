"""Captions of the picture book. Oracle: a reader that knows single words, and the factors that were drawn."""

import random
import re
from dataclasses import replace

from minedit.config import PICTUREBOOK
from minedit.files.checkpoint import tokenizer
from minedit.picturebook.world.captions import WORDS, caption
from minedit.picturebook.world.dataset import factors_of
from minedit.picturebook.world.factors import SUBJECTS, Factors
from minedit.picturebook.world.looks import HELD, POSES, TINTS
from minedit.picturebook.world.places import PLACES, TIMES
from minedit.picturebook.world.still import SUPPORTS, THINGS

BOY = Factors("boy", "park", "red", pose="standing")
APPLES = Factors("apple", "table", "red", count=2)

# The words by which a caption can name a factor, and what they say; the rest of its words say nothing of factors.
NAMES = {
    "place": {name: name for name in (*PLACES, *SUPPORTS)},
    "colour": {name: name for name in TINTS},
    "pose": {pose.split()[0]: pose for poses in POSES.values() for pose in poses},
    "size": {"small": "small", "big": "big"},
    "time": {name: name for name in TIMES},
    "held": {name: name for names in HELD.values() for name in names},
    "count": {"two": 2, "three": 3},
}
NOUNS = {"peaches": "peach", "strawberries": "strawberry"} | {name + "s": name for name in THINGS}
NOUNS |= {name: name for name in (*SUBJECTS, *THINGS)}


def said(text):
    """What a caption says: factor -> value, read word by word."""
    words = re.findall(r"[a-z]+", text)
    found = {factor: table[word] for factor, table in NAMES.items() for word in words if word in table}
    nouns = [name for name in NOUNS if f" {name} " in f" {' '.join(words)} "]
    found["subject"] = NOUNS[max(nouns, key=len)]  # a chocolate cake is also a cake
    return found


def samples(count):
    for i in range(count):
        factors, rng = factors_of(7, i, unseen=i % 4 == 0), random.Random(i)
        yield factors, caption(factors, rng)


def test_captions_say_what_they_name_and_nothing_else():
    for factors, c in samples(3000):
        expected = {factor: getattr(factors, factor) for factor in c.named}
        if expected.get("count") == 1:
            del expected["count"]  # told by the singular
        assert said(c.text) == expected, (c, factors)


def test_captions_point_at_their_words():
    for factors, c in samples(1000):
        words = re.findall(r"[a-z]+", c.text)
        assert c.subject_word in words and NOUNS.get(c.subject_word, factors.subject).split()[-1] in factors.subject
        assert c.place_word == (factors.place if "place" in c.named else None)
        assert c.place_word is None or c.place_word in words


def test_captions_name_what_they_are_asked_to():
    factors = replace(BOY, size="big", time="night", held="hat")
    for name in (frozenset(), {"pose"}, {"place", "colour"}, {"size", "time", "held"}):
        assert caption(factors, random.Random(1), frozenset(name)).named == {"subject", *name}
    assert caption(BOY, random.Random(1), frozenset({"size", "held", "count", "time"})).named == {"subject", "time"}
    assert caption(APPLES, random.Random(1), frozenset({"pose", "time"})).named == {"subject", "count"}


def test_captions_use_the_listed_words_and_use_them_all():
    used = {word for _, c in samples(8000) for word in re.findall(r"[a-z]+|[^a-z ]", c.text)}
    assert used == set(WORDS)


def test_captions_fit_the_embedded_model():
    tokens = tokenizer(PICTUREBOOK)
    for _, c in samples(1500):
        prompt = tokens.encode(c.text)  # raises where it is too long
        assert tokens.unknown(prompt) == () and prompt.length <= PICTUREBOOK.text.context_length
