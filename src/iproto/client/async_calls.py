"""One call of the asyncio client, from its frames to its result."""

from __future__ import annotations

from asyncio import CancelledError, get_running_loop
from time import monotonic
from typing import TYPE_CHECKING, Any

from iproto.client.async_connection import Late
from iproto.client.bulk import Bulk
from iproto.client.link import Unexecuted
from iproto.client.reasons import reply_timeout
from iproto.errors import Error, ReplyTooLongError, TextError

if TYPE_CHECKING:
    from iproto.client.arguments import Build
    from iproto.client.async_connection import Connection
    from iproto.client.bulk import Rest


async def run(connection: Connection, build: Build, seconds: float, deadline: float) -> Any:
    """Makes a call; again on the next connection if the server went away without executing it.

    Args:
        connection: what it goes over.
        build: adds its frames.
        seconds: its time-out, for messages.
        deadline: when that is over, as ``monotonic`` has it.
    """
    loop = get_running_loop()
    while True:
        link = connection.open
        if link is None or loop is not connection.loop:
            connection.check_usable(loop)
            # What is wrong with the arguments must not cost a connection.
            build(connection.route.new_frames(), None, 0.0)
            link = await connection.opened(loop, deadline, seconds)
        waiter = loop.create_future()
        first = build(link.frames, waiter, deadline)
        if not link.flushing:
            link.flush_soon()
        if deadline < connection.timer_at:
            connection.set_timer(deadline)
        chunks = link.state.chunks
        try:
            return await waiter
        except (CancelledError, GeneratorExit):
            link.frames.forget(first)
            raise
        except Late:
            raise reply_timeout(
                connection.route.target,
                seconds,
                dropped=link.suspect(chunks, seconds, monotonic()),
                missing=link.frames.bytes_missing,
            ) from None
        except Unexecuted as why:
            partial = why.partial
        if partial is not None and isinstance(build, Bulk):
            return await _run_rest(connection, build.rest(partial), seconds, deadline)


async def _run_rest(
    connection: Connection, rest: Rest, seconds: float, deadline: float
) -> list[Any]:
    try:
        rest.add(await run(connection, rest.bulk, seconds, deadline))
    except (Error, TextError, ReplyTooLongError) as error:
        rest.fail(error)
    return rest.outcome()
