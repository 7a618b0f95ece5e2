"""Configs and JSON of somebody else: what must hold between a model's numbers, and what is refused at every door."""

from __future__ import annotations

import json
import time

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from small_model import small_model
from weight_files import SLIM

from minedit import image
from minedit.config import IP2P, LIMIT, PICTUREBOOK, SD14, Config, MineditError, foreign_json, shown


@pytest.mark.parametrize("config", [SD14, IP2P, PICTUREBOOK, SLIM, small_model().config], ids=lambda c: c.name)
def test_models_that_are_drawn_hold_the_rules(config):
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("unet", {"in_channels": 9}, "the UNet reads 9 channels, expected 4 or 8"),
        ("unet", {"out_channels": 8}, "have (8, 4, 3) channels, expected (4, 4, 3)"),
        ("vae", {"z_channels": 16}, "have (4, 16, 3) channels"),
        ("vae", {"image_channels": 1}, "have (4, 4, 1) channels"),
        ("unet", {"attention": [True]}, "the UNet has 4 levels, attention for 1"),
        ("unet", {"heads": 3}, "heads is 3, which does not divide 8 channels"),
        ("unet", {"heads": 16}, "heads is 16, which does not divide 8 channels"),
        ("unet", {"norm_groups": 3}, "norm_groups is 3, which does not divide 8 channels"),
        ("vae", {"norm_groups": 5}, "norm_groups is 5, which does not divide 8 channels"),
        ("unet", {"channels": [9, 18, 27, 27], "norm_groups": 9, "heads": 9}, "first width is 9, expected an even"),
        ("unet", {"context_dim": 16}, "context_dim is 16, the text's width 8"),
        ("text", {"heads": 3}, "heads is 3, which does not divide the text's 8"),
        ("text", {"bos": 49408}, "bos or eos is none of 49408 tokens"),
        ("text", {"bos": 49407}, "bos and eos are both 49407"),
        ("text", {"context_length": 2}, "context_length is 2, expected 3 or more"),
        *(("image_size", size, f"image_size is {size}, expected a multiple of 64") for size in (*range(1, 8), 32)),
        ("image_size", 2**20, "image_size is 1048576, expected 16384 at most"),
        ("latent_scale", -0.5, "latent_scale is -0.5, expected more than 0"),
        ("latent_scale", 0.0, "latent_scale is 0.0, expected more than 0"),
    ],
)
def test_numbers_that_do_not_go_together(part, change, says):
    """Each was loaded, and failed later or drew nothing."""
    data = json.loads(SLIM.to_json())
    data[part] = data[part] | change if isinstance(change, dict) else change
    with pytest.raises(MineditError) as error:
        Config.from_json(json.dumps(data))
    assert says in str(error.value) and "\n" not in str(error.value)


GOOD = [
    "null",
    '"a"',
    "[]",
    '{"a": [1, -2.5e3, true, {"b": "\\u00e9\\n"}]}',
    b'"\xc3\xa9"',
    " 1 ",
    '"' + "[" * 999 + '"',
]
BAD = {
    "nothing": ("", "Expecting value"),
    "no end": ('{"a": 1', "Expecting"),
    "no end of a text": ('"a\\"', "Unterminated"),
    "levels": ("[" * 10**5 + "]" * 10**5, "more than 16 levels"),
    "levels of both kinds": ('{"a":[' * 10**5, "more than 16 levels"),
    "digits": ("1" * 5000, "more than 100 digits"),
    "digits of a fraction": ("0." + "1" * 5000, "more than 100 digits"),
    "digits of a power": ("1e" + "1" * 5000, "more than 100 digits"),
    "NaN": ('{"a": NaN}', "NaN for a number"),
    "infinity": ("-Infinity", "-Infinity for a number"),
    "a number too large": ("1e999", "1e999 for a number"),
    "a name twice": ('{"a": 1, "a": 2}', "a name twice"),
    "half a letter": ('"a\\ud800"', "half a letter in 'a\\ud800'"),
    "spaces": (" " * (LIMIT + 1), f"{LIMIT + 1} bytes beside its text"),
    "numbers": ("[" + "1," * LIMIT, "bytes beside its text"),
    "texts": ("[" + '"",' * LIMIT, "bytes beside its text"),
    "no UTF-8": (b"\xff\xfe", "decode"),
    "a cursor": ('"\x1b[2J"', "control character"),
}


@pytest.mark.parametrize("text", GOOD)
def test_foreign_json_is_json(text):
    assert foreign_json(text) == json.loads(text)


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_foreign_json_that_is_refused(text, says):
    began = time.process_time()
    with pytest.raises(ValueError) as error:
        foreign_json(text)
    assert says in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 200
    assert time.process_time() - began < 3


def test_shown_is_short_and_printable():
    for text in ("a" * 5000, "\x1b[2J" * 5000, "\ud800", "a\nb", "\u202e", {"a": "\x07" * 999}, 10**50):
        assert shown(text).isprintable() and len(shown(text)) <= 120
    assert shown("déjà vu") == "déjà vu" and shown("a" * 200, 10) == "aaaaaaa..."


@pytest.mark.parametrize("text", ["[", "[]", "[" * 10**5, '{"a": NaN}', '{"a": ' + "9" * 5000 + "}"])
def test_settings_in_a_picture_are_foreign(tmp_path, text):
    info = PngInfo()
    info.add_text("minedit", text)
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(MineditError, match="settings in .* are damaged .*expected a PNG"):
        image.settings(tmp_path / "a.png")
