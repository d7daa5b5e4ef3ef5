"""What both clients share of calls: settings, arguments, results.

Imports neither asyncio nor msgpack, so that the blocking client starts quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from iproto.checks import checked_dialect, checked_timeout
from iproto.client.url import Target, parse_url
from iproto.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto._fastframe import ClientFrames
    from iproto.wire import Dialect

    Build = Callable[[ClientFrames, object, float], int]
    """Adds a call's frames, given who waits and until when; returns their first id."""

MAX_BODY = 16 * 1024 * 1024
"""Bytes of the longest reply body that a client takes, by default."""

MAX_REQUEST = 1024 * 1024
"""Bytes of the longest request body that a client sends: what servers take by default."""

MAX_CONNECTIONS = 64
"""Connections of a blocking client at most, by default: calls at once."""

NIL = b"\xc0"
"""The body of a switch."""


def make_target(url: str, dialect: Dialect | str | None, timeout: float | None) -> Target:
    """The URL's target, with what the client's arguments override."""
    target = parse_url(url)
    if dialect is not None:
        target = replace(target, dialect=checked_dialect(dialect))
    if timeout is not None:
        target = replace(target, timeout=checked_timeout(timeout))
    return target


def checked_body(body: bytes) -> bytes:
    """A request's body, if it is one."""
    if not isinstance(body, bytes):
        raise TypeError(f"a body is bytes (MsgPack), not {type(body).__name__}")
    return body


def item_list(
    items: Mapping[int, str | bytes] | Iterable[tuple[int, str | bytes]],
) -> list[tuple[int, str | bytes]]:
    """The ``(index, content)`` pairs of a replace_many."""
    if isinstance(items, Mapping):
        items = cast("Mapping[int, str | bytes]", items).items()
    return list(items)


def pack_args(args: tuple[Any, ...]) -> bytes:
    """Arguments of a user function: one MsgPack array, as the server packs results.

    Raises:
        TypeError, ValueError, OverflowError: MsgPack cannot carry one; the text says which.
    """
    # Not at the top: most processes make no such call.
    if not args:
        return b""  # which the built-in functions without arguments take too
    try:
        return _pack(args)
    except (TypeError, ValueError, OverflowError, RecursionError):
        for position, value in enumerate(args):
            _check_argument(position, value)
        raise


def _pack(value: Any) -> bytes:
    import msgpack

    return cast("bytes", msgpack.packb(value, datetime=True, default=_to_plain))


def _to_plain(value: Any) -> Any:
    from iproto.results import to_plain  # it loads msgspec, which few calls need

    return to_plain(value)


def _check_argument(position: int, value: Any) -> None:
    text = f"argument {position}, of type {type(value).__name__}, has no form in MsgPack"
    try:
        _pack(value)
    except TypeError as error:
        raise TypeError(f"{text}: {error}") from None
    except OverflowError as error:
        raise OverflowError(f"{text}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{text}: {error}") from None


def unpack_result(func_id: int, body: bytes | None) -> Any:
    """The result of a user function: one MsgPack object, no more and no less.

    None is the result of PING, whose reply is a header without a body.

    Raises:
        ProtocolError: the body is something else.
    """
    if body is None:
        return None
    import msgpack

    try:
        return msgpack.unpackb(body, timestamp=3, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ProtocolError(
            f"reply of function {func_id:#x}: body of {len(body)} bytes is not one MsgPack "
            f"object ({type(error).__name__}: {error}); request() gives the bytes as they are"
        ) from None
