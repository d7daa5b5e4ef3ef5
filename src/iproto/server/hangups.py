"""Resets of sockets that are neither read nor written for now.

An event loop tells of a reset only where it watches a socket for reading or writing.
A paused connection is watched for neither: it could be read, and would be reported
again and again. An epoll of its own reports only what ends a socket, and is itself
watched by the loop as a file descriptor.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

# Seconds between two looks where the system has no epoll.
LOOK = 0.5


class Hangups:
    """Watches sockets for their end, in an event loop.

    Args:
        loop: the running loop; sockets are watched until ``close``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None
        self._poll: select.poll | None = None
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, fd: int, on_hangup: Callable[[], None]) -> None:
        """Calls ``on_hangup`` once the socket was reset or both its sides are closed."""
        self._watched[fd] = on_hangup
        if not hasattr(select, "epoll"):
            self._watch_with_timer(fd)
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._on_ready)
        self._epoll.register(fd, 0)  # errors and hang-ups are always reported

    def unwatch(self, fd: int) -> None:
        """Stops watching; the socket is still open."""
        if self._watched.pop(fd, None) is None:
            return
        if self._epoll is not None:
            self._epoll.unregister(fd)
        if self._poll is not None:
            self._poll.unregister(fd)

    def descriptors(self) -> Iterable[int]:
        """Those that a child process must not have."""
        return () if self._epoll is None else (self._epoll.fileno(),)

    def close(self) -> None:
        """Watches nothing any more."""
        for fd in list(self._watched):
            self.unwatch(fd)
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_ready(self) -> None:
        assert self._epoll is not None
        self._report(self._epoll.poll(0))

    def _report(self, events: list[tuple[int, int]]) -> None:
        for fd, _events in events:
            on_hangup = self._watched.get(fd)
            if on_hangup is not None:
                on_hangup()  # which unwatches it

    def _watch_with_timer(self, fd: int) -> None:
        if self._poll is None:
            self._poll = select.poll()
        self._poll.register(fd, 0)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK, self._look)

    def _look(self) -> None:
        assert self._poll is not None
        self._timer = None
        self._report(self._poll.poll(0))
        if self._watched:
            self._timer = self._loop.call_later(LOOK, self._look)
