"""Calls of user functions that run as tasks: starting, answering and cancelling them.

A plain function runs in the extension, in ``ServerFrames.run_calls``. Whatever goes
wrong in a call becomes a return code. Nothing in here knows of sockets.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from iproto._fastframe import UserFunction
from iproto.errors import Error, FunctionTimeoutError, OverloadedError
from iproto.results import pack
from iproto.server.stopping import may_be_ctrl_c
from iproto.wire import ReturnCode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Context

    from iproto._fastframe import Call, ServerFrames
    from iproto.function import Function
    from iproto.server.config import Config
    from iproto.server.gates import Gate
    from iproto.server.repeats import Repeats

# Tasks cancelled in one turn of the loop. Each then runs its clean-up, some 10 us, so
# that 256 of them hold the loop for a few milliseconds.
CANCELS_A_TURN = 256


def callee_of(function: Function, row: int, config: Config, failures: Repeats) -> UserFunction:
    """A registered function as the extension calls it, within a server's limits.

    Args:
        function: the function.
        row: its row of the counters.
        config: the server's limits.
        failures: writes to the log what functions raise.
    """
    arguments = function.arguments
    return UserFunction(
        function.func_id,
        row,
        function.name,
        function.call,
        arguments.decoders,
        arguments.least,
        arguments.refuse,
        function.pack,
        partial(failure, function, failures),
        is_async=function.is_async,
        timeout=_timeout(function, config),
        counted=arguments.counted,
        max_objects=config.max_objects,
        max_depth=config.max_depth,
    )


def _timeout(function: Function, config: Config) -> float | None:
    """Seconds that a call may take; a plain function cannot be interrupted."""
    if function.timeout is None and function.is_async and config.call_timeout:
        return config.call_timeout
    return function.timeout


def failure(function: Function, failures: Repeats, error: BaseException) -> tuple[int, bytes]:
    """Return code and body for what a function raised: the one place that maps them.

    Raises:
        KeyboardInterrupt: it may be the user's Ctrl-C.
    """
    if isinstance(error, KeyboardInterrupt) and may_be_ctrl_c():
        raise error
    reply = function.as_error(error)
    if isinstance(reply, Error):
        try:
            return Error(reply.code, reply.text).code, pack(reply.text)
        except Exception as unfit:
            # A subclass of its own making: no code, or a text of another type.
            unfit.__context__ = error
            error = unfit
    failures.error(
        (function.name, type(error)),
        "function %s (%#010x) failed: %s",
        function.name,
        function.func_id,
        type(error).__name__,
        exc_info=error,
    )
    return ReturnCode.INTERNAL, pack(f"{function.name} failed; the server's log has the details")


class Caller(Protocol):
    """What a call needs of its connection: see caller.py."""

    frames: ServerFrames
    tasks: dict[Call, asyncio.Future[None]]

    @property
    def context(self) -> Context: ...
    @property
    def is_closed(self) -> bool: ...
    def flush_soon(self, *, now: bool) -> None: ...


class CallTasks:
    """The calls of one server that run as tasks.

    Args:
        loop: the running loop.
        gates: func_id → of functions that have one.
    """

    __slots__ = ("_doomed", "_expired", "_gates", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, gates: Mapping[int, Gate]) -> None:
        self._loop = loop
        self._gates = gates
        self._expired: set[Call] = set()
        self._doomed: deque[tuple[ServerFrames, Call, asyncio.Future[None]]] = deque()

    def start(self, caller: Caller, call: Call, arguments: tuple[Any, ...]) -> None:
        """Runs a call, or lets it wait until its function has a place for it."""
        gate = self._gates.get(call.function.func_id)
        if gate is None or gate.enter():
            self._start(caller, call, arguments, gate)
            return
        caller.tasks[call] = gate.wait(
            partial(self._start_waiting, caller, call, arguments, gate),
            partial(self._refuse, caller, call, gate),
        )

    def _start(
        self, caller: Caller, call: Call, arguments: tuple[Any, ...], gate: Gate | None
    ) -> None:
        """Runs a call; from Python 3.12 on at once, up to where it first waits."""
        coroutine = self._run(caller, call, arguments)
        if sys.version_info >= (3, 12):
            context = caller.context.copy()
            task = asyncio.Task(coroutine, loop=self._loop, eager_start=True, context=context)
        else:
            task = caller.context.run(self._loop.create_task, coroutine)
        if gate is not None:  # also of a task that is cancelled before it has begun
            task.add_done_callback(lambda _: gate.leave())
        if task.done():
            return
        caller.tasks[call] = task
        timeout = call.function.timeout
        if timeout is not None:
            timer = self._loop.call_later(timeout, self._expire, caller.frames, call, task)
            task.add_done_callback(lambda _: timer.cancel())

    def _start_waiting(
        self, caller: Caller, call: Call, arguments: tuple[Any, ...], gate: Gate
    ) -> bool:
        if caller.is_closed:  # and about to cancel it
            return False
        self._start(caller, call, arguments, gate)
        return True

    def _refuse(self, caller: Caller, call: Call, gate: Gate) -> None:
        """Answers a call that has waited for too long, and never runs it."""
        caller.tasks.pop(call, None)
        error = OverloadedError(
            f"{call.function.name} has no place for another call, and this one waited for "
            f"{gate.queue_timeout:g} s; it was not executed, try again"
        )
        caller.frames.fail(call, error)
        caller.flush_soon(now=False)

    def cancel(self, caller: Caller) -> None:
        """Cancels all calls of a connection that is gone, some in each turn of the loop."""
        if caller.tasks and not self._doomed:
            self._loop.call_soon(self._cancel_some)
        self._doomed.extend((caller.frames, call, task) for call, task in caller.tasks.items())

    async def _run(self, caller: Caller, call: Call, arguments: tuple[Any, ...]) -> None:
        frames = caller.frames
        much = True  # if no answer can be had: then the connection ends
        try:
            much = frames.answer(call, await call.function.call(*arguments))
        except BaseException as error:
            # Whatever it is, the client waits for an answer, and others for this one's place.
            with suppress(MemoryError):  # the frames have IS_BROKEN
                much = frames.fail(call, self._named(call, error))
        finally:
            caller.tasks.pop(call, None)
            caller.flush_soon(now=much)

    def _named(self, call: Call, error: BaseException) -> BaseException:
        """What a call failed with: the cancellation of one that took too long is TIMEOUT."""
        expired = call in self._expired
        self._expired.discard(call)
        if expired and isinstance(error, asyncio.CancelledError):
            function = call.function
            return FunctionTimeoutError(
                f"{function.name} ran for its limit of {function.timeout} s"
            )
        return error

    def _expire(self, frames: ServerFrames, call: Call, task: asyncio.Future[None]) -> None:
        self._expired.add(call)
        self._cancel(frames, call, task)

    def _cancel_some(self) -> None:
        for _ in range(min(CANCELS_A_TURN, len(self._doomed))):
            self._cancel(*self._doomed.popleft())
        if self._doomed:
            self._loop.call_soon(self._cancel_some)

    def _cancel(self, frames: ServerFrames, call: Call, task: asyncio.Future[None]) -> None:
        # A task that has not begun yet ends without having run at all.
        task.add_done_callback(
            lambda _: frames.fail(call, self._named(call, asyncio.CancelledError()))
        )
        task.cancel()
