"""The heartbeat of an event loop: a timer that records how late it ran, and that it ran at all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from iproto.server.logs import count_dropped_lines

if TYPE_CHECKING:
    from iproto._fastframe import Storage

# Seconds between two heartbeats.
PERIOD = 0.5


class Heartbeat:
    """Counts in the storage how late the loop runs its timers, and its tasks.

    Args:
        storage: where this worker's counters are.
        loop: the loop; its heartbeats begin now, and end with ``stop``.
    """

    def __init__(self, storage: Storage, loop: asyncio.AbstractEventLoop) -> None:
        self._storage = storage
        self._loop = loop
        self._due = self._last = loop.time()
        self._timer: asyncio.TimerHandle
        self._tick()

    @property
    def silent_seconds(self) -> float:
        """Since the last heartbeat."""
        return self._loop.time() - self._last

    def stop(self) -> None:
        """Ends the heartbeats."""
        self._timer.cancel()

    def _tick(self) -> None:
        self._last = self._loop.time()
        self._storage.heartbeat(self._last - self._due, len(asyncio.all_tasks(self._loop)))
        count_dropped_lines(self._storage)
        self._due = self._last + PERIOD
        self._timer = self._loop.call_at(self._due, self._tick)
