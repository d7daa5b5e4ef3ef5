"""`--storage-file`: slots and state outlive the processes that serve them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

import iproto
from iproto import ConfigError, FuncID
from iproto.storage.file import open_storage
from tests.helpers.harness import PATIENCE, Peer, replace_frame, serving, wait_until
from tests.helpers.storage_files import patch, refused, serving_file, stop, wait_until_free, write
from tests.helpers.store import ACQUIRED_AT, ENGINE_AT, READERS_AT, TURN_AT, WRITER_AT
from tests.helpers.workers import pids

if TYPE_CHECKING:
    from pathlib import Path


# What outlives what.
@pytest.mark.parametrize(("first", "second"), [(None, None), (None, 2), (3, 1)])
def test_slots_and_state_outlive_a_stop_whatever_the_workers(
    tmp_path: Path, first: int | None, second: int | None
) -> None:
    path = tmp_path / "storage"
    with serving_file(path, first) as running:
        with running.peer() as peer:
            for index in (0, 7, 999):
                write(peer, index, f"kept {index}")
            assert peer.ask(FuncID.ADM_STORAGE_SWITCH_READONLY).code == 0
        stop(running)
    with serving_file(path, second) as running:
        assert "was checked; its state is READ_ONLY" in "".join(running.log)
        with running.peer() as peer:
            for index in (0, 7, 999):
                assert peer.read(index) == f"kept {index}"
            assert peer.read(1) == ""
            peer.send(replace_frame(0, "lost"))
            assert peer.reply().code == iproto.ReturnCode.READ_ONLY
        stop(running)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="workers are looked up in /proc")
@pytest.mark.parametrize("workers", [None, 2])
def test_every_acknowledged_write_outlives_kill_9_of_all_processes(
    tmp_path: Path, workers: int | None
) -> None:
    """Each writer has a slot, and writes numbers to it in their order."""
    path = tmp_path / "storage"
    writers = 4
    acknowledged = [0] * writers
    sent = [0] * writers

    def work(writer: int, peer: Peer) -> None:
        with peer, contextlib.suppress(OSError, EOFError):
            while True:
                batch = range(sent[writer] + 1, sent[writer] + 21)
                sent[writer] = batch[-1]
                peer.send(b"".join(replace_frame(writer, str(number)) for number in batch))
                for number in batch:
                    assert peer.reply().code == 0
                    acknowledged[writer] = number

    for _turn in range(2):
        with serving_file(path, workers) as running:
            threads = [
                threading.Thread(target=work, args=(writer, running.peer()), daemon=True)
                for writer in range(writers)
            ]
            enough = [count + 200 for count in acknowledged]
            for thread in threads:
                thread.start()
            wait_until(
                lambda enough=enough: all(  # type: ignore[misc]
                    count > least for count, least in zip(acknowledged, enough, strict=True)
                )
            )
            for pid in [running.process.pid, *pids(running)]:
                os.kill(pid, signal.SIGKILL)
            for thread in threads:
                thread.join(PATIENCE)
            running.end()
        wait_until_free(path)
        with open_storage(path) as file:
            for writer in range(writers):
                found = int(file.storage.read(writer))
                assert acknowledged[writer] <= found <= sent[writer]


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="an upgrade needs Linux")
def test_an_upgrade_in_place_keeps_the_file_and_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    with serving_file(path, 1) as running:
        with running.peer() as peer:
            write(peer, 1, "before")
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for(r"INFO.* restarted$")
        assert "in use by another server" in refused(path)
        with running.peer() as peer:
            assert peer.read(1) == "before"
            write(peer, 2, "after")
        stop(running)
    with open_storage(path) as file:
        assert (file.storage.read(1), file.storage.read(2)) == (b"before", b"after")


def test_counters_begin_at_zero_and_locks_are_free(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    with open_storage(path, 3) as file:
        file.storage.replace(1, b"one")
        file.storage.count_opened()
    patch(path, WRITER_AT, b"\x03\0\0\0")  # as it is left by a killed writer
    patch(path, TURN_AT, b"\x02\0\0\0")  # by one whose turn it was
    patch(path, ACQUIRED_AT, b"\x09\0\0\0")
    patch(path, READERS_AT, b"\x01\0\0\0")  # and by a killed reader
    for workers in (3, 9, 1):
        with open_storage(path, workers) as file:
            assert path.stat().st_size == iproto.Storage.size_for(workers)
            assert file.storage.counters()["opened"] == 0
            file.storage.replace(2, b"two %d" % workers)
            assert file.storage.read(1) == b"one"
            file.storage.count_opened()
    with pytest.raises(ValueError, match=r"it must be 1\.\.1024"):
        open_storage(path, 0)


def test_how_far_an_engine_had_come_is_forgotten_for_slots_may_be_older(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    with open_storage(path) as file:
        file.storage.replace(1, b"one")
    patch(path, ENGINE_AT, b"\x07" * 16)
    with open_storage(path) as file:
        assert path.read_bytes()[ENGINE_AT : ENGINE_AT + 16] == bytes(16)
        assert file.storage.read(1) == b"one"


def test_an_embedded_server_serves_a_file(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    with open_storage(path) as file, serving(storage=file.storage) as served:
        with served.peer() as peer:
            write(peer, 5, "embedded")
        file.storage.flush()
        del served  # which holds on to the storage
    wait_until_free(path)
    with open_storage(str(path)) as file:
        assert file.storage.read(5) == b"embedded"


def test_a_storage_and_a_file_do_not_go_together(tmp_path: Path) -> None:
    config = iproto.Config(storage_file=str(tmp_path / "storage"))
    with pytest.raises(ConfigError, match="not both"):
        iproto.run(config, storage=iproto.Storage())
    assert not (tmp_path / "storage").exists()
