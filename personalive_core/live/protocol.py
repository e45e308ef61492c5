"""What the page and the server say to each other: JSON as text, and binary messages with this header."""

import math
import struct
from enum import IntEnum
from typing import NamedTuple

PROTOCOL = 1
HEADER = struct.Struct("<BBHIdII")  # version, kind, flags, sequence number, capture time, window, sample rate
EARLY = 1  # the flag of a result after three of its four passes

MAX_VIEWERS = 8
MAX_MESSAGE = 2 * 2**20  # bytes
MAX_PORTRAIT = 2**25  # pixels of an uploaded portrait: 8192 x 4096
HEARTBEAT = 5.0  # seconds; also the time for the first message
MAX_WAITING = 8  # frames of one client
STATS_EVERY = 0.5  # seconds

BAD_REQUEST, BAD_TOKEN, VIEWER_DRIVES, ONE_DRIVER, TOO_MANY = 4400, 4401, 4403, 4409, 4429
"""Codes that a WebSocket is closed with."""


class Kind(IntEnum):
    """What a binary message holds."""

    CAMERA = 1  # JPEG, from the driver
    RESULT = 2  # JPEG, to all
    PORTRAIT = 3  # a picture file from the driver; to all, a JPEG of the portrait as the networks see it
    SOUND = 4  # int16 little endian mono PCM, from the driver


class Message(NamedTuple):
    """A binary message.

    Args:
        kind: what `data` is.
        data: see `Kind`.
        time: of capture, in ms since 1970 on the page's clock; of sound, that of the first sample.
        number: counts the messages of a kind; of results, every frame that was made.
        window: that a result came out of.
        flags: `EARLY`.
        sample_rate: of sound, in Hz.
    """

    kind: Kind
    data: bytes
    time: float = 0.0
    number: int = 0
    window: int = 0
    flags: int = 0
    sample_rate: int = 0

    def pack(self) -> bytes:
        """The header and the data; numbers start again at 2^32."""
        number, window = self.number % 2**32, self.window % 2**32
        return HEADER.pack(PROTOCOL, self.kind, self.flags, number, self.time, window, self.sample_rate) + self.data

    @classmethod
    def unpack(cls, message: bytes) -> "Message":
        """Raises ValueError where this is no message of this version."""
        if len(message) < HEADER.size:
            raise ValueError(f"a message of {len(message)} bytes is shorter than its header of {HEADER.size}")
        version, kind, flags, number, time, window, sample_rate = HEADER.unpack_from(message)
        if version != PROTOCOL:
            raise ValueError(f"a message of version {version} in place of {PROTOCOL}")
        if not math.isfinite(time):
            raise ValueError(f"a capture time of {time}")
        return cls(Kind(kind), message[HEADER.size :], time, number, window, flags, sample_rate)
