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
from iproto.workers import upgrade
from iproto.workers.worker import RETIRE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from iproto.server.config import Config
    from iproto.workers.process import Worker
    from iproto.workers.supervisor import Supervisor

    Change = Callable[[], Coroutine[None, None, str | None]]  # returns why it was not made

logger = logging.getLogger("iproto.workers")


class Restarts:
    """Replaces the workers of a supervisor, or its whole program; one change after the other.

    Args:
        supervisor: whose.
        read: reads the settings as they are by now; raises ConfigError.
        command_line: what follows ``iproto``, for a new program to read the settings by.
    """

    def __init__(
        self, supervisor: Supervisor, read: Callable[[], Config], command_line: Sequence[str]
    ) -> None:
        self._supervisor = supervisor
        self._read = read
        self._command_line = command_line
        self._asked: list[Change] = []  # that were not begun yet
        self._task: asyncio.Task[None] | None = None

    def roll(self) -> None:
        """Has one worker after the other replaced."""
        self._ask(self._roll)

    def upgrade(self) -> None:
        """Has the supervisor become the program as it is installed now."""
        self._ask(self._upgrade)

    def cancel(self) -> None:
        """Leaves off where it is, for the supervisor stops."""
        self._asked.clear()
        if self._task is not None:
            self._task.cancel()

    def _ask(self, change: Change) -> None:
        if self._supervisor.pool.stopping:
            return
        if change not in self._asked:
            self._asked.append(change)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._make())
        else:
            logger.info("a restart or an upgrade is under way; the next one comes after it")

    async def _make(self) -> None:
        """Makes all changes that are asked for, and tells systemd and the log of each."""
        while self._asked:
            systemd.notify_reloading()
            why = await self._asked.pop(0)()
            if why is not None:
                logger.error("%s", why)
            systemd.notify("READY=1", f"STATUS={why or self._supervisor.status}")

    async def _roll(self) -> str | None:
        pool = self._supervisor.pool
        try:
            config, fixed = settings.with_fixed(self._read(), pool.config)
        except ConfigError as error:
            return f"not restarted, workers and settings stay as they are: {error}"
        for line in fixed:
            logger.warning("%s", line)
        logger.info("restarting %d workers, one after the other", pool.count)
        for position in range(pool.count):
            old = [w for w in pool.workers if w.position == position and not w.retiring]
            new = pool.start(position, config)
            while new is not None and not (new.ready.is_set() or new.ended.is_set()):
                await pool.change()
            if new is None or new.ended.is_set():
                done = f" ({position} of {pool.count} were restarted)" if position else ""
                return f"the new worker {position} cannot start; the old ones stay{done}"
            self._supervisor.accept(config)
            for worker in old:
                await self._retire(worker)
        logger.info("restarted")
        return None

    async def _retire(self, worker: Worker) -> None:
        if worker.ended.is_set():
            return
        worker.retiring = True
        worker.order(RETIRE)
        self._supervisor.pool.cover()
        try:
            await asyncio.wait_for(worker.ended.wait(), worker.drain_limit)
        except asyncio.TimeoutError:
            logger.warning("worker %d (pid %d) did not retire in time", worker.position, worker.pid)
            worker.kill()
            await worker.ended.wait()

    async def _upgrade(self) -> str | None:
        """Becomes the new program, if that can go on with storage and settings."""
        logger.info("upgrading")
        supervisor = self._supervisor
        try:
            why = await upgrade.refusal(supervisor.inheritance(), self._command_line)
            if why is None:
                # As things are by now: workers may have died meanwhile.
                upgrade.hand_over(supervisor.inheritance())
        except OSError as error:
            why = error.strerror
        return f"cannot upgrade, this version goes on: {why}"
