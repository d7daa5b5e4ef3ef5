"""What the metrics show of each worker position."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from iproto.workers.pool import areas_of

if TYPE_CHECKING:
    from iproto.workers.pool import Pool


class WorkerFigures(NamedTuple):
    """The figures of all worker processes that had one position, taken together.

    Args:
        position: 0..workers-1, the label.
        connections: open now.
        requests: answered so far.
        cpu_seconds: used so far.
        resident_bytes: of the processes that are there now.
        restarts: workers that died and were replaced.
        open_fds: descriptors of the processes that are there now.
        max_fds: how many descriptors one process may have.
    """

    position: int
    connections: int
    requests: int
    cpu_seconds: float
    resident_bytes: int
    restarts: int
    open_fds: int
    max_fds: int


def worker_figures(pool: Pool) -> list[WorkerFigures]:
    """The figures of every position of a pool; any thread may ask."""
    return [_figures_of(pool, position) for position in range(pool.count)]


def _figures_of(pool: Pool, position: int) -> WorkerFigures:
    connections = requests = resident = open_fds = max_fds = 0
    for area in areas_of(position):
        counters = pool.storage.counters(area)
        connections += counters["opened"] - sum(counters["closed"])
        requests += sum(map(sum, counters["requests"]))
    known = pool.positions[position]
    cpu_seconds = known.cpu_seconds
    for worker in list(pool.workers):
        if worker.position == position:
            used, held = process_figures(worker.pid)
            cpu_seconds += used
            resident += held
            used_fds, limit = descriptor_figures(worker.pid)
            open_fds += used_fds
            max_fds = max(max_fds, limit)
    # The CPU time of a worker that has just ended may be counted in neither
    # place for a moment; a counter must not go down.
    known.cpu_shown = max(known.cpu_shown, cpu_seconds)
    return WorkerFigures(
        position,
        connections,
        requests,
        known.cpu_shown,
        resident,
        known.restarts,
        open_fds,
        max_fds,
    )


def process_figures(pid: int) -> tuple[float, int]:
    """CPU seconds used and resident bytes of a process; zeros where /proc does not show them."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    ticks = int(stat[11]) + int(stat[12])
    return ticks / os.sysconf("SC_CLK_TCK"), int(stat[21]) * os.sysconf("SC_PAGE_SIZE")


def descriptor_figures(pid: int) -> tuple[int, int]:
    """Descriptors that a process has open, and may have; zeros where /proc does not show them."""
    try:
        count = len(os.listdir(f"/proc/{pid}/fd"))
        limits = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return 0, 0
    soft = limits.partition("Max open files")[2].split(maxsplit=1)[0]
    return count, sys.maxsize if soft == "unlimited" else int(soft)
