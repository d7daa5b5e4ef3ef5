"""Calls of user functions on one connection: which may start, and when answers are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from iproto.server.peer import context_of

if TYPE_CHECKING:
    import asyncio
    from contextvars import Context
    from typing import Any

    from iproto._fastframe import Call, ServerFrames
    from iproto.server.calls import CallTasks
    from iproto.server.peer import Peer
    from iproto.server.tls import SecureStream


class Answered(Protocol):
    """The receiver of the events of calls: a connection."""

    def on_overdue(self) -> None: ...
    def on_answers(self) -> None: ...


class Caller:
    """The calls of one connection.

    Args:
        connection: gets ``on_answers`` when answers wait to be sent, and ``on_overdue``
            when calls have waited too long, until ``close``.
        frames: the connection's.
        stream: sends what they have to send: the frames themselves, or TLS around them.
        fd: its socket.
        peer: whose calls they are.
        call_tasks: runs calls that are tasks.
        loop: the running loop.
    """

    __slots__ = (
        "_call_tasks",
        "_connection",
        "_context",
        "_fd",
        "_flushing",
        "_loop",
        "_peer",
        "_queue_timer",
        "_starting",
        "_stream",
        "frames",
        "tasks",
    )

    def __init__(
        self,
        connection: Answered,
        frames: ServerFrames,
        stream: ServerFrames | SecureStream,
        fd: int,
        peer: Peer,
        call_tasks: CallTasks,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._connection: Answered | None = connection
        self._fd = fd
        self._peer = peer
        self._context: Context | None = None
        self._call_tasks = call_tasks
        self._loop = loop
        self._starting = False  # start() is at work
        self._flushing = False  # on_answers() is scheduled
        self._queue_timer: asyncio.TimerHandle | None = None
        self.frames = frames
        self._stream = stream
        self.tasks: dict[Call, asyncio.Future[None]] = {}

    @property
    def is_closed(self) -> bool:
        """Whether its connection is gone."""
        return self._connection is None

    @property
    def context(self) -> Context:
        """In which the tasks of calls run; each in a copy."""
        if self._context is None:
            self._context = context_of(self._peer)
        return self._context

    def start(self) -> None:
        """Starts calls that wait; those that must wait on are looked at when they are overdue."""
        self._starting = True
        try:
            self.frames.start_calls(self._start_task)
        finally:
            self._starting = False
        if self._connection is not None:  # else a function that ran has closed it
            self._stream.flush(self._fd)
            self.expire()

    def expire(self) -> None:
        """Answers calls that waited too long; looks again when the next one will have."""
        if self._queue_timer is not None:
            self._queue_timer.cancel()
            self._queue_timer = None
        left = self.frames.expire_calls()
        if left and self._connection is not None:
            self._queue_timer = self._loop.call_later(left, self._connection.on_overdue)

    def flush_soon(self, *, now: bool) -> None:
        """An answer waits to be sent: those of one turn leave together.

        Args:
            now: whether so much waits that the turn's end is too late.
        """
        if self._connection is None or self._starting:
            return
        if now:
            self._stream.flush(self._fd)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._connection.on_answers)

    def flush(self) -> None:
        """Sends the answers of this turn."""
        self._flushing = False
        self._stream.flush(self._fd)

    def close(self) -> None:
        """The connection is gone: cancels its calls."""
        self._connection = None
        if self._queue_timer is not None:
            self._queue_timer.cancel()
            self._queue_timer = None
        self._call_tasks.cancel(self)

    def forget(self) -> None:
        """In a child process: nothing is sent any more."""
        self._connection = None

    def _start_task(self, call: Call, arguments: tuple[Any, ...]) -> None:
        self._call_tasks.start(self, call, arguments)
