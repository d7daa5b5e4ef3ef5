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
from typing import Any, NamedTuple

from iproto._fastframe import Storage
from iproto.errors import ConfigError
from iproto.server.config import Config
from iproto.server.logs import flush_log, set_up_logging
from iproto.server.run import new_loop, run_in_loop
from iproto.server.server import Server
from iproto.server.startup import leave, load_app

logger = logging.getLogger("iproto.workers")

SPEC_VARIABLE = "IPROTO_WORKER"
"""The environment variable that holds a WorkerSpec, as JSON."""

RETIRE = "retire"
"""Message to a worker: drain; another worker has its listeners now."""

ACCEPT = "accept"
"""Message to a worker, with a position: accept at that position's listeners too."""

LEAVE = "leave"
"""Message to a worker, with a position: its own worker accepts there again."""

EXIT_USAGE = 2


class WorkerSpec(NamedTuple):
    """What a worker is started with; file descriptors are inherited.

    Args:
        config: the fields of the Config.
        app: ``MODULE:APP``, or empty.
        areas: worker areas in the storage.
        area: the worker's own.
        storage: descriptor of the storage's memory.
        position: the worker's own position.
        listeners: descriptors of the listening sockets, by position.
        control: descriptor of the socket to the supervisor.
    """

    config: dict[str, Any]
    app: str
    areas: int
    area: int
    storage: int
    position: int
    listeners: list[list[int]]
    control: int


def main() -> int:
    """Runs the worker that the environment describes; returns the exit code."""
    spec = WorkerSpec(**json.loads(os.environ.pop(SPEC_VARIABLE)))
    config = Config(**spec.config)
    set_up_logging(config.log_level)
    try:
        app = load_app(spec.app) if spec.app else None
        memory = mmap.mmap(spec.storage, 0)
        queues = [[socket.socket(fileno=fd) for fd in fds] for fds in spec.listeners]
        server = Server(
            config,
            app,
            Storage(memory, workers=spec.areas, worker=spec.area),
            inherited=queues[spec.position],
        )
        with socket.socket(fileno=spec.control) as control:
            code = run_in_loop(new_loop(config.loop), lambda: _serve(server, control, queues))
        return leave(code)
    except ConfigError as error:
        flush_log()  # the error is to be the last line
        print(f"iproto: {error}", file=sys.stderr)
        return EXIT_USAGE


async def _serve(server: Server, control: socket.socket, queues: list[list[socket.socket]]) -> int:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[bool] = loop.create_future()

    def decide(accept: bool) -> None:
        if not stop.done():
            stop.set_result(accept)

    def on_control() -> None:
        try:
            received = control.recv(4096)
        except ConnectionError:  # the supervisor died before it read our message
            received = b""
        if not received:
            loop.remove_reader(control.fileno())
            logger.warning("the supervisor is dead; draining")
            decide(accept=True)
        for message in received.decode().splitlines():
            kind, _, position = message.partition(" ")
            if kind == RETIRE:
                decide(accept=False)
            elif kind == ACCEPT:
                server.accept_at(queues[int(position)])
            elif kind == LEAVE:
                server.leave(queues[int(position)])

    control.setblocking(False)
    loop.add_reader(control.fileno(), on_control)
    loop.add_signal_handler(signal.SIGTERM, decide, True)
    loop.add_signal_handler(signal.SIGINT, decide, True)
    await server.start()
    ready = {"rows": server.storage.row_names}
    with contextlib.suppress(ConnectionError):  # on_control notices a dead supervisor
        control.sendall(json.dumps(ready).encode() + b"\n")
    accept = await stop
    return 0 if await server.drain(accept=accept) else 1


if __name__ == "__main__":
    sys.exit(main())
