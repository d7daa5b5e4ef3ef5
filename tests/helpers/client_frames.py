"""Requests and their replies, for tests of the codec's client side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import pytest
from hypothesis import settings

from iproto import _fastframe as ff
from iproto.errors import (
    Error,
    InternalError,
    LockedError,
    ProtocolError,
    ReadOnlyError,
)
from iproto.wire import FuncID, ReturnCode
from tests.helpers.oracle import packed_str, response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_BODY = 1 << 20

READ = FuncID.STORAGE_READ
REPLACE = FuncID.STORAGE_REPLACE
PING = FuncID.PING
USER = 0x00030001

NIL = b"\xc0"

NEVER = math.inf

codec = settings(derandomize=True, deadline=None, database=None, max_examples=200)

dialects = pytest.mark.parametrize("mailru", [False, True], ids=["vk", "mailru"])


def client(*, mailru: bool | None = False, max_body: int = MAX_BODY) -> ff.ClientFrames:
    """The client's side of a connection."""
    frames = ff.ClientFrames(mailru=mailru, max_body=max_body)
    frames._set_ids(1)
    return frames


class Index:
    """An index whose conversion to an int does something first."""

    def __init__(self, does: Callable[[], object]) -> None:
        self._does = does

    def __index__(self) -> int:
        self._does()
        return 1


def failed(frames: ff.ClientFrames) -> list[tuple[Any, bool]]:
    """Who hears of the end, and whether the request may have been executed."""
    return [(waiter, may_have_executed) for waiter, may_have_executed, _ in frames.fail_all()]


def broken_text(frames: ff.ClientFrames) -> str:
    """What the callers are told of a stream that is lost."""
    assert frames.broken is not None
    return str(frames.broken)


class Sent(NamedTuple):
    """A kind of request, and its reply with the outcome."""

    func_id: int
    outcome: int
    code: int
    body: bytes
    error: type[Error] | None
    result: Any


EXCHANGES = [
    Sent(READ, ff.AS_TEXT, 0, packed_str(b"abc"), None, "abc"),
    Sent(READ, ff.AS_TEXT, 0, packed_str(b""), None, ""),
    Sent(READ, ff.AS_BYTES, 0, packed_str(b"\xff\xfe" * 20), None, b"\xff\xfe" * 20),
    Sent(READ, ff.AS_BYTES, 0, packed_str(b"z" * 256), None, b"z" * 256),
    Sent(READ, ff.AS_BODY, 0, b"\xa1x", None, b"\xa1x"),
    Sent(REPLACE, ff.AS_NOTHING, 0, NIL, None, None),
    Sent(FuncID.ADM_STORAGE_SWITCH_READONLY, ff.AS_NOTHING, 0, NIL, None, None),
    Sent(READ, ff.AS_TEXT, ReturnCode.LOCKED, packed_str(b"closed"), LockedError, None),
    Sent(REPLACE, ff.AS_NOTHING, ReturnCode.READ_ONLY, packed_str(b"r" * 99), ReadOnlyError, None),
    Sent(USER, ff.AS_BODY, 0, b"\x93\x01\x02\x03", None, b"\x93\x01\x02\x03"),
    Sent(USER, ff.AS_BODY, 0, b"", None, b""),
    Sent(USER, ff.AS_BODY, ReturnCode.INTERNAL, packed_str(b"failed"), InternalError, None),
]


def ask(frames: ff.ClientFrames, sent: Sent, waiter: object) -> int:
    return frames.request(sent.func_id, b"", sent.outcome, waiter, NEVER)


def answer(sent: Sent, request_id: int, *, mailru: bool) -> bytes:
    return response(sent.func_id, request_id, sent.code, sent.body, mailru=mailru)


def check_outcome(sent: Sent, error: BaseException | None, result: Any) -> None:
    if sent.error is None:
        assert error is None
    else:
        assert type(error) is sent.error
        assert isinstance(error, Error)
        assert error.code == sent.code
        assert error.text.encode() == msgpack.unpackb(sent.body).encode()
        assert error.item is None
    assert result == sent.result
    assert type(result) is type(sent.result)


BAD_INDEXES: list[Any] = [2**63, -(2**63) - 1, 2**64, "1", 1.5, 1.0, None, b"1"]
BAD_CONTENTS: list[Any] = [None, 5, bytearray(b"x"), memoryview(b"x"), ["x"], "\ud800"]


# --- Which dialect --------------------------------------------------------------------------------

STORAGE_REPLIES = [
    Sent(REPLACE, ff.AS_NOTHING, 0, NIL, None, None),
    *(
        Sent(READ, ff.AS_BYTES, 0, packed_str(b"s" * size), None, b"s" * size)
        for size in (0, 1, 2, 3, 4, 5, 31, 32, 255, 256, 65535, 65536)
    ),
    *(
        Sent(READ, ff.AS_TEXT, ReturnCode.LOCKED, packed_str(b"e" * size), LockedError, None)
        for size in (1, 2, 3, 4, 40, 300)
    ),
    Sent(REPLACE, ff.AS_NOTHING, ReturnCode.READ_ONLY, packed_str(b"frozen"), ReadOnlyError, None),
]


def cuts_of(data: bytes) -> Sequence[int]:
    """Every place to cut these bytes; for long ones, those of the heads and of the end."""
    return range(len(data)) if len(data) < 400 else [*range(40), *range(len(data) - 20, len(data))]


def short(sent: Sent) -> str:
    return f"{sent.func_id:#x} code={sent.code:#x} body={len(sent.body)}"


# --- A peer that breaks the protocol --------------------------------------------------------------


def check_broken(frames: ff.ClientFrames, text: str) -> None:
    """The stream is lost, for this reason, and nothing more is taken from it."""
    assert isinstance(frames.broken, ProtocolError)
    assert text in broken_text(frames)
    assert frames.feed(response(READ, 1, 0, b"\xa1x", mailru=False)) == []
