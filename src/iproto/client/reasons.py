"""Why a call got no answer: the texts, and the errors made of them.

Each caller gets a new exception: one that is raised in many places at once would
collect the tracebacks of all.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from iproto.errors import (
    CallTimeoutError,
    ClientClosedError,
    ConnectError,
    ConnectionLostError,
    IprotoError,
    ProtocolError,
)

if TYPE_CHECKING:
    from iproto.client.route import Route
    from iproto.client.url import Target


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


def busy_timeout(target: Target, limit: int, seconds: float) -> CallTimeoutError:
    """For a call whose deadline came while others had all connections."""
    return CallTimeoutError(
        f"all {limit} connections to {target.address} were taken by other calls for {seconds:g} s; "
        "give the client more (max_connections), or the call more time",
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
    if missing == 4:  # by which the dialects differ; of user functions nothing else tells
        more = (
            ": one came, but 4 bytes short of its body_length; "
            "if the server speaks dialect=mailru, tell the client so"
        )
    return CallTimeoutError(
        f"no reply from {target.address} within {seconds:g} s{more}", may_have_executed=True
    )


def silent_reason(address: str, seconds: float) -> str:
    """Why a connection is dropped whose peer says nothing at all."""
    return f"the connection to {address} was dropped: no byte came for {seconds:g} s"


def lost_reason(address: str, error: BaseException | None) -> str:
    """Why a connection ended that the client wanted to keep."""
    if error is None:
        return f"{address} closed the connection"
    return f"the connection to {address} was lost: {reason_of(error)}"


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
