"""A process that serves: its event loop, its signals, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING

from iproto import forks
from iproto.errors import ConfigError
from iproto.server import systemd
from iproto.server.server import Server
from iproto.server.stopping import STOP_SIGNALS, StopSignals, may_be_ctrl_c
from iproto.storage.file import open_storage
from iproto.storage.flush import Flusher

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from iproto._fastframe import Storage
    from iproto.app import App
    from iproto.server.config import Config
    from iproto.storage.watch import FileWatch

logger = logging.getLogger("iproto.server")

# Seconds that cancelled calls have to end, when the process is about to.
CANCEL_WAIT = 1.0


def run(config: Config, app: App | None = None, storage: Storage | None = None) -> int:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends at once.

    Args:
        config, app, storage: as for :class:`Server`; the storage is that in
            ``config.storage_file``, if one is named.

    Returns:
        The exit code: 0 after a clean drain, 1 if the drain timed out, or the next
        start at the path of the storage file does not find all that was written,
        128 + the signal's number after a second signal.

    Raises:
        ConfigError: an address cannot be listened on, the loop is not installed,
            or the storage file cannot be used, or there is a storage beside it.
    """
    watch: FileWatch | None = None
    with contextlib.ExitStack() as stack:
        if config.storage_file is not None:
            if storage is not None:
                raise ConfigError("give a storage or a storage_file, not both")
            file = stack.enter_context(open_storage(config.storage_file))
            storage, watch = file.storage, file.watch
            stack.enter_context(Flusher(storage, config.storage_sync))
        loop = new_loop(config.loop)
        keep = None if watch is None else watch.close
        with StopSignals(loop, config.drain_timeout, before_leaving=keep) as signals:
            code = run_in_loop(
                loop, lambda: _serve_until_signal(_server_for(config, app, storage, watch), signals)
            )
        return code if watch is None or watch.close() else code or 1


def _server_for(
    config: Config, app: App | None, storage: Storage | None, watch: FileWatch | None
) -> Server:
    """A server at the sockets that systemd passes, if it does."""
    server = Server(config, app, storage, inherited=systemd.inherited_listeners() or None)
    server.file_watch = watch
    server._level = logging.INFO  # no supervisor logs where it serves
    return server


def run_in_loop(
    loop: asyncio.AbstractEventLoop, main: Callable[[], Coroutine[None, None, int]]
) -> int:
    """Runs a program in a fresh loop, to its exit code, and leaves nothing behind."""
    asyncio.set_event_loop(loop)
    try:
        return _run_to_the_end(loop, loop.create_task(main()))
    finally:
        try:
            _cancel_all_tasks(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _run_to_the_end(loop: asyncio.AbstractEventLoop, program: asyncio.Task[int]) -> int:
    """Runs a program though tasks of user functions raise what would end the loop."""
    while True:
        try:
            return loop.run_until_complete(program)
        except (KeyboardInterrupt, SystemExit) as error:
            if program.done() or (isinstance(error, KeyboardInterrupt) and may_be_ctrl_c()):
                raise
            logger.error(
                "a task of yours raised %s, which does not end the server",
                type(error).__name__,
                exc_info=error,
            )


async def _serve_until_signal(server: Server, signals: StopSignals) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGHUP, signal.SIGUSR2):
        loop.add_signal_handler(number, _refuse_restart, server, number)
    forks.register_signals(*STOP_SIGNALS, signal.SIGHUP, signal.SIGUSR2)
    await server.start()
    systemd.notify("READY=1", f"STATUS=serving {', '.join(map(str, server.addresses))}")
    watchdog = asyncio.ensure_future(systemd.feed_watchdog())
    name = signal.Signals(await signals.first).name
    systemd.notify("STOPPING=1", "STATUS=draining")
    logger.info(
        "%s: draining, at most %g s; a second signal ends at once",
        name,
        server.config.drain_timeout,
    )
    drain = asyncio.ensure_future(server.drain())
    await asyncio.wait((drain, signals.second), return_when=asyncio.FIRST_COMPLETED)
    watchdog.cancel()
    if drain.done():
        return 0 if drain.result() else 1
    drain.cancel()
    await server.close()
    return 128 + signals.second.result()


def _refuse_restart(server: Server, number: signal.Signals) -> None:
    if number == signal.SIGHUP and server.reload_certificates():
        return
    logger.error(
        "%s: nothing is restarted, and this process serves on as it is: only workers are replaced "
        "while others serve; start the server with --workers, or stop and start it",
        number.name,
    )


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """A loop of the kind that the settings name.

    Raises:
        ConfigError: it is not installed.
    """
    if name in ("auto", "uvloop"):
        try:
            import uvloop  # optional, and slow to import

            return uvloop.new_event_loop()
        except ImportError:
            if name == "uvloop":
                raise ConfigError(
                    "loop is 'uvloop', which is not installed here; pip install uvloop, "
                    "or use loop 'asyncio'"
                ) from None
    return asyncio.new_event_loop()


def _cancel_all_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancels what is left of user functions; those that will not end are left behind."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        _, stubborn = loop.run_until_complete(asyncio.wait(tasks, timeout=CANCEL_WAIT))
        for task in stubborn:
            logger.warning("a call does not end though it was cancelled: %s", task.get_coro())
