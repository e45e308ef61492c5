"""Read a picture of any common kind as plain RGB, fit it to a size, lay several side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

SMALLEST = 32  # pixels on a side; below that there is no face to find


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture as it is meant to be seen: turned upright by its EXIF orientation, alpha laid over white, 16-bit
    grey scaled to 8 bits, palette and CMYK converted.

    Args:
        path: A file of any kind that Pillow reads; of an animation the first frame counts.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        InputError: The file is missing, is not a picture, is cut off or damaged, is absurdly large, or has a side
            under 32 pixels.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give the path of a picture.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the path of a picture.")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture that can be read; give a PNG, JPEG or WebP file.") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large a picture ({error}); make it smaller first.") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged data, by format
        raise InputError(f"{path} is damaged or cut off ({error}); save or copy the picture again.") from error
    height, width = pixels.shape[:2]
    if min(width, height) < SMALLEST:
        raise InputError(f"{path} is {width} x {height} pixels; give a picture of at least {SMALLEST} x {SMALLEST}.")
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: I;16, or I in older Pillow, which convert() would clip
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


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
