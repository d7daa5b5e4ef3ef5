"""One connection of the blocking client: used by one call at a time.

A signal's handler may raise after any call that the main thread makes. So a link
whose exchange was cut off is closed, or, where even that was cut off, found to be
``_busy`` by the next call that it is given to: nobody knows which of its bytes were
sent.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from iproto._fastframe import AS_BYTES
from iproto.client.dial import DialError, dial
from iproto.client.polling import new_poller
from iproto.client.reasons import (
    closed_error,
    ended_error,
    reply_timeout,
    unconnected_timeout,
)

if TYPE_CHECKING:
    from iproto.client.arguments import Build
    from iproto.client.link import LinkState
    from iproto.client.polling import Poll, Select
    from iproto.client.pool import Pool
    from iproto.client.tls import SecureSocket
    from iproto.errors import IprotoError

# Bytes taken from the socket at once: some 250 replies of full slots, and below
# what the allocator gets from the system for each anew.
_CHUNK = 65536


class Waiter:
    """A call on its way, and then its outcome."""

    __slots__ = ("done", "error", "number", "result")

    def __init__(self) -> None:
        self.done = False
        self.error: BaseException | None = None
        self.result: Any = None
        # Of the link that the call has; see Pool.
        self.number = -1

    def settle(self, error: BaseException | None, result: Any) -> None:
        """The outcome is there."""
        self.error = error
        self.result = result
        self.done = True


class Link:
    """A place for one connection, which is made when a call needs it."""

    __slots__ = ("_busy", "_poll", "_pool", "_sock", "number", "state", "used_at")

    def __init__(self, pool: Pool, number: int) -> None:
        self.number = number
        # The connection's state; None: there was none yet.
        self.state: LinkState | None = None
        self._pool = pool
        self._sock: socket.socket | SecureSocket | None = None
        self._poll: Poll | Select | None = None
        # Whether an exchange began and did not come to its end.
        self._busy = False
        # When the last exchange began to wait, as monotonic() has it.
        self.used_at = 0.0

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._sock is not None

    def call(self, build: Build, waiter: Waiter, deadline: float, seconds: float) -> None:
        """Makes one call, on the connection that there is, or on a new one.

        Raises:
            TransportError: no connection could be made, or the deadline passed. (What
                the server answers, or that the connection was lost, is the waiter's.)
        """
        if not self.is_open():
            # What is wrong with the arguments must not cost a connection.
            build(self._pool.route.new_frames(), None, 0.0)
            self.connect(deadline, seconds)
        self._exchange(build, waiter, deadline)
        if not waiter.done:
            assert self.state is not None
            raise reply_timeout(
                self._pool.route.target,
                seconds,
                dropped=True,
                missing=self.state.frames.bytes_missing,
            )

    def is_open(self) -> bool:
        """Whether a call may be made; looks for an end that came since the last one."""
        if self._sock is None:
            return False
        if self._busy:
            self.close()
            return False
        assert self._poll is not None
        assert self.state is not None
        readable, _ = self._poll.wait(out=False, seconds=0)
        if readable:
            self._receive(self._sock, self.state)
        return self.state.ended is None

    def connect(self, deadline: float, seconds: float) -> None:
        """Makes a connection: one attempt, after the wait that is due since the last ones.

        Raises:
            ConnectError: the attempt failed.
            CallTimeoutError: the deadline passed.
            ClientClosedError: the client was closed meanwhile.
        """
        self.close()
        pool, route = self._pool, self._pool.route
        failures = route.failures
        while (delay := route.backoff.delay()) > 0:
            left = deadline - monotonic()
            if left <= 0:
                raise unconnected_timeout(route, seconds)
            pool.pause(min(delay, left))
            pool.check_open()
            if route.failures != failures and route.last_failure is not None:
                raise route.last_failure()  # of another thread's attempt, which was ours too
        began = route.backoff.clock()
        try:
            self._sock = self._dial(deadline)
        except DialError as failure:
            raise route.failed(failure.error, began)() from None
        if self._sock is None:
            route.backoff.failed("no answer in time", began)
            raise unconnected_timeout(route, seconds)
        self.state = route.new_link()
        self._poll = new_poller(self._sock)
        self._busy = False
        if self.state.frames.mailru is None:
            self._probe(began, deadline, seconds)
        pool.check_open()
        if self.state.frames.shut_down:
            self.connect(deadline, seconds)  # to where the next server is

    def _dial(self, deadline: float) -> socket.socket | SecureSocket | None:
        """A connected socket, after the handshake if there is TLS; None: the deadline passed.

        Raises:
            DialError: it cannot be had.
        """
        route = self._pool.route
        session = route.new_session()
        sock = dial(route, deadline)
        if sock is None or session is None:
            return sock
        from iproto.client.tls import secured

        try:
            return secured(sock, session, deadline)
        except OSError as error:
            if error.errno is None and type(error) is not ConnectionResetError:
                raise  # a signal's handler did
            raise DialError(error) from None

    def _probe(self, began: float, deadline: float, seconds: float) -> None:
        """Finds out the server's dialect, with a read."""
        route = self._pool.route
        waiter = Waiter()
        self._exchange(lambda f, w, d: f.read(0, AS_BYTES, w, d), waiter, deadline)
        self._pool.check_open()
        if not waiter.done:
            route.backoff.failed("no answer in time", began)
            raise unconnected_timeout(route, seconds)
        assert self.state is not None
        if self.state.frames.shut_down:
            return
        failure: Exception | None = None
        try:
            route.probed(self.state.frames, waiter.error)
            if self.state.ended is not None:
                failure = ended_error(self.state.ended)
        except Exception as error:
            failure = error
        if failure is not None:
            self.close()
            raise route.failed(failure, began)()

    def _exchange(self, build: Build, waiter: Waiter, deadline: float) -> None:
        """Sends a call's frames, and receives until it is settled or the deadline passes."""
        sock, poll, state = self._sock, self._poll, self.state
        assert sock is not None
        assert poll is not None
        assert state is not None
        self._busy = True
        try:
            build(state.frames, waiter, deadline)
            unsent = memoryview(state.frames.take())
            while not waiter.done:
                if unsent:
                    unsent = self._send(sock, state, unsent)
                self.used_at = now = monotonic()
                left = deadline - now
                if left <= 0 or state.ended is not None:
                    break
                readable, _ = poll.wait(out=bool(unsent), seconds=left)
                if readable:
                    self._receive(sock, state)
            # A reply that came before its request had left: the rest would be cut off.
            self._busy = not waiter.done or bool(unsent)
        finally:
            if self._busy or state.frames.retired:
                self.close()

    def _send(
        self, sock: socket.socket | SecureSocket, state: LinkState, unsent: memoryview
    ) -> memoryview:
        try:
            return unsent[sock.send(unsent) :]
        except BlockingIOError:
            return unsent
        except OSError as failure:
            if failure.errno is None:
                raise  # a signal's handler did
            # What had come before may say why, and what was not executed.
            chunks = -1
            while state.ended is None and state.chunks != chunks:
                chunks = state.chunks
                self._receive(sock, state)
            self._end(state, state.lost_reason(failure))
            return memoryview(b"")

    def _receive(self, sock: socket.socket | SecureSocket, state: LinkState) -> None:
        try:
            data = sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as failure:
            if failure.errno is None:
                raise  # a signal's handler did
            self._end(state, state.lost_reason(failure))
            return
        if not data:
            self._end(state, state.lost_reason(None))
            return
        if state.chunks == 0:
            self._pool.route.backoff.succeeded()
        for waiter, error, result in state.receive(data):
            waiter.settle(error, result)
        if state.fault is not None:
            self._end(state, state.fault)

    def _end(self, state: LinkState, reason: str | IprotoError) -> None:
        """The connection is of no use any more: the call that has it fails."""
        if state.ended is not None:
            return
        if self._pool.closed:
            reason = closed_error(may_have_executed=True)
        for waiter, error in state.end(reason):
            waiter.settle(error, None)
        self._pool.route.ended(state)
        self.close()

    def interrupt(self) -> None:
        """Ends the exchange of another thread, which sees the end of its stream."""
        sock = self._sock
        if sock is not None:
            with suppress(OSError):  # it has ended already
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()
