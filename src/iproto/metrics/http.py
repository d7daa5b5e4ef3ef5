"""A small HTTP server, in threads: bounded in requests and in the time that each may take."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from iproto.address import Address

# Seconds for a client to send its whole request, and then for each part of the
# answer (head and body) to be taken.
REQUEST_TIMEOUT = 5.0

# Requests answered at once, each in a thread; more wait to be accepted.
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

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds is no news."""


class HTTPServer(ThreadingMixIn, WSGIServer):
    """Answers requests by a WSGI application, each in a thread.

    Args:
        address: where to listen; see :meth:`on`.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int]) -> None:
        self._free = threading.Semaphore(REQUESTS_AT_ONCE)
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
        if not self._free.acquire(timeout=ACCEPT_PAUSE):
            raise TimeoutError
        try:
            return super().get_request()
        except OSError:
            self._free.release()
            time.sleep(ACCEPT_PAUSE)
            raise

    def shutdown_request(self, request: Any) -> None:
        # The base class calls it once for every request, whatever became of it.
        try:
            super().shutdown_request(request)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client of the endpoint that goes away is no news."""


class _HTTPServer6(HTTPServer):
    address_family = socket.AF_INET6
