"""A worker process: a server over what its supervisor hands it.

process.py starts it as ``python -m iproto.workers.worker``, a fresh interpreter. It
inherits the listening sockets, the storage's memory, and one end of a socket
pair. Over that the worker reports that it is ready, and receives the messages
below. When the other end closes, the supervisor is dead, and the worker drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import mmap
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from iproto import forks
from iproto._fastframe import Clients, Storage
from iproto.checks import EXIT_USAGE
from iproto.errors import ConfigError
from iproto.leftovers import workers_of
from iproto.server import listeners
from iproto.server.config import Config
from iproto.server.limits import SharedClients
from iproto.server.logs import flush_log, set_up_logging
from iproto.server.run import new_loop, run_in_loop
from iproto.server.server import Server
from iproto.server.startup import leave, load_app, reset_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from iproto.server.listeners import Listener

logger = logging.getLogger("iproto.workers")

SPEC_VARIABLE = "IPROTO_WORKER"
"""The environment variable that holds a WorkerSpec, as JSON."""

RETIRE = "retire"
"""Message to a worker: drain; another worker has its listeners now."""

STOP = "stop"
"""Message to a worker: drain; the whole server ends, and its addresses refuse."""

ACCEPT = "accept"
"""Message to a worker, with a position: accept at that position's listeners too."""

LEAVE = "leave"
"""Message to a worker, with a position: its own worker accepts there again."""

LIMIT = "limit"
"""Message to a worker, with a number: for LIMIT_TIME, accept at all positions' listeners while
fewer connections are open, and nowhere else. It is sent again while it is to last."""

LEVEL = "level"
"""Message to a worker: the limit is over."""

SHED = "shed"
"""Message to a worker, with a number: announce the end to connections beyond that."""

# Seconds that a limit lasts: a worker must accept again if its supervisor says no more.
LIMIT_TIME = 1.0

# Seconds between two looks for dead workers, once the supervisor is dead.
RECOVER_PERIOD = 0.1


class WorkerSpec(NamedTuple):
    """What a worker is started with; file descriptors are inherited.

    Args:
        config: the fields of the Config.
        app: ``MODULE:APP``, or empty.
        areas: worker areas in the storage.
        area: the worker's own.
        storage: descriptor of the storage's memory.
        clients: descriptor of the memory of the table of clients.
        position: the worker's own position.
        listeners: descriptors of the listening sockets, by position.
        from_systemd: whether these are systemd's, and listen on when this server ends.
        control: descriptor of the socket to the supervisor.
    """

    config: dict[str, Any]
    app: str
    areas: int
    area: int
    storage: int
    clients: int
    position: int
    listeners: list[list[int]]
    from_systemd: bool
    control: int


def main() -> int:
    """Runs the worker that the environment describes; returns the exit code."""
    spec = WorkerSpec(**json.loads(os.environ.pop(SPEC_VARIABLE)))
    config = Config(**spec.config)
    reset_process()
    set_up_logging(config.log_level)
    # One object for each descriptor, though several positions may share a listener.
    sockets = {fd: socket.socket(fileno=fd) for fd in {fd for fds in spec.listeners for fd in fds}}
    queues = [
        listeners.with_settings([sockets[fd] for fd in fds], config, from_systemd=spec.from_systemd)
        for fds in spec.listeners
    ]
    control = socket.socket(fileno=spec.control)
    held = _Held([spec.storage, spec.clients], [control, *sockets.values()])
    try:
        app = load_app(spec.app) if spec.app else None
        memory = mmap.mmap(spec.storage, 0)
        server = Server(
            config,
            app,
            Storage(memory, workers=spec.areas, worker=spec.area),
            inherited=queues[spec.position],
            clients=SharedClients(_clients(spec), spec.clients),
        )
        with control:
            code = run_in_loop(new_loop(config.loop), lambda: _serve(server, spec, control, queues))
        return leave(code)
    except ConfigError as error:
        flush_log()  # the error is to be the last line
        print(f"iproto: {error}", file=sys.stderr)
        return EXIT_USAGE
    finally:
        del held  # until here: forks knows it as long as it lives


def _clients(spec: WorkerSpec) -> Clients:
    return Clients(mmap.mmap(spec.clients, 0), areas=spec.areas, area=spec.area)


class _Held:
    """What a worker inherited, and its own children must not have; see forks.Holder.

    Args:
        memories: descriptors of shared memory.
        sockets: the rest.
    """

    def __init__(self, memories: Sequence[int], sockets: Sequence[socket.socket]) -> None:
        self._memories = memories
        self._sockets = sockets
        for fd in (*memories, *(sock.fileno() for sock in sockets)):
            os.set_inheritable(fd, False)
        forks.register(self)

    def descriptors(self) -> Iterator[int]:
        """Those that are open still."""
        for memory in self._memories:
            yield from forks.same_file(memory)
        for sock in self._sockets:
            if sock.fileno() >= 0:
                yield sock.fileno()

    def serves(self, storage: object) -> bool:
        """No: the server does."""
        return False

    def forget(self) -> None:
        """The server detaches the storage."""


async def _serve(
    server: Server, spec: WorkerSpec, control: socket.socket, queues: list[list[Listener]]
) -> int:
    loop = asyncio.get_running_loop()
    end: asyncio.Future[str] = loop.create_future()

    def decide(how: str) -> None:
        if not end.done():
            end.set_result(how)
        if how == STOP and not spec.from_systemd:
            # Those of positions whose worker is dead or stuck, too.
            loop.call_later(listeners.REFUSE_DELAY, _refuse, queues)

    def on_control() -> None:
        try:
            received = control.recv(4096)
        except ConnectionError:  # the supervisor died before it read our message
            received = b""
        if not received:
            loop.remove_reader(control.fileno())
            logger.warning("the supervisor is dead; draining")
            decide(STOP)
            tasks.append(asyncio.ensure_future(_recover_dead_workers(server, spec)))
        partial.extend(received)
        *messages, rest = bytes(partial).split(b"\n")
        partial[:] = rest
        for message in messages:
            kind, _, number = message.decode().partition(" ")
            if kind in (RETIRE, STOP):
                decide(kind)
            else:
                share.receive(kind, int(number or 0))

    partial = bytearray()
    share = _Share(server, spec.position, queues)
    tasks: list[asyncio.Future[None]] = []
    control.setblocking(False)
    loop.add_reader(control.fileno(), on_control)
    for number in (signal.SIGTERM, signal.SIGINT):
        # The server goes on without this worker, unless the supervisor says otherwise.
        loop.add_signal_handler(number, decide, "")
        forks.register_signals(number)
    await server.start()
    ready = {"rows": server.storage.row_names}
    with contextlib.suppress(ConnectionError):  # on_control notices a dead supervisor
        control.sendall(json.dumps(ready).encode() + b"\n")
    how = await end
    refuse = how == STOP and not spec.from_systemd
    return 0 if await server.drain(accept=how != RETIRE, refuse=refuse) else 1


class _Share:
    """Where a worker accepts, and how many connections it keeps, by its supervisor's messages.

    Args:
        server: the worker's.
        position: the worker's own.
        queues: listeners by position; positions may have the same ones.
    """

    def __init__(self, server: Server, position: int, queues: Sequence[Sequence[Listener]]) -> None:
        self._server = server
        self._positions = {position}
        self._queues = queues
        self._limit: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def receive(self, kind: str, number: int) -> None:
        """Acts on a message; those that only another version knows are no harm."""
        if kind == SHED:
            self._server.shed(number)
        elif kind == LIMIT:
            self._set_limit(number)
        elif kind == LEVEL:
            self._set_limit(None)
        elif kind == ACCEPT:
            self._positions.add(number)
            self._accept()
        elif kind == LEAVE:
            self._positions.discard(number)
            self._accept()

    def _set_limit(self, limit: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if limit is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LIMIT_TIME, self._set_limit, None)
        self._limit = limit
        self._accept()

    def _accept(self) -> None:
        all_positions = range(len(self._queues))
        positions = self._positions if self._limit is None else all_positions
        wanted = [one for position in positions for one in self._queues[position]]
        self._server.accept_at(wanted, self._limit)


def _refuse(queues: list[list[Listener]]) -> None:
    for queue in queues:
        for listener in queue:
            listeners.refuse(listener.sock)


async def _recover_dead_workers(server: Server, spec: WorkerSpec) -> None:
    """Does a dead supervisor's duty: frees the lock if a worker dies that holds it.

    None of its workers starts any more; one that is in two looks no more is dead.
    """
    supervisor = int(sys.argv[1])
    clients = _clients(spec)
    areas = set(range(1, spec.areas))
    dead_before: set[int] = set()
    while True:
        dead = areas - workers_of(supervisor).keys() - {spec.area}
        for area in dead & dead_before:
            server.storage.recover(area)
            clients.recover(area)
        dead_before = dead
        await asyncio.sleep(RECOVER_PERIOD)


if __name__ == "__main__":
    sys.exit(main())
