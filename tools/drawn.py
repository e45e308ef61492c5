"""Drawn faces: endlessly many characters and performances, of which the right answer to every question is known.

A character is what stays (its look), a pose is what changes (head, eyes, mouth). Heads are a few ellipsoids in three
dimensions, and features lie on their surface, so that a turn of the head shows. Head space has x to the right, y down
and z towards the viewer; its unit is about the radius of a head. Angles, scale and shift are those of `HeadPose`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from personalive_core.config import WARM_UP
from personalive_core.errors import InputError
from personalive_core.motion.keypoints import DOTS, TRANSLATION_GAIN

try:
    import cv2
except ImportError as error:
    raise InputError("drawing faces needs OpenCV: pip install opencv-python-headless.") from error

Colour = tuple[int, int, int]  # RGB
Triple = tuple[float, float, float]
Ellipsoid = tuple[np.ndarray, np.ndarray]  # centre and radii
Points = np.ndarray  # (N, 3) in head space, or (N, 2) in the picture

SUBPIXELS = 4  # bits of a pixel's fraction in what OpenCV draws
KEYPOINTS = 21

SKINS: tuple[Colour, ...] = (
    (255, 224, 196),
    (250, 208, 176),
    (236, 188, 150),
    (217, 160, 120),
    (188, 128, 90),
    (150, 96, 64),
    (112, 70, 48),
)
HAIRS: tuple[Colour, ...] = (
    (40, 30, 34),
    (74, 47, 36),
    (121, 72, 41),
    (176, 112, 56),
    (222, 178, 96),
    (240, 214, 150),
    (168, 62, 36),
)
HAIRS += ((150, 150, 158), (226, 224, 220), (92, 70, 140), (48, 110, 120), (214, 104, 132))
IRISES = ((70, 46, 34), (112, 74, 40), (60, 110, 72), (58, 110, 160), (92, 120, 136), (40, 44, 60))
CLOTHES: tuple[Colour, ...] = (
    (212, 84, 74),
    (236, 148, 70),
    (240, 196, 84),
    (110, 164, 100),
    (62, 132, 130),
    (72, 116, 178),
    (58, 66, 104),
)
CLOTHES += ((128, 88, 150), (216, 120, 150), (236, 232, 222), (70, 72, 80), (150, 108, 80))
BACKGROUNDS: tuple[Colour, ...] = (
    (246, 224, 196),
    (198, 222, 232),
    (214, 232, 206),
    (238, 206, 206),
    (222, 212, 236),
    (250, 236, 178),
)
BACKGROUNDS += ((150, 190, 204), (236, 180, 150), (146, 170, 150), (110, 124, 160), (88, 84, 110), (204, 204, 200))

BACK_HAIR = ("none", "none", "bob", "long", "curls", "bun", "buns", "ponytail")
FRINGES = ("none", "straight", "swept", "parted", "spiky", "wavy")
HATS = ("none",) * 6 + ("beanie", "band")
COLLARS = ("round", "v", "shirt", "hood", "stripes")
GLASSES = ("none", "none", "none", "round", "square")
PATTERNS = ("plain", "dots", "sun", "stripes", "hills")


@dataclass(frozen=True)
class Character:
    """How somebody looks. Lengths are in head space, or factors on what is usual."""

    skin: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    second_clothes: Colour
    background: Colour
    second_background: Colour
    width: float  # of the head
    cheeks: float
    jaw: float
    chin: float
    eye_size: float
    eye_distance: float
    eye_slant: float
    brow_thickness: float
    nose: float
    mouth: float
    lips: float
    hairline: float
    neck: float
    shoulders: float
    back_hair: str
    fringe: str
    mirrored: bool  # hair and fringe the other way round
    hat: str
    collar: str
    glasses: str
    pattern: str
    moustache: bool
    freckles: bool


@dataclass(frozen=True)
class Pose:
    """What a character does in one picture.

    Angles in degrees, positive yaw to the picture's right, positive pitch up, positive roll clockwise. Shift and scale
    in picture units, [-1, 1] over the picture. Gaze, brows and smile from -1 to 1; blink, mouth and pucker 0 to 1.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift_x: float = 0.0
    shift_y: float = -0.07
    scale: float = 0.55
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    blink: float = 0.0  # 1 is closed
    brows: float = 0.0
    mouth: float = 0.0  # 1 is wide open
    smile: float = 0.0
    pucker: float = 0.0


def random_character(seed: int) -> Character:
    """The same for the same seed, on every machine."""
    random = np.random.default_rng((seed, 1))

    def about(value: float, spread: float) -> float:
        return float(random.uniform(value - spread, value + spread))

    def pick(choices: Sequence):
        return choices[int(random.integers(len(choices)))]

    def shade(colours: Sequence[Colour], spread: int = 12) -> Colour:
        red, green, blue = (int(np.clip(c + random.integers(-spread, spread + 1), 0, 255)) for c in pick(colours))
        return red, green, blue

    skin, hair = shade(SKINS, 6), shade(HAIRS, 8)
    while np.abs(np.subtract(skin, hair)).sum() < 120:
        hair = shade(HAIRS, 8)
    clothes, background = shade(CLOTHES), shade(BACKGROUNDS)
    while np.abs(np.subtract(background, hair)).sum() < 110 or np.abs(np.subtract(background, skin)).sum() < 60:
        background = shade(BACKGROUNDS)
    return Character(
        skin=skin,
        hair=hair,
        iris=shade(IRISES, 8),
        clothes=clothes,
        second_clothes=shade(CLOTHES),
        background=background,
        second_background=shade((background,), 40),
        width=about(1, 0.08),
        cheeks=about(1, 0.1),
        jaw=about(1, 0.22),
        chin=about(1, 0.14),
        eye_size=about(1, 0.14),
        eye_distance=about(0.41, 0.03),
        eye_slant=about(-0.04, 0.14),
        brow_thickness=about(0.075, 0.035),
        nose=about(1, 0.3),
        mouth=about(1, 0.16),
        lips=about(0.5, 0.5),
        hairline=about(-0.62, 0.1),
        neck=about(0.42, 0.08),
        shoulders=about(1.45, 0.25),
        back_hair=pick(BACK_HAIR),
        fringe=pick(FRINGES),
        mirrored=pick((False, True)),
        hat=pick(HATS),
        collar=pick(COLLARS),
        glasses=pick(GLASSES),
        pattern=pick(PATTERNS),
        moustache=pick((False,) * 7 + (True,)),
        freckles=pick((False,) * 4 + (True,)),
    )


def random_pose(seed: int) -> Pose:
    """One pose of a random performance."""
    return perform(seed, 1)[0]


def perform(seed: int, frames: int, rate: float = 25.0) -> list[Pose]:
    """A performance as smooth curves in time: `frames` poses, `rate` a second; the same start for any length."""
    random = np.random.default_rng((seed, 2))
    time = np.arange(frames) / rate + 10

    def sway(slowest: float, fastest: float) -> np.ndarray:
        """A smooth curve of about [-1, 1], whose parts swing so many times a second."""
        frequencies = np.exp(random.uniform(np.log(slowest), np.log(fastest), 3))
        phases, sizes = random.uniform(0, 2 * np.pi, 3), random.uniform(0.4, 1, 3)
        curve = (sizes * np.sin(2 * np.pi * frequencies * time[:, None] + phases)).sum(1)
        return np.tanh(1.2 * curve / np.sqrt((sizes**2).sum() / 2) / 1.4)

    def steps(hold: float, move: float) -> np.ndarray:
        """Rests of about `hold` seconds, moves of `move` seconds between them: how eyes look about."""
        curve, begin, value = np.zeros(frames), 0.0, random.uniform(-1, 1)
        events = np.random.default_rng(random.integers(2**32))
        while begin < time[-1]:
            target, begin = events.uniform(-1, 1), begin + events.uniform(0.4, 1.6) * hold
            curve += (target - value) * _smooth((time - begin) / move)
            value = target
        return curve + random.uniform(-0.2, 0.2)

    def blinks() -> np.ndarray:
        curve, begin = np.zeros(frames), 0.0
        events = np.random.default_rng(random.integers(2**32))
        while begin < time[-1]:
            begin += events.uniform(0.8, 3.2)
            stay = events.choice((0.04, 0.04, 0.1, 0.7))
            curve += _smooth((time - begin) / 0.14) - _smooth((time - begin - 0.14 - stay) / 0.2)
            begin += 0.34 + stay
        return np.clip(curve, 0, 1)

    yaw = random.uniform(12, 32) * sway(0.08, 0.5) + random.uniform(-6, 6)
    pitch = random.uniform(4, 15) * sway(0.08, 0.6) + random.uniform(-4, 3)
    roll = random.uniform(3, 14) * sway(0.06, 0.4)
    shift_x, shift_y = random.uniform(0.02, 0.14) * sway(0.06, 0.4), random.uniform(0.01, 0.07) * sway(0.06, 0.4)
    scale = random.uniform(0.5, 0.6) * (1 + random.uniform(0, 0.06) * sway(0.05, 0.3))
    talking = _smooth(2 * sway(0.1, 0.4) + 0.8)
    mouth = np.clip(random.uniform(0.5, 1.1) * talking * (0.42 + 0.62 * sway(0.8, 2.8)), 0, 1)
    mood = sway(0.06, 0.3)
    pucker = np.clip(1.4 * sway(0.2, 0.9) - 0.5, 0, 1) * random.uniform(0.3, 1)
    curves = dict(
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        shift_x=shift_x + random.uniform(-0.1, 0.1),
        shift_y=shift_y + random.uniform(-0.16, 0.02),
        scale=scale,
        gaze_x=np.clip(0.9 * steps(1.0, 0.16), -1, 1),
        gaze_y=np.clip(0.7 * steps(1.3, 0.16), -1, 1),
        blink=blinks(),
        brows=np.clip(0.9 * sway(0.1, 0.7), -1, 1),
        mouth=mouth,
        smile=np.clip(mood * (1 - 0.7 * pucker) + 0.1, -1, 1),
        pucker=pucker,
    )
    return [Pose(**{name: float(curve[i]) for name, curve in curves.items()}) for i in range(frames)]


def _smooth(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and without a kink between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def right_answer(portrait: Pose, driver: Pose, first: Pose) -> Pose:
    """What a portrait drawn in pose `portrait` should do when the driver, who began with `first`, does `driver`.

    As `keypoints.retarget` has it: angles and expression are the driver's, the scale stays the portrait's, and the
    shift follows half of the driver's change.
    """
    return replace(
        driver,
        scale=portrait.scale,
        shift_x=portrait.shift_x + TRANSLATION_GAIN * (driver.shift_x - first.shift_x),
        shift_y=portrait.shift_y + TRANSLATION_GAIN * (driver.shift_y - first.shift_y),
    )


def warm_up_answers(portrait: Pose, first: Pose) -> list[Pose]:
    """The right answers of the 12 frames before the driver's first, from the portrait's own pose towards `first`."""

    def between(weight: float) -> Pose:
        a, b = vars(portrait), vars(first)
        kept = ("scale", "shift_x", "shift_y")
        return Pose(**{k: a[k] if k in kept else a[k] + weight * (b[k] - a[k]) for k in a})

    return [between(i / WARM_UP) for i in range(WARM_UP)]


def canonical_keypoints(character: Character) -> np.ndarray:
    """(21, 3) float32 in head space: those of the keypoint map on the face, the others spread over the head."""
    head = _Head(character, Pose())
    eye, mouth = character.eye_distance, 0.3 * character.mouth
    places = {1: (-eye, -0.3), 2: (eye, -0.3), 3: (-eye, 0.08), 4: (eye, 0.08), 12: (0, 0.34), 15: (-mouth, 0.7)}
    places[20] = (mouth, 0.7)
    assert places.keys() == DOTS.keys()
    turn = np.arange(KEYPOINTS) * (2 * math.pi / KEYPOINTS)
    plane = np.stack([0.6 * np.cos(turn), 0.6 * np.sin(turn)], axis=1)
    for number, place in places.items():
        plane[number] = place
    points = head.on_surface(plane)
    points[12, 2] += 0.2  # the tip of the nose
    return points.astype(np.float32)


def rotation(pose: Pose) -> np.ndarray:
    """(3, 3): points (N, 3) @ this are turned, first by pitch, then yaw, then roll, as `transform_keypoints` does."""
    (cx, cy, cz), (sx, sy, sz) = (
        [f(math.radians(angle)) for angle in (pose.pitch, pose.yaw, pose.roll)] for f in (math.cos, math.sin)
    )
    pitch = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    yaw = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    roll = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    return pitch @ yaw @ roll


def draw(character: Character, pose: Pose, size: int = 128) -> np.ndarray:
    """One picture, uint8 (size, size, 3) RGB. It is drawn twice as large, and smoothed."""
    canvas = _background(character, 2 * size).copy()
    painter = _Painter(canvas, _Head(character, pose))
    painter.paint()
    picture = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    light = cv2.resize(painter.light, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.add(picture, light, dtype=cv2.CV_8U)


@lru_cache(maxsize=64)
def _background(character: Character, size: int) -> np.ndarray:
    """uint8 (size, size, 3): what stands behind the character."""
    top, bottom = np.array(character.background, float), np.array(character.second_background, float)
    ramp = np.linspace(0, 1, size)[:, None, None]
    canvas = np.ascontiguousarray(np.broadcast_to(top + (bottom - top) * ramp, (size, size, 3))).astype(np.uint8)
    light = tuple(int(c) for c in 0.5 * (bottom + 255))
    side = -1 if character.mirrored else 1

    def spot(x: float, y: float, radius: float) -> None:
        place = (round((1 + x) * size / 2 * 16), round((1 + y) * size / 2 * 16))
        cv2.circle(canvas, place, round(radius * size / 2 * 16), light, -1, cv2.LINE_AA, SUBPIXELS)

    if character.pattern == "dots":
        for i in range(5):
            for j in range(5):
                spot(-0.9 + 0.45 * i + 0.22 * (j % 2), -0.9 + 0.45 * j, 0.07)
    elif character.pattern == "sun":
        spot(side * 0.55, -0.5, 0.42)
    elif character.pattern == "stripes":
        for i in range(-4, 5):
            x = np.array(
                [[i * 0.5, 1], [i * 0.5 + 0.2, 1], [i * 0.5 + side * 0.9 + 0.2, -1], [i * 0.5 + side * 0.9, -1]]
            )
            cv2.fillPoly(canvas, [np.round((1 + x) * size / 2 * 16).astype(np.int32)], light, cv2.LINE_AA, SUBPIXELS)
    elif character.pattern == "hills":
        spot(-side * 0.9, 1.3, 1.1)
        spot(side * 0.9, 1.6, 1.2)
    return canvas


def _mixed(a: Colour, b: Colour, weight: float) -> Colour:
    red, green, blue = (round(x + weight * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _darker(colour: Colour, weight: float = 0.2) -> Colour:
    return _mixed(colour, (60, 20, 40), weight)


def _circle(points: int) -> np.ndarray:
    turn = np.arange(points) * (2 * math.pi / points)
    return np.stack([np.cos(turn), np.sin(turn)], axis=1)


CIRCLE = _circle(28)
SPHERE = np.array(
    [(math.cos(a) * math.cos(b), math.sin(b), math.sin(a) * math.cos(b))
     for b in np.linspace(-math.pi / 2, math.pi / 2, 12) for a in np.arange(20) * math.pi / 10]
)  # fmt: skip


class _Head:
    """A head in a pose: from head space to the picture."""

    def __init__(self, character: Character, pose: Pose):
        self.character, self.pose = character, pose
        self.rotation = rotation(pose)
        self.shift = np.array([pose.shift_x, pose.shift_y])
        c, drop = character, 0.13 * pose.mouth
        self.cranium = (np.array([0, -0.25, -0.12]), np.array([0.9 * c.width, 0.88, 0.92]))
        self.cheeks = (np.array([0, 0.2, -0.05]), np.array([0.84 * c.width * c.cheeks, 0.56, 0.86]))
        self.jaw = (np.array([0, 0.58 + drop, 0.14]), np.array([0.5 * c.jaw, 0.47 * c.chin, 0.6]))

    def on_surface(self, plane: np.ndarray) -> Points:
        """(N, 2) seen from the front -> (N, 3) on the head."""
        depth = np.full(len(plane), -np.inf)
        for centre, radius in (self.cranium, self.cheeks, self.jaw):
            inside = 1 - (((plane - centre[:2]) / radius[:2]) ** 2).sum(1)
            depth = np.maximum(depth, centre[2] + radius[2] * np.sqrt(inside.clip(0.0)) - 3 * (-inside).clip(0))
        return np.column_stack([plane, depth])

    def turned(self, points: Points) -> np.ndarray:
        """(N, 3) -> (N, 2) in the picture."""
        return (points @ self.rotation)[:, :2] * self.pose.scale + self.shift

    def outline(self, ellipsoid: Ellipsoid, grow: float = 1.0) -> np.ndarray:
        """(28, 2): where the picture's ellipse of an ellipsoid ends."""
        centre, radius = ellipsoid
        axes = (self.rotation * (grow * radius)[:, None] * self.pose.scale)[:, :2]
        return CIRCLE @ np.linalg.cholesky(axes.T @ axes).T + self.turned(centre[None])

    def band(
        self, ellipsoid: tuple[np.ndarray, np.ndarray], degrees: np.ndarray, heights: np.ndarray, grow: float = 1.0
    ):
        """(N, 3) on an ellipsoid: by angle from the front and y; angles that are out of sight stop at the edge."""
        centre, radius = ellipsoid[0], grow * ellipsoid[1]
        degrees = degrees.clip(-84 - self.pose.yaw, 84 - self.pose.yaw)
        y = ((heights - centre[1]) / radius[1]).clip(-1, 1)
        ring, angle = np.sqrt(1 - y**2), np.radians(degrees)
        return centre + radius * np.column_stack([ring * np.sin(angle), y, ring * np.cos(angle)])


class _Painter:
    def __init__(self, canvas: np.ndarray, head: _Head):
        self.canvas, self.head, self.character, self.pose = canvas, head, head.character, head.pose
        self.size = len(canvas)
        self.light = np.zeros((48, 48, 3), np.float32)  # what is added at the end, smooth: shade and blush
        self.side = -1 if head.character.mirrored else 1

    # Shapes

    def pixels(self, plane: np.ndarray) -> np.ndarray:
        """[-1, 1] over the picture -> OpenCV's whole numbers, a fraction of a pixel each."""
        return np.round(((1 + plane) * (self.size / 2) - 0.5) * 2**SUBPIXELS).astype(np.int32)

    def fill(self, plane: np.ndarray, colour: Colour) -> None:
        cv2.fillPoly(self.canvas, [self.pixels(plane)], colour, cv2.LINE_AA, SUBPIXELS)

    def hull(self, planes: list[np.ndarray]) -> np.ndarray:
        return cv2.convexHull(np.concatenate(planes).astype(np.float32))[:, 0]

    def line(self, plane: np.ndarray, colour: Colour, width: float, closed: bool = False) -> None:
        """`width` in head space."""
        thickness = max(1, round(width * self.pose.scale * self.size / 2))
        cv2.polylines(self.canvas, [self.pixels(plane)], closed, colour, thickness, cv2.LINE_AA, SUBPIXELS)

    def patch(self, plane: np.ndarray, colour: Colour) -> None:
        """A shape on the face, given as seen from the front."""
        self.fill(self.head.turned(self.head.on_surface(plane)), colour)

    def ball(self, centre: Triple, radius: float | Triple, colour: Colour) -> None:
        self.fill(self.head.outline((np.array(centre), np.broadcast_to(radius, 3))), colour)

    def inside(self, outline: np.ndarray, paint) -> None:
        """What `paint` draws, seen through `outline` alone: an eye in its lids, teeth in a mouth."""
        points = self.pixels(outline)
        low, high = points.min(0) // 2**SUBPIXELS - 2, points.max(0) // 2**SUBPIXELS + 3
        (x1, y1), (x2, y2) = low.clip(0, self.size), high.clip(0, self.size)
        if x1 >= x2 or y1 >= y2:
            return
        before = self.canvas.copy()
        paint()
        part, under = self.canvas[y1:y2, x1:x2], before[y1:y2, x1:x2]
        mask = np.zeros(part.shape, np.uint8)
        cv2.fillPoly(mask, [points - np.array([x1, y1], np.int32) * 2**SUBPIXELS], (255,) * 3, cv2.LINE_AA, SUBPIXELS)
        weight = mask.astype(np.float32) / 255
        under[:] = under + (part.astype(np.float32) - under) * weight + 0.5
        self.canvas[:] = before

    def shade(self, plane: np.ndarray, colour: tuple[float, float, float]) -> None:
        points = np.round((1 + plane) * (len(self.light) / 2) * 2**SUBPIXELS - 8).astype(np.int32)
        cv2.fillPoly(self.light, [points], colour, cv2.LINE_8, SUBPIXELS)

    # The character, from behind to the front

    def paint(self) -> None:
        self.paint_back_hair()
        self.paint_body()
        self.paint_head()
        self.paint_eyes()
        self.paint_nose()
        self.paint_mouth()
        self.paint_front_hair()
        self.paint_brows()
        self.paint_glasses()
        self.paint_hat()
        cv2.GaussianBlur(self.light, (0, 0), 1.6, dst=self.light)

    def paint_back_hair(self) -> None:
        c, head = self.character, self.head
        style, colour = c.back_hair, _darker(c.hair, 0.22)
        if style == "bob":
            low = (np.array([0, 0.35, -0.4]), np.array([1.08 * c.width, 0.55, 0.6]))
            self.fill(self.hull([head.outline(head.cranium, 1.1), head.outline(low)]), colour)
        elif style == "long":
            low = (np.array([0, 1.15, -0.45]), np.array([1.0 * c.width, 0.6, 0.45]))
            self.fill(self.hull([head.outline(head.cranium, 1.1), head.outline(low)]), colour)
        elif style == "curls":
            for angle in np.linspace(-150, 150, 11):
                x, y = 1.02 * math.sin(math.radians(angle)), -0.2 - 0.95 * math.cos(math.radians(angle))
                self.ball((x * c.width, min(y, 0.45), -0.3), 0.36, colour)
        elif style == "bun":
            self.ball((0, -1.28, -0.3), 0.36, colour)
        elif style == "buns":
            for side in (-1, 1):
                self.ball((0.82 * side, -0.98, -0.25), 0.33, colour)
        elif style == "ponytail":
            top = (np.array([0.75 * self.side, -0.75, -0.5]), np.array([0.28, 0.28, 0.28]))
            low = (np.array([1.15 * self.side, 0.35, -0.5]), np.array([0.2, 0.3, 0.2]))
            self.fill(self.hull([head.outline(top), head.outline(low)]), colour)

    def paint_body(self) -> None:
        """Neck, shoulders, clothes: they follow the head's shift and scale, and only a little of its turns."""
        c, pose = self.character, self.pose
        lean = 0.25 * math.sin(math.radians(pose.roll))
        turn = 0.2 * math.sin(math.radians(pose.yaw))

        def body(points) -> np.ndarray:
            plane = np.array(points, float)
            plane[:, 0] += -lean * (plane[:, 1] - 1.2) + turn * 0.4
            return plane * pose.scale + self.head.shift

        w, n = c.shoulders, c.neck
        curve = np.linspace(0, 1, 9)[:, None]

        def arc(a, b, c):
            a, b, c = np.array(a), np.array(b), np.array(c)
            return (1 - curve) ** 2 * a + 2 * curve * (1 - curve) * b + curve**2 * c

        right = np.concatenate(
            [arc((n, 1.14), (n + 0.1, 1.36), (0.9 * w, 1.44)), arc((0.9 * w, 1.44), (w + 0.15, 1.5), (w + 0.22, 2.4))]
        )
        left = right[::-1] * (-1, 1)
        if c.collar == "hood":
            self.fill(body(np.array([0, 1.25]) + CIRCLE * (0.98, 0.42)), _darker(c.clothes, 0.3))
        self.fill(body(np.concatenate([right, [(w + 0.2, 4)], [(-w - 0.2, 4)], left])), c.clothes)
        if c.collar == "stripes":
            for y in (1.72, 2.1, 2.5):
                stripe = [(-w - 0.1, y), (w + 0.1, y), (w + 0.2, y + 0.17), (-w - 0.2, y + 0.17)]
                self.fill(body(stripe), c.second_clothes)
        skin = _darker(c.skin, 0.16)
        top = self.head.turned(np.array([[-n, 0.5, -0.3], [n, 0.5, -0.3]]))
        base = body([(n, 1.3), (-n, 1.3)])
        self.fill(np.concatenate([top, base]), skin)
        if c.collar == "v":
            self.fill(body([(-n - 0.08, 1.24), (n + 0.08, 1.24), (0, 1.95)]), skin)
            self.line(body([(-n - 0.1, 1.22), (0, 1.97), (n + 0.1, 1.22)]), c.second_clothes, 0.09)
        else:
            self.fill(body(np.array([0, 1.26]) + CIRCLE * (n + 0.06, 0.2)), skin)
            if c.collar == "shirt":
                for side in (-1, 1):
                    self.fill(
                        body([(side * (n + 0.1), 1.16), (0, 1.48), (side * 0.34, 1.8), (side * (n + 0.3), 1.36)]),
                        _mixed(c.clothes, (255, 255, 255), 0.45),
                    )
            elif c.collar == "hood":
                for side in (-1, 1):
                    self.line(body([(side * 0.26, 1.5), (side * 0.3, 2.1)]), (245, 240, 232), 0.07)
            else:
                self.line(body(np.array([0, 1.26]) + CIRCLE[:15] * (n + 0.08, 0.22)), c.second_clothes, 0.08)
        # The shadow of the head on neck and clothes
        self.shade(body(np.array([0, 1.18]) + CIRCLE * (n, 0.2)), (-30.0, -30.0, -26.0))

    def paint_head(self) -> None:
        c, head = self.character, self.head
        ears = {side: np.array([side * 0.9 * c.width, 0.12, -0.12]) for side in (-1, 1)}
        for centre in ears.values():
            self.paint_ear(centre)
        if c.back_hair != "none" or c.fringe != "none":
            self.fill(head.outline(head.cranium, 1.08), c.hair)
        else:  # shorn
            self.fill(head.outline(head.cranium, 1.02), _mixed(c.skin, c.hair, 0.55))
        angles = np.linspace(-72, 72, 13)
        line = c.hairline + 0.42 * (np.abs(angles) / 72) ** 3
        forehead = head.turned(head.band(head.cranium, np.append(angles, (-76, 76)), np.append(line, (0.1, 0.1))))
        self.face = self.hull([forehead, head.outline(head.cheeks), head.outline(head.jaw)])
        self.fill(self.face, c.skin)
        for side, centre in ears.items():  # the nearer ear comes before the head as it turns
            near = float(_smooth(np.array((-side * math.sin(math.radians(self.pose.yaw)) - 0.1) / 0.3)))
            if near > 0:
                before = self.canvas.copy() if near < 1 else self.canvas
                self.paint_ear(centre)
                if near < 1:
                    cv2.addWeighted(self.canvas, near, before, 1 - near, 0, dst=self.canvas)
        lit = (self.face - head.shift) * 0.9 + head.shift + np.array([-0.09, -0.06]) * self.pose.scale
        self.shade(self.face, (-26.0, -28.0, -20.0))
        self.shade(lit, (7.0, 6.0, 2.0))
        for side in (-1, 1):
            blush = np.array([side * 0.5, 0.42]) + CIRCLE * (0.19, 0.14)
            self.shade(head.turned(head.on_surface(blush)), (14.0, -14.0, -8.0))
        if c.freckles:
            for x, y in ((0.36, 0.38), (0.47, 0.44), (0.56, 0.36), (0.42, 0.5), (0.28, 0.46)):
                for side in (-1, 1):
                    self.patch(np.array([side * x, y]) + CIRCLE[::4] * 0.024, _darker(c.skin, 0.28))

    def paint_ear(self, centre: np.ndarray) -> None:
        skin = self.character.skin
        self.ball(tuple(centre), (0.17, 0.26, 0.2), _darker(skin, 0.1))
        self.ball(tuple(centre + np.array([0, 0.01, 0.1])), (0.09, 0.16, 0.1), _darker(skin, 0.26))

    def paint_eyes(self) -> None:
        c, pose = self.character, self.pose
        wide, high = 0.265 * c.eye_size, 0.25 * c.eye_size
        squint = 0.12 * max(pose.smile, 0)
        upper, lower = high * (1 - 1.12 * pose.blink), high * (0.8 - 0.35 * squint - 0.25 * pose.blink)
        turn = np.linspace(0, math.pi, 13)
        across = np.cos(turn)
        bow = np.sin(turn) ** 0.8
        for side in (-1, 1):
            centre = np.array([side * c.eye_distance, 0.1])

            def lid(height: float, centre=centre, side=side) -> np.ndarray:
                """A curve from the right corner to the left one."""
                x, y = wide * across, -height * bow + side * c.eye_slant * wide * across
                return centre + np.column_stack([x, y])

            whole = np.concatenate([lid(high), lid(-lower)[::-1]])
            self.patch(centre + (whole - centre) * 1.08, _darker(c.skin, 0.14))
            opening = self.head.turned(self.head.on_surface(np.concatenate([lid(upper), lid(-lower)[::-1]])))
            if upper > -0.9 * lower:
                look = centre + np.array([0.105 * pose.gaze_x, 0.09 * pose.gaze_y])
                self.inside(opening, lambda centre=centre, look=look: self.paint_eyeball(centre, look))
            lashes = self.head.turned(self.head.on_surface(lid(max(upper, -0.9 * lower))))
            self.line(lashes, _darker(_mixed(c.hair, (30, 20, 30), 0.75), 0.3), 0.065)

    def paint_eyeball(self, centre: np.ndarray, look: np.ndarray) -> None:
        c = self.character
        self.patch(centre + CIRCLE * 0.36, (252, 250, 246))
        self.patch(look + CIRCLE * 0.157, _darker(c.iris, 0.35))
        self.patch(look + CIRCLE * 0.135, c.iris)
        self.patch(look + CIRCLE * 0.08, (22, 16, 22))
        self.patch(look + (0.05, -0.055) + CIRCLE[::2] * 0.042, (255, 255, 255))

    def paint_brows(self) -> None:
        """Up in surprise, down and inwards in anger."""
        c, pose = self.character, self.pose
        along = np.linspace(-1, 1, 9)
        thick = c.brow_thickness * (1 - 0.55 * np.abs(along + 0.25) ** 2).clip(0.15)
        for side in (-1, 1):
            x = c.eye_distance + 0.27 * along  # from the nose outwards
            y = -0.27 - 0.13 * pose.brows - 0.07 * (1 - along**2) + 0.1 * min(pose.brows, 0) * along
            shape = np.concatenate([np.column_stack([x, y - thick]), np.column_stack([x, y + thick])[::-1]])
            self.patch(shape * (side, 1), _darker(c.hair, 0.3))

    def paint_nose(self) -> None:
        c, size = self.character, self.character.nose
        tip = np.array([0, 0.36, 0])
        tip[2] = self.head.on_surface(tip[None, :2])[0, 2] + 0.16
        bridge = self.head.on_surface(np.array([[-0.05, 0.0], [0.05, 0.0]]))
        ball = (tip - np.array([0, 0, 0.06]), np.array([0.13 * size, 0.11, 0.12]))
        self.fill(self.hull([self.head.turned(bridge), self.head.outline(ball)]), _darker(c.skin, 0.09))
        below = (tip + np.array([0, 0.045, -0.05]), np.array([0.12 * size, 0.06, 0.1]))
        self.fill(self.head.outline(below), _darker(c.skin, 0.24))
        self.fill(self.head.outline((tip, np.array([0.085 * size, 0.065, 0.06]))), _mixed(c.skin, (255, 255, 255), 0.2))

    def paint_mouth(self) -> None:
        c, pose = self.character, self.pose
        half = 0.34 * c.mouth * (1 + 0.16 * max(pose.smile, 0) - 0.48 * pose.pucker - 0.12 * pose.mouth)
        lift = 0.11 * pose.smile
        along = np.linspace(-1, 1, 13)
        bow = (1 - along**2) ** 0.75
        gap_up, gap_down = 0.04 * pose.mouth + 0.03 * pose.pucker, 0.38 * pose.mouth + 0.03 * pose.pucker
        fat = 0.035 + 0.035 * c.lips + 0.045 * pose.pucker
        y = 0.7 - lift * (along**2 - 0.3)

        def edge(offset: np.ndarray | float) -> np.ndarray:
            return np.column_stack([half * along, y + offset])

        upper, lower = edge(-gap_up * bow), edge(gap_down * bow)
        lips = _mixed(c.skin, (190, 60, 70), 0.35 + 0.3 * c.lips)
        outer = [edge(-(gap_up + 1.1 * fat) * bow - 0.012), edge((gap_down + 1.3 * fat) * bow + 0.012)[::-1]]
        self.patch(np.concatenate(outer), lips)
        opening = self.head.turned(self.head.on_surface(np.concatenate([upper, lower[::-1]])))
        if pose.mouth + pose.pucker > 0.02:
            self.inside(opening, lambda: self.paint_inside_of_mouth(half, gap_down))
        self.line(opening[:13], _darker(lips, 0.55), 0.035)
        if c.moustache:
            x = 0.36 * along
            hair = [
                np.column_stack([x, 0.6 - 0.07 * bow - 0.5 * lift]),
                np.column_stack([x, 0.64 + 0.05 * along**2 - 0.5 * lift])[::-1],
            ]
            self.patch(np.concatenate(hair), _darker(c.hair, 0.2))

    def paint_inside_of_mouth(self, half: float, gap: float) -> None:
        self.patch(np.array([0, 0.75]) + CIRCLE * (half * 1.2, 0.5), (112, 32, 44))
        self.patch(np.array([0, 0.72 + gap]) + CIRCLE * (half * 0.7, 0.4 * gap), (216, 104, 108))
        self.patch(np.array([0, 0.64]) + CIRCLE * (half * 0.85, 0.1), (250, 246, 238))

    def paint_front_hair(self) -> None:
        c, head = self.character, self.head
        if c.fringe == "none":
            return
        angles = np.linspace(-80, 80, 33)
        across = self.side * angles / 80
        top = np.full(33, -0.98)
        temples = 0.55 * np.abs(across) ** 4
        if c.fringe == "straight":
            low = -0.42 + temples * 1.1
        elif c.fringe == "swept":
            low = -0.66 + 0.3 * across + temples * 0.9 + 0.1 * np.cos(across * 3)
        elif c.fringe == "parted":
            low = -0.86 + 0.62 * np.abs(across) ** 0.8 + temples * 0.5
        elif c.fringe == "spiky":
            low = -0.52 + temples + 0.16 * np.abs((np.arange(33) % 6) / 3 - 1)
        else:
            low = -0.54 + temples + 0.1 * np.sin(across * 11)
        upper, lower = (head.turned(head.band(head.cranium, angles, y, 1.06)) for y in (top, low))
        self.fill(np.concatenate([upper, lower[::-1]]), c.hair)
        shine = np.linspace(-38, 8, 12) * self.side
        glow = [
            head.band(head.cranium, shine, np.full(12, y) - 0.04 * np.cos(np.radians(2 * shine)), 1.06)
            for y in (-0.86, -0.8)
        ]
        self.fill(head.turned(np.concatenate([glow[0], glow[1][::-1]])), _mixed(c.hair, (255, 255, 255), 0.22))

    def paint_glasses(self) -> None:
        c = self.character
        if c.glasses == "none":
            return
        frame = _mixed(c.second_clothes, (40, 30, 40), 0.6)
        ring = CIRCLE if c.glasses == "round" else np.sign(CIRCLE) * np.abs(CIRCLE) ** 0.45
        for side in (-1, 1):
            plane = np.array([side * c.eye_distance, 0.12]) + ring * (0.345, 0.32)
            rim = self.head.turned(np.column_stack([plane, 0.86 - 0.45 * plane[:, 0] ** 2]))
            self.line(rim, frame, 0.05, closed=True)
            x = side * (c.eye_distance + 0.34)
            if side * self.pose.yaw < 25:  # the temple on the far side is out of sight
                ends = np.array([[x, 0.05, 0.86 - 0.45 * x * x], [side * 0.93 * c.width, 0.02, 0.0]])
                self.line(self.head.turned(ends), frame, 0.05)
        inner = c.eye_distance - 0.345
        bridge = np.array([[-inner, 0.1, 0.88], [0, 0.06, 0.92], [inner, 0.1, 0.88]])
        self.line(self.head.turned(bridge), frame, 0.05)

    def paint_hat(self) -> None:
        c, head = self.character, self.head
        if c.hat == "beanie":
            cap = SPHERE[SPHERE[:, 1] < -0.28] * head.cranium[1] * 1.14 + head.cranium[0]
            self.fill(self.hull([head.turned(cap)]), c.second_clothes)
            self.ball((0, -1.32, -0.12), 0.2, _mixed(c.second_clothes, (255, 255, 255), 0.5))
            rim = [head.band(head.cranium, np.linspace(-84, 84, 21), np.full(21, y), 1.17) for y in (-0.78, -0.5)]
            self.fill(head.turned(np.concatenate([rim[0], rim[1][::-1]])), _darker(c.second_clothes, 0.25))
        elif c.hat == "band":
            rim = [head.band(head.cranium, np.linspace(-84, 84, 21), np.full(21, y), 1.1) for y in (-0.84, -0.68)]
            self.fill(head.turned(np.concatenate([rim[0], rim[1][::-1]])), c.second_clothes)
