"""The worker processes of a supervisor: starting them, watching them, replacing those that die.

Each position has two areas in the storage, so that a worker and the one that
takes its place never share one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import mmap
import os
import time
from typing import TYPE_CHECKING

from iproto._fastframe import Clients
from iproto.address import address_of
from iproto.checks import EXIT_USAGE
from iproto.server import listeners
from iproto.workers.place import find_place
from iproto.workers.process import Position, Worker, describe_exit, launch
from iproto.workers.worker import ACCEPT, LEAVE

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from iproto._fastframe import Storage
    from iproto.metrics.collectors import WatchedFile
    from iproto.server.config import Config
    from iproto.server.listeners import Listener

logger = logging.getLogger("iproto.workers")

# Seconds that a worker must have served for its death not to count as young,
# and the delays before a worker is started again that died young: the first,
# and the longest, which the doubling ends at.
YOUNG = 5.0
FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0

# Seconds that a worker may take to be ready: imports of the app.
START_TIMEOUT = 60.0

# Seconds between two looks at the workers' heartbeats.
WATCH_PERIOD = 0.5


def area_count(workers: int) -> int:
    """Areas that a storage for this many workers needs; the first is the supervisor's own."""
    return 1 + 2 * workers


def areas_of(position: int) -> tuple[int, int]:
    """The two areas of a position."""
    return 1 + 2 * position, 2 + 2 * position


class Pool:
    """Keeps a number of workers running, each at its position.

    Args:
        config: the settings in force; the next worker is started with them.
        app: ``MODULE:APP``, or empty.
        storage: what they serve.
        memory: its descriptor.
        clients: descriptor of the memory of the table of clients.
        count: how many workers.
    """

    def __init__(
        self, config: Config, app: str, storage: Storage, memory: int, clients: int, count: int
    ) -> None:
        self.config = config
        self.storage = storage
        self.file_watch: WatchedFile | None = None
        self.memory = memory
        self.clients = clients
        self._client_table = Clients(mmap.mmap(clients, 0), areas=area_count(count))
        self.count = count
        self.listeners: list[list[socket.socket]] = []  # by address, then by position, or shared
        self.from_systemd = False  # the listeners are
        self.place = find_place()
        self.positions = [Position() for _ in range(count)]
        self.workers: list[Worker] = []  # all that are alive
        self.started = False  # the first workers were all ready
        self.failure: int | None = None  # exit code, when these cannot start
        self.stopping = False
        self._app = app
        self._reserved_area: int | None = None
        self._changed = asyncio.Event()  # a worker is ready, or dead

    @property
    def where(self) -> str:
        """The addresses, for the log."""
        return ", ".join(str(address_of(sockets[0])) for sockets in self.listeners)

    def first_listeners(self) -> list[Listener]:
        """One listener of each address, with its settings."""
        return listeners.with_settings(
            [sockets[0] for sockets in self.listeners],
            self.config,
            from_systemd=self.from_systemd,
        )

    @property
    def status(self) -> str:
        """The state of the service in a few words, for systemd."""
        return f"serving {self.where} with {self.count} workers"

    # Source of the metrics.

    @property
    def ready(self) -> bool:
        """Whether a worker accepts connections, and the server does not stop."""
        return not self.stopping and any(w.ready.is_set() for w in self.workers)

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last heartbeat of the liveliest worker."""
        silences = [self.storage.silent_seconds(w.area) for w in self.workers if w.ready.is_set()]
        return min(silences, default=0.0)

    # Starting workers.

    def start(self, position: int, config: Config) -> Worker | None:
        """Starts a worker at a position; None, and a log line, if that cannot be done."""
        area = self._free_area(position)
        try:
            worker = launch(
                config,
                self._app,
                self.place,
                position=position,
                area=area,
                areas=area_count(self.count),
                memory=self.memory,
                clients=self.clients,
                # By position: its own queue of each address, or the one that all share.
                listeners=[
                    [group[other % len(group)].fileno() for group in self.listeners]
                    for other in range(self.count)
                ],
                from_systemd=self.from_systemd,
            )
        except OSError as error:
            logger.error("cannot start worker %d: %s", position, error.strerror)
            return None
        timer, self.positions[position].timer = self.positions[position].timer, None
        if timer is not None:  # of a start that this one comes before
            timer.cancel()
        self.add(worker)
        logger.debug("worker %d started (pid %d)", position, worker.pid)
        return worker

    def _free_area(self, position: int) -> int:
        taken = {worker.area for worker in self.workers} | {self._reserved_area}
        return next(area for area in areas_of(position) if area not in taken)

    @contextlib.contextmanager
    def reserved_area(self, position: int) -> Iterator[int]:
        """An area of a position for a process that is not among the workers.

        It must be dead at the end of the ``with``: its area is recovered then.
        """
        self._reserved_area = area = self._free_area(position)
        try:
            yield area
        finally:
            self.storage.recover(area)
            self._client_table.recover(area)
            self._reserved_area = None

    def _start_soon(self, position: int) -> None:
        """Starts a worker at a position that has none, after the position's delay."""
        known = self.positions[position]
        loop = asyncio.get_running_loop()
        known.timer = loop.call_later(known.delay, self.fill, position)
        known.delay = min(max(FIRST_DELAY, 2 * known.delay), LONGEST_DELAY)

    def fill(self, position: int) -> None:
        """Starts a worker at a position that has none, now or when it can be done."""
        if not self.stopping and self.start(position, self.config) is None:
            self._start_soon(position)

    def add(self, worker: Worker) -> None:
        """Adds a process that was started to the pool."""
        self.workers.append(worker)
        asyncio.get_running_loop().add_reader(worker.control.fileno(), self._on_message, worker)

    def _on_message(self, worker: Worker) -> None:
        """A worker reports that it is ready, or has closed its end."""
        try:
            received = worker.control.recv(1 << 16)
        except ConnectionError:  # it died before it read our last message
            received = b""
        if not received:
            asyncio.get_running_loop().remove_reader(worker.control.fileno())
            return
        self.name_rows(json.loads(received)["rows"])
        worker.ready.set()
        logger.debug("worker %d is ready (pid %d)", worker.position, worker.pid)
        self.assign_listeners()
        self._changed.set()

    def assign_listeners(self) -> None:
        """Assigns the listeners of each position without a worker to a live worker.

        Without that, connections would wait there until the position's next
        worker is ready, which can take as long as the delay before its start.
        """
        if not self.started:
            return  # the first workers come all at once, and each to its own listeners
        serving = [w for w in self.workers if w.ready.is_set() and not w.retiring]
        served_positions = {worker.position for worker in serving}
        assigned = set()
        for worker in serving:
            for position in worker.extra_positions & served_positions:
                worker.send(LEAVE, position)
            worker.extra_positions -= served_positions
            assigned |= worker.extra_positions
        unserved = set(range(self.count)) - served_positions - assigned
        for number, position in enumerate(unserved):
            if serving:
                helper = serving[number % len(serving)]
                helper.extra_positions.add(position)
                helper.send(ACCEPT, position)
            else:
                self._start_now(position)

    def _start_now(self, position: int) -> None:
        """Shortens a long delay before a start: no other worker serves meanwhile."""
        loop = asyncio.get_running_loop()
        timer = self.positions[position].timer
        if timer is not None and timer.when() > loop.time() + FIRST_DELAY:
            timer.cancel()
            self.positions[position].timer = loop.call_later(FIRST_DELAY, self.fill, position)

    def name_rows(self, rows: dict[str, str]) -> None:
        """Names counter rows of user functions, which only the workers import."""
        self.storage.row_names.update({int(row): name for row, name in rows.items()})

    async def change(self, at_most: float = WATCH_PERIOD) -> None:
        """Waits until a worker is ready or dead, or ``at_most`` seconds."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), min(at_most, WATCH_PERIOD))
        except asyncio.TimeoutError:
            self.reap()  # a SIGCHLD can be missed, when two come at once

    # Deaths of workers.

    def reap(self) -> None:
        """Collects the exit codes of workers that have ended."""
        for worker in list(self.workers):
            pid, status, usage = os.wait4(worker.pid, os.WNOHANG)
            if pid:
                worker.exit_code = os.waitstatus_to_exitcode(status)
                if worker.process is not None:
                    worker.process.returncode = worker.exit_code
                self._died(worker, usage.ru_utime + usage.ru_stime)

    def _died(self, worker: Worker, cpu_seconds: float) -> None:
        """Frees the lock if the worker held it, at once; then replaces the worker."""
        held = self.storage.recover(worker.area)
        self._client_table.recover(worker.area)
        self.workers.remove(worker)
        loop = asyncio.get_running_loop()
        loop.remove_reader(worker.control.fileno())
        worker.control.close()
        worker.ended.set()
        self._changed.set()
        position = self.positions[worker.position]
        position.cpu_seconds += cpu_seconds
        if self.stopping or worker.retiring:
            logger.debug("worker %d ended (pid %d)", worker.position, worker.pid)
            return
        code = worker.exit_code or 0
        if code == EXIT_USAGE and not self.started:
            self.failure = EXIT_USAGE
            return
        if any(w.position == worker.position and not w.retiring for w in self.workers):
            self.assign_listeners()
            return  # a rolling restart is at this position: the other one stays
        lived = time.monotonic() - worker.begun
        if lived >= YOUNG:
            position.delay = 0.0
        logger.error(
            "worker %d (pid %d) %s after %.1f s%s; starting another%s",
            worker.position,
            worker.pid,
            describe_exit(code),
            lived,
            ", holding the storage's lock, which is freed" if held else "",
            f" in {position.delay:g} s" if position.delay else "",
        )
        position.restarts += 1
        self._start_soon(worker.position)
        self.assign_listeners()

    async def watch(self) -> None:
        """Kills workers that hang; reap replaces them."""
        while True:
            await asyncio.sleep(WATCH_PERIOD)
            for worker in self.workers:
                if worker.ready.is_set():
                    silent = self.storage.silent_seconds(worker.area)
                    limit = self.config.worker_timeout
                else:
                    silent = time.monotonic() - worker.begun
                    limit = START_TIMEOUT
                if silent > limit and not worker.retiring:
                    logger.error(
                        "worker %d (pid %d) gave no sign of life for %.1f s; killing it",
                        worker.position,
                        worker.pid,
                        silent,
                    )
                    worker.kill()
