"""A second implementation of the server's codec and storage, to hold the first against.

Plain Python over ``struct`` and ``msgpack``, written from the protocol's text
and for reading, not for speed. It answers with parsed replies: what an error's
text says is no part of the contract, only that there is one.

Below it, what tests of the wire need: building requests and responses, and
taking a server's bytes apart, strictly.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from iproto.wire import HEADER_BYTES, SLOT_BYTES, SLOT_COUNT, FuncID, ReturnCode, State

if TYPE_CHECKING:
    from collections.abc import Collection

HEADER = struct.Struct("<III")
RETURN_CODE = struct.Struct("<I")


KIND_OF_KEY = {"ID": "int", "S": "str", "Idx": "int", "Str": "str"}


class Reply(NamedTuple):
    """A reply. ``return_code`` is None where the header comes alone.

    ``body``: None for nil, bytes for a str; None too for an error, whose text is free.
    """

    func_id: int
    request_id: int
    return_code: int | None
    body: bytes | None = None


class Refused(Exception):
    """The request gets an error reply, and changes nothing."""

    def __init__(self, code: ReturnCode) -> None:
        super().__init__(code)
        self.code = code


class Body:
    """The objects of a request's body, one after the other.

    The library is lenient where the protocol is not (it gives bin and str alike,
    merges equal keys, ...), so the kind of each object is told by its first byte,
    and containers are opened by hand.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.unpacker = msgpack.Unpacker(raw=True)
        self.unpacker.feed(data)

    def kind(self) -> str:
        if self.at_end():
            return "none"
        head = self.data[self.unpacker.tell()]
        if head <= 0x7F or head >= 0xE0 or 0xCC <= head <= 0xD3:
            return "int"
        if 0xA0 <= head <= 0xBF or 0xD9 <= head <= 0xDB:
            return "str"
        if 0x90 <= head <= 0x9F or head in (0xDC, 0xDD):
            return "array"
        if 0x80 <= head <= 0x8F or head in (0xDE, 0xDF):
            return "map"
        return "other"

    def take(self, kind: str) -> Any:
        """The next object; for a container, how many elements it has."""
        if self.kind() != kind:
            raise Refused(ReturnCode.ILLEGAL_PARAMS)
        try:
            if kind == "array":
                return self.unpacker.read_array_header()
            if kind == "map":
                return self.unpacker.read_map_header()
            return self.unpacker.unpack()
        except (msgpack.OutOfData, ValueError):
            raise Refused(ReturnCode.ILLEGAL_PARAMS) from None

    def at_end(self) -> bool:
        return bool(self.unpacker.tell() == len(self.data))

    def arguments(self, *kinds: str) -> list[Any]:
        """One object of each kind: one after the other, as an array, or as a map."""
        if self.kind() == "map":
            found = self._arguments_of_map(kinds)
        else:
            if self.kind() == "array" and self.take("array") != len(kinds):
                raise Refused(ReturnCode.ILLEGAL_PARAMS)
            found = [self.take(kind) for kind in kinds]
        if not self.at_end():
            raise Refused(ReturnCode.ILLEGAL_PARAMS)
        return found

    def _arguments_of_map(self, kinds: tuple[str, ...]) -> list[Any]:
        if self.take("map") != len(kinds):
            raise Refused(ReturnCode.ILLEGAL_PARAMS)
        found: dict[str, Any] = {}
        for _ in kinds:
            key = self.take("str").decode("latin-1")
            if key in found or key not in KIND_OF_KEY:
                raise Refused(ReturnCode.ILLEGAL_PARAMS)
            found[key] = self.take(KIND_OF_KEY[key])
        for names in (("ID", "S"), ("Idx", "Str")):
            if {*found} == {*names[: len(kinds)]}:
                return [found[name] for name in names[: len(kinds)]]
        raise Refused(ReturnCode.ILLEGAL_PARAMS)


class OracleServer:
    """One storage and one connection to it.

    Args:
        functions: ids of user functions; their frames end up in ``calls``.
    """

    def __init__(self, *, max_body: int = 1 << 20, functions: Collection[int] = ()) -> None:
        self.max_body = max_body
        self.functions = functions
        self.slots = [b""] * SLOT_COUNT
        self.state = State.READ_WRITE
        self.waiting = b""
        self.closed = False
        self.calls: list[tuple[int, int, bytes]] = []

    def feed(self, data: bytes) -> list[Reply]:
        """The replies to all frames that are complete now."""
        replies: list[Reply] = []
        data = self.waiting + data
        at = 0
        while not self.closed and len(data) - at >= HEADER_BYTES:
            func_id, length, request_id = HEADER.unpack_from(data, at)
            body = data[at + HEADER_BYTES : at + HEADER_BYTES + length]
            if length > self.max_body:
                self.closed = True
                replies.append(Reply(func_id, request_id, ReturnCode.ILLEGAL_PARAMS))
            elif len(body) < length:
                break
            elif func_id in self.functions:
                self.calls.append((func_id, request_id, body))
            else:
                replies.append(self.answer(func_id, request_id, body))
            at += HEADER_BYTES + len(body)
        self.waiting = data[at:]
        return replies

    def answer(self, func_id: int, request_id: int, body: bytes) -> Reply:
        try:
            if func_id in (FuncID.PING, FuncID.SHUTDOWN):
                if body:
                    raise Refused(ReturnCode.ILLEGAL_PARAMS)
                self.closed = func_id == FuncID.SHUTDOWN
                return Reply(func_id, request_id, None)
            if func_id == FuncID.STORAGE_READ:
                return Reply(func_id, request_id, ReturnCode.OK, self.read(body))
            if func_id == FuncID.STORAGE_REPLACE:
                self.replace(body)
            else:
                self.switch(func_id, body)
            return Reply(func_id, request_id, ReturnCode.OK, None)
        except Refused as refusal:
            return Reply(func_id, request_id, refusal.code)

    def read(self, body: bytes) -> bytes:
        index: int = Body(body).arguments("int")[0]
        if self.state == State.MAINTENANCE:
            raise Refused(ReturnCode.LOCKED)
        if not 0 <= index < SLOT_COUNT:
            raise Refused(ReturnCode.NUMBER_OUT_OF_RANGE)
        return self.slots[index]

    def replace(self, body: bytes) -> None:
        index, content = Body(body).arguments("int", "str")
        if len(content) > SLOT_BYTES:
            raise Refused(ReturnCode.ILLEGAL_PARAMS)
        if self.state != State.READ_WRITE:
            read_only = self.state == State.READ_ONLY
            raise Refused(ReturnCode.READ_ONLY if read_only else ReturnCode.LOCKED)
        if not 0 <= index < SLOT_COUNT:
            raise Refused(ReturnCode.NUMBER_OUT_OF_RANGE)
        self.slots[index] = content

    def switch(self, func_id: int, body: bytes) -> None:
        wanted = {
            FuncID.ADM_STORAGE_SWITCH_READONLY: State.READ_ONLY,
            FuncID.ADM_STORAGE_SWITCH_READWRITE: State.READ_WRITE,
            FuncID.ADM_STORAGE_SWITCH_MAINTENANCE: State.MAINTENANCE,
        }
        if func_id not in wanted:
            raise Refused(ReturnCode.UNSUPPORTED_COMMAND)
        if body not in (b"", b"\xc0"):
            raise Refused(ReturnCode.ILLEGAL_PARAMS)
        self.state = wanted[FuncID(func_id)]


def packed_str(content: bytes) -> bytes:
    """A MsgPack str in its shortest form, of any bytes."""
    text = content.decode("utf-8", "surrogateescape")
    return bytes(msgpack.packb(text, unicode_errors="surrogateescape"))


def request(func_id: int, body: bytes, request_id: int) -> bytes:
    """A request's bytes."""
    return HEADER.pack(func_id, len(body), request_id) + body


def response(func_id: int, request_id: int, code: int, body: bytes, *, mailru: bool) -> bytes:
    """A response's bytes."""
    length = len(body) + (RETURN_CODE.size if mailru else 0)
    return HEADER.pack(func_id, length, request_id) + RETURN_CODE.pack(code) + body


def split_responses(data: bytes, *, mailru: bool) -> tuple[list[bytes], bytes]:
    """The whole frames at the start of a server's bytes, and what is left after them."""
    frames = []
    at = 0  # a slice of what is left for each frame would copy it for each frame
    while len(data) - at >= HEADER_BYTES:
        func_id, length, _ = HEADER.unpack_from(data, at)
        bare = length == 0 and func_id in (FuncID.PING, FuncID.SHUTDOWN)
        size = HEADER_BYTES + length + (0 if bare or mailru else RETURN_CODE.size)
        if len(data) - at < size:
            break
        frames.append(data[at : at + size])
        at += size
    return frames, data[at:]


def parse_responses(data: bytes, *, mailru: bool) -> list[Reply]:
    """A server's bytes as replies; anything but whole, well-formed ones is an AssertionError."""
    frames, left = split_responses(data, mailru=mailru)
    assert left == b"", f"{left!r} after the last reply"
    return [_parse_response(frame) for frame in frames]


def _parse_response(frame: bytes) -> Reply:
    func_id, _, request_id = HEADER.unpack_from(frame)
    if len(frame) == HEADER_BYTES:
        return Reply(func_id, request_id, None)
    (code,) = RETURN_CODE.unpack_from(frame, HEADER_BYTES)
    packed = frame[HEADER_BYTES + RETURN_CODE.size :]
    body = msgpack.unpackb(packed, raw=True)
    assert packed in (b"\xc0", packed_str(body or b"")), f"{packed!r} is no nil or shortest str"
    if code == ReturnCode.OK:
        return Reply(func_id, request_id, code, body)
    assert body, "an error without a text"
    body.decode()
    return Reply(func_id, request_id, code)
