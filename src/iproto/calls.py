"""What both clients share: settings, arguments and results of calls, backoff, sockets.

Imports neither asyncio nor msgpack, so that the blocking client starts quickly.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from iproto._fastframe import ClientFrames
from iproto.errors import (
    CallTimeoutError,
    ConfigError,
    ConnectError,
    ConnectionLostError,
    IprotoError,
    ProtocolError,
)
from iproto.url import Target, checked_dialect, checked_timeout, parse_url
from iproto.wire import Dialect

if TYPE_CHECKING:
    from collections.abc import Callable

    Build = Callable[[ClientFrames, object, float], int]
    """Adds a call's frames, given who waits and until when; returns their first id."""

MAX_BODY = 16 * 1024 * 1024
"""Bytes of the longest reply body that a client takes, unless told otherwise."""

NIL = b"\xc0"
"""The body of a switch."""

# Seconds between failed attempts to connect: long enough not to hammer a server
# that is starting, short enough to find it soon after.
_BACKOFF_FIRST = 0.05
_BACKOFF_LAST = 5.0


class _Socket(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def make_target(url: str, dialect: Dialect | str | None, timeout: float | None) -> Target:
    """The URL's target, with what the client's arguments override."""
    target = parse_url(url)
    if dialect is not None:
        target = replace(target, dialect=checked_dialect(dialect))
    if timeout is not None:
        target = replace(target, timeout=checked_timeout(timeout))
    return target


def checked_max_body(max_body: int) -> int:
    """A limit for reply bodies, if it is one: 1..2**32-1 bytes."""
    if isinstance(max_body, bool) or not isinstance(max_body, int):
        raise TypeError(f"max_body is an int of bytes, not {type(max_body).__name__}")
    if not 1 <= max_body < 2**32:
        raise ConfigError(f"max_body {max_body} is out of range; use 1..{2**32 - 1} bytes")
    return max_body


def checked_func_id(func_id: int) -> int:
    """A func_id, if it is one."""
    if isinstance(func_id, bool) or not isinstance(func_id, int):
        raise TypeError(f"a func_id is an int, not {type(func_id).__name__}")
    if not 0 <= func_id < 2**32:
        raise ConfigError(f"func_id {func_id:#x} is out of range; use 0..0xffffffff")
    return func_id


def checked_body(body: bytes) -> bytes:
    """A request's body, if it is one."""
    if not isinstance(body, bytes):
        raise TypeError(f"a body is bytes (MsgPack), not {type(body).__name__}")
    return body


def item_list(
    items: Mapping[int, str | bytes] | Iterable[tuple[int, str | bytes]],
) -> list[tuple[int, str | bytes]]:
    """The ``(index, content)`` pairs of a replace_many."""
    pairs = list(items.items() if isinstance(items, Mapping) else items)
    for position, pair in enumerate(pairs):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"item {position} is not a tuple (index, content): {pair!r}")
    return pairs


def check_build(build: Build) -> None:
    """Raises what is wrong with a call's arguments before a connection is made for it."""
    build(ClientFrames(mailru=False, max_body=1), None, 0.0)


def pack_args(args: tuple[Any, ...]) -> bytes:
    """Arguments of a user's function: one MsgPack array; datetimes as timestamps."""
    import msgpack  # not at the top: most processes make no such call

    packed: bytes = msgpack.packb(args, datetime=True)
    return packed


def unpack_result(func_id: int, body: bytes) -> Any:
    """The result of a user's function: one MsgPack object, no more and no less.

    Raises:
        ProtocolError: the body is something else.
    """
    import msgpack

    try:
        return msgpack.unpackb(body, timestamp=3, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ProtocolError(
            f"reply of function {func_id:#x}: body of {len(body)} bytes is not one MsgPack "
            f"object ({type(error).__name__}: {error}); request() gives the bytes as they are"
        ) from None


def new_frames(dialect: Dialect, max_body: int) -> ClientFrames:
    """The codec of a new connection."""
    mailru = None if dialect is Dialect.AUTO else dialect is Dialect.MAILRU
    return ClientFrames(mailru=mailru, max_body=max_body)


def tune(sock: _Socket, target: Target) -> None:
    """Small frames leave at once, and a peer that vanished is noticed when idle."""
    if target.path is None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


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


# What to tell a caller. A new exception for each: one that is raised in many
# places at once would collect the tracebacks of all.


def reason_of(error: BaseException) -> str:
    """Why the system refused, without the noise around it."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, socket.gaierror):
        # asyncio puts its own sentence where the system's belongs.
        return os.strerror(error.errno) if error.errno > 0 else error.strerror
    return (getattr(error, "strerror", None) or str(error)) or type(error).__name__


def connect_error(target: Target, reason: str) -> ConnectError:
    """For those who waited for an attempt that failed."""
    return ConnectError(f"cannot connect to {target.address}: {reason}")


def unconnected_timeout(target: Target, seconds: float, reason: str | None) -> CallTimeoutError:
    """For a call whose deadline came before a connection that could take it."""
    last = f" (last failure: {reason})" if reason else ""
    return CallTimeoutError(
        f"no connection to {target.address} that takes requests within {seconds:g} s{last}",
        may_have_executed=False,
    )


def reply_timeout(target: Target, seconds: float, *, silent: bool) -> CallTimeoutError:
    """For a call whose deadline came before its reply."""
    more = ", nor any other byte: the connection is dropped" if silent else ""
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


def lost_error(reason: str | IprotoError, may_have_executed: bool) -> IprotoError:
    """For a call in flight on a connection that ended.

    Args:
        reason: a text, or the error that made the client end the connection.
        may_have_executed: whether the request had left.
    """
    if isinstance(reason, ProtocolError):
        return type(reason)(*reason.args)
    return ConnectionLostError(str(reason), may_have_executed=may_have_executed)
