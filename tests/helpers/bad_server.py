"""A server that does what a script says, over real sockets, for tests of the clients."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from tests.helpers.harness import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self


class Asked(NamedTuple):
    """A request as the script got it."""

    func_id: int
    request_id: int
    body: bytes

    def reply(
        self,
        body: bytes = b"\xc0",
        code: int = 0,
        *,
        mailru: bool = False,
        func_id: int | None = None,
        request_id: int | None = None,
        length: int | None = None,
    ) -> bytes:
        """The reply to it, or one that is wrong in what is given."""
        return (
            struct.pack(
                "<IIII",
                self.func_id if func_id is None else func_id,
                (len(body) + 4 * mailru) if length is None else length,
                self.request_id if request_id is None else request_id,
                code,
            )
            + body
        )

    def text(self, text: str | bytes, code: int = 0, *, mailru: bool = False) -> bytes:
        """The reply with a str as body."""
        content = text.encode() if isinstance(text, str) else text
        return self.reply(msgpack.packb(content, use_bin_type=False), code, mailru=mailru)

    @property
    def slot(self) -> int:
        """The first object of the body, a slot's index."""
        unpacker = msgpack.Unpacker(raw=True)
        unpacker.feed(self.body)
        return int(unpacker.unpack())


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, server: BadServer) -> None:
        self.sock = sock
        self._server = server
        self._held = b""
        sock.settimeout(PATIENCE)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> Asked:
        """The next request."""
        func_id, length, request_id = struct.unpack("<III", self._take(12))
        return Asked(func_id, request_id, self._take(length))

    def asks(self, count: int) -> list[Asked]:
        """The next requests."""
        return [self.ask() for _ in range(count)]

    def chunk(self) -> bytes:
        """What one recv gives; empty at the end."""
        chunk = self.sock.recv(1 << 16)
        self._server.received += len(chunk)
        return chunk

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def wait_end(self) -> bytes:
        """Waits until the client closes; what it had sent before."""
        data, self._held = self._held, b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := self.chunk():
                data += chunk
        return data

    def reset(self) -> None:
        """Ends the connection as a crashed host does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _take(self, size: int) -> bytes:
        while len(self._held) < size:
            chunk = self.chunk()
            if not chunk:
                raise EOFError(f"the client closed; {size} bytes were awaited")
            self._held += chunk
        data, self._held = self._held[:size], self._held[size:]
        return data


class BadServer:
    """Runs one script a connection, in their order; the ``with`` ends when all are done.

    What a script raises, its assertions included, is raised at the end.

    Args:
        scripts: each is called with the connection's :class:`Peer`; the
            connection is closed after it.
    """

    def __init__(self, *scripts: Callable[[Peer], object]) -> None:
        self._scripts = scripts
        # Bytes received so far, on all connections.
        self.received = 0
        self._closed = threading.Semaphore(0)
        self._errors: list[BaseException] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"iproto://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(2 * PATIENCE)
        self._listener.close()
        if self._errors:
            raise self._errors[0]

    @property
    def is_running(self) -> bool:
        """Whether a script is not done yet."""
        return self._thread.is_alive()

    def wait_closed(self) -> None:
        """Waits until one more connection was closed."""
        assert self._closed.acquire(timeout=PATIENCE)

    def _run(self) -> None:
        try:
            for script in self._scripts:
                sock, _ = self._listener.accept()
                with sock:
                    script(Peer(sock, self))
                self._closed.release()
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._listener.close()
