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
import select
import socket
import struct
import termios
from typing import TYPE_CHECKING, Protocol

from iproto._fastframe import (
    HAS_CALLS,
    HAS_ENDED,
    HAS_MORE,
    HAS_UNSENT,
    IS_BROKEN,
    IS_CLOSING,
    IS_FULL,
    ServerFrames,
)
from iproto.wire import CloseReason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from iproto.server.calls import Calls, Reply

# Seconds that a finished connection waits for the client's own close. A client
# that is there answers a close within a round trip.
LINGER = 2.0

# Seconds between the looks at a connection that lingers while the server drains.
LINGER_LOOK = 0.05


class Owner(Protocol):
    """What a connection needs of its server."""

    idle_timeout: float

    def closed(self, connection: Connection, reason: CloseReason) -> None: ...


class Connection:
    """One connection of the server.

    Args:
        owner: the server; hears when the connection is closed.
        sock: accepted, non-blocking; closed by the connection.
        frames: the connection's own, fresh.
        make_calls: makes the runner of users' calls, given where replies go;
            None if the frames know no functions of users' own.
        loop: the running loop.
    """

    __slots__ = (
        "_calls",
        "_closed",
        "_continuing",
        "_draining",
        "_fd",
        "_finishing",
        "_flushing",
        "_frames",
        "_linger_until",
        "_loop",
        "_make_calls",
        "_owner",
        "_reading",
        "_reason",
        "_sock",
        "_timer",
        "_unacknowledged",
        "_writing",
    )

    def __init__(
        self,
        owner: Owner,
        sock: socket.socket,
        frames: ServerFrames,
        make_calls: Callable[[Reply], Calls] | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # For the whole life of the connection.
        self._owner = owner
        self._sock = sock
        self._fd = sock.fileno()
        self._frames = frames
        self._make_calls = make_calls
        self._calls: Calls | None = None  # made for the first call: most connections have none
        self._loop = loop
        # What the loop does for us.
        self._reading = False
        self._writing = False
        self._continuing = False  # _continue() is scheduled
        self._flushing = False  # _flush_turn() is scheduled
        self._timer = loop.call_later(owner.idle_timeout, self._check)
        # The end.
        self._draining = False
        self._reason: CloseReason | None = None
        self._finishing = False
        self._linger_until = 0.0  # on the loop's clock
        self._unacknowledged = 0  # bytes of the last replies, when last looked at
        self._closed = False
        self._watch(reading=True)

    # What the loop says.

    def _on_readable(self) -> None:
        if self._frames.receive(self._fd):
            self._advance()

    def _on_writable(self) -> None:
        self._frames.flush(self._fd)
        self._advance()

    # What the server says.

    def drain(self) -> None:
        """Answers every request that has arrived, then closes.

        What has arrived: all that lies in the socket's buffer now. What comes
        later is not executed.
        """
        if not (self._draining or self._closed):
            self._draining = True
            self._frames.drain(_unread_bytes(self._fd))
            if self._finishing:
                self._rearm(LINGER_LOOK)
            self._advance()

    @property
    def fileno(self) -> int:
        """The socket's number, which the log calls the connection by."""
        return self._fd

    @property
    def is_flushed(self) -> bool:
        """Whether every reply has been taken, and only the client's own close is missing."""
        return (
            self._finishing
            and not self._frames.status & HAS_UNSENT
            and _unacknowledged_bytes(self._fd) == 0
        )

    def abort(self) -> None:
        """Closes at once; what was not sent is lost."""
        self._close(CloseReason.FORCED)

    # The one place that decides how to go on.

    def _advance(self) -> None:
        frames = self._frames
        if self._closed:
            return
        if frames.status & HAS_CALLS:
            self._start_calls()
        status = frames.status
        if status & IS_BROKEN:
            self._close(CloseReason.RESET)
        elif status & HAS_UNSENT:
            # The client must read before anything more is done for it.
            self._watch(writing=True)
        elif self._finishing:
            self._linger()
        elif status & HAS_MORE:
            self._watch()
            if not status & IS_FULL:
                self._continue_soon()
        elif status & (IS_CLOSING | HAS_ENDED) and frames.running == 0:
            self._finish()
        else:
            self._watch(reading=not status & HAS_ENDED)

    def _continue_soon(self) -> None:
        """Goes on in the next turn of the loop: other connections come first."""
        if not self._continuing:
            self._continuing = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._continuing = False
        if not (self._closed or self._frames.status & HAS_UNSENT):
            self._frames.resume(self._fd)
            self._advance()

    def _finish(self) -> None:
        """Everything is answered: sends the last bytes, then closes the write side."""
        self._finishing = True
        self._watch()
        self._frames.finish()
        self._frames.flush(self._fd)
        self._frames.close(CloseReason.CLIENT)  # unless it knows another reason
        self._linger_until = self._loop.time() + LINGER
        self._unacknowledged = _unacknowledged_bytes(self._fd)
        self._rearm(LINGER_LOOK if self._draining or self._unacknowledged else LINGER)
        self._advance()

    def _linger(self) -> None:
        """Everything is sent; waits for the client to end its side too."""
        if self._frames.status & HAS_ENDED:
            self._close(self._frames.close_reason or CloseReason.CLIENT)
        elif not self._reading:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._close(CloseReason.RESET)
            else:
                self._watch(reading=True)

    def _close(self, reason: CloseReason) -> None:
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._watch()
        self._sock.close()
        if self._calls is not None:
            self._calls.cancel()
        self._owner.closed(self, reason)

    # Users' calls.

    def _start_calls(self) -> None:
        if self._calls is None:
            assert self._make_calls is not None, "frames without functions have no calls"
            self._calls = self._make_calls(self._reply)
        for call in self._frames.take_calls():
            self._calls.start(*call)

    def _reply(self, func_id: int, request_id: int, code: int, body: bytes, arrived: int) -> None:
        """Takes the answer of a user's call; those of one turn leave together."""
        self._frames.reply(func_id, request_id, code, body, arrived)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._flushing = False
        if not self._closed:
            self._frames.flush(self._fd)
            self._advance()

    # What the loop watches.

    def _watch(self, *, reading: bool = False, writing: bool = False) -> None:
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._frames.touch()
                self._loop.add_reader(self._fd, self._on_readable)
            else:
                self._loop.remove_reader(self._fd)
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._fd, self._on_writable)
            else:
                self._loop.remove_writer(self._fd)

    # Time. One timer a connection, which looks when it fires how much time is
    # really left: no request ever touches it.

    def _check(self) -> None:
        left, reason = self._time_left()
        if left > 0:
            self._rearm(left)
        else:
            self._close(reason)

    def _time_left(self) -> tuple[float, CloseReason]:
        """Seconds until the connection is overdue, and what it then is."""
        frames = self._frames
        allowed = self._owner.idle_timeout
        left = allowed - frames.quiet_seconds()
        if frames.status & HAS_UNSENT:
            return left, CloseReason.SLOW_READER
        if self._finishing:
            return self._linger_left(), frames.close_reason or CloseReason.CLIENT
        if frames.running:
            # It is the client that waits; but while nothing is read of it, nothing
            # else tells that it is gone.
            gone = not self._reading and _is_broken(self._fd)
            return (0.0, CloseReason.RESET) if gone else (allowed, CloseReason.IDLE)
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


def _is_broken(fd: int) -> bool:
    """Whether a connection was reset, or both its sides are closed."""
    poll = select.poll()
    poll.register(fd, 0)  # errors and hang-ups are always told
    return bool(poll.poll(0))


def _ask_socket(fd: int, question: int) -> int:
    buffer = fcntl.ioctl(fd, question, b"\0\0\0\0")
    return int(struct.unpack("i", buffer)[0])
