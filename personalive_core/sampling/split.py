"""One long video in pieces, which may be made at the same time on several GPUs."""

from ..config import CHUNK, WARM_UP, WINDOW
from .stream import LEAD

SHORTEST = WINDOW  # frames of a piece


def lead_frames(keyframes: int) -> int:
    """How many frames `Stream.start_at` samples beforehand if it has to find so many keyframes again."""
    return WARM_UP + LEAD + keyframes * (WINDOW + LEAD)


def split_frames(frames: int, pieces: int, lead: int) -> list[range]:
    """Divides a video so that all its pieces take the same time.

    Args:
        frames: Of the video.
        pieces: How many, at most: each makes at least 16 frames.
        lead: Frames that every piece but the first samples before its own.

    Returns:
        The frames that each piece makes, without a gap. All but the last end with a chunk.
    """
    pieces = max(1, min(pieces, (frames - lead) // SHORTEST))
    work = (frames + (pieces - 1) * lead) / pieces
    seams = [CHUNK * round((work + i * (work - lead)) / CHUNK) for i in range(pieces - 1)]
    return [range(begin, end) for begin, end in zip([0, *seams], [*seams, frames], strict=True)]
