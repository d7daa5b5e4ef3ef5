"""Connecting to a server that may have several addresses, some of them dead.

The next address is tried when the one before has failed, or has not answered for
STAGGER seconds; the first that answers is taken (RFC 8305, "happy eyeballs").
"""

from __future__ import annotations

import errno
import selectors
import socket
from itertools import chain, zip_longest
from os import strerror
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from iproto.client.route import Route
    from iproto.client.url import Target

    Place = tuple[Any, ...]
    """As ``getaddrinfo`` has it: family, type, protocol, name, address."""

# Seconds after which the next address is tried beside the ones before (RFC 8305).
STAGGER = 0.25


class DialError(Exception):
    """No address could be connected to; never leaves the client.

    Args:
        error: the system's error for the last one.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def interleaved(places: Iterable[Place]) -> list[Place]:
    """Addresses in their order, but of each family in turn: one that is dead costs one wait."""
    families: dict[int, list[Place]] = {}
    for place in places:
        families.setdefault(place[0], []).append(place)
    rounds = zip_longest(*families.values())
    return [place for place in chain.from_iterable(rounds) if place is not None]


def is_refusal(error: Exception) -> bool:
    """Whether the system refused, rather than a signal's handler raised while it was asked."""
    if isinstance(error, OSError):
        # The socket module's own ones, a path that is too long, are plain and have no number.
        return error.errno is not None or type(error) in (OSError, socket.gaierror)
    return isinstance(error, UnicodeError)  # a host name that none can be


def dial(route: Route, deadline: float) -> socket.socket | None:
    """Connects, and waits for it.

    Args:
        route: the server.
        deadline: until when, as ``monotonic`` has it; the look-up of a name has the
            resolver's own time-out.

    Returns:
        A connected socket that does not block; None: the deadline passed.

    Raises:
        DialError: every address refused, or there is none.
    """
    race = _Race(route)
    try:
        return race.run(_places(route.target), deadline)
    finally:
        race.close()


def _places(target: Target) -> list[Place]:
    if target.path is not None:
        return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", target.path)]
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise DialError(error) from None
    return interleaved(found)


class _Race:
    """Attempts side by side, of which the first that succeeds is taken."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._sockets: list[socket.socket] = []
        self._last: Exception = OSError("the name has no address")

    def run(self, places: list[Place], deadline: float) -> socket.socket | None:
        next_at = -1.0  # when the next address is due
        while (now := monotonic()) < deadline:
            if places and (now >= next_at or not self._sockets):
                next_at = now + STAGGER
                winner = self._start(*places.pop(0))
            elif not self._sockets:
                raise DialError(self._last)
            else:
                failed = len(self._sockets)
                until = min(next_at, deadline) if places else deadline
                winner = self._wait(until - now)
                if len(self._sockets) < failed:
                    next_at = now
            if winner is not None:
                self._sockets.remove(winner)
                return winner
        return None

    def close(self) -> None:
        """Gives up the attempts that are left."""
        self._selector.close()
        for sock in self._sockets:
            sock.close()

    def _start(
        self, family: int, kind: int, protocol: int, _: str, address: Any
    ) -> socket.socket | None:
        """Begins to connect; the socket, if it is connected at once."""
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, kind, protocol)
            self._sockets.append(sock)
            sock.setblocking(False)
            self._route.tune(sock)
            failure = sock.connect_ex(address)
        except OSError as error:
            if not is_refusal(error):
                raise
            self._fail(sock, error)
            return None
        if failure in (0, errno.EISCONN):
            return sock
        if failure in (errno.EINPROGRESS, errno.EWOULDBLOCK) and family != socket.AF_UNIX:
            self._selector.register(sock, selectors.EVENT_WRITE)
        else:
            self._fail(sock, OSError(failure, strerror(failure)))
        return None

    def _wait(self, seconds: float) -> socket.socket | None:
        """Waits for an attempt to end; the socket, if it is connected."""
        for key, _ in self._selector.select(seconds):
            sock: Any = key.fileobj
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not failure:
                return sock  # type: ignore[no-any-return]
            self._selector.unregister(sock)
            self._fail(sock, OSError(failure, strerror(failure)))
        return None

    def _fail(self, sock: socket.socket | None, error: Exception) -> None:
        self._last = error
        if sock is not None:
            self._sockets.remove(sock)
            sock.close()
