"""The log of a serving process: lines to standard error, written by a thread of their own.

Standard error may be a pipe that nobody reads, and a write to it then waits for
ever. So the event loop only puts lines into a queue, and what has no room there
is dropped and counted.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from typing import TYPE_CHECKING

from iproto.server.config import LOG_LEVELS, PANIC

if TYPE_CHECKING:
    from iproto._fastframe import Storage

# Lines that wait for the thread; more are dropped.
QUEUE_LINES = 1000

# Characters of a line, a traceback included; what is longer is cut.
MAX_LINE = 16_384

# Seconds that the end of the process waits for lines that were not written yet.
FLUSH_WAIT = 1.0

FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"


class LogQueue(logging.Handler):
    """Writes log lines to a descriptor, from a thread; logging never waits.

    Args:
        fd: the descriptor.
        size: lines that may wait to be written.
    """

    def __init__(self, fd: int, size: int = QUEUE_LINES) -> None:
        super().__init__()
        self.dropped = 0
        """Lines that had no room in the queue, or that the system refused."""
        self.counted = 0
        """Those of them that are in the metrics."""
        self._fd = fd
        self._pid = os.getpid()
        self._lines: queue.Queue[bytes] = queue.Queue(size)
        threading.Thread(target=self._run, name="iproto log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queues a line, or counts it as dropped."""
        try:
            line = self.format(record)
        except Exception:  # the arguments do not fit the message: a defect of the caller
            self.handleError(record)
            return
        if len(line) > MAX_LINE:
            line = f"{line[:MAX_LINE]} ... ({len(line)} characters in all)"
        data = f"{line}\n".encode(errors="backslashreplace")
        if os.getpid() != self._pid:  # a fork took the queue along, but not the thread
            self._write(data)
            return
        try:
            self._lines.put_nowait(data)
        except queue.Full:
            self.dropped += 1

    def flush(self) -> None:
        """Waits until all lines are written, but not for long."""
        if os.getpid() == self._pid:
            with self._lines.all_tasks_done:
                self._lines.all_tasks_done.wait_for(
                    lambda: not self._lines.unfinished_tasks, FLUSH_WAIT
                )

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # for the main thread
        reported = 0
        while True:
            data = self._lines.get()
            if self.dropped != reported:
                count, reported = self.dropped - reported, self.dropped
                data += f"{count} log lines were dropped: nobody read them in time\n".encode()
            self._write(data)
            self._lines.task_done()

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:  # nobody will ever read it, or the disk is full
            self.dropped += 1


_log_queue: LogQueue | None = None


def set_up_logging(level: str) -> None:
    """Log lines go to standard error.

    Args:
        level: a key of ``LOG_LEVELS``.
    """
    global _log_queue  # noqa: PLW0603 - there is one standard error
    logging.addLevelName(PANIC, "PANIC")
    logging.addLevelName(logging.CRITICAL, "FATAL")
    if sys.stderr is None:  # closed by the process that started this one
        logging.basicConfig(level=LOG_LEVELS[level], handlers=[logging.NullHandler()])
        return
    _log_queue = LogQueue(sys.stderr.fileno())
    logging.basicConfig(level=LOG_LEVELS[level], format=FORMAT, handlers=[_log_queue])


def set_log_level(level: str) -> None:
    """Another level from now on.

    Args:
        level: a key of ``LOG_LEVELS``.
    """
    logging.getLogger().setLevel(LOG_LEVELS[level])


def flush_log() -> None:
    """Waits until all lines are written, but at most FLUSH_WAIT seconds."""
    if _log_queue is not None:
        _log_queue.flush()


def count_dropped_lines(storage: Storage) -> None:
    """Adds the lines that this process dropped since the last call to the metrics' counter."""
    if _log_queue is not None:
        dropped = _log_queue.dropped
        storage.count_dropped_lines(dropped - _log_queue.counted)
        _log_queue.counted = dropped
