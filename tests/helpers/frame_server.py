"""A small honest server on threads, for tests of the clients, on struct and msgpack alone.

Every send blocks, and nothing is received meanwhile; so a client that does not
read while it writes comes to a stop with this server.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

import msgpack

from iproto.wire import SLOT_BYTES, SLOT_COUNT, FuncID, ReturnCode, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

_HEADER = struct.Struct("<III")
_SWITCHES = {
    FuncID.ADM_STORAGE_SWITCH_READWRITE: State.READ_WRITE,
    FuncID.ADM_STORAGE_SWITCH_READONLY: State.READ_ONLY,
    FuncID.ADM_STORAGE_SWITCH_MAINTENANCE: State.MAINTENANCE,
}


class FrameServer:
    """Serves the built-in functions from the start to the end of a ``with``.

    Args:
        mailru: the dialect.
        path: of a unix socket, instead of a free port of 127.0.0.1.
        port: a port that was served before, to be served again.
    """

    def __init__(self, *, mailru: bool = False, path: str | None = None, port: int = 0) -> None:
        self.mailru = mailru
        self.slots = [b""] * SLOT_COUNT
        self.state = State.READ_WRITE
        self.accepted = 0
        self.chunks: list[bytes] = []
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._here = threading.local()  # a connection has a thread
        self._socks: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        if path:
            self._listener.bind(path)
            self.url = f"iproto+unix://{path}"
        else:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("127.0.0.1", port))
            self.port: int = self._listener.getsockname()[1]
            self.url = f"iproto://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        with socket.socket(self._listener.family) as waker, contextlib.suppress(OSError):
            waker.connect(self._listener.getsockname())
        self._threads[0].join()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self._stopping:
                sock.close()
                return
            self.accepted += 1
            self._socks.append(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        held = b""
        self._here.number = 0
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(1 << 16):
                self.chunks.append(data)
                held += data
                at = 0
                replies = []
                while len(held) - at >= 12:
                    func_id, length, request_id = _HEADER.unpack_from(held, at)
                    body = held[at + 12 : at + 12 + length]
                    if len(body) < length:
                        break
                    at += 12 + length
                    self._here.number += 1
                    replies.append(self._reply(func_id, request_id, body))
                    if func_id == FuncID.SHUTDOWN:
                        sock.sendall(b"".join(replies))
                        return
                held = held[at:]
                sock.sendall(b"".join(replies))

    @property
    def number(self) -> int:
        """Of the request that is being answered, on its connection: 1, 2, ..."""
        number: int = self._here.number
        return number

    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        if func_id in (FuncID.PING, FuncID.SHUTDOWN):
            return _HEADER.pack(func_id, 0, request_id)
        code, value = self._execute(func_id, body)
        packed: bytes = msgpack.packb(value, use_bin_type=False)
        length = len(packed) + 4 * self.mailru
        return struct.pack("<IIII", func_id, length, request_id, code) + packed

    def _execute(self, func_id: int, body: bytes) -> tuple[int, str | bytes | None]:
        if func_id in _SWITCHES:
            self.state = _SWITCHES[FuncID(func_id)]
            return 0, None
        if func_id not in (FuncID.STORAGE_READ, FuncID.STORAGE_REPLACE):
            return ReturnCode.UNSUPPORTED_COMMAND, "no such function"
        unpacker = msgpack.Unpacker(raw=True)
        unpacker.feed(body)
        index = unpacker.unpack()
        if not 0 <= index < SLOT_COUNT:
            return ReturnCode.NUMBER_OUT_OF_RANGE, f"no slot {index}"
        if self.state is State.MAINTENANCE:
            return ReturnCode.LOCKED, "maintenance"
        if func_id == FuncID.STORAGE_READ:
            return 0, self.slots[index]
        content = unpacker.unpack()
        if len(content) > SLOT_BYTES:
            return ReturnCode.ILLEGAL_PARAMS, "too long"
        if self.state is State.READ_ONLY:
            return ReturnCode.READ_ONLY, "read only"
        self.slots[index] = content
        return 0, None
