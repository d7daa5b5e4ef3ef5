"""TLS handshakes of the connections that have just been accepted.

One step of one handshake, some hundred microseconds of arithmetic, is made in a turn of
the loop: served connections wait for one step at most, however many come at once.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections import deque
from typing import TYPE_CHECKING

from iproto.server.tls import SecureSocket
from iproto.tls import describe_error
from iproto.wire import CloseReason

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Iterator

    from iproto._fastframe import Storage
    from iproto.server.admission import Arrival
    from iproto.server.certificates import Certificates
    from iproto.server.config import Config
    from iproto.server.repeats import Repeats


# Bytes taken from a socket before the next step. The rest waits in the system.
_CHUNK = 16384

# The first byte of a record that begins a handshake.
_HANDSHAKE = 0x16


class _Handshake:
    """One that is under way."""

    __slots__ = ("arrival", "deadline", "has_begun", "secure", "writing")

    def __init__(self, secure: SecureSocket, arrival: Arrival, deadline: float) -> None:
        self.secure = secure
        self.arrival = arrival
        self.deadline = deadline
        self.has_begun = False  # bytes came
        self.writing = False  # the loop watches for room

    @property
    def fileno(self) -> int:
        return self.secure.sock.fileno()


class Handshakes:
    """Those that are under way, in one event loop.

    Args:
        certificates: of the server.
        config: the limits.
        serve: takes a socket whose handshake is done, and what ``begin`` was given for it.
        on_end: called when one has ended.
        storage: counts the connections.
        repeats: writes to the log what goes wrong.
        loop: the running loop.
    """

    def __init__(
        self,
        certificates: Certificates,
        config: Config,
        serve: Callable[[SecureSocket, Arrival], None],
        on_end: Callable[[], None],
        storage: Storage,
        repeats: Repeats,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._certificates = certificates
        self._timeout = config.tls_handshake_timeout
        self._limit = config.max_tls_handshakes
        self._serve = serve
        self._on_end = on_end
        self._storage = storage
        self._repeats = repeats
        self._loop = loop
        self._open: dict[_Handshake, None] = {}  # the oldest first
        self._ready: deque[_Handshake] = deque()  # those with input for a step
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, sock: socket.socket, arrival: Arrival) -> None:
        """Begins one at a socket: accepted, non-blocking and tuned.

        Args:
            sock: the socket.
            arrival: who has come, and where.
        """
        if len(self._open) >= self._limit:
            sock.close()
            self._storage.count_opened()
            self._storage.count_closed(CloseReason.TLS_BUSY)
            self._repeats.error(
                "TLS busy",
                "refused a connection: %d TLS handshakes are under way; raise max_tls_handshakes, "
                "or add workers",
                self._limit,
                level=logging.WARNING,
            )
            return
        secure = SecureSocket(sock, self._certificates.new_session())
        handshake = _Handshake(secure, arrival, self._loop.time() + self._timeout)
        self._loop.add_reader(handshake.fileno, self._on_readable, handshake)
        self._open[handshake] = None
        self._storage.count_opened()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._expire)

    def close(self) -> None:
        """Ends all at once."""
        for handshake in list(self._open):
            self._end(handshake, CloseReason.FORCED)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def descriptors(self) -> Iterator[int]:
        """Those that a child process must not have."""
        for handshake in self._open:
            yield handshake.fileno

    def forget(self) -> None:
        """In a child process: they are the parent's."""
        self._open.clear()
        self._ready.clear()

    # Event loop callbacks.

    def _on_readable(self, handshake: _Handshake) -> None:
        try:
            data = handshake.secure.receive(_CHUNK)
        except OSError:
            self._end(handshake, CloseReason.RESET)
            return
        if data is None:
            return
        if not data:
            self._end(handshake, CloseReason.CLIENT)
            return
        if not handshake.has_begun and data[0] != _HANDSHAKE:
            self._fail(handshake, "it speaks no TLS; it must use iprotos:// here")
            return
        handshake.has_begun = True
        handshake.secure.session.put(data)
        # The next chunk comes after the step: what a client sends meanwhile waits in the system.
        self._loop.remove_reader(handshake.fileno)
        self._ready.append(handshake)
        if len(self._ready) == 1:
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        """One step of the handshake that has waited longest; the others come after their turn."""
        handshake = self._ready[0] if self._ready else None
        if handshake is None:
            return
        try:
            self._advance(handshake)
        except Exception as error:  # out of memory, most likely
            self._end(handshake, CloseReason.FAILED)
            self._repeats.failure("a TLS handshake is ended", error)
        finally:
            if self._ready and self._ready[0] is handshake:
                self._ready.popleft()
            if self._ready:
                self._loop.call_soon(self._step)

    def _advance(self, handshake: _Handshake) -> None:
        secure = handshake.secure
        try:
            is_done = secure.session.handshake()
        except ssl.SSLError as error:
            self._fail(handshake, describe_error(error))
            return
        try:
            secure.push()
        except OSError:
            self._end(handshake, CloseReason.RESET)
            return
        if is_done:
            self._serve(secure, handshake.arrival)
            self._open.pop(handshake, None)
            self._on_end()
        else:
            self._watch(handshake)

    def _watch(self, handshake: _Handshake) -> None:
        """Watches for what the handshake needs next: room for our bytes, then the client's."""
        fd = handshake.fileno
        if handshake.secure.is_flushed:
            if handshake.writing:
                handshake.writing = False
                self._loop.remove_writer(fd)
            self._loop.add_reader(fd, self._on_readable, handshake)
        elif not handshake.writing:
            handshake.writing = True
            self._loop.add_writer(fd, self._on_writable, handshake)

    def _on_writable(self, handshake: _Handshake) -> None:
        try:
            handshake.secure.push()
        except OSError:
            self._end(handshake, CloseReason.RESET)
        else:
            self._watch(handshake)

    def _expire(self) -> None:
        """Ends those that took too long; they are in the order of their deadlines."""
        self._timer = None
        now = self._loop.time()
        for handshake in list(self._open):
            if handshake.deadline > now:
                self._timer = self._loop.call_later(handshake.deadline - now, self._expire)
                return
            self._end(handshake, CloseReason.TLS_TIMEOUT)

    # The end.

    def _fail(self, handshake: _Handshake, why: str) -> None:
        with contextlib.suppress(OSError):
            handshake.secure.push()  # the alert
        self._end(handshake, CloseReason.TLS_FAILED)
        self._repeats.error(
            ("TLS", why),
            "the TLS handshake with %s failed: %s",
            handshake.arrival.peer,
            why,
            level=logging.WARNING,
        )

    def _end(self, handshake: _Handshake, reason: CloseReason) -> None:
        if handshake not in self._open:
            return
        del self._open[handshake]
        if handshake in self._ready:
            self._ready.remove(handshake)
        self._loop.remove_reader(handshake.fileno)
        self._loop.remove_writer(handshake.fileno)
        handshake.secure.sock.close()
        self._storage.count_closed(reason)
        self._on_end()
