"""A server in a thread, for the time of a ``with`` block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from iproto.server.config import Config
from iproto.server.server import Server
from iproto.testing.faults import Faults
from iproto.testing.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iproto._fastframe import Storage
    from iproto.app import App

# Seconds that the server has to start, and to end: a test waits no longer for either.
PATIENCE = 30.0


class RunningServer:
    """A server that runs in a thread.

    Args:
        url: what clients connect to.
        storage: the slots that it serves: what a test prepares, and looks at.
        faults: what happens to calls on their way.
    """

    def __init__(self, url: str, storage: Storage, faults: Faults) -> None:
        self.url = url
        self.storage = storage
        self.faults = faults


@contextlib.contextmanager
def serve(
    app: App | None = None, storage: Storage | None = None, **settings: Any
) -> Iterator[RunningServer]:
    """Serves on a free port of 127.0.0.1 while the block runs, then drains.

    Args:
        app: the user functions.
        storage: the slots; fresh ones if None.
        settings: further fields of ``Config``.

    Raises:
        ConfigError: a setting is wrong, or the app's lifespan failed.
    """
    started: Future[RunningServer] = Future()
    stop: Future[None] = Future()
    config = Config(bind="127.0.0.1:0", metrics_bind=None, **settings)
    thread = threading.Thread(
        target=_run, args=(config, app, storage, started, stop), name="iproto-testing", daemon=True
    )
    thread.start()
    running = started.result(PATIENCE)
    try:
        yield running
    finally:
        stop.set_result(None)
        thread.join(PATIENCE + config.drain_timeout)
        if thread.is_alive():
            raise RuntimeError("the server did not stop; does a function block its loop?")


def _run(
    config: Config,
    app: App | None,
    storage: Storage | None,
    started: Future[RunningServer],
    stop: Future[None],
) -> None:
    try:
        asyncio.run(_serve(Server(config, app, storage), Faults(_names_of(app)), started, stop))
    except BaseException as error:  # it belongs to the test that waits, not to this thread
        if started.done():
            raise
        started.set_exception(error)


def _names_of(app: App | None) -> dict[str, int]:
    functions = () if app is None else app.functions.values()
    return {function.name: function.func_id for function in functions}


async def _serve(
    server: Server, faults: Faults, started: Future[RunningServer], stop: Future[None]
) -> None:
    dialect = str(server.config.dialect)
    async with server, Proxy(server.addresses[0], dialect, faults) as proxy:
        host, port = proxy.address
        url = f"iproto://{host}:{port}?dialect={dialect}"
        started.set_result(RunningServer(url, server.storage, faults))
        await asyncio.wrap_future(stop)
        await server.drain()  # while the proxy passes its last replies on
