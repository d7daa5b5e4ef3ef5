"""One connection of the server: bytes in, bytes out, backpressure.

No policy: what a frame means is the extension's, what a user's function does is
app.py's, when the server drains is server.py's.

The story of a connection: it is *open*; then something ends it (the client's
half-close, SHUTDOWN, a body over the limit, a drain) and no further frame is
looked at; when the last call is answered it is *finishing*: its write side is
closed behind the last reply, and what the client still sends is read and
dropped, for closing a socket with unread bytes resets it, and a reset can
destroy replies that the client has not read yet; then it is closed.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import TYPE_CHECKING, Protocol, cast

from iproto._fastframe import HAS_CALLS, HAS_MORE, IS_CLOSING, IS_FULL, ServerFrames
from iproto.wire import CloseReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto.app import Calls, Reply

# Bytes of replies that may wait in the transport before reading stops: as much
# as one call of the extension builds, so that one full answer never blocks.
HIGH_WATER = 256 * 1024

# Seconds that a finished connection waits for the client's own close. A client
# that is there answers a close within a round trip.
LINGER = 2.0


class Owner(Protocol):
    """What a connection needs of its server."""

    idle_timeout: float

    def opened(self, connection: ServerProtocol) -> None: ...
    def closed(self, connection: ServerProtocol, reason: CloseReason) -> None: ...


class ServerProtocol(asyncio.Protocol):
    """One connection.

    Args:
        owner: the server.
        frames: the connection's own, fresh.
        make_calls: makes the runner of users' calls, given where replies go;
            None if the frames know no functions of users' own.
        loop: the running loop.
    """

    __slots__ = (
        "_calls",
        "_continuing",
        "_drain_left",
        "_eof",
        "_finishing",
        "_frames",
        "_loop",
        "_make_calls",
        "_outbox",
        "_owner",
        "_reading_paused",
        "_reason",
        "_timer",
        "_transport",
        "_unsent",
        "_write_paused",
    )

    def __init__(
        self,
        owner: Owner,
        frames: ServerFrames,
        make_calls: Callable[[Reply], Calls] | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # For the whole life of the connection.
        self._owner = owner
        self._frames = frames
        self._make_calls = make_calls
        self._calls: Calls | None = None  # made for the first call: most connections have none
        self._loop = loop
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        # Flow control.
        self._reading_paused = False
        self._write_paused = False
        self._continuing = False  # _continue() is scheduled
        self._outbox: list[bytes] = []  # replies of users' calls, until the turn's end
        self._unsent = 0  # bytes in the transport when _check last looked
        # The end.
        self._eof = False
        self._drain_left: int | None = None  # bytes to read before a drain is done
        self._finishing = False
        self._reason: CloseReason | None = None

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self._timer = self._loop.call_later(self._owner.idle_timeout, self._check)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        frames = self._frames
        replies = frames.feed(data)
        if replies is not None:
            self._transport.write(replies)
        if frames.status or self._drain_left is not None:
            if self._drain_left is not None:
                self._drain_left -= len(data)
            self._advance()

    def eof_received(self) -> bool:
        self._eof = True
        self._advance()
        # The write side stays open until everything is answered; when it is
        # closed already, nothing is left to do.
        return not self._finishing

    def pause_writing(self) -> None:
        self._write_paused = True
        self._pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._frames.touch()
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._frames.close(CloseReason.CLIENT)
        self._finishing = True
        self._outbox.clear()
        if self._calls is not None:
            self._calls.cancel()
        if self._reason is None:
            self._reason = CloseReason.CLIENT if exc is None else CloseReason.RESET
        self._owner.closed(self, self._reason)

    # What the server says.

    def drain(self) -> None:
        """Answers every request that has arrived, then closes.

        What has arrived: all that lies in the socket's buffer now. What comes
        later is not executed.
        """
        if self._drain_left is None:
            self._drain_left = _unread_bytes(self._transport)
            self._advance()

    def abort(self) -> None:
        """Closes at once; what was not sent is lost."""
        self._end(CloseReason.FORCED)
        self._transport.abort()

    # The one place that decides how to go on.

    def _advance(self) -> None:
        frames = self._frames
        if frames.status & HAS_CALLS:
            self._start_calls()
        if self._finishing:
            return
        if frames.status & HAS_MORE:
            self._pause_reading()
            if not frames.status & IS_FULL:
                self._continue_soon()
            return
        if frames.status & IS_CLOSING:
            self._end(frames.close_reason or CloseReason.CLIENT)
        elif self._eof:
            self._end(CloseReason.CLIENT)
        elif self._drain_left is not None and self._drain_left <= 0:
            self._end(CloseReason.DRAIN)
        if self._reason is not None and frames.running == 0:
            self._finish()
        elif not self._write_paused:
            self._resume_reading()

    def _start_calls(self) -> None:
        if self._calls is None:
            assert self._make_calls is not None, "frames without functions have no calls"
            self._calls = self._make_calls(self.reply)
        for call in self._frames.take_calls():
            self._calls.start(*call)

    def _continue_soon(self) -> None:
        """Goes on in the next turn of the loop: other connections come first."""
        if not (self._continuing or self._write_paused):
            self._continuing = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._continuing = False
        if self._write_paused or self._finishing:
            return
        replies = self._frames.resume()
        if replies is not None:
            self._transport.write(replies)
        self._advance()

    def _end(self, reason: CloseReason) -> None:
        """No frame after this is executed; the first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._frames.close(reason)

    def _finish(self) -> None:
        """Everything is answered: sends the last bytes and closes the write side."""
        self._flush()
        self._finishing = True
        if self._frames.farewell:
            self._transport.write(self._frames.farewell)
        if self._eof or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        self._resume_reading()
        self._rearm(LINGER)

    # Replies of users' calls.

    def reply(self, func_id: int, request_id: int, code: int, body: bytes, arrived: int) -> None:
        """Takes the answer of a user's call; those of one turn leave in one write."""
        if not self._outbox:
            self._loop.call_soon(self._flush_turn)
        self._outbox.append(self._frames.reply(func_id, request_id, code, body, arrived))

    def _flush_turn(self) -> None:
        if self._outbox:
            self._flush()
            self._advance()

    def _flush(self) -> None:
        if self._outbox:
            self._transport.write(b"".join(self._outbox))
            self._outbox.clear()

    # Reading.

    def _pause_reading(self) -> None:
        if not (self._reading_paused or self._eof):
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self._eof:
            self._reading_paused = False
            self._frames.touch()
            self._transport.resume_reading()

    # Time. One timer a connection, which looks when it fires how much time is
    # really left: no request ever touches it.

    def _check(self) -> None:
        if self._finishing:
            self._check_linger()
            return
        left, reason = self._time_left()
        if left > 0:
            self._rearm(left)
            return
        self._end(reason)
        if self._unsent:
            self._transport.abort()  # close() would wait for the reader that does not read
        else:
            self._transport.close()

    def _time_left(self) -> tuple[float, CloseReason]:
        """Seconds until the connection is overdue, and what it then is."""
        allowed = self._owner.idle_timeout
        frames = self._frames
        if self._took_bytes():
            frames.touch()
        if frames.running:
            return allowed, CloseReason.IDLE  # It is the client that waits.
        left = allowed - frames.quiet_seconds()
        if self._unsent:
            return left, CloseReason.SLOW_READER
        partial = frames.partial_seconds()
        if partial and not self._reading_paused:
            return allowed - partial, CloseReason.INCOMPLETE_FRAME
        return left, CloseReason.IDLE

    def _check_linger(self) -> None:
        if self._took_bytes():
            self._frames.touch()
        if self._unsent and self._frames.quiet_seconds() < self._owner.idle_timeout:
            self._rearm(LINGER)
        else:
            self._transport.abort()

    def _took_bytes(self) -> bool:
        """Whether the client took replies since the last look."""
        unsent = self._transport.get_write_buffer_size()
        moved = unsent != self._unsent
        self._unsent = unsent
        return moved

    def _rearm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._check)


def _unread_bytes(transport: asyncio.Transport) -> int:
    """What the system has received for a socket and we have not read."""
    sock = transport.get_extra_info("socket")
    if sock is None or transport.is_closing():
        return 0
    buffer = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0")
    return int(struct.unpack("i", buffer)[0])
