"""The way to a server, as both clients know it from one connection to the next.

Imports no asyncio, so that the blocking client starts quickly.
"""

from __future__ import annotations

import os
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from iproto._fastframe import ClientFrames
from iproto.checks import MAX_UINT32, checked_limit
from iproto.client.link import LinkState
from iproto.client.reasons import lost_error, reason_of
from iproto.errors import (
    ClientClosedError,
    ConfigError,
    ConnectError,
    ConnectionLostError,
    DialectError,
    Error,
    IprotoError,
    ProtocolError,
)
from iproto.sockets import tune
from iproto.wire import Dialect

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from iproto.client.url import Target
    from iproto.tls import Session

# Seconds between failed attempts to connect: long enough not to hammer a server
# that is starting, short enough to find it soon after.
_BACKOFF_FIRST = 0.05
_BACKOFF_LAST = 5.0


class Backoff:
    """How long to wait before the next attempt to connect.

    50 ms after the first failure, twice as long after each further one, up to
    5 s; of that 50..100 %, at random, lest all clients come back at once.
    Attempts that several threads make side by side count as one.

    Args:
        clock: seconds, monotonic.
        random: 0..1.
    """

    def __init__(
        self,
        clock: Callable[[], float] = monotonic,
        random: Callable[[], float] = lambda: int.from_bytes(os.urandom(2), "little") / 65535,
    ) -> None:
        self.clock = clock
        self._random = random
        self._failures = 0
        self._failed_at = -inf
        self._next_at = 0.0
        self.reason: str | None = None
        """Why the last attempt failed."""

    def failed(self, reason: str, began: float = inf) -> None:
        """An attempt failed; the next one has to wait.

        Args:
            reason: why.
            began: when the attempt began, by the clock; one that began before the
                last failure does not make the wait longer.
        """
        self.reason = reason
        if began < self._failed_at:
            return
        # The exponent is bounded: 2 ** 1100 is no float.
        longest = min(_BACKOFF_FIRST * 2.0 ** min(self._failures, 16), _BACKOFF_LAST)
        self._failures += 1
        self._failed_at = self.clock()
        self._next_at = self._failed_at + longest * (0.5 + 0.5 * self._random())

    def succeeded(self) -> None:
        """The server answered: the next attempt need not wait."""
        self._failures = 0
        self._failed_at = -inf
        self._next_at = 0.0
        self.reason = None

    def delay(self) -> float:
        """Seconds until the next attempt may begin."""
        return max(0.0, self._next_at - self.clock())


class Route:
    """A server, its dialect, and how attempts to reach it went.

    Args:
        target: the server.
        max_body: bytes of the longest reply body taken, 1..2**32-1.
        max_request: bytes of the longest request body sent, 1..2**32-1.
        ssl_context: what TLS is to make sure of, in place of the target's files.

    Raises:
        ConfigError: a file of the target's cannot be used, or there is a context without TLS.
    """

    def __init__(
        self,
        target: Target,
        max_body: int,
        max_request: int,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.target = target
        self._ssl_context = _checked_context(target, ssl_context)
        self.dialect = target.dialect
        """The server's; AUTO while it is not known."""
        self.backoff = Backoff()
        self.failures = 0
        """Attempts that failed, less those that a call had no time for."""
        self.last_failure: Callable[[], IprotoError] | None = None
        """Makes the error of the last of them."""
        self._max_body = checked_limit("max_body", max_body, MAX_UINT32, "bytes")
        self._max_request = checked_limit("max_request", max_request, MAX_UINT32, "bytes")

    def new_session(self) -> Session | None:
        """TLS for a new connection; None if there is to be none."""
        if self._ssl_context is None:
            return None
        from iproto.tls import Session

        tls = self.target.tls
        name = self.target.host if tls is None or tls.server_name is None else tls.server_name
        return Session(self._ssl_context, server_name=name)

    def new_link(self) -> LinkState:
        """The state of a new connection."""
        return LinkState(self.new_frames(), self.target.address)

    def new_frames(self) -> ClientFrames:
        """A codec, of a new connection or to look at a call's arguments."""
        mailru = None if self.dialect is Dialect.AUTO else self.dialect is Dialect.MAILRU
        return ClientFrames(mailru=mailru, max_body=self._max_body, max_request=self._max_request)

    def tune(self, sock: socket.socket) -> None:
        """Sets a TCP connection up; see ``sockets.tune``."""
        if self.target.path is None:
            tune(sock)

    def probed(self, frames: ClientFrames, error: BaseException | None) -> None:
        """The read that finds the dialect was answered, or failed.

        Args:
            frames: the codec that it went through.
            error: what the read raised; a return code shows the dialect as well as a string.
        """
        if isinstance(error, ConnectionLostError):
            raise ConnectionError(error.args[0])  # of the attempt, not of anybody's call
        if error is not None and not isinstance(error, Error):
            raise error
        self.dialect = Dialect.MAILRU if frames.mailru else Dialect.VK

    def failed(self, error: Exception, began: float = inf) -> Callable[[], IprotoError]:
        """An attempt failed; makes the error for each call that waited for it.

        Args:
            error: why.
            began: when the attempt began, as in :meth:`Backoff.failed`.
        """
        reason = reason_of(error)
        self.backoff.failed(reason, began)
        self.failures += 1
        if isinstance(error, (ProtocolError, ClientClosedError)):
            make_error: Callable[[], IprotoError] = partial(lost_error, error, False)
        else:
            text = f"cannot connect to {self.target.address}: {reason}"
            make_error = partial(ConnectError, text)
        self.last_failure = make_error
        return make_error

    def ended(self, link: LinkState) -> None:
        """A connection ended that calls had used, or could have."""
        if isinstance(link.ended, DialectError):
            self.dialect = self.target.dialect  # the server has changed; find out anew
        elif not link.frames.answered:
            # Accepted and then no reply: to be spaced as a failed attempt is.
            self.backoff.failed(str(link.ended))


def _checked_context(target: Target, given: ssl.SSLContext | None) -> ssl.SSLContext | None:
    if target.tls is None:
        if given is not None:
            raise ConfigError(
                f"an ssl_context is for TLS; write iprotos:// in place of {target.url}"
            )
        return None
    if given is not None:
        return given
    from iproto.client.tls import new_context  # not at the top: OpenSSL is for those who use it

    return new_context(target.tls)
