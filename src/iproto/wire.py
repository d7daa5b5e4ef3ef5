# What stands between marks is made by tools/generate.py from schema/iproto.toml.
"""The vocabulary of the protocol: functions, return codes, states, frames.

Imports nothing of the package, so that every other module, the extension
included, can share these names.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = [
    "CloseReason",
    "CompletionStatus",
    "Dialect",
    "FuncID",
    "Header",
    "Request",
    "Response",
    "ReturnCode",
    "State",
]

# generated: sizes
HEADER_BYTES = 12
"""Three little-endian uint32: func_id, body_length, request_id."""

SLOT_COUNT = 1000
"""Slots of the storage; their indexes are 0..999."""

SLOT_BYTES = 256
"""The longest string that a slot holds, in bytes (not characters)."""

RESERVED_FUNC_IDS = range(0x0000FF00, 0x00010000)
"""Kept for built-in functions; no user function may have one of these."""

DESCRIBE_FUNCTIONS = 0x0000FF02
"""Answers what user functions there are, where the server lets it."""
# end of sizes


class FuncID(enum.IntEnum):
    """The built-in functions; every id outside :data:`RESERVED_FUNC_IDS` is free for users."""

    # generated: functions
    ADM_STORAGE_SWITCH_READONLY = 0x00010001
    """State becomes ``READ_ONLY``. Request: nil; response: nil."""
    ADM_STORAGE_SWITCH_READWRITE = 0x00010002
    """State becomes ``READ_WRITE``. Request: nil; response: nil."""
    ADM_STORAGE_SWITCH_MAINTENANCE = 0x00010003
    """State becomes ``MAINTENANCE``. Request: nil; response: nil."""
    STORAGE_REPLACE = 0x00020001
    """Writes a slot. Request: int, str; response: nil."""
    STORAGE_READ = 0x00020002
    """Reads a slot. Request: int; response: str."""
    PING = 0x0000FF00
    """Sends the header back. Request: empty; response: none."""
    SHUTDOWN = 0x0000FF01
    """Answers all earlier requests of this connection, sends the header back, closes this
    connection. Request: empty; response: none."""
    # end of functions


class CompletionStatus(enum.IntEnum):
    """The low byte of a return code."""

    # generated: statuses
    DONE = 0
    """The function did what was asked."""
    TRY_AGAIN = 1
    """The same request may succeed later."""
    ERROR = 2
    """The same request fails again."""
    # end of statuses


class ReturnCode(enum.IntEnum):
    """What a response says of its request.

    The low byte is the :class:`CompletionStatus`, the upper bytes number the
    error: the convention of the box protocol, with octopus's numbers.
    """

    # generated: return codes
    OK = 0x0000
    """The function did what was asked."""
    INTERNAL = 0x0002
    """A user function failed; details are in the server's log."""
    ILLEGAL_PARAMS = 0x0202
    """The body is not what the function takes, a string is over 256 bytes, a body is over the
    limit."""
    READ_ONLY = 0x0401
    """A write while the storage is ``READ_ONLY``."""
    LOCKED = 0x0601
    """A read or a write while the storage is in ``MAINTENANCE``."""
    OVERLOADED = 0x0701
    """A limit of the server is reached."""
    UNSUPPORTED_COMMAND = 0x0A02
    """There is no such function."""
    NUMBER_OUT_OF_RANGE = 0x1F02
    """A slot index outside 0..999."""
    TIMEOUT = 0x4301
    """A user function ran out of its time."""
    RATE_LIMITED = 0x5002
    """Over a rate; user functions send it, too."""
    NOT_PERMITTED = 0x0102
    """This client, or this listener, may not call that function."""
    UNAVAILABLE = 0x4201
    """What stores the data has no quorum, nothing was executed; only user functions send it."""
    OUTCOME_UNKNOWN = 0x4402
    """What stores the data did not answer in time, the write may have been executed; only user
    functions send it."""
    # end of return codes


# generated: refusals
REFUSALS = frozenset(
    {
        ReturnCode.NOT_PERMITTED,
        ReturnCode.ILLEGAL_PARAMS,
        ReturnCode.READ_ONLY,
        ReturnCode.LOCKED,
        ReturnCode.OVERLOADED,
        ReturnCode.UNSUPPORTED_COMMAND,
        ReturnCode.NUMBER_OUT_OF_RANGE,
        ReturnCode.UNAVAILABLE,
        ReturnCode.RATE_LIMITED,
    }
)
"""Return codes that say that the request was not executed."""
# end of refusals


class State(enum.IntEnum):
    """What the storage allows; the switches themselves work in every state."""

    # generated: states
    READ_WRITE = 0
    READ_ONLY = 1
    MAINTENANCE = 2
    # end of states


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

    # generated: close reasons
    CLIENT = 0
    """The client closed it, and got every reply before if it closed only its sending side."""
    RESET = 1
    """It broke: the client or the network reset it."""
    IDLE = 2
    """There was no traffic for the idle time-out."""
    INCOMPLETE_FRAME = 3
    """A frame was begun and not completed within the idle time-out."""
    SLOW_READER = 4
    """Replies waited, and the client took none of them for the idle time-out, or more than
    ``--max-unsent`` waited."""
    BODY_TOO_LARGE = 5
    """A length was over the limit, or what came was not iproto."""
    SHUTDOWN = 6
    """The client sent ``SHUTDOWN``."""
    DRAIN = 7
    """The server stopped, and had answered everything."""
    FORCED = 8
    """The server stopped, and did not wait for it."""
    KILLED = 9
    """Its worker process died."""
    FAILED = 10
    """An error came up within the server, out of memory most likely; the log says which."""
    REFUSED = 11
    """Few file descriptors were left, and it was closed at once."""
    BALANCED = 12
    """Its worker had more connections than the others, and its client was asked to come back."""
    AGED = 13
    """It was open for ``--max-connection-age``."""
    TLS_FAILED = 14
    """Its TLS handshake failed, or a record of it was wrong; the log says why."""
    TLS_TIMEOUT = 15
    """Its TLS handshake took longer than ``--tls-handshake-timeout``."""
    TLS_BUSY = 16
    """``--max-tls-handshakes`` were under way already."""
    DENIED = 17
    """Its address may not connect: ``--allow`` and ``--deny``."""
    BAD_GOB = 18
    """What came was not what clients of net/rpc send, or over a limit on it; the log says which."""
    TOO_MANY = 19
    """The most were open, of all clients or of its own, or its client connects too often; it was
    not taken in."""
    EVICTED = 20
    """All places were taken, most of them by its client, and it had been without a request for
    longest."""
    # end of close reasons


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
