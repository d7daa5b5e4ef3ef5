"""A storage file is flushed to its disk, also when its server ends."""

from __future__ import annotations

import mmap
import os
import re
import signal
import threading
from typing import TYPE_CHECKING, cast

import pytest

import iproto
from iproto.storage.file import open_storage
from iproto.storage.flush import Flusher
from tests.helpers.harness import PATIENCE, wait_until
from tests.helpers.storage_files import serving_file

if TYPE_CHECKING:
    from pathlib import Path


# Flushing.
@pytest.mark.parametrize("workers", [None, 1])
def test_the_file_is_flushed_every_so_often_and_at_the_end(
    tmp_path: Path, workers: int | None
) -> None:
    options = ("--storage-sync", "0.05", "--log-level", "DEBUG")
    with serving_file(tmp_path / "storage", workers, *options) as running:
        for _ in range(3):
            running.wait_for(r"DEBUG .*iproto\.storage: flushed the storage file in [\d.]+ ms")
        running.process.send_signal(signal.SIGTERM)
        running.wait_for("INFO.* stopped$")
        code, log = running.end()
    assert code == 0
    assert "flushed the storage file" in log.rpartition(" stopped\n")[2]


class SlowStorage:
    """Stands for a storage whose first flush takes until it is let go."""

    def __init__(self) -> None:
        self.flushing = threading.Event()
        self.let_go = threading.Event()
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1
        self.flushing.set()
        assert self.let_go.wait(PATIENCE)


def test_an_end_in_the_midst_of_a_flush_is_followed_by_another_one() -> None:
    """It has what was written after the first one began."""
    storage = SlowStorage()
    flusher = Flusher(cast("iproto.Storage", storage), 0.001)
    with flusher:
        assert storage.flushing.wait(PATIENCE)
        ending = threading.Thread(target=flusher.__exit__, args=(None, None, None))
        ending.start()
        wait_until(lambda: flusher._ended)
        storage.let_go.set()
        ending.join(PATIENCE)
    assert storage.flushes == 2


def test_nothing_is_flushed_unless_asked_for(tmp_path: Path) -> None:
    with serving_file(tmp_path / "storage", None, "--log-level", "DEBUG") as running:
        running.process.send_signal(signal.SIGTERM)
        assert "flushed the" not in running.end()[1]


def dirty_kilobytes(path: Path) -> int:
    """Of a file that this process has mapped, what is in memory and not on the disk."""
    with open("/proc/self/smaps") as maps:
        _, _, mine = maps.read().partition(f" {path}\n")
    found = re.search(
        r"Shared_Dirty: +(\d+) kB\nPrivate_Clean: +\d+ kB\nPrivate_Dirty: +(\d+)", mine
    )
    assert found is not None
    return int(found[1]) + int(found[2])


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="dirty pages are told by /proc")
def test_after_a_flush_the_disk_has_it_all(tmp_path: Path) -> None:
    if os.major(tmp_path.stat().st_dev) == 0:
        pytest.skip("flushing: the tests' directory is not on a disk")
    path = tmp_path / "storage"
    with open_storage(path) as file:
        file.storage.replace(500, b"x")
        assert dirty_kilobytes(path) > 0
        with Flusher(file.storage, 3600):
            pass
        assert dirty_kilobytes(path) == 0
        file.storage.replace(500, b"y")
        with Flusher(file.storage, 0):
            pass
        assert dirty_kilobytes(path) > 0


def test_a_flush_that_fails_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    memory = mmap.mmap(-1, iproto.Storage.size_for() + 128)
    storage = iproto.Storage(memoryview(memory)[128:])  # not at a page, so the system refuses
    with Flusher(storage, 0.001):
        wait_until(lambda: len(caplog.records) > 2)
    assert {record.getMessage() for record in caplog.records} == {
        "cannot flush the storage file: Invalid argument"
    }
    assert {record.levelname for record in caplog.records} == {"ERROR"}
