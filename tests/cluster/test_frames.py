"""Frames: what goes in comes out, and whatever else comes is refused without harm."""

from __future__ import annotations

import contextlib
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeprune.cluster.transport.frames import (
    HEADER,
    MAGIC,
    MOST_PAYLOAD,
    VERSION,
    FrameError,
    array_of,
    decode,
    encode,
    encode_marks,
    marks_of,
)
from edgeprune.cluster.transport.messages import DTYPES, Attempt, Beat, Chunk, Done, Mark, Message, Refusal, Tensor

DIGEST = "0" * 64
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = st.text(min_size=1, max_size=20)
ATTEMPTS = st.builds(Attempt, st.from_regex(r"\A[0-9a-f]{1,32}\Z"), st.integers(0, 2**62), st.integers(1, 1000))


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Tensor, np.ndarray]:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    data = draw(st.binary(min_size=math.prod(shape) * DTYPES[dtype], max_size=math.prod(shape) * DTYPES[dtype]))
    array = np.frombuffer(data, np.uint8 if dtype == "bool" else dtype).reshape(shape)
    array = np.asarray(array % 2, bool) if dtype == "bool" else array
    ttl = draw(st.integers(1, 3_600_000))
    return Tensor(DIGEST, draw(ATTEMPTS), draw(NAMES), draw(st.integers(0, 99)), draw(NAMES), dtype, shape, ttl), array


@given(tensors(), st.integers(0, 2**63), st.integers(0, 2**63))
@QUIET
def test_a_tensor_comes_out_as_it_went_in(given_tensor: tuple[Tensor, np.ndarray], epoch: int, number: int) -> None:
    message, array = given_tensor
    frame = decode(encode(epoch, number, message, array))
    assert (frame.epoch, frame.number, frame.message) == (epoch, number, message)
    back = array_of(frame)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize(
    "message",
    [Beat(1, 2, ("pi",)), Refusal("no", Attempt("ab", 1, 1), DIGEST), Refusal("no")],
)
def test_other_messages_come_out_as_they_went_in(message: Message) -> None:
    assert decode(encode(1, 2, message)).message == message


def test_when_what_was_done_comes_out_as_it_went_in() -> None:
    marks = (Mark("computed", 3, 10**12, 10**12 + 5), Mark("sent", 4, 7, 7, "x", "pi"))
    done = Done(Attempt("ab", 1, 1), 5, 100)
    assert marks_of(decode(encode(1, 2, done, encode_marks(marks)))) == marks
    assert marks_of(decode(encode(1, 2, done))) == ()
    with pytest.raises(FrameError, match="does not tell when"):
        marks_of(decode(encode(1, 2, done, b'[["slept",3,1,2]]')))


def test_bytes_of_a_file_come_out_as_they_went_in() -> None:
    message = Chunk(DIGEST, "one/stage.onnx", 5, 9, DIGEST)
    assert bytes(decode(encode(1, 2, message, b"data")).payload) == b"data"


def valid() -> bytes:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    return encode(7, 1, Tensor(DIGEST, Attempt("ab", 1, 1), "split", 0, "x", "float32", array.shape, 1000), array)


@given(st.data())
@QUIET
def test_mutated_frames_are_refused_and_nothing_else(data: st.DataObject) -> None:
    """Bytes changed, cut out, put in: a frame, or a FrameError."""
    frame = bytearray(valid())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(frame)))
        kind = data.draw(st.sampled_from(["change", "cut", "insert"]))
        if kind == "change" and place < len(frame):
            frame[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del frame[place : place + data.draw(st.integers(1, 40))]
        else:
            frame[place:place] = data.draw(st.binary(max_size=20))
    with contextlib.suppress(FrameError):
        array_of(decode(bytes(frame)))


@given(st.binary(max_size=400))
@QUIET
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode(data)
    with pytest.raises(FrameError):
        decode(HEADER.pack(MAGIC, VERSION, len(data), 0, 1, 1) + data)


def with_json(text: bytes, payload: bytes = b"") -> bytes:
    return HEADER.pack(MAGIC, VERSION, len(text), len(payload), 1, 1) + text + payload


TENSOR = (
    b'{"kind":"tensor","bundle":"%s","attempt":["ab",1,1],"plan":"split","stage":0,"name":"x","dtype":"%%s",'
    b'"shape":%%s,"ttl_ms":1000}' % DIGEST.encode()
)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no frame"),
        (b"x" * 100, "does not begin as a frame does"),
        (HEADER.pack(MAGIC, 9, 0, 0, 0, 0), f"has format 9, this edgeprune speaks {VERSION}"),
        (HEADER.pack(MAGIC, VERSION, 0, MOST_PAYLOAD + 1, 0, 0), "at most"),
        (HEADER.pack(MAGIC, VERSION, 0, 2**40, 0, 0), "at most"),
        (valid()[:-1], "its header says"),
        (valid() + b"x", "its header says"),
        (with_json(b"{"), "holds no message"),
        (with_json(b"[" * 5000), "holds no message"),
        (with_json(b'{"kind":"strange"}'), "holds no message"),
        (with_json(b'{"kind":"beat","more":1}'), "holds no message"),
        (with_json(b'{"kind":"beat"}', b"payload"), "a beat has none"),
        (with_json(TENSOR % (b"object", b"[1]"), b"12345678"), "none of"),
        (with_json(TENSOR % (b"float32", b"[2]"), b"1234"), "takes 8 bytes, it carries 4"),
        (with_json(TENSOR % (b"float32", b"[1099511627776,1099511627776]"), b"1234"), "it carries 4"),
        (with_json(TENSOR % (b"float32", b"[-1]"), b"1234"), "holds no message"),
        (with_json(TENSOR % (b"float32", b"[1,1,1,1,1,1,1,1,1]"), b"1234"), "holds no message"),
        (with_json(TENSOR % (b"bool", b"[2]"), b"\x00\x02"), "0 and 1"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        array_of(decode(data))


def test_a_frame_that_claims_much_takes_no_memory() -> None:
    claims = [
        with_json(TENSOR % (b"float32", b"[1099511627776,1099511627776]"), b"1234"),
        HEADER.pack(MAGIC, VERSION, 65535, MOST_PAYLOAD, 0, 0),
    ]
    tracemalloc.start()
    for claim in claims:
        with pytest.raises(FrameError):
            decode(claim)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_frame_that_a_receiver_would_refuse_is_not_made() -> None:
    huge = np.broadcast_to(np.float32(0), (MOST_PAYLOAD // 4 + 1,))
    with pytest.raises(FrameError, match="a frame takes"):
        encode(1, 1, Refusal(""), huge)
    with pytest.raises(FrameError, match="a frame takes"):
        encode(1, 1, Refusal("x" * 70_000))
