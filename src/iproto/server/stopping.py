"""Signals that stop a server, also one whose event loop is blocked by a user function.

The loop drains at the first signal and closes at the second. A thread watches that it
does: a function that blocks the loop would otherwise hold the process for as long as it
likes. Only a function that never lets go of the interpreter's lock can hold the thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
from typing import TYPE_CHECKING, Any

from iproto.server.logs import flush_log

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType, TracebackType

logger = logging.getLogger("iproto.server")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Seconds in which a loop that is not blocked runs what it is asked to run.
LOOP_WAIT = 0.5

# Seconds that the loop may take for the end itself: to cancel what still runs.
END_WAIT = 2.5

# Seconds to put a storage file back that was deleted: its file system may not answer.
KEEP_WAIT = 2.0

# Seconds for a last log line, which may wait for a pipe that nobody reads.
LOG_WAIT = 0.5


def may_be_ctrl_c() -> bool:
    """Whether Python itself raises KeyboardInterrupt here: nobody handles SIGINT.

    ``iproto serve`` handles it, and so does asyncio.run from Python 3.11 on.
    """
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


class StopSignals:
    """SIGTERM and SIGINT as futures of a loop; a context manager, for the main thread.

    Args:
        loop: the loop, which need not run yet.
        drain_timeout: seconds from the first signal after which the process leaves with
            code 1 if the loop is blocked. After a second signal it leaves at once, with
            128 and the signal's number.
        before_leaving: what it does before that, for at most KEEP_WAIT seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        drain_timeout: float,
        before_leaving: Callable[[], object] | None = None,
    ) -> None:
        self.first: asyncio.Future[int] = loop.create_future()
        self.second: asyncio.Future[int] = loop.create_future()
        self._loop = loop
        self._drain_timeout = drain_timeout
        self._before_leaving = before_leaving
        # SimpleQueue, for a signal handler may interrupt any code, its own included.
        self._numbers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._previous: list[Any] = []
        self._thread = threading.Thread(target=self._watch, name="iproto-stop", daemon=True)

    def __enter__(self) -> StopSignals:
        self._thread.start()
        self._previous = [signal.signal(number, self._on_signal) for number in STOP_SIGNALS]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, previous in zip(STOP_SIGNALS, self._previous, strict=True):
            signal.signal(number, previous)
        self._numbers.put(None)
        self._thread.join()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._numbers.put(number)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the end is near
            # A turn later: what the sockets have already is read first.
            self._loop.call_soon_threadsafe(self._loop.call_soon, self._resolve, number)

    def _resolve(self, number: int) -> None:
        for future in (self.first, self.second):
            if not future.done():
                future.set_result(number)
                return

    # The thread.

    def _watch(self) -> None:
        if self._numbers.get() is None:
            return
        try:
            second = self._numbers.get(timeout=self._drain_timeout)
            code = 1 if second is None else 128 + second
        except queue.Empty:
            second, code = 0, 1
        if second is None or self._left_orderly():
            return
        if self._before_leaving is not None:
            _run_at_most(KEEP_WAIT, self._before_leaving)
        _leave(code)

    def _left_orderly(self) -> bool:
        """Whether the loop still runs, and comes to its end by itself."""
        runs = threading.Event()
        try:
            self._loop.call_soon_threadsafe(runs.set)
        except RuntimeError:  # it is closed
            runs.set()
        if not runs.wait(LOOP_WAIT):
            return False
        with contextlib.suppress(queue.Empty):
            while self._numbers.get(timeout=END_WAIT) is not None:
                pass
            return True
        return False


def _leave(code: int) -> None:
    """Ends the process whatever its other threads do."""

    def say_why() -> None:
        logger.error("the event loop is blocked, most likely by a user function: leaving it")
        flush_log()

    _run_at_most(LOG_WAIT, say_why)
    os._exit(code)


def _run_at_most(seconds: float, function: Callable[[], object]) -> None:
    """Runs a function in a thread, and waits for it so long at most."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
