"""What devices tell each other. Each message is checked against these types when it is decoded."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

import msgspec
from msgspec import Meta

DTYPES = {
    name: size
    for size, names in {
        1: ("bool", "int8", "uint8"),
        2: ("float16", "int16", "uint16"),
        4: ("float32", "int32", "uint32"),
        8: ("float64", "int64", "uint64"),
    }.items()
    for name in names
}
"""Number formats of tensors on the wire -> bytes of an element."""
MOST_AXES = 8
MOST_TTL_MS = 3_600_000

Digest = Annotated[str, Meta(min_length=64, max_length=64)]
"""A SHA-256; who makes a file's name of it looks at its letters."""
Name = Annotated[str, Meta(min_length=1, max_length=4096)]
Reason = Annotated[str, Meta(max_length=2000)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Size = Annotated[int, Meta(ge=0, le=2**40)]
ClientId = Annotated[str, Meta(pattern="^[0-9a-f]{1,32}$")]


class Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One try of one request of one client. A tensor of another try is never mixed with it."""

    client: ClientId
    request: Count
    number: Annotated[int, Meta(ge=1, le=1000)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag=str.lower):
    has_payload: ClassVar[bool] = False


class Beat(_Message, frozen=True):
    """Twice a second to every peer: I am here, and this is what I got from you. Not numbered."""

    ack_epoch: Count = 0
    ack: Count = 0
    """The frames of the peer's epoch that arrived without a gap."""
    unheard: tuple[Name, ...] = ()
    """The devices that a worker exchanges tensors with, and does not hear."""


class Tensor(_Message, frozen=True):
    """A tensor for a step of a request; its elements are the frame's payload, in C order, little-endian."""

    has_payload: ClassVar[bool] = True
    bundle: Digest
    attempt: Attempt
    plan: Name
    """Which of the bundle's flows it belongs to: the split one, or the whole model on one device."""
    stage: Count
    name: Name
    dtype: Name
    shape: Annotated[tuple[Size, ...], Meta(max_length=MOST_AXES)]
    ttl_ms: Annotated[int, Meta(ge=1, le=MOST_TTL_MS)]
    """How long the receiver keeps the request."""
    traced: bool = False
    """Whether the client asks when what was done for the request."""


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device did for a request, and when by its own clock."""

    kind: Literal["computed", "sent", "came"]
    stage: Count
    start_us: Count
    end_us: Count
    """The same for what is sent or came: the moment."""
    tensor: Annotated[str, Meta(max_length=4096)] = ""
    peer: Annotated[str, Meta(max_length=4096)] = ""
    """The device that it was sent to, or came from."""


class Done(_Message, frozen=True):
    """A device's part of a request is computed: what it cost, and in the payload when what was done, if that was
    asked for."""

    has_payload: ClassVar[bool] = True
    attempt: Attempt
    compute_us: Count
    sent_bytes: Count


class Refusal(_Message, frozen=True):
    """Something was not done, and why."""

    reason: Reason
    attempt: Attempt | None = None
    bundle: str = ""


class Open(_Message, frozen=True):
    """A client asks a worker to serve a bundle."""

    bundle: Digest
    whole: bool
    """The whole model, too, not only the worker's part of the split one."""


class Opened(_Message, frozen=True):
    """A worker serves a bundle."""

    bundle: Digest
    unheard: tuple[Name, ...] = ()
    """As in `Beat`; for until the next one comes."""


class Offer(_Message, frozen=True):
    """A client has a bundle for a worker; its manifest is the payload."""

    has_payload: ClassVar[bool] = True
    bundle: Digest
    whole: bool


class Lacks(_Message, frozen=True):
    """The files of a bundle that a worker needs and has not, with how many bytes of each are there already."""

    bundle: Digest
    files: dict[Name, Size]


class Chunk(_Message, frozen=True):
    """Bytes of a file, from `offset` on."""

    has_payload: ClassVar[bool] = True
    bundle: Digest
    file: Name
    offset: Size
    total: Size
    """Of the file."""
    sha256: Digest
    """Of the payload."""


class Stored(_Message, frozen=True):
    bundle: Digest
    file: Name
    size: Size
    """Bytes of the file that are there now."""


Message: TypeAlias = Beat | Tensor | Done | Refusal | Open | Opened | Offer | Lacks | Chunk | Stored
