"""Photographs as they come: every mode, size and kind of damage gives the right pixels, or one clear line."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from minedit import photo
from minedit.config import MineditError

WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)
HALF = 32768  # of 65535: 127.5 of 255


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def row(*pixels, mode="RGB"):
    picture = Image.new(mode, (len(pixels), 1))
    picture.putdata(pixels)
    return picture


def pixels(picture):
    return [picture.getpixel((x, y)) for y in range(picture.height) for x in range(picture.width)]


def read_back(picture, path, **how):
    picture.save(path, **how)
    return pixels(photo.upright(photo.read(path)))


def png(width, height):
    """The head of a picture of 8-bit grey, and hardly any pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


# --- pixels ----------------------------------------------------------------------------------------------------------

TURNED = {  # EXIF orientation -> where the pixels of a row A B over a row C D belong (EXIF 2.3, table 6)
    1: "ABCD", 2: "BADC", 3: "DCBA", 4: "CDAB", 5: "ACBD", 6: "CADB", 7: "DBCA", 8: "BDAC",
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_rotation(orientation, tmp_path):
    greys = dict(zip("ABCD", (0, 80, 160, 240), strict=True))
    picture, exif = Image.new("L", (2, 2)), Image.Exif()
    picture.putdata(list(greys.values()))
    exif[0x112] = orientation
    found = read_back(picture, tmp_path / "x.png", exif=exif)
    assert [pixel[0] for pixel in found] == [greys[name] for name in TURNED[orientation]]


def test_a_camera_that_was_held_sideways(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    turned = photo.upright(photo.read(tmp_path / "x.jpg"))
    assert turned.size == (20, 40) and not turned.getexif().get(0x112)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!!", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_exif_data_that_says_nothing(exif, tmp_path):
    Image.new("RGB", (40, 20), "white").save(tmp_path / "x.jpg", exif=exif)
    assert photo.upright(photo.read(tmp_path / "x.jpg")).size == (40, 20)


def test_what_is_transparent_is_white(tmp_path):
    assert read_back(row((*RED, 255), (*RED, 0), (*RED, 51), mode="RGBA"), tmp_path / "x.png") == [
        RED, WHITE, (255, 204, 204),
    ]  # fmt: skip
    assert read_back(row((9, 255), (9, 0), mode="LA"), tmp_path / "la.png") == [(9, 9, 9), WHITE]
    assert read_back(row((1, 2, 3), (4, 5, 6)), tmp_path / "rgb.png", transparency=(1, 2, 3)) == [WHITE, (4, 5, 6)]
    assert read_back(row(200, 100, mode="L"), tmp_path / "l.png", transparency=200) == [WHITE, (100, 100, 100)]
    assert pixels(photo.upright(row((9, 255), (9, 0), mode="LA").convert("La"))) == [(9, 9, 9), WHITE]


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_a_palette_and_its_transparent_entry(kind, tmp_path):
    picture = row(0, 1, mode="P")
    picture.putpalette([*RED, *BLUE])
    assert read_back(picture, tmp_path / f"plain.{kind}") == [RED, BLUE]
    assert read_back(picture, tmp_path / f"clear.{kind}", transparency=0) == [WHITE, BLUE]


@pytest.mark.parametrize("dtype, kind", [("<u2", "png"), ("<u2", "tif"), (">u2", "tif")])
def test_16_bits_a_pixel(dtype, kind, tmp_path):
    picture = Image.fromarray(np.array([[0, HALF, 257, 65535]], dtype))
    expected = [(grey, grey, grey) for grey in (0, 128, 1, 255)]
    assert read_back(picture, tmp_path / f"x.{kind}") == expected
    only = Image.fromarray(np.array([[HALF, HALF]], dtype))  # whose largest value says nothing
    assert read_back(only, tmp_path / f"only.{kind}") == [(128, 128, 128)] * 2


def test_the_transparent_grey_of_16_bits(tmp_path):
    picture = Image.fromarray(np.array([[HALF, 257]], np.uint16))
    assert read_back(picture, tmp_path / "x.png", transparency=HALF) == [WHITE, (1, 1, 1)]


@pytest.mark.parametrize(
    "values, dtype, expected",
    [
        ([0, 128, 255], np.int32, [0, 128, 255]),
        ([0, HALF, 65535], np.int32, [0, 128, 255]),
        ([-7, HALF, 70000], np.int32, [0, 128, 255]),
        ([0, 0.5, 1], np.float32, [0, 128, 255]),
        ([0, 127.6, 255], np.float32, [0, 128, 255]),
        ([np.nan, -5, 300], np.float32, [0, 0, 255]),
    ],
)
def test_32_bits_and_floats(values, dtype, expected):
    found = photo.upright(Image.fromarray(np.array([values], dtype)))
    assert pixels(found) == [(grey, grey, grey) for grey in expected]


def test_other_modes():
    assert pixels(photo.upright(row(0, 1, mode="1"))) == [(0, 0, 0), WHITE]
    assert pixels(photo.upright(row(7, mode="L"))) == [(7, 7, 7)]
    assert pixels(photo.upright(row(RED).convert("HSV"))) == [RED]
    (near,) = pixels(photo.upright(row(RED).convert("YCbCr")))
    assert np.abs(np.subtract(near, RED)).max() <= 2
    for mode in ("LAB", "RGBX", "RGBa", "I;16B", "PA"):
        assert photo.upright(Image.new(mode, (3, 2))).mode == "RGB"


def test_cmyk_as_jpegs_hold_it(tmp_path):
    """Adobe's JPEGs hold the inks inverted: 255 - ink; r = (255 - c)(255 - k) / 255."""
    for inks, expected in {(0, 255, 255, 0): RED, (0, 0, 0, 128): (127, 127, 127), (0, 0, 0, 0): WHITE}.items():
        found = read_back(Image.new("CMYK", (16, 16), inks), tmp_path / "x.jpg", quality=95)
        assert np.abs(np.subtract(found[0], expected)).max() <= 2
    assert b"Adobe" in (tmp_path / "x.jpg").read_bytes()
    assert pixels(photo.upright(Image.new("CMYK", (1, 1), (0, 255, 255, 0)))) == [RED]


def test_the_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert set(pixels(photo.upright(photo.read(tmp_path / "x.gif")))) == {RED}


# --- what is none ----------------------------------------------------------------------------------------------------


def write(path, content):
    path.write_bytes(content)
    return path


def cut(path):
    """A JPEG that ends in the middle of its pixels."""
    Image.effect_noise((64, 64), 90).save(path, quality=95)
    return write(path, path.read_bytes()[:1500])


def fifo(path):
    os.mkfifo(path)
    return path


WRONG = {
    "text": (lambda at: write(at / "x.png", b"hello"), "is not a picture"),
    "empty": (lambda at: write(at / "x.png", b""), "is not a picture"),
    "truncated": (lambda at: cut(at / "x.jpg"), "cannot read .*truncated"),
    "huge": (lambda at: write(at / "x.png", png(60000, 60000)), "cannot read .*3600000000 pixels"),
    "large and cut": (lambda at: write(at / "x.png", png(12000, 12000)), "cannot read"),
    "without pixels": (lambda at: write(at / "x.png", png(0, 5)), "is not a picture"),
    "folder": (lambda at: at, "is not a file"),
    "pipe": (lambda at: fifo(at / "x.png"), "is not a file"),
    "absent": (lambda at: at / "x.png", "No such file"),
    "long name": (lambda at: at / ("x" * 5000), "too long"),
    "impossible name": (lambda at: f"{at}\0.png", "null byte"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_picture_is_one_line(kind, tmp_path):
    made, said = WRONG[kind]
    with pytest.raises(MineditError, match=said) as error:
        photo.read(made(tmp_path))
    assert "\n" not in str(error.value) and "expected a" in str(error.value)


def test_pictures_without_pixels_or_damaged(tmp_path):
    for size in ((0, 5), (5, 0)):
        with pytest.raises(MineditError, match=f"{size[0]} x {size[1]} pixels, expected one or more"):
            photo.upright(Image.new("RGB", size))
    with Image.open(cut(tmp_path / "x.jpg")) as lazy:  # which reads its pixels when they are asked for
        with pytest.raises(MineditError, match="mode L cannot be read .*expected an RGB"):
            photo.upright(lazy)


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, asked, expected",
    [  # of (width, height), trained at 512 in multiples of 64
        ((100, 100), (None, None), (512, 512)),
        ((4000, 3000), (None, None), (448, 576)),  # 512/sqrt(4/3) = 443, 512·sqrt(4/3) = 591
        ((3000, 4000), (None, None), (576, 448)),
        ((4000, 3000), (256, None), (256, 320)),  # 341
        ((4000, 3000), (None, 256), (192, 256)),
        ((4000, 3000), (24, 1000), (24, 1000)),  # both are asked for: the model's to refuse
        ((1, 5000), (None, None), (4096, 64)),  # too thin for its area in multiples of 64: its ends are lost
        ((5000, 1), (None, None), (64, 4096)),
        ((1, 1), (None, None), (512, 512)),
    ],
)
def test_sides(size, asked, expected):
    assert photo.sides(size, 512, 64, *asked) == expected


def test_fitted_cuts_evenly_and_keeps_what_fits():
    stripes = Image.new("RGB", (30, 10), "red")
    stripes.paste(BLUE, (10, 0, 20, 10))
    assert set(pixels(photo.fitted(stripes, 10, 10))) == {BLUE}
    assert photo.fitted(stripes, 10, 30) is stripes
    for size in ((1, 5000), (5000, 1), (3, 3)):
        assert photo.fitted(Image.new("RGB", size, "red"), 64, 32).getcolors() == [(64 * 32, RED)]
