"""How long workers wait for the store's lock that others take without a pause.

    python -m tests.store.fairness --seconds 3

Each worker is a process whose connection brings chunks of 64 writes, or reads, one after
the other: 64 frames are one hold of the lock. A line for each mix of workers tells of the
chunk that took longest how long it took, how much of that its process waited for a CPU,
and how often others took the write lock meanwhile; a chunk alone takes some 10 us. Figures
of the lock, and not of the machine, need two CPUs that nobody else uses:
``setsid -w sh -c 'echo -20 > /proc/self/autogroup; make fairness'`` takes them, as root.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import struct
import sys
import time
import traceback
from typing import TYPE_CHECKING, NamedTuple

from iproto import _fastframe as ff
from iproto.wire import FuncID, ReturnCode
from tests.helpers.harness import PATIENCE
from tests.helpers.oracle import request
from tests.helpers.server_frames import server
from tests.helpers.store import ACQUIRED_AT

if TYPE_CHECKING:
    from collections.abc import Callable

FRAMES = 64
MIXES = ((2, 0), (4, 0), (8, 0), (2, 6))
"""Workers that write, and workers that read."""

LONG = 0.005
"""Seconds of a chunk that is worth counting."""


class Waits(NamedTuple):
    """What one worker saw.

    Args:
        chunks: how many it had executed.
        refused: how many of them were answered OVERLOADED.
        long: how many took over ``LONG``.
        longest: seconds of the longest.
        off_cpu: seconds of that in which the process waited for a CPU.
        passed: how often others took the write lock during the longest.
    """

    chunks: int
    refused: int
    long: int
    longest: float
    off_cpu: float
    passed: int


class CpuWait:
    """How long this process has been ready to run, and did not."""

    def __init__(self) -> None:
        self._file = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def look(self) -> bytes:
        return os.pread(self._file, 80, 0)


def seconds_between(before: bytes, after: bytes) -> float:
    """Seconds that passed without a CPU between two looks."""
    return (int(after.split()[1]) - int(before.split()[1])) / 1e9


def keep_busy(memory: mmap.mmap, frames: ff.ServerFrames, chunk: bytes, until: float) -> Waits:
    refused = long = chunks = 0
    longest = (0.0, 0.0, 0)
    cpu = CpuWait()
    # A machine that is busy may let no time for a chunk.
    while time.monotonic() < until or (chunks == refused and time.monotonic() < until + PATIENCE):
        acquired = struct.unpack_from("<I", memory, ACQUIRED_AT)[0]
        before = cpu.look()
        began = time.perf_counter()
        replies = frames.feed(chunk)
        took = time.perf_counter() - began
        assert replies is not None
        chunks += 1
        refused += replies[12:16] == struct.pack("<I", ReturnCode.OVERLOADED)
        long += took > LONG
        if took > longest[0]:
            passed = struct.unpack_from("<I", memory, ACQUIRED_AT)[0] - acquired
            longest = (took, seconds_between(before, cpu.look()), passed & 0xFFFFFFFF)
    return Waits(chunks, refused, long, *longest)


def measure(writers: int, readers: int, seconds: float) -> list[Waits]:
    """Runs so many workers, all at once; returns what each saw."""
    workers = writers + readers
    memory = mmap.mmap(-1, ff.Storage.size_for(workers))
    ff.Storage(memory, workers=workers)
    begin = time.monotonic() + 0.2  # when all are ready, most likely
    pipes = []
    for worker in range(workers):
        name = FuncID.STORAGE_REPLACE if worker < writers else FuncID.STORAGE_READ
        body = b"\x05\xa1x" if worker < writers else b"\x05"
        chunk = b"".join(request(name, body, number) for number in range(FRAMES))

        def work(worker: int = worker, chunk: bytes = chunk) -> Waits:
            storage = ff.Storage(memory, workers=workers, worker=worker)
            frames = server(storage=storage)
            time.sleep(max(0.0, begin - time.monotonic()))
            return keep_busy(memory, frames, chunk, begin + seconds)

        pipes.append(in_child(work))
    seen = []
    for pid, pipe in pipes:
        with open(pipe, "rb") as file:
            text = file.read()
        os.waitpid(pid, 0)
        seen.append(Waits(*json.loads(text)))
    return seen


def in_child(work: Callable[[], Waits]) -> tuple[int, int]:
    """Runs it in a forked child; returns that, and a pipe with the result."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(theirs, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(theirs)
    return pid, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each mix (%(default)s)")
    seconds = parser.parse_args().seconds
    for writers, readers in MIXES:
        seen = measure(writers, readers, seconds)
        worst = max(seen, key=lambda waits: waits.longest)
        sys.stdout.write(
            f"{writers} writers, {readers} readers: "
            f"{sum(waits.chunks for waits in seen) / seconds:,.0f} holds a second, "
            f"{sum(waits.refused for waits in seen)} refused; "
            f"{sum(waits.long for waits in seen)} over {LONG * 1e3:.0f} ms, "
            f"the longest {worst.longest * 1e3:.1f} ms, of which {worst.off_cpu * 1e3:.1f} ms "
            f"without a CPU, passed over {worst.passed} times\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
