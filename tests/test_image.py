"""Pictures to tensors and back, grids, PNG files with their settings."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from minedit import image
from minedit.config import MineditError
from minedit.image import difference, grid, save, settings, to_pil, to_tensor, write_whole


def picture() -> Image.Image:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return Image.fromarray(np.stack([values, values.T, 255 - values], axis=-1))


def test_every_level_survives_the_round_trip():
    tensor = to_tensor(picture())
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert tensor[0, 0, 0, 15] == 15 / 127.5 - 1  # channel, row, column
    assert to_pil(tensor)[0].tobytes() == picture().tobytes()


def test_out_of_range_is_clamped_and_nan_is_refused():
    assert to_pil(torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1))[0].getpixel((0, 0)) == (0, 128, 255)
    with pytest.raises(MineditError, match="NaN.*float32"):
        to_pil(torch.full((1, 3, 2, 2), torch.nan))


def test_grid_holds_each_picture_and_ink_below_it():
    red, blue = (Image.new("RGB", (64, 48), color) for color in ("red", "blue"))
    sheet = grid([red, blue, red], ["a boy in the park, sitting on a bench", "", "seed 3"], columns=2)
    plain = grid([red, blue, red], columns=2)
    assert sheet.width == plain.width and sheet.height > plain.height
    pixels = np.asarray(sheet).reshape(-1, 3)
    for color, count in (((255, 0, 0), 2), ((0, 0, 255), 1)):
        assert (pixels == color).all(-1).sum() == count * 64 * 48
    assert (pixels < 100).all(-1).any()  # the captions' black
    with pytest.raises(ValueError, match="1 captions for 2 pictures"):
        grid([red, blue], ["one"])


def test_settings_come_back_from_the_png(tmp_path):
    path, found = tmp_path / "new" / "a.png", {"seed": 3, "prompt": "a “boy”", "tau": [0.1, None]}
    save(path, picture(), found)
    assert settings(path) == found
    assert Image.open(path).convert("RGB").tobytes() == picture().tobytes()
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_files_without_settings_are_refused(tmp_path):
    save(tmp_path / "plain.png", picture())
    (tmp_path / "text.png").write_text("not a picture")
    picture().save(tmp_path / "photo.jpg")
    for name, why in (("plain.png", "no settings"), ("photo.jpg", "no settings"), ("text.png", "not a picture")):
        with pytest.raises(MineditError, match=why):
            settings(tmp_path / name)
    with pytest.raises(MineditError, match="cannot read.*No such file"):
        settings(tmp_path / "missing.png")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fails(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(MineditError, match="cannot write .*No space left"):
        write_whole(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(MineditError, match="cannot write"):
        save(path / "below a file.png", picture())


def test_difference_is_the_mean_over_pixels_and_channels():
    red, black = (Image.new("RGB", (8, 4), color) for color in ("red", "black"))
    assert difference(red, black) == difference(black, red) == 85
    assert difference(red, red) == 0
    black.putpixel((0, 0), (0, 0, 96))
    assert difference(black, Image.new("RGB", (8, 4))) == 1


def test_captions_in_many_letters_are_no_boxes(monkeypatch):
    """Oracle: the box that FreeType draws for what no font has."""
    font = image._font("λ é ö ж", 24)
    box = bytes(font.getmask("\U0010ffff"))
    drawn = [bytes(font.getmask(letter)) for letter in "λéöжЯשع€→"]
    assert font.getname()[0] == "DejaVu Sans" and box not in drawn and len(set(drawn)) == len(drawn)
    monkeypatch.setattr(image, "OTHER_FONTS", ("no such font.ttf",))
    assert image._font("犬", 24).getname()[0] == "DejaVu Sans"  # a box, and no error
    assert image.undrawn("a 犬 and λ, 犬 猫\n") == "犬猫" and image.undrawn("λ é") == ""
    boxes = image.grid([Image.new("RGB", (96, 96))], ["犬 猫"])
    assert boxes.tobytes() == image.grid([Image.new("RGB", (96, 96))], ["猫 犬"]).tobytes()
    assert boxes.tobytes() != image.grid([Image.new("RGB", (96, 96))], [""]).tobytes()


def test_the_font_that_lacks_the_fewest_letters_is_taken(monkeypatch, tmp_path):
    """A text in two scripts, of which no font has both. Here fonts are made to lack letters."""
    other = shutil.copy(image.FONT, tmp_path / "other.ttf")
    whole, held = ImageFont.FreeTypeFont.getmask, {str(image.FONT): "ab", str(other): "bcd"}
    monkeypatch.setattr(image, "OTHER_FONTS", (str(other),))

    def getmask(font, letter):
        return whole(font, letter if letter in held[str(font.path)] else "\U0010ffff")

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getmask", getmask)
    chosen = {text: (image._font(text, 12).path, image.undrawn(text)) for text in ("ab", "cd", "abcd", "abz")}
    own, other = str(image.FONT), str(other)
    assert {text: (str(path), lacks) for text, (path, lacks) in chosen.items()} == {
        "ab": (own, ""),
        "cd": (other, ""),
        "abcd": (other, "a"),
        "abz": (own, "z"),
    }
