"""The pulse of an event loop: a timer that tells how late it ran, and that it ran at all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iproto._fastframe import Storage

# Seconds between two beats.
PERIOD = 0.5


class Pulse:
    """Counts in the storage how late the loop runs its timers, and its tasks.

    Args:
        storage: where this worker's counters are.
        loop: the loop; beats from now on, until ``stop``.
    """

    def __init__(self, storage: Storage, loop: asyncio.AbstractEventLoop) -> None:
        self._storage = storage
        self._loop = loop
        self._due = self._last = loop.time()
        self._timer: asyncio.TimerHandle
        self._beat()

    @property
    def silent_seconds(self) -> float:
        """Since the last beat."""
        return self._loop.time() - self._last

    def stop(self) -> None:
        """No beat any more."""
        self._timer.cancel()

    def _beat(self) -> None:
        self._last = self._loop.time()
        self._storage.beat(self._last - self._due, len(asyncio.all_tasks(self._loop)))
        self._due = self._last + PERIOD
        self._timer = self._loop.call_at(self._due, self._beat)
