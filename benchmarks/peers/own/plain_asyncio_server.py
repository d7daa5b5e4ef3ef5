"""The same protocol as a competent Python user would serve it: asyncio.Protocol, struct, msgpack.

A comparison, not a part of iproto: it shows what a server without a native frame scanner costs.
Every frame is a few Python calls; what can be had for free is taken: no StreamReader, one write
for all replies to a received chunk, msgpack's C extension, uvloop when it is installed.

    python -m benchmarks.peers.own.plain_asyncio_server --port PORT
"""

import argparse
import asyncio
import struct
from functools import partial
from typing import TYPE_CHECKING, cast

import msgpack

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = struct.Struct("<III")  # func_id, body_length, request_id
REPLY_HEADER = struct.Struct("<IIII")  # the same, and the return code

SLOTS = 1000
MAX_STRING = 256
MAX_BODY = 4096

SWITCH_READONLY = 0x00010001
SWITCH_READWRITE = 0x00010002
SWITCH_MAINTENANCE = 0x00010003
REPLACE = 0x00020001
READ = 0x00020002
PING = 0x0000FF00
SHUTDOWN = 0x0000FF01

OK = 0x0000
ILLEGAL_PARAMS = 0x0202
UNSUPPORTED_COMMAND = 0x0A02
NUMBER_OUT_OF_RANGE = 0x1F02
READ_ONLY = 0x0401
LOCKED = 0x0601

# The storage is byte-transparent: what is not UTF-8 has to survive the way through Python's str.
pack = msgpack.Packer(unicode_errors="surrogateescape").pack


class RequestError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Storage:
    def __init__(self) -> None:
        self.slots = [""] * SLOTS
        self.state = SWITCH_READWRITE

    def switch(self, state: int, arguments: list[object]) -> None:
        if arguments not in ([], [None]):
            raise RequestError(ILLEGAL_PARAMS, "a switch takes nil")
        self.state = state

    def read(self, arguments: list[object]) -> str:
        if len(arguments) != 1:
            raise RequestError(ILLEGAL_PARAMS, "STORAGE_READ takes one integer")
        index = self._index(arguments[0])
        if self.state == SWITCH_MAINTENANCE:
            raise RequestError(LOCKED, "storage is in MAINTENANCE")
        return self.slots[index]

    def replace(self, arguments: list[object]) -> None:
        if len(arguments) != 2 or not isinstance(arguments[1], str):
            raise RequestError(ILLEGAL_PARAMS, "STORAGE_REPLACE takes an integer and a string")
        index, value = self._index(arguments[0]), arguments[1]
        if len(value) > MAX_STRING or len(value.encode(errors="surrogateescape")) > MAX_STRING:
            raise RequestError(ILLEGAL_PARAMS, f"string must be at most {MAX_STRING} bytes")
        if self.state == SWITCH_MAINTENANCE:
            raise RequestError(LOCKED, "storage is in MAINTENANCE")
        if self.state == SWITCH_READONLY:
            raise RequestError(READ_ONLY, "storage is READ_ONLY")
        self.slots[index] = value

    @staticmethod
    def _index(argument: object) -> int:
        if type(argument) is not int:
            raise RequestError(ILLEGAL_PARAMS, "index must be an integer")
        if not 0 <= argument < SLOTS:
            raise RequestError(NUMBER_OUT_OF_RANGE, f"index must be 0..{SLOTS - 1}")
        return argument


class Connection(asyncio.Protocol):
    def __init__(self, storage: Storage) -> None:
        self.functions: dict[int, Callable[[list[object]], object]] = {
            READ: storage.read,
            REPLACE: storage.replace,
        }
        for state in (SWITCH_READONLY, SWITCH_READWRITE, SWITCH_MAINTENANCE):
            self.functions[state] = partial(storage.switch, state)
        self.rest = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's doesn't inherit from it

    def pause_writing(self) -> None:
        self.transport.pause_reading()  # a client that doesn't read its replies waits

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        replies: list[bytes] = []
        at, end = 0, len(data)
        closing = False
        while end - at >= HEADER.size and not closing:
            func_id, length, request_id = HEADER.unpack_from(data, at)
            body_at = at + HEADER.size
            if length > MAX_BODY:
                text = pack(f"body_length must be at most {MAX_BODY}")
                replies.append(REPLY_HEADER.pack(func_id, len(text), request_id, ILLEGAL_PARAMS))
                replies.append(text)
                closing = True
                break
            at = body_at + length
            if at > end:
                at = body_at - HEADER.size
                break
            if func_id in (PING, SHUTDOWN) and length == 0:
                replies.append(data[at - HEADER.size : at])
                closing = func_id == SHUTDOWN
                continue
            code, body = self.execute(func_id, data[body_at:at])
            replies.append(REPLY_HEADER.pack(func_id, len(body), request_id, code))
            replies.append(body)
        self.rest = data[at:]
        if replies:
            self.transport.write(b"".join(replies))
        if closing:
            self.transport.close()

    def execute(self, func_id: int, body: bytes) -> tuple[int, bytes]:
        try:
            function = self.functions.get(func_id)
            if function is None:
                raise RequestError(UNSUPPORTED_COMMAND, f"no function {func_id:#010x}")
            return OK, pack(function(unpack_all(body)))
        except RequestError as error:
            return error.code, pack(error.text)


def unpack_all(body: bytes) -> list[object]:
    """Return the MsgPack objects that follow one another in `body`."""
    unpacker = msgpack.Unpacker(unicode_errors="surrogateescape", max_buffer_size=MAX_BODY)
    unpacker.feed(body)
    try:
        arguments = list(unpacker)
    except (ValueError, msgpack.UnpackException):
        raise RequestError(ILLEGAL_PARAMS, "body is not MsgPack") from None
    if unpacker.tell() != len(body):
        raise RequestError(ILLEGAL_PARAMS, "the last object of the body is cut short")
    return arguments


async def serve(port: int) -> None:
    storage = Storage()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(storage), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(port))
    else:
        uvloop.run(serve(port))


if __name__ == "__main__":
    main()
