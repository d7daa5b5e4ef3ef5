"""The connections of a blocking client: one for each call that is on its way.

A thread that calls takes a free link, has it alone, and gives it back. That a link
is taken is one entry of ``_users``, made and deleted by one operation of C each. So
there is no lock that a signal's handler, a destructor or a fork could find held, and
whatever cuts a call off, its link is found by its entry and given back.

Measured beside one connection that all threads share (docs/clients.md, "A connection
for each thread"): more calls a second, and less CPU time for each, with one thread
and with many.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from iproto.client.blocking_link import Link, Waiter
from iproto.client.reasons import busy_timeout, closed_error

if TYPE_CHECKING:
    from iproto.client.route import Route

# Seconds after which a connection that no call needed is closed: the pool shrinks
# when fewer threads call, and holds no sockets that the server has closed long ago.
_IDLE = 60.0


class Pool:
    """Links, and who has which.

    Args:
        route: the server, and what is known of it.
        max_connections: links at most; a call beyond them waits for one.
    """

    def __init__(self, route: Route, max_connections: int) -> None:
        self.route = route
        self.closed = False
        self._links = [Link(self, number) for number in range(max_connections)]
        # By the link's number.
        self._users: dict[int, object] = {}
        # Calls that sleep, each with a lock that wakes it when it is released.
        self._asleep: dict[object, threading.Lock] = {}
        self._next_sweep = monotonic() + _IDLE
        _POOLS.add(self)

    @property
    def connected(self) -> int:
        """How many connections there are."""
        return sum(link.is_connected for link in self._links)

    def check_open(self) -> None:
        """Raises if the client is closed."""
        if self.closed:
            raise closed_error(may_have_executed=False)

    def take(self, waiter: Waiter, deadline: float, seconds: float) -> Link:
        """Gives a call a link of its own; waits for one if all are taken.

        Raises:
            CallTimeoutError: the deadline passed.
            ClientClosedError: the client is closed.
        """
        while True:
            self.check_open()
            link = self._take_free(waiter)
            if link is not None:
                return link
            left = deadline - monotonic()
            if left <= 0:
                raise busy_timeout(self.route.target, len(self._links), seconds)
            self._sleep(waiter, left, wants_link=True)

    def _take_free(self, waiter: Waiter) -> Link | None:
        # The first ones first: so as few connections are used as the calls need.
        for link in self._links:
            if self._users.setdefault(link.number, waiter) is waiter:
                waiter.number = link.number
                return link
        return None

    def release(self, waiter: Waiter) -> None:
        """Takes back what the call has, if anything; it may be called again."""
        number = waiter.number
        if self._users.get(number) is not waiter:
            number = next((n for n, user in [*self._users.items()] if user is waiter), -1)
            if number < 0:
                return
        if self.closed:
            self._links[number].close()
        elif self._links[number].used_at > self._next_sweep:
            self._sweep()
        self._users.pop(number, None)
        if self._asleep:
            self._wake_all()

    def _sweep(self) -> None:
        """Closes the connections that no call has needed for a while."""
        now = monotonic()
        self._next_sweep = now + _IDLE
        sweeper = Waiter()
        for link in self._links:
            if link.is_connected and self._users.setdefault(link.number, sweeper) is sweeper:
                if now - link.used_at > _IDLE:
                    link.close()
                self._users.pop(link.number, None)

    def pause(self, seconds: float) -> None:
        """Waits; ends early when the client is closed, or for no reason."""
        self._sleep(object(), seconds, wants_link=False)

    def _sleep(self, sleeper: object, seconds: float, *, wants_link: bool) -> None:
        lock = threading.Lock()
        lock.acquire()
        self._asleep[sleeper] = lock
        try:
            # Now that a call which gives one back sees us: is there one?
            if not self.closed and not (wants_link and len(self._users) < len(self._links)):
                lock.acquire(timeout=seconds)
        finally:
            self._asleep.pop(sleeper, None)

    def _wake_all(self) -> None:
        for lock in [*self._asleep.values()]:
            with suppress(RuntimeError):  # it is awake already
                lock.release()

    def close(self) -> None:
        """Fails all that is in flight or waits, and ends all connections."""
        self.closed = True
        closer = Waiter()
        for link in self._links:
            if self._users.setdefault(link.number, closer) is closer:
                link.close()
                self._users.pop(link.number, None)
            else:
                link.interrupt()  # who has it closes it
        self._wake_all()

    def after_fork(self) -> None:
        """In a child: connections are the parent's, and no other thread is here."""
        for link in self._links:
            link.close()
        self._users.clear()
        self._asleep.clear()


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in _POOLS:
        pool.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
