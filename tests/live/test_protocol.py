"""The binary messages: what the page's own code reads and writes."""

import struct

import pytest

from personalive_core.live.protocol import EARLY, Kind, Message


def test_the_header_is_the_pages():
    message = Message(Kind.RESULT, b"jpeg", 1795779415961.25, 7, 3, EARLY, 0)
    assert message.pack() == struct.pack("<BBHIdII", 1, 2, 1, 7, 1795779415961.25, 3, 0) + b"jpeg"
    assert Message.unpack(message.pack()) == message
    sound = Message.unpack(struct.pack("<BBHIdII", 1, 4, 0, 2**32 - 1, 5.5, 0, 48000) + b"\0\1")
    assert sound == Message(Kind.SOUND, b"\0\1", 5.5, 2**32 - 1, sample_rate=48000)


def test_numbers_start_again():
    assert Message.unpack(Message(Kind.RESULT, b"", number=2**32 + 5, window=2**32).pack())[3:5] == (5, 0)


@pytest.mark.parametrize(
    "data", [b"", bytes(23), bytes(24), b"\1\x09" + bytes(22), struct.pack("<BBHIdII", 1, 1, 0, 0, float("nan"), 0, 0)]
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ValueError):
        Message.unpack(data)
