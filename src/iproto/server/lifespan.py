"""The lifespan of a served app: entered before connections are accepted, left after the last."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from iproto.errors import ConfigError
from iproto.server.startup import place_of

if TYPE_CHECKING:
    from iproto.app import App

logger = logging.getLogger("iproto.app")


class Lifespan:
    """Holds an app's lifespan open in a task of its own.

    One task enters and leaves it, as task groups and cancel scopes in it want it.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._end = asyncio.Event()

    @property
    def is_broken(self) -> bool:
        """Whether it has ended by itself, while it should be open."""
        return self._task is not None and self._task.done()

    async def open(self, app: App) -> None:
        """Enters it.

        Raises:
            ConfigError: it failed, with the place in the user's code.
        """
        entered = asyncio.Event()
        self._task = asyncio.ensure_future(self._hold(app, entered))
        waiter = asyncio.ensure_future(entered.wait())
        try:
            await asyncio.wait((self._task, waiter), return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._task.cancel()
            raise
        finally:
            waiter.cancel()
        if not entered.is_set():
            task, self._task = self._task, None
            _raise_failure(task)

    async def close(self, timeout: float) -> bool:
        """Leaves it.

        Args:
            timeout: seconds that this may take, then it is cancelled.

        Returns:
            Whether it ended in time and without an error.
        """
        task, self._task = self._task, None
        if task is None:
            return True
        was_broken = task.done()
        self._end.set()
        done, _ = await asyncio.wait((task,), timeout=timeout)
        if not done:
            logger.error("the app's lifespan did not end within %g s; it is cancelled", timeout)
            task.cancel()
            return False
        return not (was_broken or _log_failure(task, "at its end"))

    async def _hold(self, app: App, entered: asyncio.Event) -> None:
        async with app.running():
            entered.set()
            task = self._task
            assert task is not None
            task.add_done_callback(self._notice_end)
            await self._end.wait()

    def _notice_end(self, task: asyncio.Task[None]) -> None:
        if not self._end.is_set():
            _log_failure(task, "while the app is served; its functions are called on")


def _raise_failure(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, ConfigError):
        raise error
    if not isinstance(error, Exception):  # cancelled, or what is to end the process
        raise error or asyncio.CancelledError()
    logger.debug("the app's lifespan failed", exc_info=error)
    raise ConfigError(
        f"the app's lifespan failed at its start: {type(error).__name__}: {error}{place_of(error)}"
    ) from None


def _log_failure(task: asyncio.Task[None], when: str) -> bool:
    """Writes to the log what a lifespan raised; False if it raised nothing."""
    if task.cancelled():
        logger.error("the app's lifespan was cancelled %s", when)
        return True
    error = task.exception()
    if error is not None:
        logger.error("the app's lifespan failed %s", when, exc_info=error)
    return error is not None
