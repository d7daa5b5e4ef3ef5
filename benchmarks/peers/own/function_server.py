"""One function over the same protocol, as a user would write it by hand for speed.

asyncio.Protocol on uvloop, struct, and msgspec with a typed decoder; with ``--tasks`` the
function is a coroutine, and each call a task. No limits, no checks of lengths, no metrics.

    python -m benchmarks.peers.own.function_server --port PORT [--tasks]
"""

import argparse
import asyncio
import struct
from typing import cast

import msgspec
import uvloop

HEADER = struct.Struct("<III")  # func_id, body_length, request_id
REPLY_HEADER = struct.Struct("<IIII")  # the same, and the return code

decode = msgspec.msgpack.Decoder(tuple[str]).decode
encode = msgspec.msgpack.Encoder().encode


def echo(text: str) -> str:
    return text


async def echo_later(text: str) -> str:
    return text


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.rest = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's doesn't inherit from it

    def data_received(self, data: bytes) -> None:
        data = self.rest + data if self.rest else data
        replies = []
        at, end = 0, len(data)
        while end - at >= 12:
            func_id, length, request_id = HEADER.unpack_from(data, at)
            if end - at - 12 < length:
                break
            body = encode(echo(*decode(data[at + 12 : at + 12 + length])))
            replies.append(REPLY_HEADER.pack(func_id, len(body), request_id, 0))
            replies.append(body)
            at += 12 + length
        self.rest = data[at:]
        self.transport.write(b"".join(replies))


class TaskConnection(Connection):
    def data_received(self, data: bytes) -> None:
        data = self.rest + data if self.rest else data
        at, end = 0, len(data)
        loop = asyncio.get_running_loop()
        while end - at >= 12:
            func_id, length, request_id = HEADER.unpack_from(data, at)
            if end - at - 12 < length:
                break
            body = data[at + 12 : at + 12 + length]
            loop.create_task(self.run(func_id, request_id, body))  # noqa: RUF006 it never waits
            at += 12 + length
        self.rest = data[at:]

    async def run(self, func_id: int, request_id: int, body: bytes) -> None:
        reply = encode(await echo_later(*decode(body)))
        self.transport.write(REPLY_HEADER.pack(func_id, len(reply), request_id, 0) + reply)


async def serve(port: int, connection: type[Connection]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tasks", action="store_true", help="a task a call")
    options = parser.parse_args()
    uvloop.run(serve(options.port, TaskConnection if options.tasks else Connection))


if __name__ == "__main__":
    main()
