"""A contact sheet: the driver, the keypoints read off it and the result, at a few moments side by side."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ..motion.keypoints import draw_keypoint_map, transform_keypoints
from ..motion.motion import Motion

KINDS = ("driving frame", "driver crop", "keypoints", "result")  # from top to bottom
HELD = (229, 57, 53)  # the colour around frames whose motion was held
BORDER = 4
BOX = Image.Resampling.BOX


class ContactSheet:
    """Collects pictures of a take and lays them out, one line for each kind.

    Every so many frames are kept, so that there are at most `columns` of them and at least half as many, however long
    the take is. Frames of one kind must come in order.

    Args:
        columns: How many moments to show at most.
        tile: Width and height of each picture in pixels.
    """

    def __init__(self, columns: int = 12, tile: int = 128):
        self.columns, self.tile = columns, tile
        self._step = 1  # every frame whose number this divides is kept
        self._tiles: dict[tuple[str, int], Image.Image] = {}

    def wants(self, index: int) -> bool:
        """Whether the frame of this number, counted from 0, would be kept: others need not be drawn."""
        return index % self._step_for(index) == 0

    def _step_for(self, index: int) -> int:
        step = self._step
        while index >= step * self.columns:
            step *= 2
        return step

    def add_driving_frame(self, index: int, picture: np.ndarray) -> None:
        """Add the whole frame that the driver was cropped out of, uint8 (H, W, 3); all of it is shown."""
        if self.wants(index):
            size = self.tile, self.tile
            self._add("driving frame", index, np.asarray(ImageOps.pad(Image.fromarray(picture), size, BOX)))

    def add_driver_crop(self, index: int, picture: np.ndarray, is_held: bool = False) -> None:
        """Add the driver as the model sees it, uint8 (H, W, 3); the middle square is shown."""
        self._add("driver crop", index, picture, is_held)

    def add_keypoints(self, index: int, retargeted: Motion) -> None:
        """Add one frame of motion as it reaches the networks."""
        if self.wants(index):
            dots = draw_keypoint_map(transform_keypoints(retargeted.pose), self.tile, self.tile)[0, :, 0]
            self._add("keypoints", index, (dots * 255).byte().permute(1, 2, 0).numpy(), bool(retargeted.held[0]))

    def add_result(self, index: int, picture: np.ndarray) -> None:
        """Add an animated frame, uint8 (H, W, 3); the middle square is shown."""
        self._add("result", index, picture)

    def _add(self, kind: str, index: int, picture: np.ndarray, is_held: bool = False) -> None:
        self._step = self._step_for(index)
        self._tiles = {key: tile for key, tile in self._tiles.items() if key[1] % self._step == 0}
        if not self.wants(index):
            return
        tile = Image.fromarray(picture)
        side = min(tile.size)
        left, top = (tile.width - side) // 2, (tile.height - side) // 2
        tile = tile.resize((self.tile,) * 2, BOX, (left, top, left + side, top + side))
        if is_held:
            ImageDraw.Draw(tile).rectangle((0, 0, self.tile - 1, self.tile - 1), outline=HELD, width=BORDER)
        self._tiles[kind, index] = tile

    def results(self) -> dict[int, np.ndarray]:
        """The animated frames that are kept so far, small, by number."""
        return {index: np.array(tile) for (kind, index), tile in self._tiles.items() if kind == "result"}

    def image(self) -> Image.Image:
        """The sheet. A kind without pictures has no line; a frame that lacks one of the others is left out."""
        kinds = [kind for kind in KINDS if any(key[0] == kind for key in self._tiles)]
        indexes = sorted({i for _, i in self._tiles if all((kind, i) in self._tiles for kind in kinds)})
        sheet = Image.new("RGB", (max(1, self.tile * len(indexes)), max(1, self.tile * len(kinds))), "white")
        for y, kind in enumerate(kinds):
            for x, index in enumerate(indexes):
                sheet.paste(self._tiles[kind, index], (self.tile * x, self.tile * y))
        return sheet
