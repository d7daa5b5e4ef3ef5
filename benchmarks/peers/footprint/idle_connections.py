"""Opens connections, makes one request on each, and keeps them until its stdin ends.

It prints a line when every one of them has had its reply.

    python -m benchmarks.peers.footprint.idle_connections --port PORT --connections 10000
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import struct
import sys

READ = struct.Struct("<IIIB")  # func_id, body_length, request_id, the slot in MsgPack
REQUEST = READ.pack(0x00020002, 1, 7, 0)
HEADER = struct.Struct("<IIII")  # func_id, body_length, request_id, return_code
PATIENCE = 30.0  # seconds for one reply


def opened(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.sendall(REQUEST)
    reply = connection.recv(4096)
    if len(reply) <= HEADER.size or HEADER.unpack_from(reply)[2:] != (7, 0):
        raise ValueError(f"another reply than a string: {reply!r}")
    return connection


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=10_000)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        for _ in range(options.connections):
            stack.enter_context(opened(options.port))
        print("all of them had a reply", flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
