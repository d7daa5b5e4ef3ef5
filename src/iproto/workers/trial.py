"""The trial before an upgrade: shows that the program as it is installed now can take over.

The old supervisor runs the new program with its own command line, and with
this module in place of a supervisor. It does what a supervisor does, with the
storage that is served, as far as that disturbs nobody: reads the settings,
attaches to the storage, and starts a worker, which accepts no connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from iproto.errors import ConfigError
from iproto.server import settings
from iproto.server.run import run_in_loop
from iproto.workers.pool import START_TIMEOUT, area_count
from iproto.workers.process import describe_exit, launch
from iproto.workers.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto.server.config import Config
    from iproto.workers.inheritance import Inheritance
    from iproto.workers.process import Worker


def run(inheritance: Inheritance, area: int, app: str, read: Callable[[], Config]) -> int:
    """Runs the trial.

    Args:
        inheritance: what the old supervisor would leave.
        area: an area of the storage that no worker uses.
        app: ``MODULE:APP``, or empty.
        read: reads the settings as they are by now.

    Returns:
        0 if this program can take over; else stderr's last line says why not.

    Raises:
        ConfigError, ValueError: the program cannot use the settings, or the storage.
    """
    # The settings that it would begin with, and those that it would go on to.
    supervisor = Supervisor(inheritance.config, app, read, inheritance)
    config, _ = settings.with_fixed(read(), inheritance.config)

    async def trial() -> int:
        worker = launch(
            config,
            app,
            supervisor.pool.place,
            position=0,
            area=area,
            areas=area_count(supervisor.pool.count),
            memory=inheritance.memory,
            clients=inheritance.clients,
            listeners=[[] for _ in range(supervisor.pool.count)],
            own_session=False,
        )
        return await _watch(worker)

    return run_in_loop(asyncio.new_event_loop(), trial)


async def _watch(worker: Worker) -> int:
    """Waits until the worker is ready; then ends it."""
    loop = asyncio.get_running_loop()
    assert worker.process is not None
    try:
        message = await asyncio.wait_for(loop.sock_recv(worker.control, 1 << 16), START_TIMEOUT)
        if message:
            worker.signal(signal.SIGTERM)
            return 0
        code = await loop.run_in_executor(None, worker.process.wait)
        if code > 0:
            return code  # its own last line says why
        raise ConfigError(f"its worker {describe_exit(code)} before it was ready")
    except asyncio.TimeoutError:
        raise ConfigError(f"its worker was not ready within {START_TIMEOUT:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        worker.control.close()
        await loop.run_in_executor(None, worker.process.wait)
