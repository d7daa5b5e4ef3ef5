"""The same two functions over grpc.aio.

Handlers are generic and take and give raw bytes, the very MsgPack bodies that iproto's functions
have: no protobuf is encoded or decoded, so what is measured is gRPC itself.

    python -m benchmarks.peers.own.grpc_server --port PORT
"""

import argparse
import asyncio
import importlib
from typing import Any

import msgpack

SERVICE = "iproto.Storage"
SLOTS = 1000
MAX_STRING = 256
MAX_PENDING = 1_000_000


class Storage:
    def __init__(self, grpc: Any) -> None:
        self.status = grpc.StatusCode
        self.slots = [""] * SLOTS

    async def read(self, body: bytes, context: Any) -> bytes:
        index = msgpack.unpackb(body)
        if type(index) is not int or not 0 <= index < SLOTS:
            await context.abort(self.status.OUT_OF_RANGE, f"index must be 0..{SLOTS - 1}")
        return bytes(msgpack.packb(self.slots[index]))

    async def replace(self, body: bytes, context: Any) -> bytes:
        unpacker = msgpack.Unpacker()
        unpacker.feed(body)
        index, value = unpacker
        if type(index) is not int or not 0 <= index < SLOTS:
            await context.abort(self.status.OUT_OF_RANGE, f"index must be 0..{SLOTS - 1}")
        if not isinstance(value, str) or len(value.encode()) > MAX_STRING:
            await context.abort(self.status.INVALID_ARGUMENT, f"takes {MAX_STRING} bytes at most")
        self.slots[index] = value
        return b"\xc0"


async def serve(port: int) -> None:
    grpc: Any = importlib.import_module("grpc")
    aio: Any = importlib.import_module("grpc.aio")
    storage = Storage(grpc)
    # gRPC starts cancelling calls at 1000 waiting ones; a pipeline is deeper than that.
    server = aio.server(
        options=[
            ("grpc.server.max_pending_requests", MAX_PENDING),
            ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
        ]
    )
    handlers = {
        "Read": grpc.unary_unary_rpc_method_handler(storage.read),
        "Replace": grpc.unary_unary_rpc_method_handler(storage.replace),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
