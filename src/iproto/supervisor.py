"""Worker processes over one shared storage, and the process that keeps them running.

The supervisor serves no traffic. It owns the listening sockets, the storage's
memory and the metrics endpoint; workers are fresh interpreters that inherit
them. What each event leads to:

- A worker dies: what it held of the lock is freed (Storage.recover), and
  another starts in its place, at once, or after a growing delay if it died
  young and others serve. Connections that wait at its listeners are not lost: the supervisor
  holds the sockets open, and another worker accepts them meanwhile.
- A worker's event loop does not run any more: it is killed, and so replaced.
- SIGHUP: a rolling restart. For one worker after the other a fresh one starts
  beside it, at the same listeners; when that is ready, the old one retires.
- SIGUSR2: an upgrade. The process becomes the program as it is installed now
  (upgrade.py), keeping storage, listeners and workers, and restarts these one
  after the other.
- SIGTERM, SIGINT: all workers drain. A second signal kills them.

Each position has two areas in the storage, so that a worker and the one that
takes its place never share one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from iproto import listeners, systemd, upgrade
from iproto._fastframe import Storage
from iproto.cpus import usable_cpus
from iproto.errors import ConfigError
from iproto.metrics import MetricsEndpoint, WorkerFigures, WorkersCollector
from iproto.processes import Position, Worker, manner_of_end, process_figures
from iproto.server import run_in_loop
from iproto.storage_file import Flusher, open_storage
from iproto.upgrade import Inheritance, InheritedWorker
from iproto.worker import ACCEPT, EXIT_USAGE, LEAVE, ORDERS, RETIRE, Orders

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from iproto.config import Config

logger = logging.getLogger("iproto.supervisor")

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

# Seconds beyond the drain time-out until a worker that drains is killed.
DRAIN_GRACE = 2.0


class Supervisor:
    """Keeps the workers running, from ``run`` to its end.

    Args:
        config: the settings; ``workers`` is a number or ``"auto"``.
        app: ``MODULE:APP``, or empty.
    """

    def __init__(self, config: Config, app: str) -> None:
        self.config = config
        self._app = app
        self._inheritance = upgrade.inherited()
        if self._inheritance is not None:
            self.count = len(self._inheritance.positions)
            self._memory_fd = self._inheritance.memory
        else:
            self.count = usable_cpus() if config.workers == "auto" else int(config.workers or 1)
            if config.storage_file is not None:
                self._memory_fd = open_storage(config.storage_file, self._area_count).fd
            else:
                self._memory_fd = _shared_memory(Storage.size_for(self._area_count))
        self.storage = Storage(mmap.mmap(self._memory_fd, 0), workers=self._area_count, worker=0)
        self.positions = [Position() for _ in range(self.count)]
        self.workers: list[Worker] = []  # all that are alive
        self._listeners: list[list[socket.socket]] = []  # by address
        self._failure: int | None = None  # exit code, when no worker could start
        self._started = False  # the first workers were ready
        self._stopping = False
        self._rolling: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # a worker is ready, or dead

    @property
    def _area_count(self) -> int:
        return 1 + 2 * self.count  # the first is the supervisor's own

    # What the metrics ask.

    @property
    def ready(self) -> bool:
        """Whether a worker accepts connections, and none is told to stop."""
        return not self._stopping and any(w.ready.is_set() for w in self.workers)

    @property
    def silent_seconds(self) -> float:
        """Since the liveliest worker's event loop last ran."""
        silences = [self.storage.silent_seconds(w.area) for w in self.workers if w.ready.is_set()]
        return min(silences, default=0.0)

    def areas_of(self, position: int) -> tuple[int, int]:
        """The two areas of a position."""
        return 1 + 2 * position, 2 + 2 * position

    def figures(self) -> list[WorkerFigures]:
        """What the metrics say of each position."""
        return [self._figures_of(position) for position in range(self.count)]

    def _figures_of(self, position: int) -> WorkerFigures:
        connections = requests = resident = 0
        for area in self.areas_of(position):
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

    # From start to end.

    async def run(self) -> int:
        """Starts the workers and keeps them running until told to stop.

        Returns:
            The exit code: 0 if all drained in time, 1 if not, 2 if the first
            workers could not start, 128 + the number of a second signal.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        signals: asyncio.Queue[int] = asyncio.Queue()
        for ending in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(ending, signals.put_nowait, int(ending))
        loop.add_signal_handler(signal.SIGHUP, self._begin, self._roll)
        loop.add_signal_handler(signal.SIGUSR2, self._begin, self._upgrade)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        upgrade.release_signals()
        metrics = None
        watch = asyncio.ensure_future(self._watch())
        watchdog = asyncio.ensure_future(systemd.feed_watchdog())
        try:
            if self._inheritance is not None:
                self._inherit(self._inheritance)
            else:
                self._listen()
            if self.config.metrics_address is not None:
                metrics = MetricsEndpoint(
                    self.config.metrics_address, self, [WorkersCollector(self.figures)]
                )
            if await self._start_all(signals):
                where = [str(listeners.address_of(sockets[0])) for sockets in self._listeners]
                logger.info(
                    "serving %s (dialect %s, %d workers)%s",
                    ", ".join(where),
                    self.config.dialect,
                    self.count,
                    f", metrics on http://{metrics.address}/metrics" if metrics else "",
                )
                systemd.notify(
                    "READY=1", f"STATUS=serving {', '.join(where)} with {self.count} workers"
                )
                if self._inheritance is not None:
                    self._begin(self._roll)
                number = await signals.get()
                return await self._stop(number, signals)
            return self._failure if self._failure is not None else await self._stop(0, signals)
        finally:
            watch.cancel()
            watchdog.cancel()
            await self._kill_all()
            for sockets in self._listeners:
                for sock in sockets:
                    sock.close() if systemd.is_given(sock) else listeners.close(sock)
            if metrics is not None:
                await metrics.close()
            logger.info("stopped")

    def _listen(self) -> None:
        self._listeners += [[sock] for sock in systemd.given_listeners()]
        if self._listeners:
            return
        for address in self.config.addresses:
            self._listeners.append(
                listeners.listen(address, self.config.backlog, copies=self.count)
            )

    def _inherit(self, inheritance: Inheritance) -> None:
        """Takes over what the supervisor before this one kept."""
        self._listeners += [
            [socket.socket(fileno=fd) for fd in group] for group in inheritance.listeners
        ]
        for position, (restarts, cpu_seconds) in zip(
            self.positions, inheritance.positions, strict=True
        ):
            position.restarts = restarts
            position.cpu_seconds = cpu_seconds
        for left in inheritance.workers:
            worker = Worker(left.position, left.area, left.pid, socket.socket(fileno=left.control))
            if left.ready:
                worker.ready.set()
            self._take_on(worker)
        self._name_rows(inheritance.rows)
        self._reap()  # those that died meanwhile

    async def _start_all(self, signals: asyncio.Queue[int]) -> bool:
        """Whether all first workers are ready; no if one cannot start, or at a signal."""
        for position in range(self.count):
            if not any(worker.position == position for worker in self.workers):
                self._start(position)
        while self._failure is None and signals.empty():
            if len({w.position for w in self.workers if w.ready.is_set()}) == self.count:
                self._started = True
                self._cover()
                return True
            await self._change(WATCH_PERIOD)
        return False

    async def _stop(self, number: int, signals: asyncio.Queue[int]) -> int:
        """All workers drain; those that take too long are killed."""
        self._stopping = True
        systemd.notify("STOPPING=1", "STATUS=draining")
        if self._rolling is not None:
            self._rolling.cancel()
        limit = self.config.drain_timeout
        if number:
            logger.info(
                "%s: draining, at most %g s; a second signal ends at once",
                signal.Signals(number).name,
                limit,
            )
        # One that is not ready has nothing to drain, and no handler yet: it just dies.
        draining = [worker for worker in self.workers if worker.ready.is_set()]
        for worker in self.workers:
            worker.signal(signal.SIGTERM)
        deadline = time.monotonic() + limit + DRAIN_GRACE
        while self.workers:
            if not signals.empty():
                return 128 + signals.get_nowait()
            left = deadline - time.monotonic()
            if left <= 0:
                logger.warning("killing %d workers that were not done in time", len(self.workers))
                return 1
            await self._change(min(left, WATCH_PERIOD))
        return 0 if all(worker.exit_code == 0 for worker in draining) else 1

    async def _kill_all(self) -> None:
        self._stopping = True
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
        while self.workers:
            await self._change(WATCH_PERIOD)

    async def _change(self, seconds: float) -> None:
        """Waits until a worker is ready or dead, or so long."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except asyncio.TimeoutError:
            self._reap()  # a SIGCHLD can be missed, when two come at once

    # Starting workers.

    def _start(self, position: int) -> Worker | None:
        """Starts a worker at a position; None when the supervisor is stopping."""
        self.positions[position].timer = None
        if self._stopping:
            return None
        taken = {worker.area for worker in self.workers}
        free = [area for area in self.areas_of(position) if area not in taken]
        if not free:  # a worker retires, another died: one of the two ends soon
            asyncio.get_running_loop().call_later(WATCH_PERIOD, self._start, position)
            return None
        ours, theirs = socket.socketpair()
        # By position: its own queue of each address, or the one that all share.
        queues = [
            [group[other % len(group)].fileno() for group in self._listeners]
            for other in range(self.count)
        ]
        inherited = {self._memory_fd, theirs.fileno(), *(fd for fds in queues for fd in fds)}
        orders = Orders(
            config={**dataclasses.asdict(self.config), "metrics_bind": None},
            app=self._app,
            areas=self._area_count,
            area=free[0],
            storage=self._memory_fd,
            position=position,
            listeners=queues,
            control=theirs.fileno(),
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "iproto.worker"],
            stdin=subprocess.DEVNULL,
            env={**os.environ, ORDERS: json.dumps(orders._asdict())},
            pass_fds=tuple(inherited),
            start_new_session=True,  # Ctrl-C is for the supervisor, which tells the workers
        )
        theirs.close()
        ours.setblocking(False)
        worker = Worker(position, free[0], process.pid, ours)
        worker.process = process
        self._take_on(worker)
        logger.debug("worker %d started (pid %d)", position, worker.pid)
        return worker

    def _take_on(self, worker: Worker) -> None:
        self.workers.append(worker)
        asyncio.get_running_loop().add_reader(worker.control.fileno(), self._hear, worker)

    def _hear(self, worker: Worker) -> None:
        """A worker says that it is ready, or has closed its end."""
        said = worker.control.recv(1 << 16)
        if not said:
            asyncio.get_running_loop().remove_reader(worker.control.fileno())
            return
        self._name_rows(json.loads(said)["rows"])
        worker.ready.set()
        logger.debug("worker %d is ready (pid %d)", worker.position, worker.pid)
        self._cover()
        self._changed.set()

    def _cover(self) -> None:
        """Has the listeners of positions without a worker served by another one.

        Else what waits there would wait until the position's next worker is
        ready, which can take as long as the delay before its start.
        """
        if not self._started:
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
            self.positions[position].timer = loop.call_later(FIRST_DELAY, self._start, position)

    def _name_rows(self, rows: dict[str, str]) -> None:
        """Counter rows of users' functions, as the workers, which know the app, name them."""
        self.storage.row_names.update({int(row): name for row, name in rows.items()})

    # Their deaths.

    def _reap(self) -> None:
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
        if self._stopping or worker.retiring:
            logger.debug("worker %d ended (pid %d)", worker.position, worker.pid)
            return
        code = worker.exit_code or 0
        if code == EXIT_USAGE and not worker.ready.is_set() and not self.ready:
            self._failure = EXIT_USAGE
            return
        if any(w.position == worker.position and not w.retiring for w in self.workers):
            self._cover()
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
        position.timer = loop.call_later(position.delay, self._start, worker.position)
        position.delay = min(max(FIRST_DELAY, 2 * position.delay), LONGEST_DELAY)
        self._cover()

    async def _watch(self) -> None:
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
                    worker.signal(signal.SIGKILL)

    # Rolling restart.

    def _begin(self, change: Callable[[], Coroutine[None, None, None]]) -> None:
        """Begins a rolling restart or an upgrade, one at a time."""
        if self._stopping:
            return
        if self._rolling is not None and not self._rolling.done():
            logger.warning("a restart or an upgrade is under way already; signal again after it")
            return
        systemd.notify_reloading()
        self._rolling = asyncio.ensure_future(change())
        self._rolling.add_done_callback(self._end)

    def _end(self, _change: asyncio.Task[None]) -> None:
        if not self._stopping:
            systemd.notify("READY=1")

    async def _roll(self) -> None:
        logger.info("restarting %d workers, one after the other", self.count)
        for old in [worker for worker in self.workers if not worker.retiring]:
            new = self._start(old.position)
            if new is None:
                return
            while not (new.ready.is_set() or new.ended.is_set()):
                await self._change(WATCH_PERIOD)
            if new.ended.is_set():
                logger.error("the new worker %d cannot start; the old ones stay", old.position)
                return
            await self._retire(old)
        logger.info("restarted")

    async def _upgrade(self) -> None:
        """Becomes the program as it is installed now, if that can go on with the storage."""
        logger.info("upgrading")
        why = await upgrade.refusal(self._memory_fd, self._area_count)
        if why is not None:
            logger.error("cannot upgrade, this version goes on: %s", why)
            return
        if self._stopping:
            return
        upgrade.hand_over(
            Inheritance(
                memory=self._memory_fd,
                listeners=[[sock.fileno() for sock in group] for group in self._listeners],
                workers=[
                    InheritedWorker(w.position, w.area, w.pid, w.control.fileno(), w.ready.is_set())
                    for w in self.workers
                ],
                positions=[(p.restarts, p.cpu_seconds) for p in self.positions],
                rows={str(row): name for row, name in self.storage.row_names.items()},
            )
        )

    async def _retire(self, worker: Worker) -> None:
        if worker.ended.is_set():
            return
        worker.retiring = True
        worker.order(RETIRE)
        self._cover()
        try:
            limit = self.config.drain_timeout + DRAIN_GRACE
            await asyncio.wait_for(worker.ended.wait(), limit)
        except asyncio.TimeoutError:
            logger.warning("worker %d (pid %d) did not retire in time", worker.position, worker.pid)
            worker.signal(signal.SIGKILL)
            await worker.ended.wait()


def run(config: Config, app: str = "") -> int:
    """Serves with worker processes until SIGTERM or SIGINT.

    Args:
        config: the settings.
        app: ``MODULE:APP``, or empty.

    Returns:
        The exit code; see :meth:`Supervisor.run`.

    Raises:
        ConfigError: an address cannot be listened on, or the storage file cannot be used.
    """
    supervisor = Supervisor(config, app)
    with Flusher(supervisor.storage, config.storage_sync if config.storage_file else 0):
        return run_in_loop(asyncio.new_event_loop(), supervisor.run)


def _shared_memory(size: int) -> int:
    """Descriptor of memory that child processes can map; it goes when they all do."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("iproto-storage", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"cannot make {size} bytes of shared memory: {error.strerror}") from None
    return fd
