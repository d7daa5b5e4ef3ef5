"""Worker processes over one shared storage, and the process that keeps them running.

The supervisor serves no traffic. It owns the listening sockets, the storage's
memory and the metrics endpoint; workers are fresh interpreters that inherit
them. What each event leads to:

- A worker dies (pool.py): what it held of the lock is freed (Storage.recover),
  and another starts in its place, at once, or after a growing delay if it died
  young and others serve. Connections that wait at its listeners are not lost: the
  supervisor holds the sockets open, and another worker accepts them meanwhile.
- A worker's event loop does not run any more: it is killed, and so replaced.
- SIGHUP: a rolling restart (restart.py). For one worker after the other a fresh
  one starts beside it, at the same listeners, with the settings as they are now;
  when that is ready, the old one retires.
- SIGUSR2: an upgrade. The process becomes the program as it is installed now
  (upgrade.py), keeping storage, listeners and workers, and restarts these one
  after the other.
- SIGTERM, SIGINT: all workers drain. A second signal kills them.
- Workers have uneven numbers of connections, after a restart or a death: these are
  evened out (balance.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import signal
from functools import partial
from typing import TYPE_CHECKING

from iproto._fastframe import Clients, Storage
from iproto.metrics.collectors import WorkersCollector
from iproto.metrics.endpoint import MetricsEndpoint
from iproto.server import listeners, systemd
from iproto.server.logs import set_log_level
from iproto.server.run import run_in_loop
from iproto.server.settings import differences
from iproto.storage.file import open_storage
from iproto.storage.flush import Flusher
from iproto.storage.watch import FileWatch
from iproto.workers import upgrade
from iproto.workers.balance import Balance
from iproto.workers.cpus import usable_cpus
from iproto.workers.figures import worker_figures
from iproto.workers.inheritance import InheritedFile, describe, inherited
from iproto.workers.memory import shared_memory
from iproto.workers.pool import Pool, area_count
from iproto.workers.restart import Restarts
from iproto.workers.stop import kill_all, stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto.server.config import Config
    from iproto.workers.inheritance import Inheritance

logger = logging.getLogger("iproto.workers")


class Supervisor:
    """Keeps the workers running, from ``run`` to its end.

    Args:
        config: the settings; ``workers`` is a number or ``"auto"``.
        app: ``MODULE:APP``, or empty.
        read: reads the settings as they are by now; raises ConfigError.
        inheritance: what the program before this one left, after an upgrade.
    """

    def __init__(
        self,
        config: Config,
        app: str,
        read: Callable[[], Config],
        inheritance: Inheritance | None,
    ) -> None:
        self._inherited = inheritance
        self._metrics: MetricsEndpoint | None = None
        file: InheritedFile | None = None
        if inheritance is not None:
            count = len(inheritance.positions)
            memory, file = inheritance.memory, inheritance.file
            clients = inheritance.clients
        else:
            count = usable_cpus() if config.workers == "auto" else int(config.workers or 1)
            if config.storage_file is not None:
                opened = open_storage(config.storage_file, area_count(count))
                memory = opened.fd
                file = InheritedFile(os.path.abspath(opened.path), opened.path_lock)
            else:
                memory = shared_memory(Storage.size_for(area_count(count)))
            clients = shared_memory(Clients.size_for(area_count(count)))
        storage = Storage(mmap.mmap(memory, 0), workers=area_count(count), worker=0)
        self.pool = Pool(config, app, storage, memory, clients, count)
        self.file_watch = None if file is None else FileWatch(file.path, memory)
        self.pool.file_watch = self.file_watch
        self._file = file
        self.flusher = Flusher(storage, config.storage_sync) if config.storage_file else None
        self._restarts = Restarts(
            self.pool,
            read=read,
            accept=self._accept,
            describe=self._describe,
            hand_over=self._hand_over,
        )

    async def run(self) -> int:
        """Starts the workers and keeps them running until a signal stops them.

        Returns:
            The exit code: 0 if all drained in time, 1 if not, 2 if the first
            workers could not start, 128 + the number of a second signal.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        pool = self.pool
        signals: asyncio.Queue[int] = asyncio.Queue()
        for ending in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(ending, signals.put_nowait, int(ending))
        restarts = self._restarts
        loop.add_signal_handler(signal.SIGHUP, restarts.roll)
        loop.add_signal_handler(signal.SIGUSR2, restarts.upgrade)
        loop.add_signal_handler(signal.SIGCHLD, pool.reap)
        balance = Balance(pool, lambda: restarts.is_under_way)
        tasks = [
            asyncio.ensure_future(coroutine)
            for coroutine in (pool.watch(), balance.run(), systemd.feed_watchdog())
        ]
        try:
            self._open_metrics()
            if self._inherited is not None:
                upgrade.adopt(pool, self._inherited)
            else:
                self._listen()
            upgrade.release_signals()
            if not await self._start_all(signals):
                if pool.failure is not None:
                    return pool.failure
                return await self._stop(signals.get_nowait(), signals)
            listeners.warn_of_strangers(pool.first_listeners(), pool.config, logging.INFO)
            logger.info(
                "serving %s (dialect %s, %s)%s",
                pool.where,
                pool.config.dialect,
                pool.count,
                f", metrics on http://{self._metrics.address}/metrics" if self._metrics else "",
            )
            systemd.notify("READY=1", f"STATUS={pool.status}")
            if self._inherited is not None:
                restarts.roll()
            return await self._stop(await signals.get(), signals)
        finally:
            for task in tasks:
                task.cancel()
            self._restarts.cancel()
            await kill_all(pool)
            for sockets in pool.listeners:
                for sock in sockets:
                    sock.close() if pool.from_systemd else listeners.close(sock)
            if self._metrics is not None:
                await self._metrics.close()
            logger.info("stopped")

    def _open_metrics(self) -> None:
        pool = self.pool
        address = pool.config.metrics_address
        if address is None:
            return
        inherited = None if self._inherited is None else self._inherited.metrics
        self._metrics = MetricsEndpoint(
            address, pool, [WorkersCollector(partial(worker_figures, pool))], listener=inherited
        )

    def _listen(self) -> None:
        pool = self.pool
        pool.listeners += [[sock] for sock in systemd.inherited_listeners()]
        if pool.listeners:
            pool.from_systemd = True
            return
        for one in pool.config.listeners:
            pool.listeners.append(listeners.listen_as(one, pool.config.backlog, pool.count))

    async def _start_all(self, signals: asyncio.Queue[int]) -> bool:
        """Whether all first workers are ready; no if one cannot start, or at a signal."""
        pool = self.pool
        for position in range(pool.count):
            if not any(worker.position == position for worker in pool.workers):
                pool.fill(position)
        while not pool.started:
            if pool.failure is not None or not signals.empty():
                return False
            await pool.change()
            ready = {worker.position for worker in pool.workers if worker.ready.is_set()}
            pool.started = len(ready) == pool.count
        pool.assign_listeners()
        return True

    async def _stop(self, number: int, signals: asyncio.Queue[int]) -> int:
        self._restarts.cancel()
        return await stop(self.pool, number, signals)

    # Settings, and the next program.

    def _accept(self, config: Config) -> None:
        """Makes these the settings in force: a worker that was started with them is ready."""
        changed = differences(config, self.pool.config)
        if not changed:
            return
        logger.info("settings changed: %s", changed)
        self.pool.config = config
        set_log_level(config.log_level)
        if self.flusher is not None:
            self.flusher.change(config.storage_sync)

    def _describe(self) -> Inheritance:
        """What another program needs to take over from this one."""
        metrics = self._metrics
        return describe(self.pool, None if metrics is None else metrics.fileno(), self._file)

    async def _hand_over(self) -> None:
        """Becomes the program as it is installed now.

        Raises:
            OSError: the system does not start it; all is as before.
        """
        if self._metrics is not None:
            await self._metrics.suspend()
        try:
            upgrade.hand_over(self._describe(), self.pool.place)
        finally:
            if self._metrics is not None:
                self._metrics.resume()


def run(
    config: Config,
    app: str,
    read: Callable[[], Config],
    *,
    inheritance: Inheritance | None = None,
) -> int:
    """Serves with worker processes until SIGTERM or SIGINT.

    Args:
        config: the settings.
        app: ``MODULE:APP``, or empty.
        read: reads the settings as they are by now; raises ConfigError.
        inheritance: what the program before this one left, after an upgrade.

    Returns:
        The exit code; see :meth:`Supervisor.run`. 1 in place of 0 if the next start at the
        path of the storage file does not find all that was written.

    Raises:
        ConfigError: an address cannot be listened on, or the storage file cannot be used.
    """
    supervisor = Supervisor(config, app, read, inheritance)
    watch = supervisor.file_watch
    if watch is not None:
        watch.start()
    try:
        with supervisor.flusher or contextlib.nullcontext():
            code = run_in_loop(asyncio.new_event_loop(), supervisor.run)
    except BaseException:
        # After an upgrade the workers go on, and so does the attempt to take over.
        if watch is not None and inherited() is None:
            watch.close()
        raise
    return code if watch is None or watch.close() else code or 1
