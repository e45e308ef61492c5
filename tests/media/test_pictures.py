import numpy as np
import pytest
from PIL import Image

from personalive_core.errors import InputError
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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="too large"):
        read_picture(tmp_path / "large.png")


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
