"""Rolling restarts and upgrades of the workers that a supervisor keeps.

Both read the settings anew. Those are accepted when the first worker that was
started with them is ready; until then, and if that never comes, the supervisor
goes on with the old ones, and so do the workers that replace dead ones.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from iproto.errors import ConfigError
from iproto.server import settings, systemd
from iproto.words import counted
from iproto.workers import upgrade
from iproto.workers.worker import RETIRE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from iproto.server.config import Config
    from iproto.workers.inheritance import Inheritance
    from iproto.workers.pool import Pool
    from iproto.workers.process import Worker

    Change = Callable[[], Coroutine[None, None, str | None]]  # returns why it was not made

logger = logging.getLogger("iproto.workers")


class Restarts:
    """Replaces the workers of a pool, or the whole program; one change after the other.

    Args:
        pool: the workers.
        read: reads the settings as they are by now; raises ConfigError.
        accept: makes settings those in force.
        describe: what the next program needs to take over.
        hand_over: becomes the program as it is installed now; returns only by an OSError.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        read: Callable[[], Config],
        accept: Callable[[Config], None],
        describe: Callable[[], Inheritance],
        hand_over: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        self._pool = pool
        self._read = read
        self._accept = accept
        self._describe = describe
        self._hand_over = hand_over
        self._requested: list[Change] = []  # those that have not begun
        self._task: asyncio.Task[None] | None = None

    def roll(self) -> None:
        """Requests that one worker after the other is replaced."""
        self._request(self._roll)

    def upgrade(self) -> None:
        """Requests that the supervisor becomes the program as it is installed now."""
        self._request(self._upgrade)

    @property
    def is_under_way(self) -> bool:
        """Whether a change is being made, or waits to be."""
        return self._task is not None and not self._task.done()

    def cancel(self) -> None:
        """Ends the change that is under way, where it is: the supervisor stops."""
        self._requested.clear()
        if self._task is not None:
            self._task.cancel()

    def _request(self, change: Change) -> None:
        if self._pool.stopping:
            return
        if change not in self._requested:
            self._requested.append(change)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._make())
        else:
            logger.info("a restart or an upgrade is under way; the next one comes after it")

    async def _make(self) -> None:
        """Makes all changes that are requested, and reports each to systemd and the log."""
        while self._requested:
            systemd.notify_reloading()
            why = await self._requested.pop(0)()
            if why is not None:
                logger.error("%s", why)
            systemd.notify("READY=1", f"STATUS={why or self._pool.status}")

    async def _roll(self) -> str | None:
        pool = self._pool
        try:
            config, fixed = settings.with_fixed(self._read(), pool.config)
        except ConfigError as error:
            return f"not restarted, workers and settings stay as they are: {error}"
        for line in fixed:
            logger.warning("%s", line)
        logger.info("restarting %s, one after the other", counted(pool.count, "worker"))
        for position in range(pool.count):
            old = [w for w in pool.workers if w.position == position and not w.retiring]
            new = pool.start(position, config)
            while new is not None and not (new.ready.is_set() or new.ended.is_set()):
                await pool.change()
            if new is None or new.ended.is_set():
                done = f" ({position} of {pool.count} were restarted)" if position else ""
                return f"the new worker {position} cannot start; the old ones stay{done}"
            self._accept(config)
            for worker in old:
                await self._retire(worker)
        logger.info("restarted")
        return None

    async def _retire(self, worker: Worker) -> None:
        if worker.ended.is_set():
            return
        worker.retiring = True
        worker.send(RETIRE)
        self._pool.assign_listeners()
        try:
            await asyncio.wait_for(worker.ended.wait(), worker.drain_limit)
        except asyncio.TimeoutError:
            logger.warning("worker %d (pid %d) did not retire in time", worker.position, worker.pid)
            worker.kill()
            await worker.ended.wait()

    async def _upgrade(self) -> str | None:
        """Becomes the new program, if that has shown in a trial that it can take over."""
        logger.info("upgrading")
        try:
            with self._pool.reserved_area(0) as area:
                why = await upgrade.refusal(self._describe(), area, self._pool.place)
            if why is None:
                await self._hand_over()
        except OSError as error:
            why = error.strerror
        logger.warning("a worker that dies from now on is replaced by what is installed")
        return f"cannot upgrade, this version goes on: {why}"
