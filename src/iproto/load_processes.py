"""The processes of a load test: fresh interpreters, so that each can have a core to itself.

Each runs a :class:`~iproto.load.Load`. The one that started them tells them when
to begin, shows how far they are, and adds up their accounts. Over a pipe to each
go a word to begin and one to stop; from each come what ``_Said`` lists.
"""

from __future__ import annotations

import enum
import multiprocessing
import signal
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from time import monotonic
from typing import TYPE_CHECKING, Any

from iproto.errors import ConnectError, IprotoError
from iproto.load import Load
from iproto.workload import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
    from types import FrameType

    from iproto.workload import Plan

_BEGIN = "begin"
_STOP = "stop"
# Seconds that a process may take to end after its account.
_END_WAIT = 5.0


class _Said(enum.Enum):
    CONNECTED = enum.auto()  # with nothing
    PROGRESS = enum.auto()  # with the number of replies so far
    FAILED = enum.auto()  # with the reason: it could not connect
    DONE = enum.auto()  # with its Outcome


class LoadProcesses:
    """Runs one process for each plan.

    Args:
        plans: one or more, of the same duration.
    """

    def __init__(self, plans: list[Plan]) -> None:
        self.signalled = 0
        """The number of the signal, SIGINT or SIGTERM, that ended the load early; or 0."""
        self._plans = plans
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._answered: dict[Connection, int] = {}

    def run(self) -> Outcome:
        """Starts the processes, and returns the sum of their accounts.

        Raises:
            ConnectError: a connection could not be opened.
            IprotoError: a process died.
        """
        # They inherit that it is ignored: a terminal sends it to them too, but
        # it is for this process to end them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._start()
            signal.signal(signal.SIGINT, self._on_signal)
            before_term = signal.signal(signal.SIGTERM, self._on_signal)
            try:
                for pipe in self._pipes:
                    self._expect(pipe, _Said.CONNECTED)
                self._tell(_BEGIN)
                return self._follow()
            finally:
                signal.signal(signal.SIGTERM, before_term)
        finally:
            self._end()
            signal.signal(signal.SIGINT, before)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for plan in self._plans:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(plan, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_END_WAIT)
            process.kill()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = number
        self._tell(_STOP)

    def _tell(self, word: str) -> None:
        for pipe in self._pipes:
            with suppress(OSError):  # it died, which receiving from it tells
                pipe.send(word)

    def _expect(self, pipe: Connection, wanted: _Said) -> Any:
        """Receives what a process says next but one of these words."""
        try:
            said, what = pipe.recv()
        except (EOFError, OSError):
            raise IprotoError("a process of the load died; the test is void") from None
        if said is _Said.FAILED:
            raise ConnectError(what)
        if said is _Said.PROGRESS:
            self._answered[pipe] = what
        return what if said is wanted else None

    def _follow(self) -> Outcome:
        total = Outcome()
        running = set(self._pipes)
        with _progress_bar(self._plans[0].duration) as show:
            begun = monotonic()
            while running:
                heard = wait(running)
                for pipe in [pipe for pipe in self._pipes if pipe in heard]:
                    outcome = self._expect(pipe, _Said.DONE)
                    if outcome is not None:
                        running.discard(pipe)
                        total.add(outcome)
                show(monotonic() - begun, sum(self._answered.values()))
        return total


@contextmanager
def _progress_bar(duration: float) -> Iterator[Callable[[float, int], None]]:
    """On standard error, if that is a terminal; told seconds gone and replies so far."""
    from tqdm import tqdm  # here, for no other command needs it

    form = "{percentage:3.0f}%|{bar}|{postfix}"
    with tqdm(total=duration, disable=None, leave=False, bar_format=form) as bar:

        def show(gone: float, answered: int) -> None:
            bar.set_postfix_str(f"{answered:,} answered", refresh=False)
            bar.update(min(gone, duration) - bar.n)

        yield show


def _work(plan: Plan, pipe: Connection) -> None:
    """What one process does."""
    load = Load(plan, lambda answered: pipe.send((_Said.PROGRESS, answered)), pipe)
    try:
        load.connect()
        pipe.send((_Said.CONNECTED, None))
        if pipe.recv() == _BEGIN:
            pipe.send((_Said.DONE, load.run()))
        else:
            pipe.send((_Said.DONE, load.outcome))
    except ConnectError as error:
        pipe.send((_Said.FAILED, str(error)))
    except (EOFError, BrokenPipeError):
        pass  # nobody is there any more who wants to know
    finally:
        load.close()
