"""A contact sheet: what the driver did, what was read off it, and what came out, at a few moments side by side."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ..motion.keypoints import draw_keypoint_map, transform_keypoints
from ..motion.motion import Motion

ROWS = ("whole", "driver", "keypoints", "result")
HELD = (229, 57, 53)  # the colour around a driver's frame whose motion was held
BORDER = 4


class ContactSheet:
    """Pictures come one after the other, each row for itself; every so many are kept, so that there are at least half
    `columns` and at most `columns` of them, however long it goes on."""

    def __init__(self, columns: int = 12, tile: int = 128):
        self.columns, self.tile = columns, tile
        self._step = 1
        self._tiles: dict[tuple[str, int], Image.Image] = {}

    def wants(self, index: int) -> bool:
        """Whether the frame of this number, counted from 0, is one to show."""
        while index >= self._step * self.columns:
            self._step *= 2
            self._tiles = {key: tile for key, tile in self._tiles.items() if key[1] % self._step == 0}
        return index % self._step == 0

    def add(self, row: str, index: int, picture: np.ndarray, held: bool = False) -> None:
        """uint8 (H, W, 3) of any shape; the middle of it is shown."""
        if not self.wants(index):
            return
        tile = Image.fromarray(picture)
        side = min(tile.size)
        left, top = (tile.width - side) // 2, (tile.height - side) // 2
        tile = tile.resize((self.tile,) * 2, Image.Resampling.BOX, (left, top, left + side, top + side))
        if held:
            ImageDraw.Draw(tile).rectangle((0, 0, self.tile - 1, self.tile - 1), outline=HELD, width=BORDER)
        self._tiles[row, index] = tile

    def add_whole(self, index: int, picture: np.ndarray) -> None:
        """The whole frame that the driver was cropped out of, with the square in it; all of it is shown."""
        if self.wants(index):
            size = self.tile, self.tile
            self.add("whole", index, np.asarray(ImageOps.pad(Image.fromarray(picture), size, Image.Resampling.BOX)))

    def add_keypoints(self, index: int, retargeted: Motion) -> None:
        """One frame of motion as it reaches the networks."""
        if self.wants(index):
            dots = draw_keypoint_map(transform_keypoints(retargeted.pose), self.tile, self.tile)[0, :, 0]
            self.add("keypoints", index, (dots * 255).byte().permute(1, 2, 0).numpy(), bool(retargeted.held[0]))

    def image(self) -> Image.Image:
        """The rows that have pictures, without the frames that are not in all of them."""
        rows = [row for row in ROWS if any(key[0] == row for key in self._tiles)]
        indexes = sorted({i for _, i in self._tiles if all((row, i) in self._tiles for row in rows)})
        sheet = Image.new("RGB", (max(1, self.tile * len(indexes)), max(1, self.tile * len(rows))), "white")
        for y, row in enumerate(rows):
            for x, index in enumerate(indexes):
                sheet.paste(self._tiles[row, index], (self.tile * x, self.tile * y))
        return sheet
