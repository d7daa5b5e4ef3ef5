"""One call of the blocking client, from its frames to its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iproto.client.blocking_link import Waiter
from iproto.client.bulk import Bulk
from iproto.client.link import Unexecuted
from iproto.errors import Error, ReplyTooLongError, TextError

if TYPE_CHECKING:
    from iproto.client.arguments import Build
    from iproto.client.bulk import Rest
    from iproto.client.pool import Pool


def run(pool: Pool, build: Build, seconds: float, deadline: float) -> Any:
    """Makes a call; again on another connection if the server went away without executing it.

    Args:
        pool: has the connections.
        build: adds its frames.
        seconds: its time-out, for messages.
        deadline: when that is over, as ``monotonic`` has it.
    """
    while True:
        waiter = _settled(pool, build, seconds, deadline)
        if waiter.error is None:
            return waiter.result
        if not isinstance(waiter.error, Unexecuted):
            raise waiter.error
        partial = waiter.error.partial
        if partial is not None and isinstance(build, Bulk):
            return _run_rest(pool, build.rest(partial), seconds, deadline)


def _run_rest(pool: Pool, rest: Rest, seconds: float, deadline: float) -> list[Any]:
    try:
        rest.add(run(pool, rest.bulk, seconds, deadline))
    except (Error, TextError, ReplyTooLongError) as error:
        rest.fail(error)
    return rest.outcome()


def _settled(pool: Pool, build: Build, seconds: float, deadline: float) -> Waiter:
    """Sends a call's frames, and waits for the outcome."""
    waiter = Waiter()
    try:
        try:
            pool.take(waiter, deadline, seconds).call(build, waiter, deadline, seconds)
        finally:
            pool.release(waiter)
    except BaseException:
        pool.release(waiter)  # again: a signal's handler may have cut that off
        raise
    return waiter


def connect(pool: Pool, seconds: float, deadline: float) -> None:
    """Makes a connection if the one that the next call takes is not there; as ``run``."""
    waiter = Waiter()
    try:
        try:
            link = pool.take(waiter, deadline, seconds)
            if not link.is_open():
                link.connect(deadline, seconds)
        finally:
            pool.release(waiter)
    except BaseException:
        pool.release(waiter)
        raise
