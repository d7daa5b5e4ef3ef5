"""The way to a server, as both clients know it from one connection to the next.

Imports no asyncio, so that the blocking client starts quickly.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from iproto._fastframe import ClientFrames
from iproto.errors import (
    CallTimeoutError,
    ClientClosedError,
    ConnectError,
    ConnectionLostError,
    DialectError,
    Error,
    IprotoError,
    ProtocolError,
)
from iproto.wire import Dialect

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto.client.url import Target

# Seconds between failed attempts to connect: long enough not to hammer a server
# that is starting, short enough to find it soon after.
_BACKOFF_FIRST = 0.05
_BACKOFF_LAST = 5.0


class _Socket(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


class Backoff:
    """How long to wait before the next attempt to connect.

    50 ms after the first failure, twice as long after each further one, up to
    5 s; of that 50..100 %, at random, lest all clients come back at once.

    Args:
        clock: seconds, monotonic.
        random: 0..1.
    """

    def __init__(
        self,
        clock: Callable[[], float] = monotonic,
        random: Callable[[], float] = lambda: int.from_bytes(os.urandom(2), "little") / 65535,
    ) -> None:
        self._clock = clock
        self._random = random
        self._failures = 0
        self._next_at = 0.0
        self.reason: str | None = None
        """Why the last attempt failed."""

    def failed(self, reason: str) -> None:
        """An attempt failed; the next one has to wait."""
        # The exponent is bounded: 2 ** 1100 is no float.
        longest = min(_BACKOFF_FIRST * 2.0 ** min(self._failures, 16), _BACKOFF_LAST)
        self._failures += 1
        self._next_at = self._clock() + longest * (0.5 + 0.5 * self._random())
        self.reason = reason

    def succeeded(self) -> None:
        """The server answered: the next attempt need not wait."""
        self._failures = 0
        self._next_at = 0.0
        self.reason = None

    def delay(self) -> float:
        """Seconds until the next attempt may begin."""
        return max(0.0, self._next_at - self._clock())


class Route:
    """A server, its dialect, and how attempts to reach it went.

    Args:
        target: the server.
        max_body: bytes of the longest reply body taken.
    """

    def __init__(self, target: Target, max_body: int) -> None:
        self.target = target
        self.dialect = target.dialect
        """The server's; AUTO while it is not known."""
        self.backoff = Backoff()
        self._max_body = max_body

    def new_frames(self) -> ClientFrames:
        """The codec of a new connection."""
        mailru = None if self.dialect is Dialect.AUTO else self.dialect is Dialect.MAILRU
        return ClientFrames(mailru=mailru, max_body=self._max_body)

    def tune(self, sock: _Socket) -> None:
        """Small frames leave at once, and a peer that vanished is noticed when idle."""
        if self.target.path is None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def probed(self, frames: ClientFrames, error: BaseException | None) -> None:
        """The read that finds the dialect was answered, or failed.

        Args:
            frames: the codec that it went through.
            error: what the read raised; a return code tells as much as a string.
        """
        if isinstance(error, ConnectionLostError):
            raise ConnectionError(error.args[0])  # of the attempt, not of anybody's call
        if error is not None and not isinstance(error, Error):
            raise error
        self.dialect = Dialect.MAILRU if frames.mailru else Dialect.VK

    def failed(self, error: Exception) -> Callable[[], IprotoError]:
        """An attempt failed; makes the error for each who waited for it."""
        reason = reason_of(error)
        self.backoff.failed(reason)
        if isinstance(error, (ProtocolError, ClientClosedError)):
            return partial(lost_error, error, False)
        return partial(ConnectError, f"cannot connect to {self.target.address}: {reason}")

    def ended(self, reason: str | IprotoError, *, heard: bool) -> None:
        """A connection ended that calls had used, or could have.

        Args:
            reason: why.
            heard: whether the server ever said something on it.
        """
        if isinstance(reason, DialectError):
            self.dialect = self.target.dialect  # the server has changed; find out anew
        elif not heard:
            # Accepted and then nothing: to be spaced as a failed attempt is.
            self.backoff.failed(str(reason))


# What to tell a caller. A new exception for each: one that is raised in many
# places at once would collect the tracebacks of all.


def reason_of(error: BaseException) -> str:
    """Why the system refused, without the noise around it."""
    if isinstance(error, OSError):
        if not isinstance(error, socket.gaierror) and error.errno and error.errno > 0:
            return os.strerror(error.errno)  # asyncio has its own sentence in error.strerror
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__


def unconnected_timeout(route: Route, seconds: float) -> CallTimeoutError:
    """For a call whose deadline came before a connection that could take it."""
    last = f" (last failure: {route.backoff.reason})" if route.backoff.reason else ""
    return CallTimeoutError(
        f"no connection to {route.target.address} that takes requests within {seconds:g} s{last}",
        may_have_executed=False,
    )


def reply_timeout(
    target: Target, seconds: float, *, dropped: bool, missing: int
) -> CallTimeoutError:
    """For a call whose deadline came before its reply.

    Args:
        target: the server.
        seconds: the call's time-out.
        dropped: whether the connection was given up for its silence.
        missing: bytes that a reply still lacks.
    """
    more = ", nor any other byte: the connection is dropped" if dropped else ""
    if missing == 4:  # by which the dialects differ; of users' functions nothing else tells
        more = (
            ": one came, but 4 bytes short of its body_length; "
            "if the server speaks dialect=mailru, tell the client so"
        )
    return CallTimeoutError(
        f"no reply from {target.address} within {seconds:g} s{more}", may_have_executed=True
    )


def silent_reason(target: Target, seconds: float) -> str:
    """Why a connection is dropped whose peer says nothing at all."""
    return f"the connection to {target.address} was dropped: no byte came for {seconds:g} s"


def lost_reason(target: Target, error: BaseException | None) -> str:
    """Why a connection ended that the client wanted to keep."""
    if error is None:
        return f"{target.address} closed the connection"
    return f"the connection to {target.address} was lost: {reason_of(error)}"


def closed_error(*, may_have_executed: bool) -> ClientClosedError:
    """For a call on a client that was closed before or meanwhile."""
    return ClientClosedError("the client is closed", may_have_executed=may_have_executed)


def lost_error(reason: str | IprotoError, may_have_executed: bool) -> IprotoError:
    """For a call in flight on a connection that ended.

    Args:
        reason: a text, or the error that made the client end the connection.
        may_have_executed: whether the request had left.
    """
    if isinstance(reason, ProtocolError):
        return type(reason)(*reason.args, may_have_executed=may_have_executed)
    if isinstance(reason, ClientClosedError):
        return closed_error(may_have_executed=may_have_executed)
    return ConnectionLostError(str(reason), may_have_executed=may_have_executed)


def ended_error(reason: str | IprotoError) -> Exception:
    """For the attempt to connect whose connection ended before it was of use."""
    return ConnectionError(reason) if isinstance(reason, str) else lost_error(reason, False)


def unusable_error(target: Target, reason: str | IprotoError) -> IprotoError:
    """For a call whose connection was made, and ended before the call was added to it."""
    if isinstance(reason, str):
        return ConnectError(f"cannot connect to {target.address}: {reason}")
    return lost_error(reason, False)
