"""The picture-book world: what is drawn, and what is held out of training. Oracle: the mask of the subject."""

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minedit.picturebook.world import dataset
from minedit.picturebook.world.dataset import CELL, Drawings, factors_of, hands_of
from minedit.picturebook.world.factors import HELD_OUT, SIZES, SUBJECTS, Factors, check, colours, held_out
from minedit.picturebook.world.looks import HELD, PEOPLE, POSES
from minedit.picturebook.world.places import PLACES, TIMES
from minedit.picturebook.world.scene import scene
from minedit.picturebook.world.still import SUPPORTS, THINGS

BOY = Factors("boy", "park", "red", pose="standing")
APPLES = Factors("apple", "table", "red", count=2)
SHADOW = 20  # pixels of 128 by which a shadow may stick out below and beside the subject
SMALL = 32  # pixels a side, where only the drawing matters


def arrays(factors, seed, size=128):
    """Picture [H,W,3] int16, and where the subject covers any of a pixel [H,W] bool."""
    drawn = scene(factors, seed, size)
    return np.asarray(drawn.image, dtype=np.int16), np.asarray(drawn.mask) > 0


def change(factors, seed, **changed):
    """(pixels that differ, the subject before, the subject after), each [H,W] bool."""
    (before, subject), (after, moved) = arrays(factors, seed), arrays(replace(factors, **changed), seed)
    return (before != after).any(axis=2), subject, moved


def figures():
    """A figure of every subject and pose, with varying place, time and seed."""
    for i, (subject, poses) in enumerate(POSES.items()):
        for j, pose in enumerate(poses):
            place, colour = PLACES[(2 * i + j) % 7], colours(subject)[j % 5]
            yield Factors(subject, place, colour, "medium", pose, TIMES[j % 3]), i + 7 * j


def still_lifes():
    for i, (thing, support, count) in enumerate(itertools.product(THINGS, SUPPORTS, (1, 2, 3))):
        shades = colours(thing)
        yield Factors(thing, support, shades[i % len(shades)] if shades else None, count=count), i


@pytest.mark.parametrize("factors", (BOY, APPLES), ids=("boy", "apples"))
def test_a_scene_is_deterministic(factors):
    first, again, other = (scene(factors, seed) for seed in (3, 3, 4))
    assert first.image.tobytes() == again.image.tobytes() and first.mask.tobytes() == again.mask.tobytes()
    assert first.image.tobytes() != other.image.tobytes() and first.mask.tobytes() != other.mask.tobytes()


def test_every_figure_draws():
    drawn = 0
    for subject, poses in POSES.items():
        shades = itertools.cycle(itertools.product(colours(subject), SIZES))
        for pose, place, time, held in itertools.product(poses, PLACES, TIMES, (None, *HELD[subject])):
            colour, size = next(shades)
            image, subject_pixels = arrays(Factors(subject, place, colour, size, pose, time, held), drawn, SMALL)
            assert image.shape == (SMALL, SMALL, 3) and subject_pixels.any(), (subject, pose, place, time, held)
            drawn += 1
    assert drawn == 2247


def test_every_still_life_draws():
    for i, (thing, support, count, size) in enumerate(itertools.product(THINGS, SUPPORTS, (1, 2, 3), SIZES)):
        for colour in colours(thing) or (None,):
            assert arrays(Factors(thing, support, colour, size, count=count), i, SMALL)[1].any()


def test_masks_cover_a_sensible_share():
    for factors, seed in (*figures(), *still_lifes()):
        share = (np.asarray(scene(factors, seed).mask) > 127).mean()
        assert 0.03 < share < 0.20, (factors, share)


def test_poses_look_different_whatever_is_held():
    """Also waving: an arm behind the head, or busy with a cup, would look like standing."""
    for subject, poses in POSES.items():
        for held in (None, *HELD[subject]):
            figure = Factors(subject, "park", colours(subject)[0], "medium", poses[0], "day", held)
            masks = [arrays(replace(figure, pose=pose), 3, 2 * SMALL)[1] for pose in poses]
            for (one, a), (other, b) in itertools.combinations(zip(poses, masks, strict=True), 2):
                assert (a ^ b).sum() > 0.04 * (a | b).sum(), (subject, held, one, other)


def test_figures_stay_in_the_picture():
    """A medium one to a hand or a toe: a cut of a sixth of a side at the most; a small one altogether."""
    for figure, seed in figures():
        for size, cut in (("small", 0), ("medium", 2 * SMALL // 6)):
            subject = arrays(replace(figure, size=size), seed, 2 * SMALL)[1]
            assert subject[0].sum() + subject[:, 0].sum() + subject[:, -1].sum() <= cut, (figure, seed, size)


def test_another_pose_leaves_the_background():
    for factors, seed in figures():
        pose = next(pose for pose in POSES[factors.subject] if pose != factors.pose)
        differs, before, after = change(factors, seed, pose=pose)
        rows, columns = np.where(before | after)
        allowed = np.zeros_like(differs)
        left, right = max(0, columns.min() - SHADOW), columns.max() + SHADOW
        allowed[rows.min() : rows.max() + SHADOW, left : right + 1] = True
        assert differs.any() and not (differs & ~allowed).any(), (factors, pose)
        assert (before != after).any()


def test_another_colour_changes_the_subject_alone():
    for factors, seed in (*figures(), *still_lifes()):
        for colour in set(colours(factors.subject)) - {factors.colour}:
            differs, before, after = change(factors, seed, colour=colour)
            assert (before == after).all() and not (differs & ~before).any(), (factors, colour)
            assert differs.sum() > 0.25 * before.sum(), (factors, colour)


def test_another_time_or_place_leaves_the_subject_where_it_is():
    for factors, seed in figures():
        for name, values in (("place", PLACES), ("time", TIMES)):
            value = values[values.index(getattr(factors, name)) - 1]
            differs, before, after = change(factors, seed, **{name: value})
            assert (before == after).all() and differs.mean() > 0.3, (factors, value)


def test_another_count_leaves_the_table():
    for factors, seed in still_lifes():
        differs, before, after = change(factors, seed, count=factors.count % 3 + 1)
        rows, _ = np.where(before | after)
        assert differs.any() and not differs[: rows.min()].any() and not differs[rows.max() + SHADOW :].any()


def test_a_thing_held_is_no_part_of_the_subject():
    for subject, things in HELD.items():
        for thing in things:
            running = Factors(subject, "beach", colours(subject)[0], pose="running")  # its arms stay as they are
            differs, without, holding = change(running, 5, held=thing)
            assert not (holding & ~without).any() and (differs & ~holding).any(), (subject, thing)


@pytest.mark.parametrize(
    ("factors", "named"),
    [
        (replace(BOY, subject="cow"), "unknown subject 'cow'.*boy, girl, dog.*strawberry"),
        (replace(BOY, pose="flying"), "boy has no pose 'flying'.*standing, sitting.*lying"),
        (replace(BOY, pose=None), "boy has no pose None"),
        (replace(BOY, colour="brown"), "boy has no colour 'brown'.*red, blue, green"),
        (replace(BOY, colour=None), "boy has no colour None"),
        (replace(BOY, place="plate"), "boy has no place 'plate'.*park, beach"),
        (replace(BOY, time="noon"), "boy has no time 'noon'.*day, night, sunset"),
        (replace(BOY, size="huge"), "boy has no size 'huge'.*small, medium, big"),
        (replace(BOY, held="sword"), "boy has no held 'sword'.*None, hat, cup"),
        (replace(BOY, count=2), "boy has no count 2.*expected one of 1"),
        (replace(BOY, subject="bird", held="hat"), "bird has no held 'hat'"),
        (replace(BOY, subject="horse", colour="black", pose="sitting"), "horse has no pose 'sitting'"),
        (replace(APPLES, count=4), "apple has no count 4.*1, 2, 3"),
        (replace(APPLES, colour="blue"), "apple has no colour 'blue'.*red, green, yellow"),
        (replace(APPLES, place="park"), "apple has no place 'park'.*table, plate"),
        (replace(APPLES, time="night"), "apple has no time 'night'.*expected one of day"),
        (replace(APPLES, subject="cake"), "cake has no colour 'red'.*expected one of None"),
    ],
)
def test_a_scene_that_cannot_be_says_what_can(factors, named):
    with pytest.raises(ValueError, match=named):
        scene(factors, 0)


def composition(f):
    return f.subject, f"{f.colour or ''}{f.count}" if f.still else f.pose, f.place


def test_held_out_compositions_stay_out_of_training(tmp_path):
    assert len(set(HELD_OUT)) == len(HELD_OUT) == 30
    seen = [factors_of(0, i) for i in range(3000)]
    assert not {composition(f) for f in seen} & set(HELD_OUT) and not any(map(held_out, seen))
    assert {composition(factors_of(0, i, unseen=True)) for i in range(1500)} == set(HELD_OUT)
    assert not any(map(held_out, Drawings(tmp_path, 64, SMALL, 1).factors))
    assert all(map(held_out, Drawings(tmp_path, 64, SMALL, 1, unseen=True).factors))


def test_hands_are_peoples_and_hold_a_cup_more_often_than_anything(tmp_path):
    hands = Drawings(tmp_path, 400, 16, 1, hands=True)
    assert {f.subject for f in hands.factors} == set(PEOPLE) and {*map(held_out, hands.factors)} == {True, False}
    held = Counter(f.held for f in hands.factors)
    assert held.most_common(1)[0][0] == "cup" and set(held) == {None, *HELD["boy"]}
    assert hands.factors == [hands_of(1, i) for i in range(400)] and hands.name.startswith("hands-400-16-1-")


def test_training_sees_every_value_of_every_factor():
    seen = [factors_of(0, i) for i in range(3000)]
    for factors in seen:
        check(factors)
    assert {f.subject for f in seen} == {*SUBJECTS, *THINGS} and {f.place for f in seen} == {*PLACES, *SUPPORTS}
    assert {(f.subject, f.pose) for f in seen if not f.still} == {(s, p) for s in POSES for p in POSES[s]}
    assert {(f.subject, f.count) for f in seen if f.still} == set(itertools.product(THINGS, (1, 2, 3)))


def test_drawings_are_the_scenes_and_are_drawn_once(tmp_path):
    first = Drawings(tmp_path, 5, SMALL, 2)
    for i in range(5):
        assert (first.images[i] == np.asarray(scene(first.factors[i], first.seeds[i], SMALL).image)).all()
    stamp = [file.stat().st_mtime_ns for file in tmp_path.iterdir()]
    again = Drawings(tmp_path, 5, SMALL, 2)
    assert [file.stat().st_mtime_ns for file in tmp_path.iterdir()] == stamp
    x = again.tensor([4, 0])
    assert x.shape == (2, 3, SMALL, SMALL) and x.min() >= -1 and x.max() <= 1
    assert again.masks.shape == (5, SMALL // CELL, SMALL // CELL) and again.masks.any(axis=(1, 2)).all()
    assert (((x[1].permute(1, 2, 0) + 1) * 127.5).round().numpy() == first.images[0]).all()


def test_drawings_are_drawn_anew_once_the_style_changes(tmp_path, monkeypatch):
    before = Drawings(tmp_path, 2, SMALL, 0)
    monkeypatch.setattr(dataset, "style", lambda: "another")
    after = Drawings(tmp_path, 2, SMALL, 0)
    assert before.name != after.name and len(list(tmp_path.iterdir())) == 4


def test_the_style_knows_every_module_that_draws():
    """`scene` and all of the picture book that it imports, directly or not."""
    folder, found, waiting = Path(dataset.__file__).parent, set(), {"scene"}
    while waiting:
        name = waiting.pop()
        found.add(name)
        source = (folder / f"{name}.py").read_text()
        waiting |= set(re.findall(r"^from minedit\.picturebook\.world\.(\w+) import", source, re.M)) - found
    assert found == set(dataset.DRAWING)
