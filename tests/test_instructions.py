"""Instructions and the pairs they are about. Oracles: the subject's mask, and words written down here."""

import random
import re
from collections import Counter
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest

from minedit.picturebook.world import captions
from minedit.picturebook.world.edits import pairs
from minedit.picturebook.world.factors import Factors, check, held_out
from minedit.picturebook.world.instructions import WORDS, factor, instruct, instruction
from minedit.picturebook.world.scene import scene

BOY = Factors("boy", "park", "red", pose="standing", held="hat")
DOG = Factors("dog", "street", "white", pose="sitting")
APPLES = Factors("apple", "table", "red", count=2)
SAID = [  # a change, and every way to ask for it
    (BOY, {"pose": "jumping"}, "make the boy jump|let the boy jump|have the boy jump|the boy is jumping"),
    (
        BOY,
        {"colour": "blue"},
        "make the shirt blue|turn the shirt blue|change the shirt to blue|give the boy a blue shirt"
        "|put the boy in a blue shirt",
    ),
    (DOG, {"colour": "orange"}, "make the dog orange|turn the dog orange|change the dog to orange"),
    (BOY, {"held": None}, "remove the hat|take away the hat|take the hat away"),
    (BOY, {"held": "umbrella"}, "replace the hat with an umbrella|turn the hat into an umbrella"),
    (DOG, {"held": "hat"}, "give the dog a hat|make the dog wear a hat|add a hat|put a hat on the dog"),
    (DOG, {"time": "night"}, "make it night|turn day into night|change it to night"),
    (DOG, {"size": "big"}, "make the dog big|make the dog bigger"),
    (replace(DOG, size="big"), {"size": "medium"}, "make the dog smaller"),
    (replace(DOG, size="big"), {"size": "small"}, "make the dog small"),
    (
        DOG,
        {"place": "beach"},
        "put the dog on the beach|put the dog at the beach|move the dog to the beach|take the dog to the beach",
    ),
    (APPLES, {"count": 3}, "make it three apples|show three apples|add an apple|add one apple"),
    (
        replace(APPLES, count=3),
        {"count": 1},
        "make it an apple|make it one apple|make it a single apple|show an apple"
        "|show one apple|show a single apple|remove two apples|take away two apples",
    ),
    (
        APPLES,
        {"subject": "cake", "colour": None},
        "turn the apples into cakes|replace the apples with cakes|change the apples into cakes|make the apples cakes",
    ),
    (
        replace(DOG, pose="standing"),
        {"subject": "girl", "colour": "purple"},
        "turn the dog into a girl in a purple dress|replace the dog with a girl in a purple dress"
        "|change the dog into a girl in a purple dress|make the dog a girl in a purple dress",
    ),
]
SIDE = 64  # pixels
SHADOW, THING = 16, 32  # pixels by which a shadow, and a balloon or an umbrella, may stick out beside the subject


@cache
def drawn():
    return [instruction(3, i) for i in range(1500)]


def test_an_instruction_is_of_its_seed_and_number():
    assert [instruction(3, i) for i in range(20)] == drawn()[:20] != [instruction(4, i) for i in range(20)]


def test_one_factor_changes_and_a_colour_only_where_it_must():
    for each in drawn():
        check(each.before), check(each.after)
        differ = {name for name, value in asdict(each.before).items() if asdict(each.after)[name] != value}
        if differ == {"subject", "colour"}:
            with pytest.raises(ValueError, match="colour"):
                check(replace(each.after, colour=each.before.colour))
            assert each.after.colour is None or each.after.colour in each.text.split()
        else:
            assert differ == {each.factor}
    assert set(Counter(each.factor for each in drawn())) == set(asdict(BOY))


def test_training_compositions_stay_training_compositions():
    assert not any(held_out(each.before) or held_out(each.after) for each in drawn())
    assert all(held_out(instruction(3, i, unseen=True).before) for i in range(100))


@pytest.mark.parametrize(("before", "change", "ways"), SAID, ids=[f"{b.subject}-{c}" for b, c, _ in SAID])
def test_every_way_to_say_it(before, change, ways):
    rng = random.Random(0)
    assert {instruct(before, replace(before, **change), rng) for _ in range(400)} == set(ways.split("|"))


def test_every_edit_of_the_closed_world_can_be_asked_for():
    for pair in pairs("test"):
        said = instruct(pair.before, pair.after, random.Random(pair.seed)).split()
        assert {*said} <= {*captions.WORDS, *WORDS}
        value = getattr(pair.after, pair.factor)
        if pair.kind in ("colour", "time", "add"):
            assert value in said, pair


def test_two_changes_are_no_instruction():
    for after in (DOG, replace(DOG, time="night", size="big"), BOY):
        with pytest.raises(ValueError, match="expected one factor"):
            factor(DOG, after)


def test_words_are_those_that_are_said():
    said = {word for each in drawn() for word in re.findall("[a-z]+", each.text)}
    assert said - {*captions.WORDS} <= {*WORDS} <= said


def test_the_picture_keeps_what_is_not_named():
    """Pictures differ around the subject alone, or, where place or time change, not in its outline."""
    for seed, each in enumerate(drawn()[:250]):
        pair = scene(each.before, seed, SIDE), scene(each.after, seed, SIDE)
        (a, was), (b, now) = ((np.asarray(drawing.image), np.asarray(drawing.mask) > 0) for drawing in pair)
        differs = (a != b).any(2)
        if each.factor == "time" or (each.factor == "place" and not each.before.still):
            assert (was == now).all() and differs.mean() > 0.3, each
        elif each.factor == "place":
            assert not differs[: SIDE // 4].any(), each  # the wall
        else:
            rows, columns = np.where(was | now)
            room = THING if each.factor == "held" or each.before.held else SHADOW
            allowed = np.zeros_like(differs)
            allowed[
                max(0, rows.min() - room) : rows.max() + room, max(0, columns.min() - room) : columns.max() + room
            ] = True
            assert differs.any() and not (differs & ~allowed).any(), each
