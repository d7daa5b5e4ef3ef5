"""The asyncio client's one lasting connection: a link, or the next one.

Two things keep the way of a call short. ``Connection.open`` is the link only
while calls may use it as it is (connected, dialect known, not paused), so that
one look decides between that way and everything else. And all deadlines share
one timer, which is set for the earliest of them and moved only when it fires or
an earlier one comes.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from iproto.client.async_dial import new_link
from iproto.client.dial import DialError
from iproto.client.link import Unexecuted
from iproto.client.reasons import (
    closed_error,
    unconnected_timeout,
    unusable_error,
)
from iproto.errors import IprotoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto.client.async_link import Link
    from iproto.client.route import Route

# Seconds between two looks at deadlines, the first apart: many calls that time
# out one after the other must not each cost a look at all the others.
_TIMER_REST = 0.005
# Seconds that a loop may fire a timer early (they round to ms).
_TIMER_SLACK = 0.001
# Seconds that closing may take; the loop is busy elsewhere if it takes longer.
_CLOSE_WAIT = 1.0


class Late(Exception):
    """Tells a waiting call that its deadline has passed; never leaves the client."""


class Connection:
    """The one lasting connection of a client.

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
        self._forked = False
        self._link: Link | None = None
        # Links that take no further call, and still have some in flight.
        self._retired: list[Link] = []
        self._connecting: asyncio.Task[None] | None = None
        # Who waits for `open`, and until when.
        self._gate: dict[asyncio.Future[Link | None], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        _CONNECTIONS.add(self)

    @property
    def status(self) -> str:
        """In a word, for messages."""
        if self._forked or self._closed:
            return "closed"
        return "connected" if self._link is not None else "not connected"

    def check_usable(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises if the client is closed, or belongs to another loop or process."""
        if self._forked:
            raise RuntimeError(
                "this AsyncClient was connected before a fork, and its connection is the "
                "parent's; make another one in this process"
            )
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
        for link in self._links():
            ends.append(link.closed)
            link.end(closed_error(may_have_executed=True))
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
            if made is not None and made.state.ended is not None and not made.frames.shut_down:
                raise unusable_error(self.route.target, made.state.ended)
        return link

    def _release(
        self, make_error: Callable[[], BaseException] | None, made: Link | None = None
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
            link = await new_link(self, loop)
        except asyncio.CancelledError:
            if begun:
                self.route.backoff.failed("no answer in time")
            raise
        except Unexecuted:
            # The server went away: those who wait make an attempt for the next one.
            self._connecting = None
            self._release(None)
        except (DialError, ConnectionError, IprotoError) as error:
            failure = error.error if isinstance(error, DialError) else error
            self._connecting = None
            self._release(self.route.failed(failure))
        except BaseException as error:
            # A signal's handler raised, here as it could have anywhere: it is the caller's.
            self._connecting = None
            raised = error
            self._release(lambda: raised)
            if not isinstance(error, Exception):
                raise
        else:
            self._connecting = None
            self._link = link
            if not link.paused:
                self.open = link
                self._release(None, link)

    # Events of a link.

    def paused(self, link: Link) -> None:
        """The link's peer does not read: new calls wait."""
        if self.open is link:
            self.open = None

    def resumed(self, link: Link) -> None:
        """The link's peer reads again."""
        if self._link is link:
            self.open = link
            self._release(None)

    def retired(self, link: Link) -> None:
        """The link takes no further call: the next one makes another."""
        if self._link is link:
            self._link = self.open = None
            self._retired.append(link)
            self._release(None)

    def ended(self, link: Link) -> None:
        """The link is of no use any more: the next call makes another."""
        if link in self._retired:
            self._retired.remove(link)
        if self._link is not link:
            return
        self._link = self.open = None
        self.route.ended(link.state)
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
        for link in self._links():
            expired, soonest = link.frames.expire(now)
            late += expired
            earliest = min(earliest, soonest)
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

    def abandon(self) -> None:
        """The client is gone, and was not closed: ends the link, if its loop still runs."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self.loop is not None and not self.loop.is_closed():
            for link in self._links():
                link.end(closed_error(may_have_executed=True))

    def _links(self) -> list[Link]:
        return [*self._retired] if self._link is None else [self._link, *self._retired]

    def after_fork(self) -> None:
        """In a child: the link's socket, and the loop's selector, are the parent's."""
        if self.loop is not None:
            self._forked = True
            self.open = None


_CONNECTIONS: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork() -> None:
    for connection in _CONNECTIONS:
        connection.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
