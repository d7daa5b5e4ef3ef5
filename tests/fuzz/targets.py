"""What is fuzzed: one function a surface that strangers' bytes reach.

Each takes any bytes, drives the extension with them, and raises AssertionError where it and a
plain second implementation (or the same implementation, fed otherwise) disagree. What the
extension does to memory meanwhile is the sanitizers' to see.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import math
import struct
from typing import TYPE_CHECKING, Any, get_type_hints

import msgpack
import msgspec

from iproto import _fastframe as ff
from iproto.app import App
from iproto.errors import Error, IllegalParamsError, IprotoError
from iproto.server.calls import callee_of
from iproto.server.config import Config
from iproto.server.repeats import Repeats
from iproto.wire import HEADER_BYTES, SLOT_BYTES, SLOT_COUNT, FuncID, State
from tests.helpers import gob
from tests.helpers.callees import answer, callee, take_calls
from tests.helpers.net_rpc import CallReply, OracleNetRpc, ReplyReader
from tests.helpers.oracle import (
    HEADER,
    OracleServer,
    parse_responses,
    request,
    response,
    split_responses,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BODY = 600
USER = 0x00030001


def server_frames(data: bytes) -> None:
    """A stream of requests; the first byte says the dialect and how long its chunks are."""
    if not data:
        return
    mailru = bool(data[0] & 1)
    size = 1 + (data[0] >> 1)
    frames = ff.ServerFrames(
        ff.Storage(),
        mailru=mailru,
        max_body=MAX_BODY,
        max_calls=1 << 16,
        functions={USER: callee(USER, fail=lambda _refusal: (0, b"\xc0"))},
        max_queue=1 << 30,
    )
    oracle = OracleServer(max_body=MAX_BODY, functions={USER})
    stream = data[1:]
    replies = b""
    for at in range(0, len(stream), size):
        replies += frames.feed(stream[at : at + size]) or b""
        while frames.status & ff.HAS_MORE:
            replies += frames.feed(b"") or b""
    taken = take_calls(frames)
    for call in taken:
        answer(frames, call)
    answered = frames.take()
    frames.finish()
    expected = oracle.feed(stream)
    # Those whose bodies are no MsgPack were answered, and never started.
    calls = iter([call[:2] for call in oracle.calls])
    assert all(call[:2] in calls for call in taken)
    assert parse_responses(replies + frames.take(), mailru=mailru) == expected
    assert sorted(split_responses(answered, mailru=mailru)[0]) == sorted(
        response(func_id, request_id, 0, b"\xc0", mailru=mailru)
        for func_id, request_id, _ in oracle.calls
    )


def net_rpc(data: bytes) -> None:
    """A stream of gob; of the first byte, a bit puts definitions first, the rest sizes chunks."""
    if not data:
        return
    size = 1 + (data[0] >> 1)
    stream = (gob.DEFINITIONS if data[0] & 1 else b"") + data[1:]
    frames = ff.ServerFrames(
        ff.Storage(),
        mailru=False,
        max_body=MAX_BODY,
        max_calls=1 << 16,
        functions={USER: callee(USER, fail=lambda _refusal: (0, b"\xc0"))},
        max_queue=1 << 30,
        net_rpc=True,
    )
    oracle = OracleNetRpc(max_body=MAX_BODY, functions={USER})
    replies = b""
    for at in range(0, len(stream), size):
        replies += frames.feed(stream[at : at + size]) or b""
        while frames.status & ff.HAS_MORE:
            replies += frames.feed(b"") or b""
    for call in take_calls(frames):
        answer(frames, call)
    reader = ReplyReader()
    assert reader.read(replies) == oracle.feed(stream)
    assert sorted(reader.read(frames.take())) == sorted(
        CallReply(seq, False, func_id, request_id, False, b"\xc0")
        for seq, func_id, request_id, _ in oracle.calls
    )
    assert (frames.close_reason.name if frames.close_reason is not None else "") == oracle.closed


def client_frames(data: bytes) -> None:
    """Replies to requests of every kind; whole or byte by byte, the outcomes are the same."""
    if len(data) < 2:
        return
    mailru = (False, True, None)[data[0] % 3]
    whole, pieces = (_asked(mailru) for _ in range(2))
    stream = _with_request_ids(data[1:], whole[1])
    outcomes = whole[0].feed(stream)
    ids = _with_request_ids(data[1:], pieces[1])
    outcomes_of_pieces = [
        outcome for at in range(len(ids)) for outcome in pieces[0].feed(ids[at : at + 1])
    ]
    assert _described(outcomes) == _described(outcomes_of_pieces)
    assert type(whole[0].broken) is type(pieces[0].broken)
    waiters = [waiter for waiter, _, _ in outcomes]
    assert len(set(waiters)) == len(waiters)
    left = {waiter for waiter, *_ in whole[0].fail_all()}
    assert left.isdisjoint(waiters)
    assert len(left) + len(waiters) == whole[2]


def _asked(mailru: bool | None) -> tuple[ff.ClientFrames, int, int]:
    """A client with requests on their way, the first one's id, and how many wait for them."""
    frames = ff.ClientFrames(mailru=mailru, max_body=MAX_BODY)
    first = frames.read(0, ff.AS_TEXT, "text", math.inf)
    frames.read(1, ff.AS_BYTES, "bytes", math.inf)
    frames.replace(2, "content", "replace", math.inf)
    frames.request(FuncID.PING, b"", ff.AS_NOTHING, "ping", math.inf)
    frames.request(USER, b"\xc0", ff.AS_BODY, "body", math.inf)
    frames.request(USER, b"\xc0", ff.AS_RESPONSE, "response", math.inf)
    frames.read_many([3, 4, 5], ff.AS_TEXT, "many", math.inf)
    frames.replace_many([(6, "a"), (7, b"b")], "writes", math.inf)
    frames.take()
    return frames, first, 8


def _with_request_ids(stream: bytes, first: int) -> bytes:
    """The stream, with ids of its frames counted from a client's first one where they are small."""
    frames = bytearray(stream)
    at = 0
    while len(frames) - at >= HEADER_BYTES:
        func_id, length, request_id = HEADER.unpack_from(frames, at)
        if request_id < 64:
            HEADER.pack_into(frames, at, func_id, length, (first + request_id) % 2**32)
        at += HEADER_BYTES + (length + 4 if length else 0)
    return bytes(frames)


def _described(outcomes: list[tuple[Any, IprotoError | None, Any]]) -> list[tuple[Any, ...]]:
    """Outcomes as values that compare: an error by its type and code; ids of responses left out."""
    described = []
    for waiter, error, result in outcomes:
        shown = result
        if isinstance(result, tuple):
            header, code, body = result
            shown = header.func_id, header.body_length, code, body
        error_code = error.code if isinstance(error, Error) else None
        described.append((waiter, type(error), error_code, shown))
    return sorted(described, key=repr)


_PATCH = struct.Struct("<IBB")


def store_image(data: bytes) -> None:
    """A storage file's bytes with some changed: refused, or served within its bounds."""
    image = _image()
    memory = _aligned(len(image))
    memory[:] = image
    for at in range(0, len(data) - _PATCH.size + 1, _PATCH.size):
        place, value, kind = _PATCH.unpack_from(data, at)
        place %= len(image)
        memory[place] = value if kind & 1 else memory[place] ^ (1 << (value & 7))
    for action in (ff.Storage.check, ff.Storage.repair, ff.Storage.check, _attach_and_use):
        with contextlib.suppress(ValueError, Error):
            action(memory)


@functools.cache
def _image() -> bytes:
    """A storage with both copies of many slots in use, as a file has it."""
    memory = _aligned(ff.Storage.size_for(1))
    storage = ff.Storage(memory, workers=1, checked=True)
    for index in range(0, SLOT_COUNT, 7):
        for letter in (b"x", b"y"):
            storage.replace(index, letter * (index % (SLOT_BYTES + 1)))
    return bytes(memory)


def _attach_and_use(memory: memoryview) -> None:
    storage = ff.Storage(memory, workers=1)
    frames = ff.ServerFrames(storage, mailru=False, max_body=MAX_BODY, max_calls=1, functions={})
    stream = _uses()
    replies = frames.feed(stream) or b""
    while frames.status & ff.HAS_MORE:
        replies += frames.feed(b"") or b""
    frames_of_replies, left = split_responses(replies, mailru=False)
    assert left == b""
    assert len(frames_of_replies) == SLOT_COUNT + 3
    assert storage.state in State
    assert storage.read(7) == b"abc"


@functools.cache
def _uses() -> bytes:
    """A read of every slot, then writes and a switch."""
    return b"".join(
        request(func_id, body, 1)
        for func_id, body in (
            *((FuncID.STORAGE_READ, b"\xcd" + struct.pack(">H", i)) for i in range(SLOT_COUNT)),
            (FuncID.STORAGE_REPLACE, b"\x07\xa3abc"),
            (FuncID.ADM_STORAGE_SWITCH_READWRITE, b"\xc0"),
            (FuncID.STORAGE_REPLACE, b"\x07\xa3abc"),
        )
    )


def _aligned(size: int) -> memoryview:
    """Zeros at an address that a store takes; nothing readable is right behind them."""
    raw = (ctypes.c_char * (size + 127))()
    skip = -ctypes.addressof(raw) % 128
    return memoryview(raw).cast("B")[skip : skip + size]


def call_bodies(data: bytes) -> None:
    """A body of a user function: the first byte chooses the function, the rest is the body.

    Native check and typed decoder accept what a plain reading with msgpack and a conversion
    accept, with the same values. Extension types, and maps with a key twice or one that is no
    str, are where the two libraries differ by design: such a body must only do no harm.
    """
    if not data:
        return
    call, types, reader = _functions()[data[0] % len(_functions())]
    body = data[1:]
    try:
        found: Any = reader.arguments(body)
    except IllegalParamsError:
        found = None
    try:
        objects = _plainly_read(body)
    except _NotPlain:
        return
    expected = None if objects is None else _converted(objects, types, call)
    assert repr(found) == repr(expected), f"{call}: {found!r}, by the oracle {expected!r}"


class _NotPlain(Exception):
    """The body holds what the two libraries read differently."""


def _plainly_read(body: bytes) -> list[Any] | None:
    """The objects in a body; None if it is not MsgPack from end to end."""

    def refuse(*_: object) -> Any:
        raise _NotPlain

    def pairs(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
        if len({key for key, _ in items if isinstance(key, str)}) != len(items):
            raise _NotPlain
        return dict(items)

    unpacker = msgpack.Unpacker(ext_hook=refuse, object_pairs_hook=pairs, strict_map_key=False)
    unpacker.feed(body)
    objects = []
    try:
        while unpacker.tell() < len(body):
            objects.append(unpacker.unpack())
    except _NotPlain:
        raise
    except (msgpack.UnpackException, ValueError, TypeError):
        return None
    return objects


def _converted(objects: list[Any], types: tuple[Any, ...], call: str) -> tuple[Any, ...] | None:
    readings = [objects]
    if len(objects) == 1 and isinstance(objects[0], list):
        readings.insert(0, objects[0])
    for reading in readings:
        if len(reading) == len(types):
            with contextlib.suppress(msgspec.ValidationError):
                return tuple(
                    msgspec.convert(value, kind, builtin_types=(bytes,))
                    for value, kind in zip(reading, types, strict=True)
                )
    return None


@functools.cache
def _functions() -> list[tuple[str, tuple[Any, ...], ff.UserFunction]]:
    """Name, types of the arguments, and what reads them, of each function."""
    app = App()

    @app.function(1)
    def number_and_text(number: int, text: str) -> None: ...

    @app.function(2)
    def numbers(numbers: list[int]) -> None: ...

    @app.function(3)
    def mapping(mapping: dict[str, float]) -> None: ...

    @app.function(4)
    def content(content: bytes, flag: bool | None) -> None: ...

    @app.function(5)
    def nested(nested: list[list[str]]) -> None: ...

    return [
        (
            function.name,
            tuple(hint for name, hint in get_type_hints(function.call).items() if name != "return"),
            callee_of(function, ff.FIRST_USER_ROW, Config(), Repeats(logging.getLogger())),
        )
        for function in app.functions.values()
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "server_frames": server_frames,
    "net_rpc": net_rpc,
    "client_frames": client_frames,
    "store_image": store_image,
    "call_bodies": call_bodies,
}
