"""The vocabulary of the protocol: functions, return codes, states, frames.

Imports nothing of the package, so that every other module, the extension
included, can share these names.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

HEADER_BYTES = 12
"""Three little-endian uint32: func_id, body_length, request_id."""

SLOT_COUNT = 1000
"""Slots of the storage; their indexes are 0..999."""

SLOT_BYTES = 256
"""The longest string that a slot holds, in bytes (not characters)."""


class FuncID(enum.IntEnum):
    """The built-in functions; every other func_id is free for users' own."""

    ADM_STORAGE_SWITCH_READONLY = 0x00010001
    ADM_STORAGE_SWITCH_READWRITE = 0x00010002
    ADM_STORAGE_SWITCH_MAINTENANCE = 0x00010003
    STORAGE_REPLACE = 0x00020001
    STORAGE_READ = 0x00020002
    PING = 0x0000FF00
    SHUTDOWN = 0x0000FF01


class ReturnCode(enum.IntEnum):
    """What a response says of its request.

    The low byte is the completion status (0 done, 1 try again, 2 error), the
    upper bytes number the error: the convention of the box protocol, with
    octopus's numbers.
    """

    OK = 0x0000
    INTERNAL = 0x0002
    ILLEGAL_PARAMS = 0x0202
    READ_ONLY = 0x0401
    LOCKED = 0x0601
    OVERLOADED = 0x0701
    UNSUPPORTED_COMMAND = 0x0A02
    NUMBER_OUT_OF_RANGE = 0x1F02
    TIMEOUT = 0x4301
    RATE_LIMITED = 0x5002


class State(enum.IntEnum):
    """What the storage allows; the switches themselves work in every state."""

    READ_WRITE = 0
    READ_ONLY = 1
    MAINTENANCE = 2


class Dialect(str, enum.Enum):
    """What body_length of a response counts.

    ``VK``: the body alone. ``MAILRU``: return_code and body, all that follows
    the header. ``AUTO`` is for clients only: one read finds out which.
    """

    VK = "vk"
    MAILRU = "mailru"
    AUTO = "auto"


class CloseReason(enum.IntEnum):
    """Why the server's side of a connection ended; the label set of a metric."""

    CLIENT = 0
    """The client closed, or its half-close was served to the end."""
    RESET = 1
    """The connection broke: reset by the client or by the network."""
    IDLE = 2
    """No traffic for the idle time-out."""
    INCOMPLETE_FRAME = 3
    """A frame was begun and not completed within the idle time-out."""
    SLOW_READER = 4
    """Replies waited, and the client took none of them for the idle time-out."""
    BODY_TOO_LARGE = 5
    """A body_length over the limit: the stream cannot be trusted any more."""
    SHUTDOWN = 6
    """The client sent SHUTDOWN."""
    DRAIN = 7
    """The server drained: everything received was answered, then it closed."""
    FORCED = 8
    """The drain took too long, or the server was told to stop at once."""
    KILLED = 9
    """Its worker process died."""


class Header(NamedTuple):
    """The 12 bytes before every body.

    Args:
        func_id: the function, 0..2**32-1.
        body_length: bytes that follow; see :class:`Dialect` for responses.
        request_id: the client's number for the call, returned unchanged.
    """

    func_id: int
    body_length: int
    request_id: int


class Request(NamedTuple):
    """A request as it is on the wire: header, then MsgPack body."""

    header: Header
    body: bytes


class Response(NamedTuple):
    """A response as it is on the wire.

    ``return_code`` is 0 and ``body`` empty for PING and SHUTDOWN, whose
    responses are a header alone.
    """

    header: Header
    return_code: int
    body: bytes
