"""Greedy clients, in a process of their own: they send reads of a slot as fast as they may.

    python -m benchmarks.fairness.greedy PORT CLIENTS DEPTH

Three of four take their replies, the fourth never reads. With a DEPTH each sends so many
requests, waits for their replies and sends the next ones; with 0 it sends without end.
Says ``ready`` once all are connected, and goes on until its standard input ends.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys

from iproto import FuncID

READ = struct.pack("<III", FuncID.STORAGE_READ, 1, 7) + b"\x07"  # of slot 7
REPLY = 16 + 2 + 253  # bytes: header and return_code, head of the string, what the slot holds
CHUNK = 64 * 1024
SCRATCH = bytearray(1 << 20)


class Greedy:
    """One client."""

    def __init__(self, port: int, depth: int, *, reads: bool) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.reads = reads
        self.depth = depth if reads else 0
        self.window = memoryview(READ * (depth or CHUNK // len(READ)))
        self.at = 0
        self.taken = 0

    @property
    def wants(self) -> int:
        if not self.reads:
            return selectors.EVENT_WRITE
        if self.depth and self.at == len(self.window):
            return selectors.EVENT_READ
        return selectors.EVENT_READ | selectors.EVENT_WRITE

    def send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.at += self.sock.send(self.window[self.at :])
        if self.at == len(self.window) and not self.depth:
            self.at = 0

    def receive(self) -> None:
        got = self.sock.recv_into(SCRATCH)
        if not got:
            raise SystemExit("the server closed a connection")
        self.taken += got
        if self.depth and self.taken >= self.depth * REPLY:
            self.taken -= self.depth * REPLY
            self.at = 0
            self.send()


def main() -> None:
    port, clients, depth = map(int, sys.argv[1:])
    with selectors.DefaultSelector() as selector:
        for number in range(clients):
            client = Greedy(port, depth, reads=number % 4 != 3)
            selector.register(client.sock, client.wants, client)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, events in selector.select():
                client = key.data
                if client is None:
                    return
                if events & selectors.EVENT_READ:
                    client.receive()
                if events & selectors.EVENT_WRITE and client.wants & selectors.EVENT_WRITE:
                    client.send()
                if client.wants != key.events:
                    selector.modify(client.sock, client.wants, client)


if __name__ == "__main__":
    main()
