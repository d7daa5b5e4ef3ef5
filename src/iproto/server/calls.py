"""Calls of user functions: starting, answering and cancelling them.

Whatever goes wrong in a call becomes a return code. Nothing in here knows of
sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from iproto._fastframe import UserFunction
from iproto.errors import Error
from iproto.results import pack
from iproto.wire import ReturnCode

if TYPE_CHECKING:
    from iproto.app import Function
    from iproto.server.config import Config

logger = logging.getLogger("iproto.app")

Reply = Callable[[int, int, int, bytes, int], None]
"""Takes func_id, request_id, return code, body, and when the request arrived."""


def bodies_of(function: Function, config: Config) -> UserFunction:
    """What reads the bodies of a function's calls, within a server's limits."""
    arguments = function.arguments
    return UserFunction(
        function.name,
        arguments.decoders,
        arguments.least,
        arguments.refuse,
        counted=arguments.counted,
        max_objects=config.max_objects,
        max_depth=config.max_depth,
    )


class CallBudget:
    """How many users' calls may still start, over all connections of a server."""

    __slots__ = ("limit", "running")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0


class Calls:
    """The users' calls of one connection: starts them, answers them, cancels them.

    Args:
        functions: by func_id, each with what reads its bodies.
        budget: shared with the server's other connections.
        reply: where replies go. Called once for each ``start``, at once or
            later, unless ``cancel`` came first.
    """

    __slots__ = ("_budget", "_cancelled", "_expired", "_functions", "_reply", "_tasks")

    def __init__(
        self,
        functions: dict[int, tuple[Function, UserFunction]],
        budget: CallBudget,
        reply: Reply,
    ) -> None:
        self._functions = functions
        self._budget = budget
        self._reply = reply
        self._tasks: set[asyncio.Task[None]] = set()
        self._expired: set[asyncio.Task[None]] = set()
        self._cancelled = False

    def start(self, func_id: int, request_id: int, body: bytes, arrived: int) -> None:
        """Runs a call; its frame's fields are as ``ServerFrames.take_calls`` gives them."""
        function, bodies = self._functions[func_id]
        budget = self._budget
        if budget.running >= budget.limit:
            text = f"{budget.limit} calls are running on this server, its limit; try again"
            self._reply(func_id, request_id, ReturnCode.OVERLOADED, pack(text), arrived)
            return
        try:
            arguments = bodies.arguments(body)
            if function.is_async:
                self._start_task(function, request_id, arguments, arrived)
                return
            answer = function.pack(function.call(*arguments))
            code = int(ReturnCode.OK)
        except KeyboardInterrupt:
            raise  # Ctrl-C, where no handler is set: it is not the function's
        except BaseException as error:
            code, answer = _failure(function, error)
        self._reply(func_id, request_id, code, answer, arrived)

    def cancel(self) -> None:
        """The connection is gone: nothing more is answered."""
        self._cancelled = True
        for task in self._tasks:
            task.cancel()

    def _start_task(
        self, function: Function, request_id: int, arguments: tuple[Any, ...], arrived: int
    ) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._run(function, request_id, arguments, arrived))
        self._budget.running += 1
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if function.timeout is not None:
            timer = loop.call_later(function.timeout, self._expire, task)
            task.add_done_callback(lambda _: timer.cancel())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._budget.running -= 1
        self._tasks.discard(task)
        self._expired.discard(task)

    def _expire(self, task: asyncio.Task[None]) -> None:
        self._expired.add(task)
        task.cancel()

    async def _run(
        self, function: Function, request_id: int, arguments: tuple[Any, ...], arrived: int
    ) -> None:
        try:
            answer = function.pack(await function.call(*arguments))
            code = int(ReturnCode.OK)
        except asyncio.CancelledError as error:
            if self._cancelled:
                raise
            if asyncio.current_task() in self._expired:
                code = int(ReturnCode.TIMEOUT)
                answer = pack(f"{function.name} ran for its limit of {function.timeout} s")
            else:
                code, answer = _failure(function, error)
        except BaseException as error:
            # Whatever it is, the client waits for an answer, and others for this one's place.
            code, answer = _failure(function, error)
        if not self._cancelled:
            self._reply(function.func_id, request_id, code, answer, arrived)


def _failure(function: Function, error: BaseException) -> tuple[int, bytes]:
    """Return code and body for what a function raised: the one place that maps them."""
    if isinstance(error, Error):
        try:
            return Error(error.code, error.text).code, pack(error.text)
        except (
            Exception
        ) as unfit:  # a subclass of its own making: no code, or a text of another type
            unfit.__context__ = error
            error = unfit
    logger.error("function %s (%#010x) failed", function.name, function.func_id, exc_info=error)
    return ReturnCode.INTERNAL, pack(f"{function.name} failed; the server's log has the details")
