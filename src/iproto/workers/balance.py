"""Connections shared out evenly over the workers, after a restart or a death left them uneven.

A connection stays with its worker, and the system spreads new ones by chance. So the
supervisor looks at how many each worker has. While they are uneven, each worker has a
target: above it the worker accepts nothing and announces the end to the excess, the
longest idle first; below it the worker accepts at all listeners of the server. Clients
that understand an announced end come back at once, to where there is room. Others are left
where they are, and only new connections even the workers out.

It does not flap: what is uneven must be so twice in a row; it ends only when it is even,
which is less than what begins it; and while clients are on their way back, the
connections that they had still count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from iproto.workers.worker import LEVEL, LIMIT, SHED

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto.workers.pool import Pool
    from iproto.workers.process import Worker

logger = logging.getLogger("iproto.workers")

# Seconds between two looks at the workers' connections.
PERIOD = 0.25

# With fewer connections in all than this a ratio says nothing: the difference counts.
FEW = 20
SPREAD = 2

# Busiest over idlest: above the first, workers are uneven; not above the second, even again.
# A worker may be 1.3 times as busy as another at most.
UNEVEN = 1.2
EVEN = 1.1

# Connections that a worker announces the end to within RETURN_TIME.
MOST_SHED = 64

# Seconds that the clients of these may take to come back, before others are sent away.
RETURN_TIME = 1.0

# Seconds of rest after each time, so that clients which come back only when they call are
# not sent away again and again.
REST = 5.0

# Seconds without a heartbeat after which a worker is left out: it could not accept.
SILENT = 1.5


def is_uneven(counts: list[int]) -> bool:
    """Whether workers with these numbers of connections are to be evened out."""
    least, most = min(counts), max(counts)
    if sum(counts) < FEW:
        return most - least > SPREAD
    return most - least > 1 and most > UNEVEN * least


def is_even(counts: list[int]) -> bool:
    """Whether workers with these numbers of connections have been evened out."""
    least, most = min(counts), max(counts)
    return most - least <= 1 or (sum(counts) >= FEW and most <= EVEN * least)


def targets(counts: list[int], total: int) -> list[int]:
    """How many connections each worker is to have: the same, or one more for the busiest.

    Args:
        counts: of each worker now.
        total: connections to share out; those on their way back included.
    """
    share, more = divmod(total, len(counts))
    busiest = sorted(range(len(counts)), key=lambda number: -counts[number])
    return [share + (number in busiest[:more]) for number in range(len(counts))]


class Balance:
    """Evens out the connections of a pool's workers.

    Args:
        pool: the workers.
        is_changing: whether a restart or an upgrade is under way; it comes first.
    """

    def __init__(self, pool: Pool, is_changing: Callable[[], bool]) -> None:
        self._pool = pool
        self._is_changing = is_changing
        self._seen = False  # at the last look, too, they were uneven
        self._active = False
        self._rest_until = 0.0
        # Connections that were open when some were sent away, and until when these count.
        self._total = 0
        self._return_until = 0.0

    async def run(self) -> None:
        """Looks every ``PERIOD`` seconds, until it is cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Looks at the workers once, and sends them their limits."""
        workers = self._serving()
        counts = [self._pool.storage.connections(worker.area) for worker in workers]
        if len(workers) < 2 or self._is_changing() or not self._is_due(counts, now):
            if self._active:
                self._end(workers, now)
            return
        self._even_out(workers, counts, now)

    def _serving(self) -> list[Worker]:
        pool = self._pool
        return [
            worker
            for worker in pool.workers
            if worker.ready.is_set()
            and not worker.retiring
            and not pool.stopping
            and pool.storage.silent_seconds(worker.area) < SILENT
        ]

    def _is_due(self, counts: list[int], now: float) -> bool:
        if self._active:
            return now < self._return_until or not is_even(counts)
        seen, self._seen = self._seen, is_uneven(counts)
        return self._seen and seen and now >= self._rest_until

    def _even_out(self, workers: list[Worker], counts: list[int], now: float) -> None:
        begins, self._active = not self._active, True
        total = sum(counts)
        if total >= self._total or now >= self._return_until:  # all are back, or do not come
            self._total = total
            self._return_until = 0.0
        wanted = targets(counts, max(total, self._total))
        for worker, target in zip(workers, wanted, strict=True):
            worker.send(LIMIT, target)
        if begins:
            logger.debug("evening out the workers' connections: %s", counts)
        if self._return_until or is_even(counts):
            return
        for worker, count, target in zip(workers, counts, wanted, strict=True):
            if count > target:
                worker.send(SHED, max(target, count - MOST_SHED))
                self._return_until = now + RETURN_TIME

    def _end(self, workers: list[Worker], now: float) -> None:
        self._active = self._seen = False
        self._total = 0
        self._return_until = 0.0
        self._rest_until = now + REST
        for worker in workers:
            worker.send(LEVEL)
