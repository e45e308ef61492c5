"""One long video in pieces, which may be made at the same time on several GPUs."""

from ..config import CHUNK, WARM_UP, WINDOW
from ..errors import InputError
from ..motion.motion import Motion
from ..motion.performance import PUBLISHED, Strength, retarget_motion
from .keyframes import KeyframeSettings, keyframe_windows
from .stream import LEAD

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
    """Divides a video as `split_frames` does, with the lead that its keyframes need.

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
    found = keyframe_windows(keyframes, portrait.tokens, tokens, len(motion) // CHUNK)
    return split_frames(len(motion), pieces, lead_frames(len(found)))


def lead_frames(keyframes: int) -> int:
    """How many frames `Stream.start_at` samples beforehand if it samples so many keyframes again."""
    return WARM_UP + LEAD + keyframes * (WINDOW + LEAD)


def most_pieces(frames: int, lead: int) -> int:
    """Into how many pieces a video can be divided, of 16 frames each and what they sample beforehand."""
    return max(1, (frames - lead) // SHORTEST)


def split_frames(frames: int, pieces: int, lead: int) -> list[range]:
    """Divides a video so that all its pieces take the same time.

    Args:
        frames: Of the video.
        pieces: How many.
        lead: Frames that every piece but the first samples beforehand.

    Returns:
        The frames that each piece makes, without a gap. All but the last end with a chunk.

    Raises:
        InputError: The video is too short.
    """
    if pieces > (most := most_pieces(frames, lead)):
        advice = f"split them into {most} at most" if most > 1 else "make them in one piece"
        raise InputError(f"{frames} frames are too few for {pieces} pieces: {advice}.")
    work = (frames + (pieces - 1) * lead) / pieces
    seams = [CHUNK * round((work + i * (work - lead)) / CHUNK) for i in range(pieces - 1)]
    return [range(begin, end) for begin, end in zip([0, *seams], [*seams, frames], strict=True)]
