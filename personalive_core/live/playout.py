"""When results are shown: each at its capture time plus one delay, so that frames which come four at once play evenly.

The delay follows how late frames come. web/playout.js does the same in the page, and both pass the same test vectors.
All times are in milliseconds. Capture and arrival may be on different clocks, whose offset then becomes a part of the
delay.
"""

import math
from collections import deque

OVER = 3000  # the frames whose lateness counts
QUANTILE = 0.98
MARGIN = 5
JUMP = 60  # a delay that is this much too short is mended at once
FOLLOW = 1  # at most, a tick
RISE, FALL = 0.05, 0.005  # of what the delay is too short, or too long, a tick
ANOTHER_CLOCK = 5000  # no delay changes by so much from frame to frame
MAX_WAITING = 512  # frames


class Playout:
    """Frames from their arrival until they are shown.

    Attributes:
        delay: from capture to display; None before the first frame.
        held: a delay that is kept whatever comes, or None.
        made, shown, skipped: frames so far; `made` = `shown` + `skipped` + `len(waiting)`.
        waiting: (seq, capture) of the frames that are not due, in the order in which they came.
    """

    def __init__(self) -> None:
        self.delay: float | None = None
        self.held: float | None = None
        self.made = self.shown = self.skipped = 0
        self.waiting: deque[tuple[int, float]] = deque()
        self._lateness: deque[tuple[float, float]] = deque()  # (arrival, arrival - capture) of the last frames
        self._newest: int | None = None

    def push(self, seq: int, capture: float, arrival: float) -> None:
        """Takes a frame. Gaps in `seq` count as skipped."""
        late = arrival - capture
        dropped = seq - self._newest - 1 if self._newest is not None and seq > self._newest else 0
        self._newest = seq
        self.made += dropped + 1
        self.skipped += dropped
        if self.delay is not None and abs(late - self.delay) > ANOTHER_CLOCK and self.held is None:
            self.skipped += len(self.waiting)
            self.waiting.clear()
            self._lateness.clear()
            self.delay = None
        self._lateness.append((arrival, late))
        if self.delay is None:
            self.delay = late + MARGIN
        self.waiting.append((seq, capture))
        if len(self.waiting) > MAX_WAITING:
            self.waiting.popleft()
            self.skipped += 1

    def tick(self, now: float) -> list[tuple[int, float]]:
        """What leaves the queue now: the last one is to be shown, the others came too late for that."""
        self._follow(now)
        delay = self.delay or 0.0  # nothing waits before the first frame
        due = max((i + 1 for i, (_, capture) in enumerate(self.waiting) if capture + delay <= now), default=0)
        if due:
            self.shown += 1
            self.skipped += due - 1
        return [self.waiting.popleft() for _ in range(due)]

    def _follow(self, now: float) -> None:
        if self.held is not None:
            self.delay = self.held
        while len(self._lateness) > 1 and self._lateness[0][0] < now - OVER:
            self._lateness.popleft()
        if self.delay is None or self.held is not None:
            return
        ordered = sorted(late for _, late in self._lateness)
        short = ordered[math.ceil(QUANTILE * len(ordered)) - 1] + MARGIN - self.delay
        if short > JUMP:
            self.delay += short
        else:
            self.delay += max(-FOLLOW, min(FOLLOW, short * (RISE if short > 0 else FALL)))
