"""One long video in pieces, which may be made at the same time on several GPUs."""

from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise

from ..config import CHUNK, WARM_UP, WINDOW
from ..errors import InputError
from ..motion.motion import Motion
from ..motion.performance import PUBLISHED, Strength, retarget_motion
from .keyframes import KeyframeSettings, keyframe_windows
from .stream import LEAD, lead_windows

SHORTEST = WINDOW  # frames of a piece


def split_motion(
    portrait: Motion,
    motion: Motion,
    pieces: int,
    *,
    keyframes: KeyframeSettings,
    strength: Strength = PUBLISHED,
    neutral: Motion | None = None,
) -> list[range]:
    """Divides a video as `split_frames` does, with what `Stream.start_at` samples before each seam.

    Args:
        portrait: Its motion, one frame.
        motion: All of the driver's.
        pieces: How many.
        keyframes: When a frame becomes a keyframe.
        strength: How much of the motion is taken.
        neutral: The driver's motion that counts as normal, one frame; None takes the first.

    Raises:
        InputError: The video is too short.
    """
    neutral = motion[:1] if neutral is None else neutral
    tokens = retarget_motion(portrait, motion[::CHUNK], neutral, strength).tokens
    found = keyframe_windows(keyframes, portrait.tokens, tokens, len(tokens) + WARM_UP // CHUNK)

    def lead(seam: int) -> int:
        window = (seam + WARM_UP) // CHUNK
        return CHUNK * sum(map(len, lead_windows(found[window], window)))

    return split_frames(len(motion), pieces, lead)


def lead_frames(keyframes: int) -> int:
    """How many frames `Stream.start_at` samples beforehand at most if it samples so many keyframes again."""
    return WARM_UP + LEAD + keyframes * (WINDOW + LEAD)


def split_frames(frames: int, pieces: int, lead: Callable[[int], int]) -> list[range]:
    """Divides a video so that all its pieces take the same time.

    Args:
        frames: Of the video.
        pieces: How many, of 16 frames or more.
        lead: How many frames a piece that begins with this one samples beforehand.

    Returns:
        The frames that each piece makes, without a gap. All but the last end with a chunk.

    Raises:
        InputError: The video is too short.
    """
    most = min(pieces, max(1, frames // SHORTEST))
    while most > 1 and min(map(len, _divided(frames, most, lead))) < SHORTEST:
        most -= 1
    if most < pieces:
        advice = f"split them into {most} at most" if most > 1 else "make them in one piece"
        raise InputError(f"{frames} frames are too few for {pieces} pieces: {advice}.")
    return _divided(frames, pieces, lead)


def _divided(frames: int, pieces: int, lead: Callable[[int], int]) -> list[range]:
    """Searches for the number of frames that each piece samples in all."""

    def seams(work: int) -> list[int]:
        """Where the pieces begin, and where the last one ends."""
        begins, end = [0], 0
        for _ in range(pieces):
            end = min(frames, end + max(0, work - lead(begins[-1])))
            begins.append(CHUNK * round(end / CHUNK))
        return [*begins[:-1], end]

    found = seams(bisect_left(range(frames + lead(0)), frames, key=lambda work: seams(work)[-1]))
    return [range(begin, end) for begin, end in pairwise(found)]
