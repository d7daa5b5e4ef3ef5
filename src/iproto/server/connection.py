"""One connection of the server: bytes in, bytes out, backpressure.

No policy: what a frame means is the extension's, what a user's function does is
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

import fcntl
import functools
import socket
import struct
import termios
from typing import TYPE_CHECKING, Protocol

from iproto._fastframe import (
    HAS_CALLS,
    HAS_ENDED,
    HAS_MORE,
    HAS_OVERFLOWED,
    HAS_UNSENT,
    IS_BROKEN,
    IS_CLOSING,
    IS_FULL,
    ServerFrames,
)
from iproto.wire import HEADER_BYTES, CloseReason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    from iproto._fastframe import Call
    from iproto.server.calls import CallTasks
    from iproto.server.hangups import Hangups

# Seconds that a finished connection waits for the client's own close. A client
# that is there answers a close within a round trip.
LINGER = 2.0

# Seconds that a drain waits for the first header of a connection that has brought none:
# by it the client tells whether it understands an announced end. A client that has just
# connected sends one within a round trip; one that is silent does not hold up a restart.
HEADER_WAIT = 0.5

# Seconds between the looks at a connection that lingers while the server drains.
LINGER_LOOK = 0.05


class Owner(Protocol):
    """What a connection needs of its server."""

    idle_timeout: float

    def closed(self, connection: Connection, reason: CloseReason) -> None: ...
    def failed(self, connection: Connection, error: Exception) -> None: ...


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
        owner: the server; hears when the connection is closed.
        sock: accepted, non-blocking; closed by the connection.
        frames: the connection's own, fresh.
        call_tasks: runs calls of user functions; None if the frames know none.
        hangups: tells of a reset while the socket is neither read nor written.
        loop: the running loop.
    """

    __slots__ = (
        "_call_tasks",
        "_closed",
        "_continuing",
        "_draining",
        "_fd",
        "_finishing",
        "_flushing",
        "_hangups",
        "_linger_until",
        "_loop",
        "_owner",
        "_queue_timer",
        "_reading",
        "_reason",
        "_sock",
        "_starting",
        "_timer",
        "_unacknowledged",
        "_watching_hangup",
        "_writing",
        "frames",
        "tasks",
    )

    def __init__(
        self,
        owner: Owner,
        sock: socket.socket,
        frames: ServerFrames,
        call_tasks: CallTasks | None,
        hangups: Hangups,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # For the whole life of the connection.
        self._owner = owner
        self._sock = sock
        self._fd = sock.fileno()
        self.frames = frames
        self._call_tasks = call_tasks
        self._hangups = hangups
        self._loop = loop
        # Calls of user functions that run as tasks.
        self.tasks: dict[Call, asyncio.Task[None]] = {}
        self._starting = False  # start_calls() is at work
        self._queue_timer: asyncio.TimerHandle | None = None
        # What the loop does for us.
        self._reading = False
        self._writing = False
        self._watching_hangup = False
        self._continuing = False  # _continue() is scheduled
        self._flushing = False  # _flush_turn() is scheduled
        self._timer = loop.call_later(owner.idle_timeout, self._check)
        # The end.
        self._draining = False
        self._reason: CloseReason | None = None
        self._finishing = False
        self._linger_until = 0.0  # on the loop's clock; see also _wait_for_header
        self._unacknowledged = 0  # bytes of the last replies, when last looked at
        self._closed = False
        try:
            self._watch(reading=True)
        except BaseException:
            self._timer.cancel()  # which would close what was never open
            raise

    # What the loop says.

    def _on_readable(self) -> None:
        try:  # not @_guarded: each request comes by here
            if self.frames.receive(self._fd):
                self._advance()
        except Exception as error:
            self._fail(error)

    @_guarded
    def _on_hangup(self) -> None:
        """The socket was reset while nothing of it was read."""
        self._close(CloseReason.RESET)

    @_guarded
    def _on_writable(self) -> None:
        self.frames.flush(self._fd)
        self._advance()

    # What the server says.

    @_guarded
    def drain(self) -> None:
        """Answers every request that has arrived, then closes.

        What has arrived: all that lies in the socket's buffer now. What comes
        later is not executed.
        """
        if not (self._draining or self._closed):
            self._draining = True
            self.frames.drain(_unread_bytes(self._fd))
            if self._finishing:
                self._rearm(LINGER_LOOK)
            self._advance()

    @property
    def fileno(self) -> int:
        """The socket's number, which the log calls the connection by."""
        return self._fd

    @property
    def is_flushed(self) -> bool:
        """Whether every reply has been taken, and nothing but the client is waited for."""
        return (
            (self._finishing or (self._draining and self.frames.received < HEADER_BYTES))
            and not self.frames.status & HAS_UNSENT
            and _unacknowledged_bytes(self._fd) == 0
        )

    def forget(self) -> None:
        """In a child process: the connection is the parent's, and nothing is done here."""
        self._closed = True

    def abort(self) -> None:
        """Closes at once; what was not sent is lost."""
        self._close(CloseReason.FORCED)

    # The one place that decides how to go on.

    def _advance(self) -> None:
        frames = self.frames
        if self._closed:
            return
        if frames.status & HAS_CALLS:
            self._start_calls()
            if self._closed:  # by a function that ran
                return
        status = frames.status
        if status & (IS_BROKEN | HAS_OVERFLOWED):
            reason = CloseReason.RESET if status & IS_BROKEN else CloseReason.SLOW_READER
            self._close(CloseReason.FAILED if frames.close_reason is CloseReason.FAILED else reason)
        elif status & HAS_UNSENT:
            # The client must read before anything more is done for it.
            self._watch(writing=True)
        elif self._finishing:
            self._linger()
        elif status & HAS_CALLS or (status & HAS_MORE and not status & IS_FULL):
            self._watch()
            self._continue_soon()
        elif status & HAS_MORE:
            self._watch(hangup=True)  # until a call of the full queue has started
        elif status & (IS_CLOSING | HAS_ENDED) and frames.unanswered == 0:
            if self._draining and not status & HAS_ENDED and frames.received < HEADER_BYTES:
                self._wait_for_header()
            else:
                self._finish()
        elif status & (IS_CLOSING | HAS_ENDED):
            self._watch(reading=not status & HAS_ENDED, hangup=bool(status & HAS_ENDED))
        else:
            self._watch(reading=True)

    def _continue_soon(self) -> None:
        """Goes on in the next turn of the loop: other connections come first."""
        if not self._continuing:
            self._continuing = True
            self._loop.call_soon(self._continue)

    @_guarded
    def _continue(self) -> None:
        self._continuing = False
        if not (self._closed or self.frames.status & HAS_UNSENT):
            if self.frames.status & HAS_MORE and not self.frames.status & IS_FULL:
                self.frames.resume(self._fd)
            self._advance()

    def _wait_for_header(self) -> None:
        """Drained, and the client has not told yet whether it understands an announced end."""
        if not self._linger_until:
            self._linger_until = self._loop.time() + HEADER_WAIT
            self._rearm(HEADER_WAIT)
        self._watch(reading=True)

    def _finish(self) -> None:
        """Everything is answered: sends the last bytes, then closes the write side."""
        self._finishing = True
        self._watch()
        self.frames.finish()
        self.frames.flush(self._fd)
        self.frames.close(CloseReason.CLIENT)  # unless it knows another reason
        self._linger_until = self._loop.time() + LINGER
        self._unacknowledged = _unacknowledged_bytes(self._fd)
        self._rearm(LINGER_LOOK if self._draining or self._unacknowledged else LINGER)
        self._advance()

    def _linger(self) -> None:
        """Everything is sent; waits for the client to end its side too."""
        if self.frames.status & HAS_ENDED:
            self._close(self.frames.close_reason or CloseReason.CLIENT)
        elif not self._reading:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._close(CloseReason.RESET)
            else:
                self._watch(reading=True)

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
        self._watch()  # before the rest: while it fails, the loop comes back
        self._closed = True
        self._timer.cancel()
        if self._queue_timer is not None:
            self._queue_timer.cancel()
            self._queue_timer = None
        self._sock.close()
        try:
            if self._call_tasks is not None:
                self._call_tasks.cancel(self)
        finally:
            self._owner.closed(self, reason)

    # Calls of user functions.

    def _start_calls(self) -> None:
        """Starts calls that wait; those that must wait on are looked at when they are overdue."""
        self._starting = True
        try:
            self.frames.start_calls(self._start_task)
        finally:
            self._starting = False
        if not self._closed:
            self.frames.flush(self._fd)
            self._expire_calls()

    def _start_task(self, call: Call, arguments: tuple[Any, ...]) -> None:
        assert self._call_tasks is not None, "frames without functions have no calls"
        self._call_tasks.start(self, call, arguments)

    def _expire_calls(self) -> None:
        """Answers calls that waited too long; looks again when the next one will have."""
        if self._queue_timer is not None:
            self._queue_timer.cancel()
            self._queue_timer = None
        left = self.frames.expire_calls()
        if left:
            self._queue_timer = self._loop.call_later(left, self._on_overdue)

    @_guarded
    def _on_overdue(self) -> None:
        self._expire_calls()
        self.flush_soon(now=False)

    def flush_soon(self, *, now: bool) -> None:
        """An answer waits to be sent: those of one turn leave together.

        Args:
            now: whether so much waits that the turn's end is too late.
        """
        if self._closed or self._starting:
            return
        if now:
            self.frames.flush(self._fd)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_turn)

    @_guarded
    def _flush_turn(self) -> None:
        self._flushing = False
        if not self._closed:
            self.frames.flush(self._fd)
            self._advance()

    # What the loop watches.

    def _watch(self, *, reading: bool = False, writing: bool = False, hangup: bool = False) -> None:
        if hangup != self._watching_hangup:
            self._watching_hangup = hangup
            if hangup:
                self._hangups.watch(self._fd, self._on_hangup)
            else:
                self._hangups.unwatch(self._fd)
        if reading != self._reading:
            # Each is noted so that a failure leaves it to be removed.
            if reading:
                self._reading = True
                self.frames.touch()
                self._loop.add_reader(self._fd, self._on_readable)
            else:
                self._loop.remove_reader(self._fd)
                self._reading = False
        if writing != self._writing:
            if writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._on_writable)
            else:
                self._loop.remove_writer(self._fd)
                self._writing = False

    # Time. One timer a connection, which looks when it fires how much time is
    # really left: no request ever touches it.

    @_guarded
    def _check(self) -> None:
        if self._linger_until and not self._finishing:
            self._finish()  # no header came
            return
        left, reason = self._time_left()
        if left > 0:
            self._rearm(left)
        else:
            self._close(reason)

    def _time_left(self) -> tuple[float, CloseReason]:
        """Seconds until the connection is overdue, and what it then is."""
        frames = self.frames
        allowed = self._owner.idle_timeout
        left = allowed - frames.quiet_seconds()
        if frames.status & HAS_UNSENT:
            return left, CloseReason.SLOW_READER
        if self._finishing:
            return self._linger_left(), frames.close_reason or CloseReason.CLIENT
        if frames.unanswered:
            return allowed, CloseReason.IDLE  # it is the client that waits
        partial = frames.partial_seconds()
        if partial and self._reading:
            return allowed - partial, CloseReason.INCOMPLETE_FRAME
        return left, CloseReason.IDLE

    def _linger_left(self) -> float:
        """Seconds to wait for the client's own close.

        None is over while the client's system takes what is left of the
        replies, for closing could reset the connection and destroy them. While
        the server drains, none is left once the last byte is acknowledged: a
        client that is idle may not look at its socket for hours.
        """
        now = self._loop.time()
        waiting = _unacknowledged_bytes(self._fd)
        if waiting < self._unacknowledged:
            self._linger_until = now + LINGER
        self._unacknowledged = waiting
        if waiting == 0 and self._draining:
            return 0.0
        left = self._linger_until - now
        return min(LINGER_LOOK, left) if self._draining or waiting else left

    def _rearm(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._check)


def _unread_bytes(fd: int) -> int:
    """What the system has received for a socket and we have not read."""
    return _ask_socket(fd, termios.FIONREAD)


def _unacknowledged_bytes(fd: int) -> int:
    """What the system still has to deliver; 0 where it does not tell (macOS)."""
    try:
        return _ask_socket(fd, termios.TIOCOUTQ)
    except OSError:
        return 0


def _ask_socket(fd: int, question: int) -> int:
    buffer = fcntl.ioctl(fd, question, b"\0\0\0\0")
    return int(struct.unpack("i", buffer)[0])
