"""One connection of the server: bytes in, bytes out, backpressure.

No policy: what a frame means is the extension's, what a user function does is
app.py's, when the server drains is server.py's.

The event loop watches the socket itself, with no transport in between, and the
extension reads, executes and sends in one call: measured side by side, this
serves 1.24 times the requests of an asyncio transport at depth 1 and 16, and
1.33 times at depth 256 (docs/performance/README.md).

The story of a connection: it is *open*; then something ends it (the client's
half-close, SHUTDOWN, a body over the limit, a drain) and no further frame is
looked at; when the last call is answered it is *finishing*: its write side is
closed behind the last reply, and what the client still sends is read and
dropped, for closing a socket with unread bytes resets it, and a reset can
destroy replies that the client has not read yet; then it is *closed*.
"""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING, Protocol

from iproto._fastframe import (
    HAS_CALLS,
    HAS_ENDED,
    HAS_INPUT,
    HAS_MORE,
    HAS_OVERFLOWED,
    HAS_REFUSED,
    HAS_UNSENT,
    IS_BROKEN,
    IS_CLOSING,
    IS_FULL,
    IS_PAUSED,
    ServerFrames,
)
from iproto.server import deadlines
from iproto.server.caller import Caller
from iproto.server.deadlines import Linger
from iproto.server.watch import SocketWatch
from iproto.sockets import unacknowledged_bytes, unread_bytes
from iproto.wire import HEADER_BYTES, CloseReason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from iproto.server.calls import CallTasks
    from iproto.server.hangups import Hangups
    from iproto.server.peer import Peer
    from iproto.server.tls import SecureStream
    from iproto.server.turns import Turns


# What broke a stream, where it was not the network.
_FAULTS = (CloseReason.FAILED, CloseReason.TLS_FAILED)


class Owner(Protocol):
    """What a connection needs of its server."""

    idle_timeout: float

    def closed(self, connection: Connection, reason: CloseReason) -> None: ...
    def failed(self, connection: Connection, error: Exception) -> None: ...
    def refused(self, connection: Connection) -> None: ...
    def paused(self, connection: Connection) -> None: ...


def _guarded(step: Callable[[Connection], None]) -> Callable[[Connection], None]:
    """An error of our own in a step of a connection ends that connection, and no more.

    Out of memory, most likely: what it left undone is nothing to go on from.
    """

    @functools.wraps(step)
    def guarded(connection: Connection) -> None:
        try:
            step(connection)
        except Exception as error:
            connection._fail(error)

    return guarded


class Connection:
    """One connection of the server.

    Args:
        owner: the server; ``closed`` of it is called at the end.
        sock: accepted, non-blocking; closed by the connection.
        peer: who is at the other end.
        frames: the connection's own, fresh.
        stream: moves the bytes between both: the frames themselves, or TLS around them.
        call_tasks: runs calls of user functions; None if the frames know none.
        hangups: finds a reset while the socket is neither read nor written.
        turns: when it may go on, if it has more than its share of a turn.
        loop: the running loop.
    """

    __slots__ = (
        "_awaiting_header",
        "_caller",
        "_closed",
        "_draining",
        "_fd",
        "_linger",
        "_loop",
        "_owner",
        "_pause",
        "_request_bytes",
        "_request_time",
        "_sock",
        "_stream",
        "_timer",
        "_turns",
        "_waiting",
        "_watch",
        "frames",
        "peer",
    )

    def __init__(
        self,
        owner: Owner,
        sock: socket.socket,
        peer: Peer,
        frames: ServerFrames,
        stream: ServerFrames | SecureStream,
        call_tasks: CallTasks | None,
        hangups: Hangups,
        turns: Turns,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # For the whole life of the connection.
        self._owner = owner
        self._sock = sock
        self._fd = sock.fileno()
        self.peer = peer
        self.frames = frames
        self._stream = stream
        self._loop = loop
        self._caller: Caller | None = None
        if call_tasks is not None:
            self._caller = Caller(self, frames, stream, self._fd, peer, call_tasks, loop)
        # Bytes of requests when last looked at, PINGs not counted, and since when there were
        # no more.
        self._request_bytes = 0
        self._request_time = loop.time()
        # What the loop does for us.
        self._watch = SocketWatch(self._fd, hangups, loop)
        self._turns = turns
        self._waiting = False  # for a turn
        self._pause: asyncio.TimerHandle | None = None  # until the client's rate permits more
        self._timer = loop.call_later(owner.idle_timeout, self._check)
        # The end.
        self._draining = False
        self._linger: Linger | None = None  # from the last reply on
        self._awaiting_header = False  # see _wait_for_header
        self._closed = False
        try:
            self._watch.set(self, reading=True)
        except BaseException:
            self._timer.cancel()  # which would close what was never open
            raise

    # Events of the loop.

    def on_readable(self) -> None:
        """Requests have arrived, or the end of the stream."""
        try:  # not @_guarded: each request comes by here
            if self._stream.receive(self._fd):
                self._advance()
        except Exception as error:
            self._fail(error)

    @_guarded
    def on_hangup(self) -> None:
        """The socket was reset while nothing of it was read."""
        self._close(CloseReason.RESET)

    @_guarded
    def on_writable(self) -> None:
        """The client's system takes replies again."""
        self._stream.flush(self._fd)
        self._advance()

    # Events of its calls.

    @_guarded
    def on_overdue(self) -> None:
        """Calls have waited too long."""
        if self._caller is not None and not self._closed:
            self._caller.expire()
            self._caller.flush_soon(now=False)

    @_guarded
    def on_answers(self) -> None:
        """The calls that ended in this turn have their answers ready."""
        if self._caller is not None and not self._closed:
            self._caller.flush()
            self._advance()

    # Orders of the server.

    @_guarded
    def begin(self) -> None:
        """Executes what came with the end of a TLS handshake."""
        if self._stream.resume(self._fd):
            self._advance()

    def drain(self, reason: CloseReason = CloseReason.DRAIN) -> None:
        """Answers every request that has arrived, then closes.

        What has arrived: all that lies in the socket's buffer now. What comes
        later is not executed.

        Args:
            reason: of the close.
        """
        if self._draining or self._closed:
            return
        self._draining = True
        try:
            self._stream.drain(unread_bytes(self._fd), reason)
            if self._linger is not None:
                self._linger.drain()
                self._rearm(deadlines.LINGER_LOOK)
            self._advance()
        except Exception as error:
            self._fail(error)

    @property
    def is_draining(self) -> bool:
        """Whether the connection is about to close on our side."""
        return self._draining or bool(self.frames.status & IS_CLOSING)

    def seconds_without_request(self) -> float:
        """Since the last request that asked for something, PING does not: to some seconds."""
        if self.frames.pings == 0 or self.frames.unanswered:
            return self.frames.quiet_seconds() if not self.frames.unanswered else 0.0
        self._note_requests()
        return self._loop.time() - self._request_time

    def _note_requests(self) -> None:
        received = self.frames.received - HEADER_BYTES * self.frames.pings
        if received != self._request_bytes:
            self._request_bytes = received
            self._request_time = self._loop.time()

    def quiet_seconds(self) -> float:
        """How long the client has neither sent nor awaited anything."""
        return 0.0 if self.frames.unanswered else self.frames.quiet_seconds()

    @property
    def fileno(self) -> int:
        """The socket's number, which the log calls the connection by."""
        return self._fd

    @property
    def is_flushed(self) -> bool:
        """Whether every reply has been taken, and nothing but the client is waited for."""
        return (
            (self._linger is not None or self._lacks_header)
            and not self.frames.status & HAS_UNSENT
            and unacknowledged_bytes(self._fd) == 0
        )

    @property
    def _lacks_header(self) -> bool:
        """Whether a drain does not know yet what the client understands."""
        return self._draining and self.frames.received < HEADER_BYTES

    def forget(self) -> None:
        """In a child process: the connection is the parent's, and nothing is done here."""
        self._closed = True
        if self._caller is not None:
            self._caller.forget()

    def abort(self, reason: CloseReason = CloseReason.FORCED) -> None:
        """Closes at once; what was not sent is lost."""
        self._close(reason)

    # The one place that decides how to go on.

    def _advance(self) -> None:
        frames = self.frames
        if self._closed:
            return
        if frames.status & HAS_CALLS:
            assert self._caller is not None, "frames without functions have no calls"
            self._caller.start()
            if self._closed:  # by a function that ran
                return
        if frames.status & HAS_REFUSED:
            frames.clear_refused()
            self._owner.refused(self)
        status = frames.status
        if status & (IS_BROKEN | HAS_OVERFLOWED):
            reason = CloseReason.RESET if status & IS_BROKEN else CloseReason.SLOW_READER
            fault = frames.close_reason
            self._close(reason if fault is None or fault not in _FAULTS else fault)
        elif status & HAS_UNSENT:
            # The client must read before anything more is done for it.
            self._watch.set(self, writing=True)
        elif self._linger is not None:
            self._end_writing()
        elif status & IS_PAUSED and not status & HAS_CALLS:
            self._watch.set(self, hangup=True)
            self._wait_for_rate()
        elif status & HAS_CALLS or (status & HAS_MORE and not status & IS_FULL):
            self._wait_for_turn()
        elif status & HAS_MORE:
            self._watch.set(self, hangup=True)  # until a call of the full queue has started
        elif status & (IS_CLOSING | HAS_ENDED) and frames.unanswered == 0:
            if self._lacks_header and not status & HAS_ENDED:
                self._wait_for_header()
            else:
                self._finish()
        elif status & (IS_CLOSING | HAS_ENDED):
            self._watch.set(self, reading=not status & HAS_ENDED, hangup=bool(status & HAS_ENDED))
        elif status & HAS_INPUT:
            self._wait_for_turn()
        else:
            self._watch.set(self, reading=True)

    def _wait_for_turn(self) -> None:
        """Goes on in a later turn of the loop: other connections come first."""
        self._watch.set(self)
        if not self._waiting:
            self._waiting = True
            self._turns.wait(self)

    @_guarded
    def on_turn(self) -> None:
        """A turn of the loop has room for more of it."""
        self._waiting = False
        status = self.frames.status
        if self._closed or status & HAS_UNSENT:
            return
        if status & HAS_MORE:
            if not status & IS_FULL:
                self._stream.resume(self._fd)
        elif status & HAS_INPUT and not status & (IS_CLOSING | HAS_ENDED):
            self._stream.receive(self._fd)
        self._advance()

    def _wait_for_rate(self) -> None:
        """Reads nothing until the client's rate permits the next request."""
        if self._pause is None:
            wait = max(self.frames.pause_seconds(), deadlines.SHORTEST_PAUSE)
            self._pause = self._loop.call_later(wait, self._end_pause)
            self._owner.paused(self)

    @_guarded
    def _end_pause(self) -> None:
        self._pause = None
        if not (self._closed or self.frames.status & HAS_UNSENT):
            self._wait_for_turn()

    def _wait_for_header(self) -> None:
        """Drained, and no header has shown yet whether the client understands an announced end."""
        if not self._awaiting_header:
            self._awaiting_header = True
            self._rearm(deadlines.HEADER_WAIT)
        self._watch.set(self, reading=True)

    def _finish(self) -> None:
        """Everything is answered: sends the last bytes, then closes the write side."""
        self._linger = Linger(self._fd, self._loop, draining=self._draining)
        self._watch.set(self)
        self._stream.finish()
        self._stream.flush(self._fd)
        self.frames.close(CloseReason.CLIENT)  # unless it knows another reason
        self._rearm(self._linger.start())
        self._advance()

    def _end_writing(self) -> None:
        """Everything is sent; waits for the client to end its side too."""
        if self.frames.status & HAS_ENDED:
            self._close(self.frames.close_reason or CloseReason.CLIENT)
        elif not self._watch.reading:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._close(CloseReason.RESET)
            else:
                self._watch.set(self, reading=True)

    def _fail(self, error: Exception) -> None:
        """Closes at once, for a step of ours raised this."""
        try:
            self._close(CloseReason.FAILED)
        finally:
            self._owner.failed(self, error)

    def _close(self, reason: CloseReason) -> None:
        if self._closed:
            return
        self.frames.discard()
        self._watch.set(self)  # before the rest: while it fails, the loop comes back
        self._closed = True
        self._timer.cancel()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._sock.close()
        try:
            if self._caller is not None:
                self._caller.close()
        finally:
            self._owner.closed(self, reason)

    # One timer a connection, which looks when it fires how much time is really left: no
    # request ever touches it.

    @_guarded
    def _check(self) -> None:
        if self._awaiting_header and self._lacks_header and self._linger is None:
            self._finish()  # no header came
            return
        self._note_requests()
        left, reason = self._time_left()
        if left <= 0:
            self._look()
            if self._closed:
                return
            left, reason = self._time_left()
        if left > 0:
            self._rearm(left)
        elif reason is CloseReason.IDLE and self.frames.knows_shutdown and not self._draining:
            self.drain(reason)  # so that a request which crosses it is known not to be executed
        else:
            self._close(reason)

    def _time_left(self) -> tuple[float, CloseReason]:
        return deadlines.time_left(
            self.frames, self._owner.idle_timeout, self._linger, reading=self._watch.reading
        )

    def _look(self) -> None:
        """Catches up with the socket: the loop may have stood still for longer than a time-out."""
        if self.frames.status & HAS_UNSENT:
            self._stream.flush(self._fd)
        elif self._watch.reading:
            self._stream.receive(self._fd)
        self._advance()

    def _rearm(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._check)
