"""The processes of a load test: fresh interpreters, so that each can have a core to itself.

Each runs a :class:`~iproto.bench.load.Load`. The process that started them begins the load
of all at once, shows their progress, and adds up their accounts. Over a pipe to each
go its plan, a message to begin and one to stop; back come the messages of ``_Report``.
"""

from __future__ import annotations

import enum
import multiprocessing
import signal
import sys
from contextlib import closing, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from time import monotonic
from typing import TYPE_CHECKING, Any

from iproto.bench.load import Load
from iproto.bench.workload import Outcome
from iproto.client.reasons import reason_of
from iproto.errors import ConnectError, IprotoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
    from types import FrameType

    from typing_extensions import Self

    from iproto.bench.workload import Plan

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BEGIN = "begin"
_STOP = "stop"
# Seconds that a process may take to end after its account.
_END_WAIT = 5.0


class _Report(enum.Enum):
    CONNECTED = enum.auto()  # with nothing
    PROGRESS = enum.auto()  # with the number of replies so far
    FAILED = enum.auto()  # with the reason: it could not connect
    DONE = enum.auto()  # with its Outcome


class LoadProcesses:
    """The processes that load a server, and the signals that end the load, in a ``with``.

    In it, a signal that would end this process ends the load instead: the first
    one in good order, the next one without waiting for the last replies. So the
    ``with`` is the place to tidy up after it.
    """

    def __init__(self) -> None:
        self.signalled = 0
        """The number of the signal that ended the load early; or 0."""
        self._handlers: dict[int, Any] = {}
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._answered: dict[Connection, int] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            before = signal.getsignal(number)
            # nohup ignores SIGHUP on purpose; a shell ignores SIGINT for every
            # background command of a script, where nobody can press Ctrl-C.
            if number != signal.SIGHUP or before != signal.SIG_IGN:
                self._handlers[number] = before
                signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._handlers.items():
            signal.signal(number, before)

    def run(self, plans: list[Plan]) -> Outcome:
        """Runs one process for each plan, and returns the sum of their accounts.

        Args:
            plans: one or more, of the same duration.

        Raises:
            ConnectError: a connection could not be opened.
            IprotoError: a process died.
        """
        try:
            self._start(plans)
            for pipe in self._pipes:
                self._expect(pipe, _Report.CONNECTED)
            self._send_all(_BEGIN)
            return self._follow(plans[0].duration)
        finally:
            self._end()

    def _start(self, plans: list[Plan]) -> None:
        """Starts the processes with the signals blocked, and they stay so there.

        A terminal, ``timeout`` and systemd send signals to the whole group, but it
        is for this process to end the others.
        """
        resource_tracker.ensure_running()  # or the first start does it, and unblocks them
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            context = multiprocessing.get_context("spawn")
            for _ in plans:
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                process = context.Process(target=_work, args=(theirs,), daemon=True)
                with theirs:
                    process.start()
                self._processes.append(process)
            for pipe, plan in zip(self._pipes, plans, strict=True):
                _send(pipe, plan)
            if self.signalled:  # already
                self._send_all(_STOP)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _end(self) -> None:
        self._send_all(_STOP)
        deadline = monotonic() + _END_WAIT
        for process in self._processes:
            process.join(max(0.0, deadline - monotonic()))
            process.kill()
        pipes, self._pipes = self._pipes, []
        for pipe in pipes:
            pipe.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.signalled = self.signalled or number
        self._send_all(_STOP)

    def _send_all(self, message: str) -> None:
        for pipe in self._pipes:
            _send(pipe, message)

    def _expect(self, pipe: Connection, wanted: _Report) -> Any:
        """Receives the next report of a process; returns what is in it if it is the wanted one."""
        try:
            report, content = pipe.recv()
        except (EOFError, OSError):
            raise IprotoError("a process of the load died; the test is void") from None
        if report is _Report.FAILED:
            raise ConnectError(content)
        if report is _Report.PROGRESS:
            self._answered[pipe] = content
        return content if report is wanted else None

    def _follow(self, duration: float) -> Outcome:
        total = Outcome()
        running = set(self._pipes)
        with _progress_bar(duration) as show:
            begun = monotonic()
            while running:
                ready = wait(running)
                for pipe in [pipe for pipe in self._pipes if pipe in ready]:
                    outcome = self._expect(pipe, _Report.DONE)
                    if outcome is not None:
                        running.discard(pipe)
                        total.add(outcome)
                show(monotonic() - begun, sum(self._answered.values()))
        return total


@contextmanager
def _progress_bar(duration: float) -> Iterator[Callable[[float, int], None]]:
    """A bar on standard error, if that is a terminal; called with seconds and replies so far."""
    from tqdm import tqdm  # here, for no other command needs it

    form = "{percentage:3.0f}%|{bar}|{postfix}"
    disable = None if sys.stderr else True  # None: look whether it is a terminal
    # miniters: else tqdm guesses from the pace so far which updates it leaves out.
    with tqdm(total=duration, disable=disable, leave=False, bar_format=form, miniters=0) as bar:

        def show(gone: float, answered: int) -> None:
            bar.set_postfix_str(f"{answered:,} answered", refresh=False)
            bar.update(min(gone, duration) - bar.n)

        yield show


def _send(pipe: Connection, message: Any) -> None:
    with suppress(OSError):  # the other process died; receiving from it finds that out
        pipe.send(message)


def _work(pipe: Connection) -> None:
    """The main function of a process of the load."""
    with suppress(EOFError, ConnectionError):  # nobody waits for the outcome any more
        plan = pipe.recv()
        try:
            load = Load(plan, lambda answered: _send(pipe, (_Report.PROGRESS, answered)), pipe)
        except OSError as error:
            pipe.send((_Report.FAILED, f"cannot load the server: {reason_of(error)}"))
            return
        with closing(load):
            try:
                load.connect()
            except ConnectError as error:
                pipe.send((_Report.FAILED, error.args[0]))
                return
            pipe.send((_Report.CONNECTED, None))
            if not load.stops and pipe.recv() == _BEGIN:
                load.run()
            pipe.send((_Report.DONE, load.outcome))
