"""Answers to connections that are not taken in."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from iproto.wire import HEADER_BYTES, Dialect

if TYPE_CHECKING:
    import asyncio

    from iproto.wire import ReturnCode

# Seconds that a refused connection has to send its first header, and to take the answer.
WAIT = 1.0

# Refused connections that wait at a time; what comes beyond is closed without an answer.
MOST_WAITING = 64

# Bytes that one turn reads and drops behind the answer: unread ones would reset the connection,
# and a reset can destroy an answer that the client has not read yet.
DROP = 65536

_HEADER = struct.Struct("<III")
_CODE = struct.Struct("<I")
_STR8 = 0xD9  # of MsgPack: a str whose length is one byte
_LONGEST_TEXT = 0xFF


class Refusals:
    """Connections that are refused: each gets an answer to its first request, then closes.

    They are none of the server's connections, and cost a descriptor for a second at most.

    Args:
        loop: the running loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._heads: dict[socket.socket, bytes] = {}  # of those without an answer yet

    def refuse(self, sock: socket.socket, dialect: str, code: ReturnCode, text: str) -> None:
        """Answers the first request of a connection, then closes it.

        Args:
            sock: accepted, non-blocking; closed in here.
            dialect: of the listener; what is no dialect of frames gets no answer.
            code, text: the answer.
        """
        if len(self._waiting) >= MOST_WAITING or dialect not in (Dialect.VK, Dialect.MAILRU):
            sock.close()
            return
        self._waiting[sock] = self._loop.call_later(WAIT, self._close, sock)
        self._heads[sock] = b""
        self._loop.add_reader(sock, self._on_readable, sock, dialect, code, text)

    def close(self) -> None:
        """Closes all that wait."""
        for sock in list(self._waiting):
            self._close(sock)

    def descriptors(self) -> list[int]:
        """Those of the connections that wait."""
        return [sock.fileno() for sock in self._waiting]

    def forget(self) -> None:
        """In a child process: they are the parent's."""
        self._waiting.clear()
        self._heads.clear()

    def _on_readable(self, sock: socket.socket, dialect: str, code: ReturnCode, text: str) -> None:
        try:
            head = self._heads[sock]
            received = sock.recv(HEADER_BYTES - len(head))
            self._heads[sock] = head = head + received
            if len(head) == HEADER_BYTES:
                sock.send(refusal(head, dialect, code, text))
                sock.shutdown(socket.SHUT_WR)
                self._loop.remove_reader(sock)
                self._loop.add_reader(sock, self._drop, sock)
            elif not received:
                self._close(sock)
        except BlockingIOError:
            return
        except OSError:
            self._close(sock)

    def _drop(self, sock: socket.socket) -> None:
        try:
            if sock.recv(DROP):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        timer = self._waiting.pop(sock, None)
        if timer is None:
            return
        timer.cancel()
        self._heads.pop(sock, None)
        with contextlib.suppress(OSError):
            self._loop.remove_reader(sock)
        sock.close()


def refusal(head: bytes, dialect: str, code: ReturnCode, text: str) -> bytes:
    """The reply to a request, of which only the header is there.

    Args:
        head: the header, 12 bytes.
        dialect: ``"vk"`` or ``"mailru"``.
        code, text: what it says.
    """
    func_id, _, request_id = _HEADER.unpack(head)
    content = text.encode()[:_LONGEST_TEXT]
    body = bytes((_STR8, len(content))) + content
    length = len(body) + (_CODE.size if dialect == Dialect.MAILRU else 0)
    return _HEADER.pack(func_id, length, request_id) + _CODE.pack(code) + body
