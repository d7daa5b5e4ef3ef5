"""The server's side of net/rpc once more, in plain Python, to hold the extension against.

It answers with parsed replies, as ``oracle`` does: of texts only those of the original server
are part of the contract, and net/rpc's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from iproto.wire import SLOT_BYTES, FuncID, ReturnCode, State
from tests.helpers.gob import (
    BYTES,
    FIRST_OWN,
    METHOD,
    STRING,
    UINT,
    CutShort,
    GobError,
    Reader,
    Types,
)
from tests.helpers.oracle import Body, OracleServer, Refused, packed_str

if TYPE_CHECKING:
    from collections.abc import Collection

AROUND_BODY = 4096
MOST_TYPES = 32
MOST_FIELDS = 128
MOST_METHOD = 255

READ_ONLY = b"can't replace at readOnly mode"
NO_WRITE = b"can't replace at maintenance mode"
NO_READ = b"can't read at maintenance mode"
TOO_LONG = b"incoming string cannot take up more than 256 bytes"
NO_INDEX = b"invalid ID. Valid value in range[0; 999]"
ORIGINAL_TEXTS = {READ_ONLY, NO_WRITE, NO_READ, TOO_LONG, NO_INDEX}


class CallReply(NamedTuple):
    """What one call was answered with.

    ``error``: net/rpc's own, where the method was not called; True for a text that is ours.
    ``body``: of a reply with an error one of the original's texts, or None for another one.
    """

    seq: int
    error: bytes | bool = False
    func_id: int = 0
    request_id: int = 0
    is_error: bool = False
    body: bytes | None = b""


class OracleNetRpc:
    """One storage and one connection to it, of a client of net/rpc."""

    def __init__(self, *, max_body: int = 1 << 20, functions: Collection[int] = ()) -> None:
        self.max_body = max_body
        self.functions = functions
        self.storage = OracleServer()
        self.types = Types()
        self.waiting = b""
        self.closed = ""
        self.calls: list[tuple[int, int, int, bytes]] = []
        self.begun: tuple[int, bool] | None = None  # seq, and whether the method is ours

    def feed(self, data: bytes) -> list[CallReply]:
        """The replies to all calls that are complete now."""
        replies: list[CallReply] = []
        self.waiting += data
        while self.waiting and not self.closed:
            try:
                size = self.message(replies)
            except GobError:
                self.closed = self.closed or "BAD_GOB"
                break
            if size == 0:
                break
            self.waiting = self.waiting[size:]
        return replies

    def message(self, replies: list[CallReply]) -> int:
        """Reads one message; returns its size, 0 if it is not complete."""
        reader = Reader(self.waiting)
        try:
            length = reader.uint()
        except CutShort:
            return 0
        if length == 0:
            raise GobError("an empty message")
        if length > self.max_body + AROUND_BODY:
            if self.begun and self.begun[1]:
                replies.append(CallReply(self.begun[0], error=True))
            self.closed = "BODY_TOO_LARGE"
            raise GobError("too long")
        begin = reader.at
        reader = Reader(self.waiting[begin : begin + length])
        is_whole = len(reader.data) == length
        try:
            type_id = reader.signed()
        except CutShort:
            if is_whole:
                raise
            return 0
        if not -(2**31) < type_id < 2**31 or -FIRST_OWN < type_id <= 0:
            raise GobError(f"type {type_id}")
        if not is_whole:
            return 0
        if type_id < 0:
            self.define(-type_id, reader)
        else:
            self.value(type_id, reader, replies)
        return begin + length

    def define(self, type_id: int, reader: Reader) -> None:
        self.types.define(type_id, reader)
        fields = sum(len(known or ()) for known in self.types.known.values())
        if len(self.types.known) > MOST_TYPES or fields > MOST_FIELDS:
            raise GobError("too many types")

    def value(self, type_id: int, reader: Reader, replies: list[CallReply]) -> None:
        if self.begun is None:
            seq, method = self.begin(self.struct(type_id, reader, {b"ServiceMethod", b"Seq"}))
            self.begun = seq, method == METHOD
            if method != METHOD:
                replies.append(CallReply(seq, error=refusal_of(method)))
            return
        seq, is_ours = self.begun
        self.begun = None
        if is_ours:
            replies += self.answer(seq, self.struct(type_id, reader, {b"Header", b"Body"}))

    def struct(self, type_id: int, reader: Reader, wanted: set[bytes]) -> Any:
        """A struct that has a wanted field; None for another type."""
        if type_id not in self.types.known and type_id >= FIRST_OWN:
            raise GobError("not defined")
        fields = self.types.known.get(type_id)
        if not any(field.name in wanted for field in fields or ()):
            return None
        return Lazily(self.types, type_id, reader)

    def begin(self, found: Any) -> tuple[int, bytes]:
        if found is None:
            raise GobError("no rpc.Request")
        try:
            call = found.read({b"ServiceMethod": STRING, b"Seq": UINT})
        except Misfit:
            raise GobError("no rpc.Request") from None
        method = call.get(b"ServiceMethod", b"")
        if len(method) > MOST_METHOD:
            raise GobError("a long name")
        return call.get(b"Seq", 0), method

    def answer(self, seq: int, found: Any) -> list[CallReply]:
        try:
            if found is None:
                raise Misfit
            call = found.read(
                {
                    b"Header": {b"FuncID": UINT, b"BodyLength": UINT, b"RequestID": UINT},
                    b"Body": BYTES,
                }
            )
        except Misfit:
            return [CallReply(seq, error=True)]
        header = call.get(b"Header", {})
        func_id, request_id = header.get(b"FuncID", 0), header.get(b"RequestID", 0)
        body = call.get(b"Body", b"")
        if func_id in self.functions and len(body) <= self.max_body:
            self.calls.append((seq, func_id, request_id, body))
            return []
        return [self.execute(CallReply(seq, False, func_id, request_id), body)]

    def execute(self, reply: CallReply, body: bytes) -> CallReply:
        storage = self.storage
        if len(body) > self.max_body:
            return reply._replace(is_error=True, body=None)
        try:
            if reply.func_id == FuncID.PING and not body:
                return reply
            if reply.func_id == FuncID.STORAGE_READ:
                return reply._replace(body=b"\x81\xa1S" + packed_str(storage.read(body)))
            if reply.func_id == FuncID.STORAGE_REPLACE:
                self.replace(body)
                return reply._replace(body=b"\x80")
            storage.switch(reply.func_id, body)
            return reply._replace(body=b"\xc0")
        except TooLong:
            return reply._replace(is_error=True, body=TOO_LONG)
        except Refused as refusal:
            known = {
                ReturnCode.READ_ONLY: READ_ONLY,
                ReturnCode.LOCKED: NO_READ if reply.func_id == FuncID.STORAGE_READ else NO_WRITE,
                ReturnCode.NUMBER_OUT_OF_RANGE: NO_INDEX,
            }
            return reply._replace(is_error=True, body=known.get(refusal.code))

    def replace(self, body: bytes) -> None:
        """As the original, which looked at the state before it looked at the length."""
        _, content = Body(body).arguments("int", "str")
        if len(content) > SLOT_BYTES and self.storage.state == State.READ_WRITE:
            raise TooLong
        self.storage.replace(body if len(content) <= SLOT_BYTES else b"\x01\xa0")


class TooLong(Exception):
    """The string to be written is."""


class Misfit(Exception):
    """A value is not of the type that is taken."""


class Lazily:
    """A struct's value, whose fields are read by what is wanted of them."""

    def __init__(self, types: Types, type_id: int, reader: Reader) -> None:
        self.types = types
        self.type_id = type_id
        self.reader = reader

    def read(self, wanted: dict[bytes, Any]) -> dict[bytes, Any]:
        found = self._struct(self.type_id, wanted, 1)
        if self.reader.at != len(self.reader.data):
            raise GobError("more than a value")
        return found

    def _struct(self, type_id: int, wanted: dict[bytes, Any], depth: int) -> dict[bytes, Any]:
        fields = self.types.known.get(type_id)
        if fields is None:
            raise Misfit
        if depth > 8:
            raise GobError("too deep")
        found: dict[bytes, Any] = {}
        for number in self.reader.fields(len(fields)):
            field = fields[number]
            kind = wanted.get(field.name)
            if kind is None:
                self.types.read(field.type, self.reader, depth + 1)
            elif isinstance(kind, dict):
                found[field.name] = self._struct(field.type, kind, depth + 1)
            elif field.type != kind:
                raise Misfit
            else:
                content = self.types.read(field.type, self.reader)
                if depth > 1 and content >= 2**32:
                    raise Misfit
                found[field.name] = content
        return found


def refusal_of(method: bytes) -> bytes:
    """net/rpc's own text for a method that is not there."""
    service, dot, _ = method.rpartition(b".")
    if not dot:
        return b"rpc: service/method request ill-formed: " + method
    what = b"method " if service == b"MyService" else b"service "
    return b"rpc: can't find " + what + method


class ReplyReader:
    """A server's bytes as replies; anything but whole, well-formed ones is an error."""

    def __init__(self) -> None:
        self.types = Types()

    def read(self, data: bytes) -> list[CallReply]:
        """The replies in these bytes, which have no half of one."""
        values = []
        reader = Reader(data)
        while reader.at < len(data):
            payload = Reader(reader.text())
            type_id = payload.signed()
            if type_id < 0:
                self.types.define(-type_id, payload)
                continue
            found = self.types.read(type_id, payload)
            assert payload.at == len(payload.data), "more than a value"
            values.append({name: content for name, (_, content) in found.items()})
        return [
            self._reply(response, reply)
            for response, reply in zip(values[::2], values[1::2], strict=True)
        ]

    @staticmethod
    def _reply(response: dict[bytes, Any], reply: dict[bytes, Any]) -> CallReply:
        seq = response.get(b"Seq", 0)
        if b"Error" in response:
            assert reply == {}, "a reply beside an error"
            error = response[b"Error"]
            return CallReply(seq, error if error.startswith(b"rpc: ") else True)
        assert response[b"ServiceMethod"] == METHOD
        header = {name: content for name, (_, content) in reply[b"Header"].items()}
        body = reply.get(b"Body", b"")
        assert header.get(b"BodyLength", 0) == len(body)
        code = reply.get(b"ReturnCode", 0)
        assert code in (0, 1)
        if code:
            content = msgpack.unpackb(body, raw=True)
            assert content
            assert body == packed_str(content)
            content.decode()
            body = content if content in ORIGINAL_TEXTS else None
        return CallReply(
            seq, False, header.get(b"FuncID", 0), header.get(b"RequestID", 0), bool(code), body
        )
