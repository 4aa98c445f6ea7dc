"""The wire format: a fixed header, a message as JSON, and raw bytes.

    magic "EDGP" | version, 1 byte | zero, 1 | length of the JSON, 2 | length of the payload, 8 | epoch, 8 | number, 8

All integers are big-endian; the payload is a tensor's elements, little-endian, or a file's bytes. The JSON is padded
with spaces so that the payload is aligned for arithmetic. Nothing is believed: every size is compared with the bytes
that really came before anything is allocated, and nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgeprune.cluster.transport.messages import DTYPES, Done, Mark, Message, Tensor
from edgeprune.errors import first_line
from edgeprune.io.arrays import Array

MAGIC, VERSION = b"EDGP", 2
HEADER = struct.Struct("!4sBxHQQQ")
ALIGNMENT = 64
MOST_PAYLOAD = 256 * 2**20
"""Bytes of a tensor or a part of a file: more than any activation of the networks that this is for."""
MOST_JSON = 2**16 - 1
MOST_FRAME = HEADER.size + MOST_JSON + MOST_PAYLOAD


class FrameError(ValueError):
    """What came is no frame, or not one of ours; the text says why."""


class Frame(NamedTuple):
    """One message with its place in the sender's sequence."""

    epoch: int
    """Which sequence: a sender begins a new one when it starts, and after a loss."""
    number: int
    """1, 2, 3 ... within the epoch; 0 for messages outside of the sequence."""
    message: Message
    payload: memoryview


def encode(epoch: int, number: int, message: Message, payload: Array | bytes = b"") -> bytes:
    """A frame as bytes; an array must be contiguous. FrameError if it is larger than a receiver takes."""
    size = payload.nbytes if isinstance(payload, np.ndarray) else len(payload)
    text = _ENCODER.encode(message)
    padding = -(HEADER.size + len(text)) % ALIGNMENT
    if len(text) + padding > MOST_JSON or size > MOST_PAYLOAD:
        raise FrameError(f"a frame with {size:,} bytes; a frame takes {MOST_PAYLOAD:,}")
    header = HEADER.pack(MAGIC, VERSION, len(text) + padding, size, epoch, number)
    parts: Any = (header, text, b" " * padding, payload)  # an array is joined as its bytes
    return b"".join(parts)


def decode(data: bytes) -> Frame:
    """The frame that these bytes are; FrameError with the reason if they are none."""
    if len(data) < HEADER.size:
        raise FrameError(f"{len(data)} bytes are no frame: a header has {HEADER.size}")
    magic, version, text_size, payload_size, epoch, number = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FrameError("does not begin as a frame does")
    if version != VERSION:
        raise FrameError(
            f"has format {version}, this edgeprune speaks {VERSION}: install the same edgeprune on all devices"
        )
    if payload_size > MOST_PAYLOAD:
        raise FrameError(f"says that it carries {payload_size:,} bytes; at most {MOST_PAYLOAD:,} are taken")
    if HEADER.size + text_size + payload_size != len(data):
        raise FrameError(f"has {len(data):,} bytes, its header says {HEADER.size + text_size + payload_size:,}")
    view = memoryview(data)
    start = HEADER.size + text_size
    try:
        message = _DECODER.decode(view[HEADER.size : start])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"holds no message: {first_line(error)}") from error
    frame = Frame(epoch, number, message, view[start:])
    _check_payload(frame)
    return frame


def array_of(frame: Frame) -> Array:
    """The tensor of a decoded frame: a view of the frame's bytes, read-only. FrameError if it is none."""
    message = frame.message
    if not isinstance(message, Tensor):
        raise FrameError("carries no tensor")
    if message.dtype == "bool" and frame.payload and np.frombuffer(frame.payload, np.uint8).max() > 1:
        raise FrameError("carries a tensor of bool with other bytes than 0 and 1")
    return np.frombuffer(frame.payload, np.dtype(message.dtype)).reshape(message.shape)


def encode_marks(marks: Sequence[Mark]) -> bytes:
    """The payload of a `Done`."""
    return _ENCODER.encode(marks)


def marks_of(frame: Frame) -> tuple[Mark, ...]:
    """What a decoded `Done` tells of when things were done; nothing if it was not asked to. FrameError if it is no
    such frame."""
    if not isinstance(frame.message, Done):
        raise FrameError("tells nothing of what was done")
    try:
        return _MARKS.decode(frame.payload) if frame.payload else ()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"does not tell when what was done: {first_line(error)}") from error


_ENCODER = msgspec.json.Encoder()
_MARKS = msgspec.json.Decoder(tuple[Mark, ...])
_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def _check_payload(frame: Frame) -> None:
    message, size = frame.message, len(frame.payload)
    if size and not message.has_payload:
        raise FrameError(f"carries {size:,} bytes, and a {type(message).__name__.lower()} has none")
    if not isinstance(message, Tensor):
        return
    if message.dtype not in DTYPES:
        raise FrameError(f"carries a tensor of {message.dtype[:40]!r}, which is none of {', '.join(DTYPES)}")
    expected = math.prod(message.shape) * DTYPES[message.dtype]
    if expected != size:
        raise FrameError(f"{message.dtype} {message.shape} takes {expected:,} bytes, it carries {size:,}")
