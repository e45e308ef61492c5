import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from personalive_core.errors import InputError
from personalive_core.limits import PICTURE_PIXELS
from personalive_core.media.pictures import contact_sheet, fit_picture, read_picture

RED = (200, 60, 30)


def test_exif_orientation_turns_the_picture_upright(tmp_path):
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:, :20] = 255  # the left edge: with orientation 6 it is shown at the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    picture = read_picture(tmp_path / "turned.png")
    assert picture.shape == (64, 40, 3)
    assert picture[:20].min() == 255 and picture[20:].max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_laid_over_white(tmp_path, mode):
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[:20, :, 3] = 255
    image = Image.fromarray(rgba)
    if mode == "P":
        image = Image.fromarray(np.repeat([0, 1], 20)[:, None].repeat(40, 1).astype(np.uint8), mode="P")
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.info["transparency"] = 1
    else:
        image = image.convert(mode)
    image.save(tmp_path / "alpha.png")
    picture = read_picture(tmp_path / "alpha.png")
    assert picture[:20].max() == 0 and picture[20:].min() == 255


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_grey_of_16_bits_is_scaled_not_clipped(tmp_path, name):
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / name)
    picture = read_picture(tmp_path / name)
    assert np.array_equal(picture[..., 1], np.round(grey / 257).astype(np.uint8))


def test_cmyk_and_palette_are_converted(tmp_path):
    flat = Image.new("RGB", (48, 40), RED)
    flat.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    flat.quantize(4).save(tmp_path / "palette.png")
    for name in "cmyk.jpg", "palette.png":
        picture = read_picture(tmp_path / name)
        assert picture.shape == (40, 48, 3) and picture.dtype == np.uint8
        assert np.abs(picture - np.array(RED, float)).max() <= 4


def test_what_is_not_a_picture_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture at all")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in "cut.png", "cut.jpg":
        Image.fromarray(noise).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    for name, words in {
        "text.png": "not a picture",
        "dot.png": "1 x 1",
        "cut.png": "cut off",
        "cut.jpg": "cut off",
        "absent.png": "does not exist",
        ".": "folder",
    }.items():
        with pytest.raises(InputError, match=words):
            read_picture(tmp_path / name)


def test_absurdly_large_picture(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "large.png")
    canvas = struct.pack("<HH", 16000, 16000)
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + canvas + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;")
    for pillow in None, 1 << 26:  # other packs lift its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow)
        with pytest.raises(InputError, match=f"is too large: it has more than {PICTURE_PIXELS} pixels"):
            read_picture(tmp_path / "a.gif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # Pillow warns now
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "large.png").shape == (100, 100, 3)


def test_names_that_cannot_be_files(tmp_path):
    with pytest.raises(InputError, match=r"^https://x\.example/a\.png is a URL; .* download it first"):
        read_picture("https://x.example/a.png")
    with pytest.raises(InputError, match="does not exist"):
        read_picture(tmp_path / ("n" * 300 + ".png"))
    Image.new("RGB", (40, 40)).save(tmp_path / ("n" * 247 + ".png"))
    assert read_picture(tmp_path / ("n" * 247 + ".png")).shape == (40, 40, 3)


def exif(*entries, offset=8, data=b""):
    """EXIF of (tag, type, count, value or offset), with `data` behind it at 8 + 2 + 12 * entries + 4."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", offset, len(entries)) + body + bytes(4) + data


ORIENTATION = 0x0112, 3, 1, 6


@pytest.mark.parametrize(
    ("data", "is_turned"),
    [
        (exif(ORIENTATION), True),
        (exif(ORIENTATION, (0x011A, 10, 1, 38), data=struct.pack("<ii", -(2**31), 0)), True),  # a signed rational
        (exif(ORIENTATION, (0x011A, 5, 1, 38), data=struct.pack("<II", 2**32 - 1, 0)), True),
        (exif(ORIENTATION, (0x011A, 5, 1, 9999)), True),  # its value is outside
        (exif(ORIENTATION, (0x8769, 4, 1, 2**31)), True),  # a directory outside
        (exif(ORIENTATION, (0x9999, 77, 3, 5)), True),  # an unknown type
        (exif((0x0112, 2, 1, 6)), False),  # text
        (exif((0x0112, 3, 1, 66)), False),
        (exif(ORIENTATION, offset=5000), False),
        (exif(ORIENTATION)[:17], False),
        (b"Exif\0\0no EXIF at all", False),
    ],
)
def test_odd_exif_is_read_as_far_as_it_goes(tmp_path, data, is_turned):
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:, :20] = 255
    for name in "odd.jpg", "odd.webp", "odd.png":
        Image.fromarray(pixels).save(tmp_path / name, exif=data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # none of Pillow's comes through
            picture = read_picture(tmp_path / name)
        upright = picture if is_turned else picture.transpose(1, 0, 2)
        assert upright.shape == (64, 40, 3)
        assert upright[:16].min() > 200 and upright[24:].max() < 50


def icc_profile(kind, tags):
    """An ICC profile of version 2, from "class, colours, connection space" and its tags."""
    tags = [
        (b"desc", b"desc\x00\x00\x00\x00" + struct.pack(">I", 5) + b"made\x00" + bytes(78)),
        (b"wtpt", xyz(0.9642, 1, 0.8249)),
        *tags,
    ]
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, data in tags:
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = bytearray(128)
    header[0:4], header[8:12] = struct.pack(">I", at + len(body)), b"\x02\x10\0\0"
    header[12:24], header[36:40] = kind, b"acsp"
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    return bytes(header) + struct.pack(">I", len(tags)) + table + body


def xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * x) for x in values))


GAMMA = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))


def wide_profile():
    """The primaries of Display P3 with a curve of 2.2."""
    colours = [(b"rXYZ", xyz(0.5151, 0.2412, -0.0011)), (b"gXYZ", xyz(0.2920, 0.6922, 0.0419))]
    colours += [(b"bXYZ", xyz(0.1571, 0.0666, 0.7841))]
    return icc_profile(b"mntrRGB XYZ ", colours + [(name, GAMMA) for name in (b"rTRC", b"gTRC", b"bTRC")])


def ink_profile(cyan):
    """A CMYK profile by which white paper is white, pure cyan has this L* and no colour, and all else is black."""
    line = bytes(range(256))
    grid = np.tile(np.array([0, 128, 128], np.uint8), (2, 2, 2, 2, 1))  # L*, a*, b*
    grid[0, 0, 0, 0, 0], grid[1, 0, 0, 0, 0] = 255, round(2.55 * cyan)
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + 4 * line + grid.tobytes() + 3 * line
    return icc_profile(b"prtrCMYKLab ", [(b"A2B0", table)])


def test_a_colour_profile_is_converted_to_srgb(tmp_path):
    """Against the arithmetic of the profile: linear light by its curve and matrix, in CIE XYZ under D50."""
    to_xyz = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
    srgb = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    pixels = np.random.default_rng(0).integers(60, 190, (40, 40, 3)).astype(np.uint8)
    light = (pixels / 255) ** 2.2 @ (np.linalg.inv(srgb) @ to_xyz).T
    light = light.clip(0, 1)
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    for mode in "RGB", "RGBA", "P":
        image = Image.fromarray(pixels)
        image = image.quantize(256) if mode == "P" else image.convert(mode)
        image.save(tmp_path / "wide.png", icc_profile=wide_profile())
        picture = read_picture(tmp_path / "wide.png")
        if mode == "P":
            pixels = np.asarray(image.convert("RGB"))
            image.convert("RGB").save(tmp_path / "same.png", icc_profile=wide_profile())
            assert np.array_equal(picture, read_picture(tmp_path / "same.png"))
        else:
            assert np.abs(picture - expected).max() <= 2 and np.abs(picture - pixels.astype(float)).max() > 10


def test_a_profile_of_inks_or_of_grey_is_converted_to_srgb(tmp_path):
    Image.new("CMYK", (40, 40), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg", quality=100, icc_profile=ink_profile(50))
    assert np.abs(read_picture(tmp_path / "cyan.jpg") - 119.0).max() <= 3  # L* = 50
    grey = icc_profile(b"mntrGRAYXYZ ", [(b"kTRC", GAMMA)])
    for mode in "L", "LA":
        Image.new("L", (40, 40), 30).convert(mode).save(tmp_path / "grey.png", icc_profile=grey)
        assert np.abs(read_picture(tmp_path / "grey.png") - 23.8).max() <= 1  # darker than by the curve of sRGB


def test_srgb_itself_and_profiles_that_do_not_fit_change_nothing(tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "srgb.png", icc_profile=srgb)
    assert np.array_equal(read_picture(tmp_path / "srgb.png"), pixels) and not caplog.text
    for profile in b"broken", srgb[:200], ink_profile(50):
        caplog.clear()
        Image.fromarray(pixels).save(tmp_path / "odd.png", icc_profile=profile)
        assert np.array_equal(read_picture(tmp_path / "odd.png"), pixels)
        assert "colour profile" in caplog.text
    Image.new("CMYK", (40, 40), (0, 200, 200, 0)).save(tmp_path / "cmyk.jpg", icc_profile=srgb)
    assert read_picture(tmp_path / "cmyk.jpg").shape == (40, 40, 3)


def test_fit_keeps_the_centre_and_the_aspect():
    wide = np.zeros((60, 180, 3), np.uint8)
    wide[:, 60:120] = 255
    assert fit_picture(wide, 32, 32)[:, 2:-2].min() > 250  # but for the filter's ring at the edge
    assert np.array_equal(fit_picture(wide, 180, 60), wide)
    tall = fit_picture(wide.transpose(1, 0, 2), 64, 32)
    assert tall.shape == (32, 64, 3) and tall.min() > 250


def test_a_contact_sheet_has_a_row_for_each():
    tile = np.zeros((8, 8, 3), np.uint8)
    assert contact_sheet([[tile, tile], [tile]], gap=2).shape == (22, 22, 3)
