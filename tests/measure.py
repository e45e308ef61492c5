"""What a picture of a known character shows, measured by drawing it again: analysis by synthesis.

Nothing is learned: the pose is sought whose drawing is nearest to the picture, so that what is measured does not
depend on a network, and works on pictures that are a little blurred or noisy.
"""

from dataclasses import astuple, fields, replace

import cv2
import numpy as np

from drawn import Character, Pose, draw

NAMES = [field.name for field in fields(Pose)]
# How much of each is one step of about the same size in the picture
UNITS = np.array([8, 8, 8, 0.04, 0.04, 0.03, 0.4, 0.4, 0.3, 0.4, 0.3, 0.4, 0.4])
LOW = np.array([-50, -35, -30, -0.5, -0.5, 0.35, -1.2, -1.2, 0, -1.2, 0, -1.2, 0])
HIGH = np.array([50, 35, 30, 0.5, 0.5, 0.75, 1.2, 1.2, 1, 1.2, 1, 1.2, 1])
USUAL = np.array(astuple(Pose()))
PRIOR = 20.0  # pulls what cannot be seen, such as the gaze of closed eyes, to what is usual
HEAD, EXPRESSION = list(range(6)), list(range(6, 13))


def measure(character: Character, picture: np.ndarray, start: Pose | None = None) -> Pose:
    """The pose in which `character` looks most like the picture, uint8 (size, size, 3).

    `start` is where the head was last, as in the frame before. Without it the head's turn is sought from left to right.
    """
    heads = [Pose(yaw=yaw) for yaw in (-28, -10, 10, 28)] if start is None else [start]
    tried = []
    for head in heads:
        # From coarse to fine: the head, then the face with eyes that begin open and closed.
        values = np.array(
            astuple(replace(head, gaze_x=0, gaze_y=0, blink=0.15, brows=0, mouth=0.25, smile=0, pucker=0))
        )
        for blur in (6.0, 3.0):
            values = _fit(character, picture, values, HEAD, 4, blur)
        for blink in (0.15, 0.8):
            values[8] = blink
            values = _fit(character, picture, values, [9], 2, 2.0)
            tried.append(_fit(character, picture, values, HEAD + EXPRESSION, 4, 1.5))

    def error(values: np.ndarray) -> float:
        return _error(character, picture, values)

    refined = [_fit(character, picture, values, HEAD + EXPRESSION, 5, 0.8) for values in sorted(tried, key=error)[:2]]
    return _pose(min(refined, key=error))


def measure_video(character: Character, pictures: list[np.ndarray]) -> list[Pose]:
    """One after the other, each from where the last one ended."""
    poses: list[Pose] = []
    for picture in pictures:
        poses.append(measure(character, picture, poses[-1] if poses else None))
    return poses


def curve(poses: list[Pose], name: str) -> np.ndarray:
    return np.array([getattr(pose, name) for pose in poses])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of two pictures or stacks of pictures, uint8; in dB."""
    return float(10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-9)))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two uint8 pictures (H, W, 3): a Gaussian of 1.5 pixels."""
    x, y = a.astype(np.float64), b.astype(np.float64)

    def mean(z: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(z, (11, 11), 1.5)

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mx * my + c1) * (2 * both + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(score[5:-5, 5:-5].mean())


def _pose(values: np.ndarray) -> Pose:
    return Pose(*map(float, values))


def _seen(picture: np.ndarray, blur: float) -> np.ndarray:
    return cv2.GaussianBlur(picture.astype(np.float32), (0, 0), blur).ravel()


def _error(character: Character, picture: np.ndarray, values: np.ndarray) -> float:
    return float(((_seen(draw(character, _pose(values), len(picture)), 1.0) - _seen(picture, 1.0)) ** 2).mean())


def _fit(character, picture: np.ndarray, values: np.ndarray, free: list[int], steps: int, blur: float) -> np.ndarray:
    """Levenberg and Marquardt's steps in the `free` values, on pictures blurred by so many pixels."""
    size, target = len(picture), np.append(_seen(picture, blur), PRIOR * USUAL / UNITS)

    def drawn(values: np.ndarray) -> np.ndarray:
        return np.append(_seen(draw(character, _pose(values), size), blur), PRIOR * values / UNITS)

    values = values.clip(LOW, HIGH)
    rest, damping = drawn(values) - target, 0.05
    for _ in range(steps):
        slopes = []
        for i in free:
            step = np.zeros(len(values))
            step[i] = 0.25 * UNITS[i] * (1 if values[i] + 0.25 * UNITS[i] <= HIGH[i] else -1)
            slopes.append((drawn(values + step) - target - rest) * (UNITS[i] / step[i]))
        jacobian = np.stack(slopes)
        square, gradient = jacobian @ jacobian.T, jacobian @ rest
        while damping < 100:
            move = np.linalg.solve(square + damping * np.diag(np.diag(square) + 1e-3 * np.trace(square)), gradient)
            tried = values.copy()
            tried[free] = (values[free] - move * UNITS[free]).clip(LOW[free], HIGH[free])
            difference = drawn(tried) - target
            if (difference**2).sum() < (rest**2).sum():
                values, rest, damping = tried, difference, damping / 4
                break
            damping *= 4
        else:
            break
    return values
