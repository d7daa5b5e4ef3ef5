"""One worker process, as its supervisor sees it, and the position that it is at."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from iproto.leftovers import WORKER_MODULE
from iproto.workers.worker import SPEC_VARIABLE, WorkerSpec

if TYPE_CHECKING:
    from iproto.server.config import Config
    from iproto.workers.place import Place

# Seconds beyond the drain time-out until a worker that drains is killed.
DRAIN_GRACE = 2.0


class Worker:
    """One worker process.

    Args:
        position: 0..workers-1; the next worker at this position takes its place.
        area: its area in the storage.
        pid: the process.
        control: our end of the socket pair.
        drain_timeout: seconds, from the settings that it was started with.
    """

    def __init__(
        self, position: int, area: int, pid: int, control: socket.socket, drain_timeout: float
    ) -> None:
        self.position = position
        self.area = area
        self.pid = pid
        self.control = control
        self.drain_timeout = drain_timeout
        # Kept for its destructor, which would wait for the process in our place.
        self.process: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        self.begun = time.monotonic()
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.retiring = False
        self.extra_positions: set[int] = set()  # where it accepts beside its own

    @property
    def drain_limit(self) -> float:
        """Seconds after which a drain has failed."""
        return self.drain_timeout + DRAIN_GRACE

    def send(self, message: str, position: int | None = None) -> None:
        """Sends the worker a message; one that is just dying does not get it."""
        line = message if position is None else f"{message} {position}"
        with contextlib.suppress(OSError):
            self.control.send(line.encode() + b"\n")

    def signal(self, number: int) -> None:
        """Sends a signal; the process is our child, so the number is still its own."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.signal(signal.SIGKILL)


class Position:
    """The state of a position beyond the worker that is there now."""

    def __init__(self) -> None:
        self.restarts = 0  # workers that died and were replaced
        self.delay = 0.0  # seconds before the next start
        self.timer: asyncio.TimerHandle | None = None  # of a start that is delayed
        self.cpu_seconds = 0.0  # of the workers that are gone
        self.cpu_shown = 0.0  # the most that was ever shown


def launch(
    config: Config,
    app: str,
    place: Place,
    *,
    position: int,
    area: int,
    areas: int,
    memory: int,
    clients: int,
    listeners: list[list[int]],
    from_systemd: bool = False,
    own_session: bool = True,
) -> Worker:
    """Starts a worker process.

    Args:
        config: the settings that it serves with.
        app: ``MODULE:APP``, or empty.
        place: where it starts.
        position, area, areas, listeners, from_systemd: see
            :class:`iproto.workers.worker.WorkerSpec`.
        memory: descriptor of the storage's memory.
        clients: descriptor of the memory of the table of clients.
        own_session: whether Ctrl-C, and what ends our process group, spare the worker.

    Raises:
        OSError: the system has no room for another process, or no descriptors.
    """
    ours, theirs = socket.socketpair()
    with theirs, contextlib.ExitStack() as unless_started:
        unless_started.enter_context(ours)
        spec = WorkerSpec(
            config={**dataclasses.asdict(config), "metrics_bind": None},
            app=app,
            areas=areas,
            area=area,
            storage=memory,
            clients=clients,
            position=position,
            listeners=listeners,
            from_systemd=from_systemd,
            control=theirs.fileno(),
        )
        process = subprocess.Popen(
            # The numbers say whose it is, when this process is dead: see leftovers.
            [place.python, "-m", WORKER_MODULE, str(os.getpid()), str(area)],
            stdin=subprocess.DEVNULL,
            cwd=place.existing_directory,
            env={**os.environ, SPEC_VARIABLE: json.dumps(spec._asdict())},
            pass_fds={memory, clients, theirs.fileno(), *(fd for fds in listeners for fd in fds)},
            start_new_session=own_session,
        )
        unless_started.pop_all()
    ours.setblocking(False)
    worker = Worker(position, area, process.pid, ours, config.drain_timeout)
    worker.process = process
    return worker


def describe_exit(code: int) -> str:
    """How a process ended, by its exit code, for the log."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
