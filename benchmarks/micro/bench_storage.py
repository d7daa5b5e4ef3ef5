"""Slots: reads and writes, alone and beside others."""

from __future__ import annotations

import mmap
import threading
from typing import TYPE_CHECKING

import pytest

from benchmarks.gate.script import content_of
from benchmarks.micro.conftest import fill
from iproto import Storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

INDEXES = range(1000)
ITEMS = [(index, content_of(index)) for index in INDEXES]


def read_all(storage: Storage) -> None:
    for index in INDEXES:
        storage.read(index)


def write_all(storage: Storage) -> None:
    for index, content in ITEMS:
        storage.replace(index, content)


@pytest.mark.benchmark(group="1000 slots, one process")
@pytest.mark.parametrize("work", [read_all, write_all])
def test_alone(
    benchmark: BenchmarkFixture, storage: Storage, work: Callable[[Storage], None]
) -> None:
    benchmark(work, storage)


@pytest.mark.benchmark(group="200 000 slot reads, one process")
@pytest.mark.parametrize("busy", [False, True], ids=["alone", "beside a busy thread"])
def test_beside_a_busy_thread(benchmark: BenchmarkFixture, storage: Storage, busy: bool) -> None:
    """The other thread gets the GIL every 5 ms: some twice the time of reads alone.

    If each operation gave the GIL up, it would take minutes, and time out.
    """
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            pass

    def work() -> None:
        for _ in range(200):
            read_all(storage)

    thread = threading.Thread(target=spin)
    if busy:
        thread.start()
    try:
        benchmark.pedantic(work, rounds=20)  # type: ignore[no-untyped-call]
    finally:
        done.set()
        if busy:
            thread.join()


@pytest.mark.benchmark(group="1000 slots, a store that two processes share")
@pytest.mark.parametrize("neighbour", ["none", "read", "write"])
@pytest.mark.parametrize("work", [read_all, write_all])
def test_shared(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    beside: Callable[[Path, str], None],
    work: Callable[[Storage], None],
    neighbour: str,
) -> None:
    """While another process reads, or writes, all the time.

    Two readers: what both do together is twice what one does here.
    """
    path = tmp_path / "store"
    path.write_bytes(bytes(Storage.size_for(2)))
    with path.open("r+b") as file:
        storage = Storage(mmap.mmap(file.fileno(), 0), workers=2, worker=0)
    fill(storage)
    if neighbour != "none":
        beside(path, neighbour)
    benchmark(work, storage)
