"""Read a picture of any common kind as plain sRGB, fit it to a size, lay several side by side."""

import io
import logging
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, ImageSequence, UnidentifiedImageError

from ..errors import InputError
from ..files import check_file
from ..limits import PICTURE_FORMATS, PICTURE_PIXELS

logger = logging.getLogger(__name__)

SMALLEST = 32  # pixels on a side; below that there is no face to find
UPRIGHT = {  # what undoes each orientation of EXIF
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STILL = 100  # milliseconds of a frame that declares 10 or fewer, as in browsers


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture as it is meant to be seen: turned upright by its EXIF orientation, converted to sRGB by its colour
    profile, alpha laid over white, 16-bit grey scaled to 8 bits, palette and CMYK converted.

    Args:
        path: A file of one of `PICTURE_FORMATS`; of an animation the first frame counts.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        InputError: The file is missing, is not a picture, is cut off or damaged, has more than 178 million pixels, or
            has a side under 32 pixels.
    """
    with _open(path) as image:
        return _to_pixels(image, path)


def decode_picture(data: bytes, name: str, most: int) -> np.ndarray:
    """Decode a PNG, JPEG or WebP that somebody sent, as `read_picture` does.

    Args:
        data: Of the file.
        name: What messages call it.
        most: Pixels that it may have.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        InputError: It is of another kind, cut off or damaged, too large, or has a side under 32 pixels.
    """
    with _decoded(io.BytesIO(data), name, ("PNG", "JPEG", "WEBP")) as image:
        if image.width * image.height > most:
            size = f"{image.width} x {image.height} pixels"
            raise InputError(f"{name} is {size}, and more than {most} are not read: make it smaller first.")
        return _to_pixels(image, name)


def read_animation(path: str | Path) -> Iterator[tuple[np.ndarray, int]]:
    """Read an animated WebP or AVIF, or a picture of any kind as its one frame.

    Args:
        path: Of the file.

    Yields:
        A frame as `read_picture` gives it, and for how many milliseconds it is shown.

    Raises:
        InputError: As in `read_picture`; also after some frames, where the rest is damaged.
    """
    with _open(path) as image:
        # Not the pages of a TIFF, nor the second picture that phones hide in a JPEG.
        for frame in ImageSequence.Iterator(image) if image.format in ("WEBP", "AVIF") else [image]:
            pixels = _to_pixels(frame, path)
            duration = round(frame.info.get("duration", 0))
            yield pixels, duration if duration > 10 else STILL


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings of odd EXIF, and of pictures from half the size on that it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    check_file(path, "picture")
    with _decoded(path, path, PICTURE_FORMATS) as image:
        yield image


@contextmanager
def _decoded(source: str | Path | io.BytesIO, path: str | Path, formats: Sequence[str]) -> Iterator[Image.Image]:
    """The picture; what fails while it is open becomes an InputError that names `path`."""
    Image.init()
    try:
        with _quiet():
            image = Image.open(source, formats=[name for name in formats if name in Image.OPEN])
        with image:
            if image.width * image.height > PICTURE_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture that can be read; give a PNG, JPEG or WebP file.") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} is too large: it has more than {PICTURE_PIXELS} pixels; make it smaller first."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # what Pillow raises, by format
        raise InputError(f"{path} is damaged or cut off ({error}); save or copy the picture again.") from error


def _to_pixels(image: Image.Image, path: str | Path) -> np.ndarray:
    if min(image.size) < SMALLEST:
        width, height = image.size
        raise InputError(f"{path} is {width} x {height} pixels; give a picture of at least {SMALLEST} x {SMALLEST}.")
    method = UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image, path)
    return np.asarray(rgb if method is None else rgb.transpose(method))


def _orientation(image: Image.Image) -> int:
    try:
        with _quiet():
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16-bit grey: I;16, or I in older Pillow, which convert() would clip
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = image.convert({"L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB"))
    rgb = (profile and _by_profile(colours, profile, path)) or colours.convert("RGB")
    if alpha is not None:
        rgb.putalpha(alpha)
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
    return rgb


def _by_profile(image: Image.Image, profile: bytes, path: str | Path) -> Image.Image | None:
    """Converted to sRGB; None where the profile is broken, of another kind of picture, or sRGB itself."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        if image.mode == "RGB":
            steps = np.mgrid[:256:51, :256:51, :256:51].reshape(3, 1, -1).transpose(1, 2, 0).astype(np.uint8)
            moved = np.asarray(ImageCms.applyTransform(Image.fromarray(steps), transform))
            if np.abs(moved - steps.astype(int)).max() <= 1:  # rounding: the colours stay as they are, exactly
                return None
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        logger.warning("the colour profile of %s cannot be used (%s): its colours are taken for sRGB", path, error)
        return None


def fit_picture(picture: np.ndarray, width: int, height: int, fit: str = "crop") -> np.ndarray:
    """Resize a picture with Lanczos.

    Args:
        picture: uint8 (H, W, 3).
        width: Of the result, in pixels.
        height: Of the result, in pixels.
        fit: "crop" takes the largest centred part of that aspect, "pad" adds white, "stretch" changes the aspect.

    Returns:
        uint8 (height, width, 3).
    """
    image, size = Image.fromarray(picture), (width, height)
    if fit == "crop":
        fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    elif fit == "pad":
        fitted = ImageOps.pad(image, size, Image.Resampling.LANCZOS, color="white")
    else:
        fitted = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(fitted)


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Lay pictures side by side on white.

    Args:
        rows: Pictures uint8 (H, W, 3), all of one size; rows may differ in length.
        gap: White pixels around each.

    Returns:
        uint8 (height, width, 3).
    """
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = gap + i * (height + gap), gap + j * (width + gap)
            sheet[y : y + height, x : x + width] = picture
    return sheet
