"""A connection with TLS that asks for one string, again and again, in either protocol."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ssl

PATIENCE = 30.0  # seconds for the replies to one batch

_IPROTO = struct.Struct("<III")


class Kind(NamedTuple):
    """The bytes of a protocol."""

    name: str
    write: bytes
    """Puts the string where ``read`` finds it."""
    written: int
    """Bytes of the reply to that."""
    read: bytes
    reply: int
    """Bytes of each reply, once the string is there."""
    empty: int
    """Bytes of the reply while it is not."""


iproto = Kind(
    name="iproto",
    write=_IPROTO.pack(0x00020001, 12, 1) + b"\x07\xaa0123456789",
    written=17,
    read=_IPROTO.pack(0x00020002, 1, 1) + b"\x07",
    reply=16 + 11,
    empty=16 + 1,
)

redis = Kind(
    name="redis",
    write=b"*3\r\n$3\r\nSET\r\n$1\r\n7\r\n$10\r\n0123456789\r\n",
    written=5,
    read=b"*2\r\n$3\r\nGET\r\n$1\r\n7\r\n",
    reply=17,
    empty=5,
)


class Peer:
    """One connection.

    Args:
        port: of 127.0.0.1.
        kind: the protocol.
        context: of TLS.
    """

    def __init__(self, port: int, kind: Kind, context: ssl.SSLContext) -> None:
        self._kind = kind
        plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = context.wrap_socket(plain)
        self._reply = 0  # bytes of each, by the first one

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def prepare(self) -> None:
        """Puts the string there."""
        self._sock.sendall(self._kind.write)
        self._receive(self._kind.written)

    def ask(self, count: int) -> None:
        """Sends this many requests."""
        self._sock.sendall(self._kind.read * count)

    def take(self, count: int) -> None:
        """Takes the replies to them."""
        if not self._reply:
            first = self._sock.recv(1 << 16)
            # A whole number of replies, or their beginning: the first bytes tell which.
            is_empty = self._kind.empty == len(first) or first.startswith(b"$-1")
            self._reply = self._kind.empty if is_empty and count == 1 else self._kind.reply
            self._receive(count * self._reply - len(first))
        else:
            self._receive(count * self._reply)

    def _receive(self, size: int) -> None:
        while size > 0:
            data = self._sock.recv(1 << 16)
            if not data:
                raise ConnectionError("the server closed the connection")
            size -= len(data)
