"""One drawn face, made with Pillow alone: tests and pictures use it where a face is needed, and no particular one."""

import numpy as np
from PIL import Image, ImageDraw


def draw_face(yaw: float = 0.0, mouth: float = 0.0, hair: str = "#5a3825", shirt: str = "#3f6f8f") -> np.ndarray:
    """A face, uint8 (256, 256, 3); yaw -1 (left) to 1 (right), mouth 0 (closed) to 1 (open)."""
    scale, shift = 3, yaw * 14  # drawn larger, then made smaller: smooth edges
    image = Image.new("RGB", (256 * scale, 256 * scale), "#cfd8dc")
    draw = ImageDraw.Draw(image)

    def ellipse(x: float, y: float, width: float, height: float, colour: str) -> None:
        draw.ellipse([scale * v for v in (x - width, y - height, x + width, y + height)], fill=colour)

    ellipse(128, 275, 95, 75, shirt)
    ellipse(128, 205, 26, 30, "#d9a583")
    ellipse(128 + shift * 0.3, 100, 72, 78, hair)
    ellipse(128 + shift * 0.6, 120, 58, 74, "#e8b998")
    ellipse(128 + shift * 0.5, 62, 58, 26, hair)
    for side in (-1, 1):
        x = 128 + shift + 24 * side
        ellipse(x, 112, 11, 7.5, "#ffffff")
        ellipse(x + yaw * 4, 112, 5.5, 5.5, "#3b2a20")
        ellipse(x, 97, 12, 2.5, hair)
    ellipse(128 + shift * 1.4, 138, 6, 9, "#d9a080")
    ellipse(128 + shift, 165, 17, 3 + 11 * mouth, "#9c4444")
    return np.asarray(image.resize((256, 256), Image.Resampling.LANCZOS))
