"""A small HTTP server, in threads: bounded in requests and in the time that each may take."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import threading
import time
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from iproto.sockets import SpareDescriptor

if TYPE_CHECKING:
    from iproto.address import Address

# Seconds for a client to send its whole request, and then for each part of the
# answer (head and body) to be taken.
REQUEST_TIMEOUT = 5.0

# Requests answered at once, each in a thread. For one more, the client that has been
# silent for longest is cut off.
REQUESTS_AT_ONCE = 16

# Seconds without accepting after that failed: while the process is out of file
# descriptors the listener stays readable, and trying at once would use up a CPU.
ACCEPT_PAUSE = 0.5

# Seconds that an upgrade waits for requests that are being answered.
SUSPEND_WAIT = 2.0


class _RequestReader(io.RawIOBase):
    """Reads a socket for REQUEST_TIMEOUT in all, however the bytes dribble in."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._end = time.monotonic() + REQUEST_TIMEOUT

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        try:
            return self._sock.recv_into(buffer)
        finally:
            self._sock.settimeout(REQUEST_TIMEOUT)


class _RequestHandler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_RequestReader(self.connection))

    def parse_request(self) -> bool:
        """As the base class; the server learns that the request was read."""
        parsed = super().parse_request()
        cast("HTTPServer", self.server).request_was_read(self.connection)
        return parsed

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds needs no log line."""


class HTTPServer(ThreadingMixIn, WSGIServer):
    """Answers requests by a WSGI application, each in a thread.

    Args:
        address: where to listen; see :meth:`on`.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int]) -> None:
        self._free = threading.Semaphore(REQUESTS_AT_ONCE)
        self._lock = threading.Lock()
        self._open: dict[Any, bool] = {}  # socket → whether its request was read; oldest first
        self._spare = SpareDescriptor()
        self._spare.restore()
        super().__init__(address, _RequestHandler, bind_and_activate=False)

    @classmethod
    def on(cls, address: Address, app: Any, listener: int | None) -> HTTPServer:
        """A server that listens.

        Args:
            address: where.
            app: the WSGI application.
            listener: descriptor of a socket that listens there already; it is
                copied. None to bind one.

        Raises:
            OSError: the system refuses the address.
        """
        kind = _HTTPServer6 if ":" in address.host else cls
        server = kind((address.host, address.port))
        try:
            if listener is None:
                server.server_bind()
                server.server_activate()
            else:
                server.socket.close()
                server.socket = socket.socket(fileno=os.dup(listener))
                server._name_itself()
        except BaseException:
            server.server_close()
            raise
        server.set_app(app)
        return server

    def finish_requests(self) -> None:
        """Waits for the requests that are being answered, SUSPEND_WAIT seconds at most."""
        end = time.monotonic() + SUSPEND_WAIT
        taken = 0
        while taken < REQUESTS_AT_ONCE:
            if not self._free.acquire(timeout=max(0.0, end - time.monotonic())):
                break
            taken += 1
        for _ in range(taken):
            self._free.release()

    def server_bind(self) -> None:
        # As in the base class, without its reverse look-up of the host's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self._name_itself()

    def _name_itself(self) -> None:
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.server_address = (self.server_name, self.server_port)
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        # The base class swallows an OSError, and comes back if the listener is readable.
        if not self._free.acquire(blocking=False):
            self._make_room()
            if not self._free.acquire(timeout=ACCEPT_PAUSE):
                raise TimeoutError
        try:
            sock, _ = self._spare.accept(self.socket)
        except OSError:
            with self._lock:
                self._spare.restore()
            self._free.release()
            time.sleep(ACCEPT_PAUSE)
            raise
        with self._lock:
            self._open[sock] = False
        return sock, ("", 0)

    def _make_room(self) -> None:
        """Cuts off the client that has been silent for longest, for the newcomer may ask at once.

        If all have sent their requests: the one that came first.
        """
        with self._lock:
            silent = [sock for sock, was_read in self._open.items() if not was_read]
            for sock in silent[:1] or [*self._open][:1]:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def request_was_read(self, sock: socket.socket) -> None:
        """A client has sent its request."""
        with self._lock:
            if sock in self._open:
                self._open[sock] = True

    def shutdown_request(self, request: Any) -> None:
        # The base class calls it once for every request, whatever became of it.
        with self._lock:
            self._open.pop(request, None)
        try:
            super().shutdown_request(request)
        finally:
            with self._lock:
                self._spare.restore()
            self._free.release()

    def server_close(self) -> None:
        """Closes the listening socket."""
        super().server_close()
        self._spare.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client of the endpoint that goes away needs no log line."""


class _HTTPServer6(HTTPServer):
    address_family = socket.AF_INET6
