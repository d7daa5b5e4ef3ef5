"""The worker processes of a supervisor: starting them, watching them, replacing those that die.

Each position has two areas in the storage, so that a worker and the one that
takes its place never share one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from typing import TYPE_CHECKING

from iproto.metrics.endpoint import WorkerFigures
from iproto.workers.process import Position, Worker, launch, manner_of_end, process_figures
from iproto.workers.worker import ACCEPT, EXIT_USAGE, LEAVE

if TYPE_CHECKING:
    import socket

    from iproto._fastframe import Storage
    from iproto.server.config import Config

logger = logging.getLogger("iproto.workers")

# Seconds that a worker must have served for its death not to count as young,
# and the delays before a worker is started again that died young: the first,
# and the longest, which the doubling ends at.
YOUNG = 5.0
FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0

# Seconds that a worker may take to be ready: imports of the user's app.
START_TIMEOUT = 60.0

# Seconds between two looks at the workers' heartbeats.
WATCH_PERIOD = 0.5


def area_count(workers: int) -> int:
    """Areas that a storage for so many workers needs; the first is the supervisor's own."""
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
        count: how many workers.
    """

    def __init__(self, config: Config, app: str, storage: Storage, memory: int, count: int) -> None:
        self.config = config
        self.storage = storage
        self.memory = memory
        self.count = count
        self.listeners: list[list[socket.socket]] = []  # by address, then by position, or shared
        self.positions = [Position() for _ in range(count)]
        self.workers: list[Worker] = []  # all that are alive
        self.started = False  # the first workers were all ready
        self.failure: int | None = None  # exit code, when these cannot start
        self.stopping = False
        self._app = app
        self._changed = asyncio.Event()  # a worker is ready, or dead

    # What the metrics ask.

    @property
    def ready(self) -> bool:
        """Whether a worker accepts connections, and none is told to stop."""
        return not self.stopping and any(w.ready.is_set() for w in self.workers)

    @property
    def silent_seconds(self) -> float:
        """Since the liveliest worker's event loop last ran."""
        silences = [self.storage.silent_seconds(w.area) for w in self.workers if w.ready.is_set()]
        return min(silences, default=0.0)

    def figures(self) -> list[WorkerFigures]:
        """What the metrics say of each position."""
        return [self._figures_of(position) for position in range(self.count)]

    def _figures_of(self, position: int) -> WorkerFigures:
        connections = requests = resident = 0
        for area in areas_of(position):
            counters = self.storage.counters(area)
            connections += counters["opened"] - sum(counters["closed"])
            requests += sum(map(sum, counters["requests"]))
        known = self.positions[position]
        cpu_seconds = known.cpu_seconds
        for worker in list(self.workers):
            if worker.position == position:
                used, held = process_figures(worker.pid)
                cpu_seconds += used
                resident += held
        # The CPU time of a worker that is just gone may be counted in neither
        # place for a moment; a counter must not go down.
        known.cpu_shown = max(known.cpu_shown, cpu_seconds)
        return WorkerFigures(
            position, connections, requests, known.cpu_shown, resident, known.restarts
        )

    # Starting workers.

    def start(self, position: int, config: Config) -> Worker | None:
        """Starts a worker at a position; None, and a log line, if that cannot be done."""
        taken = {worker.area for worker in self.workers}
        area = next(area for area in areas_of(position) if area not in taken)
        try:
            worker = launch(
                config,
                self._app,
                position=position,
                area=area,
                areas=area_count(self.count),
                memory=self.memory,
                # By position: its own queue of each address, or the one that all share.
                listeners=[
                    [group[other % len(group)].fileno() for group in self.listeners]
                    for other in range(self.count)
                ],
            )
        except OSError as error:
            logger.error("cannot start worker %d: %s", position, error.strerror)
            return None
        timer, self.positions[position].timer = self.positions[position].timer, None
        if timer is not None:  # of a start that this one comes before
            timer.cancel()
        self.take_on(worker)
        logger.debug("worker %d started (pid %d)", position, worker.pid)
        return worker

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

    def take_on(self, worker: Worker) -> None:
        """Has a process that was started among the workers."""
        self.workers.append(worker)
        asyncio.get_running_loop().add_reader(worker.control.fileno(), self._hear, worker)

    def _hear(self, worker: Worker) -> None:
        """A worker says that it is ready, or has closed its end."""
        try:
            said = worker.control.recv(1 << 16)
        except ConnectionError:  # it died before it read what it was told
            said = b""
        if not said:
            asyncio.get_running_loop().remove_reader(worker.control.fileno())
            return
        self.name_rows(json.loads(said)["rows"])
        worker.ready.set()
        logger.debug("worker %d is ready (pid %d)", worker.position, worker.pid)
        self.cover()
        self._changed.set()

    def cover(self) -> None:
        """Has the listeners of positions without a worker served by another one.

        Else what waits there would wait until the position's next worker is
        ready, which can take as long as the delay before its start.
        """
        if not self.started:
            return  # the first workers come all at once, and each to its own listeners
        serving = [w for w in self.workers if w.ready.is_set() and not w.retiring]
        manned = {worker.position for worker in serving}
        covered = set()
        for worker in serving:
            for position in worker.covers & manned:
                worker.order(LEAVE, position)
            worker.covers -= manned
            covered |= worker.covers
        for number, position in enumerate(set(range(self.count)) - manned - covered):
            if serving:
                helper = serving[number % len(serving)]
                helper.covers.add(position)
                helper.order(ACCEPT, position)
            else:
                self._hurry(position)

    def _hurry(self, position: int) -> None:
        """Nobody serves: a start that is delayed for long comes soon."""
        loop = asyncio.get_running_loop()
        timer = self.positions[position].timer
        if timer is not None and timer.when() > loop.time() + FIRST_DELAY:
            timer.cancel()
            self.positions[position].timer = loop.call_later(FIRST_DELAY, self.fill, position)

    def name_rows(self, rows: dict[str, str]) -> None:
        """Counter rows of users' functions, as the workers, which know the app, name them."""
        self.storage.row_names.update({int(row): name for row, name in rows.items()})

    async def change(self, at_most: float = WATCH_PERIOD) -> None:
        """Waits until a worker is ready or dead, or for a while: so many seconds at most."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), min(at_most, WATCH_PERIOD))
        except asyncio.TimeoutError:
            self.reap()  # a SIGCHLD can be missed, when two come at once

    # Their deaths.

    def reap(self) -> None:
        """Finds out which workers are dead."""
        for worker in list(self.workers):
            pid, status, usage = os.wait4(worker.pid, os.WNOHANG)
            if pid:
                worker.exit_code = os.waitstatus_to_exitcode(status)
                if worker.process is not None:
                    worker.process.returncode = worker.exit_code
                self._died(worker, usage.ru_utime + usage.ru_stime)

    def _died(self, worker: Worker, cpu_seconds: float) -> None:
        """Frees what it held, at once; then sees to its replacement."""
        held = self.storage.recover(worker.area)
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
            self.cover()
            return  # a rolling restart is at this position: the other one stays
        lived = time.monotonic() - worker.begun
        if lived >= YOUNG:
            position.delay = 0.0
        logger.error(
            "worker %d (pid %d) %s after %.1f s%s; starting another%s",
            worker.position,
            worker.pid,
            manner_of_end(code),
            lived,
            ", holding the storage's lock, which is freed" if held else "",
            f" in {position.delay:g} s" if position.delay else "",
        )
        position.restarts += 1
        self._start_soon(worker.position)
        self.cover()

    async def watch(self) -> None:
        """Kills workers that hang; their deaths do the rest."""
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
