"""How long a connection may do nothing, and how long it waits for the client's own end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iproto._fastframe import HAS_UNSENT, IS_PAUSED
from iproto.sockets import unacknowledged_bytes
from iproto.wire import CloseReason

if TYPE_CHECKING:
    import asyncio

    from iproto._fastframe import ServerFrames

# Seconds that a finished connection waits for the client's own close. A client
# that is there answers a close within a round trip.
LINGER = 2.0

# Seconds that a drain waits for the first header of a connection that has brought none:
# that shows whether the client understands an announced end. A client that has just
# connected sends one within a round trip; one that is silent does not hold up a restart.
HEADER_WAIT = 0.5

# Seconds for which a connection over its client's rate is not read, at least: a client may
# have very many, and each would wake for the same next request.
SHORTEST_PAUSE = 0.05

# Seconds between the looks at a connection that lingers while the server drains.
LINGER_LOOK = 0.05


class Linger:
    """The wait for the client's own end, once every reply is on its way.

    Args:
        fd: the socket.
        loop: the running loop.
        draining: whether the server drains.
    """

    __slots__ = ("_draining", "_fd", "_loop", "_unacknowledged", "_until")

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, *, draining: bool) -> None:
        self._fd = fd
        self._loop = loop
        self._draining = draining
        self._until = 0.0  # on the loop's clock
        self._unacknowledged = 0  # bytes of the last replies, when last looked at

    def start(self) -> float:
        """The wait begins; returns the seconds until the first look."""
        self._until = self._loop.time() + LINGER
        self._unacknowledged = unacknowledged_bytes(self._fd)
        return LINGER_LOOK if self._draining or self._unacknowledged else LINGER

    def drain(self) -> None:
        """The server drains now."""
        self._draining = True

    def left(self) -> float:
        """Seconds to wait on, or until the next look.

        None is over while the client's system takes what is left of the
        replies, for closing could reset the connection and destroy them. While
        the server drains, none is left once the last byte is acknowledged: a
        client that is idle may not look at its socket for hours.
        """
        now = self._loop.time()
        waiting = unacknowledged_bytes(self._fd)
        if waiting < self._unacknowledged:
            self._until = now + LINGER
        self._unacknowledged = waiting
        if waiting == 0 and self._draining:
            return 0.0
        left = self._until - now
        return min(LINGER_LOOK, left) if self._draining or waiting else left


def time_left(
    frames: ServerFrames, allowed: float, linger: Linger | None, *, reading: bool
) -> tuple[float, CloseReason]:
    """Seconds until a connection is overdue, and what it then is.

    Args:
        frames: the connection's.
        allowed: seconds that it may be idle.
        linger: its wait for the client's end, if it is at that.
        reading: whether its socket is read at all.
    """
    left = allowed - frames.quiet_seconds()
    if frames.status & HAS_UNSENT:
        return left, CloseReason.SLOW_READER
    if linger is not None:
        return linger.left(), frames.close_reason or CloseReason.CLIENT
    if frames.unanswered or frames.status & IS_PAUSED:
        return allowed, CloseReason.IDLE  # it is the client that waits
    partial = frames.partial_seconds()
    if partial and reading:
        return allowed - partial, CloseReason.INCOMPLETE_FRAME
    return left, CloseReason.IDLE
