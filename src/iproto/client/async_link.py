"""The asyncio client's connection: made when it is needed, and again when it was lost.

Two things keep the way of a call short. ``Connection.open`` is the link only
while calls may use it as it is (connected, dialect known, not paused), so that
one look decides between that way and everything else. And all deadlines share
one timer, which is set for the earliest of them and moved only when it fires or
an earlier one comes.
"""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from iproto._fastframe import AS_BYTES, AS_NOTHING
from iproto.client.route import (
    closed_error,
    ended_error,
    lost_error,
    lost_reason,
    silent_reason,
    unconnected_timeout,
    unusable_error,
)
from iproto.wire import FuncID

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto.client.route import Route
    from iproto.errors import IprotoError

# Seconds between two looks at deadlines, the first apart: many calls that time
# out one after the other must not each cost a look at all the others.
_TIMER_REST = 0.005
# Seconds that a loop may fire a timer early (they round to ms).
_TIMER_SLACK = 0.001
# Seconds that closing may take; the loop is busy elsewhere if it takes longer.
_CLOSE_WAIT = 1.0


class Late(Exception):
    """Tells a waiting call that its deadline has passed; never leaves the client."""


class Link(asyncio.Protocol):
    """One connection: bytes between the transport and the codec; no policy."""

    def __init__(self, owner: Connection) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.frames = owner.route.new_frames()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        # Chunks received so far: whether it grew tells silence from slowness.
        self.chunks = 0
        # What `chunks` was when the peer was last asked for a sign of life.
        self._asked_at = -1
        # Whether a write at the end of this loop turn is on its way.
        self.flushing = False
        self.paused = False
        # Set when no call may be added any more: why.
        self.ended: str | IprotoError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.chunks == 0:
            self._owner.route.backoff.succeeded()
        self.chunks += 1
        for waiter, error, result in self.frames.feed(data):
            if waiter.done():  # cancelled in this very turn
                continue
            if error is None:
                waiter.set_result(result)
            else:
                waiter.set_exception(error)
        if self.frames.broken is not None:
            self.end(self.frames.broken)

    def pause_writing(self) -> None:
        self.paused = True
        self._owner.paused(self)

    def resume_writing(self) -> None:
        self.paused = False
        self._owner.resumed(self)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        self.end(lost_reason(self._owner.route.target, error))

    def flush_soon(self) -> None:
        """Sends what is built, and will be built in this loop turn, at its end."""
        self.flushing = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.flushing = False
        if self.ended is None:
            self._transport.write(self.frames.take())

    def suspect(self, seconds: float) -> bool:
        """A call has timed out in silence: whether the connection is dropped for it.

        The first time the peer is asked for a sign of life, with a PING that
        nobody waits for: calls beside this one may just take longer. If another
        call times out and not one byte has come since, the peer is gone.
        """
        if self._asked_at == self.chunks:
            self.end(silent_reason(self._owner.route.target, seconds))
            return True
        self._asked_at = self.chunks
        self.frames.forget(self.frames.request(FuncID.PING, b"", AS_NOTHING, None, inf))
        if not self.flushing:
            self.flush_soon()
        return False

    def end(self, reason: str | IprotoError) -> None:
        """Fails all that is in flight, and closes; the first reason counts."""
        if self.ended is not None:
            return
        self.ended = reason
        self._owner.ended(self)
        for waiter, may_have_executed in self.frames.fail_all():
            if not waiter.done():
                waiter.set_exception(lost_error(reason, may_have_executed))
        # What the peer doesn't read would keep a closing transport for ever.
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()


class Connection:
    """The one lasting connection of a client: a link, or the next one.

    Args:
        route: the server, and what is known of it.
    """

    def __init__(self, route: Route) -> None:
        self.route = route
        self.loop: asyncio.AbstractEventLoop | None = None
        # The link, while calls may be added to it without a wait.
        self.open: Link | None = None
        self.timer_at = inf
        self._sleep = asyncio.sleep  # a seam for tests
        self._closed = False
        self._link: Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        # Who waits for `open`, and until when.
        self._gate: dict[asyncio.Future[Link | None], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def check_usable(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises if the client is closed, or belongs to another loop."""
        if self._closed:
            raise closed_error(may_have_executed=False)
        if self.loop is None:
            self.loop = loop
        elif self.loop is not loop:
            raise RuntimeError(
                "this AsyncClient belongs to another event loop, the one that it first "
                "connected in; make one client in each loop"
            )

    async def close(self) -> None:
        """Fails all that is in flight or waits, and ends the link."""
        if self._closed:
            return
        if self.loop is not None:
            self.check_usable(asyncio.get_running_loop())
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends: list[asyncio.Future[None]] = []
        if self._connecting is not None:
            self._connecting.cancel()
            ends.append(self._connecting)
            self._connecting = None
        self._release(lambda: closed_error(may_have_executed=False))
        if self._link is not None:
            ends.append(self._link.closed)
            self._link.end(closed_error(may_have_executed=True))
        if ends:
            await asyncio.wait(ends, timeout=_CLOSE_WAIT)

    async def opened(
        self, loop: asyncio.AbstractEventLoop, deadline: float, seconds: float
    ) -> Link:
        """Waits for a connection that calls may be added to; starts one if there is none."""
        while (link := self.open) is None:
            self.check_usable(loop)
            if self._link is None and self._connecting is None:
                self._connecting = loop.create_task(self._connect(loop))
            waiter: asyncio.Future[Link | None] = loop.create_future()
            self._gate[waiter] = deadline
            if deadline < self.timer_at:
                self.set_timer(deadline)
            try:
                made = await waiter
            except Late:
                raise unconnected_timeout(self.route, seconds) from None
            finally:
                self._gate.pop(waiter, None)
                if not self._gate and self._connecting is not None:
                    # Nobody waits for the attempt any more; so it is bounded by
                    # the deadlines of those who did.
                    self._connecting.cancel()
                    self._connecting = None
            if made is not None and made.ended is not None:
                raise unusable_error(self.route.target, made.ended)
        return link

    def _release(
        self, make_error: Callable[[], IprotoError] | None, made: Link | None = None
    ) -> None:
        """Lets all at the gate look again, after the attempt that made this link, or fails them."""
        gate, self._gate = self._gate, {}
        for waiter in gate:
            if waiter.done():
                continue
            if make_error is None:
                waiter.set_result(made)
            else:
                waiter.set_exception(make_error())

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """One attempt, which all at the gate share."""
        begun = False
        try:
            delay = self.route.backoff.delay()
            if delay > 0:
                await self._sleep(delay)
            begun = True
            link = await self._new_link(loop)
        except asyncio.CancelledError:
            if begun:
                self.route.backoff.failed("no answer in time")
            raise
        except Exception as error:
            # Whatever it is (a host name may even be a UnicodeError), those who wait must know.
            self._connecting = None
            self._release(self.route.failed(error))
        else:
            self._connecting = None
            self._link = link
            if not link.paused:
                self.open = link
                self._release(None, link)

    async def _new_link(self, loop: asyncio.AbstractEventLoop) -> Link:
        target = self.route.target
        if target.path is not None:
            transport, link = await loop.create_unix_connection(lambda: Link(self), target.path)
        else:
            transport, link = await loop.create_connection(
                lambda: Link(self), target.host, target.port
            )
        try:
            self.route.tune(transport.get_extra_info("socket"))
            if link.frames.mailru is None:
                probe = loop.create_future()
                link.frames.read(0, AS_BYTES, probe, inf)
                link.flush_soon()
                error: Exception | None = None
                try:
                    await probe
                except Exception as failure:
                    error = failure
                self.route.probed(link.frames, error)
            if link.ended is not None:
                raise ended_error(link.ended)
        except BaseException:
            link.end("the client gave the connection up")
            raise
        return link

    # What a link tells.

    def paused(self, link: Link) -> None:
        """The link's peer does not read: new calls wait."""
        if self.open is link:
            self.open = None

    def resumed(self, link: Link) -> None:
        """The link's peer reads again."""
        if self._link is link:
            self.open = link
            self._release(None)

    def ended(self, link: Link) -> None:
        """The link is of no use any more: the next call makes another."""
        if self._link is not link:
            return
        self._link = self.open = None
        assert link.ended is not None
        self.route.ended(link.ended, heard=link.chunks > 0)
        self._release(None)

    # Deadlines.

    def set_timer(self, deadline: float, *, rest: float = 0.0) -> None:
        """Sets the one timer for this deadline, the earliest there is."""
        assert self.loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self.timer_at = deadline
        delay = max(deadline - monotonic() + _TIMER_SLACK, rest)
        self._timer = self.loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.timer_at = earliest = inf
        now = monotonic()
        late: list[asyncio.Future[Any]] = []
        if self._link is not None:
            late, earliest = self._link.frames.expire(now)
        for waiter, deadline in self._gate.items():
            if deadline <= now:
                late.append(waiter)
            else:
                earliest = min(earliest, deadline)
        for waiter in late:
            if not waiter.done():
                waiter.set_exception(Late())
        if earliest < inf:
            self.set_timer(earliest, rest=_TIMER_REST)
