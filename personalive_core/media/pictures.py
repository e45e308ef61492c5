"""Read a picture of any common kind as plain RGB, fit it to a size, lay many side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

SMALLEST = 32  # pixels on a side; below that there is no face to find


def read_picture(path: str | Path) -> np.ndarray:
    """The picture as it is meant to be seen, uint8 (H,W,3) RGB: turned upright by its EXIF orientation, alpha laid
    over white, 16-bit grey scaled to 8 bits, palette and CMYK converted.

    Raises `InputError` for what is missing, not a picture, cut off, absurdly large, or under 32 px on a side.
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
    """uint8 (H,W,3) -> uint8 (height,width,3), resized with Lanczos.

    fit: "crop" takes the largest centred part of that aspect, "pad" adds white, "stretch" changes the aspect.
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
    """Pictures of one size, uint8 (H, W, 3), in rows on white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = gap + i * (height + gap), gap + j * (width + gap)
            sheet[y : y + height, x : x + width] = picture
    return sheet
