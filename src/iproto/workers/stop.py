"""The end of all workers of a pool: they drain, and those that take too long are killed."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING

from iproto.server import listeners, systemd
from iproto.words import counted
from iproto.workers.process import DRAIN_GRACE
from iproto.workers.worker import STOP

if TYPE_CHECKING:
    from iproto.workers.pool import Pool

logger = logging.getLogger("iproto.workers")


async def stop(pool: Pool, number: int, signals: asyncio.Queue[int]) -> int:
    """Drains all workers.

    Args:
        pool: the workers; none is replaced any more.
        number: the signal that asked for it.
        signals: further ones; the first of them ends the wait.

    Returns:
        The exit code: 0 if all drained in time, 1 if not, 128 + the number of a second signal.
    """
    pool.stopping = True
    systemd.notify("STOPPING=1", "STATUS=draining")
    # Not all may have been started with the same settings.
    limit = max((w.drain_timeout for w in pool.workers), default=pool.config.drain_timeout)
    logger.info(
        "%s: draining, at most %g s; a second signal ends at once",
        signal.Signals(number).name,
        limit,
    )
    # One that is not ready has nothing to drain, and no handler yet: it just dies.
    draining = [worker for worker in pool.workers if worker.ready.is_set()]
    for worker in pool.workers:
        if worker.ready.is_set():
            worker.send(STOP)
        else:
            worker.signal(signal.SIGTERM)
    if not pool.from_systemd:
        # The workers have accepted what waited; one that is stuck never will.
        asyncio.get_running_loop().call_later(listeners.REFUSE_DELAY, _refuse, pool)
    deadline = time.monotonic() + limit + DRAIN_GRACE
    while pool.workers:
        if not signals.empty():
            return 128 + signals.get_nowait()
        left = deadline - time.monotonic()
        if left <= 0:
            logger.warning("killing %s not done in time", counted(len(pool.workers), "worker"))
            return 1
        await pool.change(left)
    return 0 if all(worker.exit_code == 0 for worker in draining) else 1


def _refuse(pool: Pool) -> None:
    for sockets in pool.listeners:
        for sock in sockets:
            listeners.refuse(sock)


async def kill_all(pool: Pool) -> None:
    """Kills the workers that are left, and waits until they are dead."""
    pool.stopping = True
    for worker in pool.workers:
        worker.kill()
    while pool.workers:
        await pool.change()
