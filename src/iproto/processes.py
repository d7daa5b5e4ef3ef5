"""What a supervisor knows of one worker process, and of the position that it is at."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    import subprocess


class Worker:
    """One worker process.

    Args:
        position: 0..workers-1; the next worker at this position takes its place.
        area: its area in the storage.
        pid: the process.
        control: our end of the socket pair.
    """

    def __init__(self, position: int, area: int, pid: int, control: socket.socket) -> None:
        self.position = position
        self.area = area
        self.pid = pid
        self.control = control
        # Kept for its destructor, which would wait for the process in our place.
        self.process: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        self.begun = time.monotonic()
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.retiring = False
        self.covers: set[int] = set()  # positions whose listeners it serves beside its own

    def order(self, word: str, position: int | None = None) -> None:
        """Tells the worker something; a worker that is just dying does not hear it."""
        line = word if position is None else f"{word} {position}"
        with contextlib.suppress(OSError):
            self.control.send(line.encode() + b"\n")

    def signal(self, number: int) -> None:
        """Sends a signal; the process is our child, so the number is still its own."""
        os.kill(self.pid, number)


class Position:
    """What is known of a position beyond the worker that is there now."""

    def __init__(self) -> None:
        self.restarts = 0  # workers that died and were replaced
        self.delay = 0.0  # seconds before the next start
        self.timer: asyncio.TimerHandle | None = None  # of a start that is delayed
        self.cpu_seconds = 0.0  # of the workers that are gone
        self.cpu_shown = 0.0  # the most that was ever shown


def process_figures(pid: int) -> tuple[float, int]:
    """CPU seconds used and resident bytes of a process; zeros where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    ticks = int(stat[11]) + int(stat[12])
    return ticks / os.sysconf("SC_CLK_TCK"), int(stat[21]) * os.sysconf("SC_PAGE_SIZE")


def manner_of_end(code: int) -> str:
    """How a process ended, for the log, by its exit code."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
