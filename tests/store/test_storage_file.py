"""A storage in a file: what outlives what, what is checked, what is refused."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, cast

import pytest

import iproto
from iproto import ConfigError, FuncID, State
from iproto.storage.file import MAKING, Flusher, open_storage
from tests.helpers.harness import (
    PATIENCE,
    Peer,
    ServerProcess,
    replace_frame,
    serve_process,
    serving,
    wait_until,
)
from tests.helpers.workers import pids
from tests.store.test_storage import (
    CLAIMS_AT,
    READERS_AT,
    SLOTS_AT,
    STATE_AT,
    TURN_AT,
    WRITER_AT,
    current_words,
    slot_at,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FULL = "a full disk: only root can mount a small one"


def serving_file(
    path: Path, workers: int | None = None, *arguments: str
) -> contextlib.AbstractContextManager[ServerProcess]:
    many = () if workers is None else ("--workers", str(workers))
    return serve_process("--storage-file", str(path), *many, *arguments)


def write(peer: Peer, index: int, content: bytes | str) -> None:
    peer.send(replace_frame(index, content))
    assert peer.reply().code == 0


def stop(running: ServerProcess) -> None:
    running.process.send_signal(signal.SIGTERM)
    assert running.end()[0] == 0


def refused(
    path: Path,
    workers: int | None = None,
    *,
    through: tuple[str, ...] = (),
    preexec_fn: Callable[[], None] | None = None,
) -> str:
    """The one line with which `iproto serve` refuses a file."""
    many = () if workers is None else ("--workers", str(workers))
    options = ("--bind", "127.0.0.1:0", "--metrics-bind", "off", "--storage-file", str(path))
    done = subprocess.run(
        [*through, sys.executable, "-m", "iproto", "serve", *options, *many],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=preexec_fn,
    )
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(path) in done.stderr
    return done.stderr


def filled(path: Path, workers: int = 1) -> Path:
    """A file with slots 0..9, each written twice, and READ_ONLY."""
    with open_storage(path, workers) as file:
        for index in range(10):
            for turn in ("first", "second"):
                file.storage.replace(index, f"{turn} of {index}".encode())
        file.storage.switch(State.READ_ONLY)
    return path


def contents(path: Path) -> tuple[State, list[bytes]]:
    with open_storage(path) as file:
        storage = file.storage
        return storage.state, [storage.read(index) for index in range(10)]


FILLED = (State.READ_ONLY, [f"second of {index}".encode() for index in range(10)])


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


def wait_until_free(path: Path) -> None:
    """Until the system has done away with every killed process."""

    def is_free() -> bool:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    wait_until(is_free)


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
    patch(path, CLAIMS_AT, b"\x09\0\0\0")
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


# Who may have it.


@pytest.mark.parametrize("workers", [None, 2])
def test_a_file_is_served_by_one_server_at_a_time(tmp_path: Path, workers: int | None) -> None:
    path = tmp_path / "storage"
    with serving_file(path, workers) as running, running.peer() as peer:
        write(peer, 1, "mine")
        assert refused(path, workers) == (
            f"iproto: storage file {path} is in use by another server; stop that, "
            "or choose another file\n"
        )
        assert peer.read(1) == "mine"


def test_a_file_that_is_made_is_for_its_owner_alone(tmp_path: Path) -> None:
    with open_storage(tmp_path / "storage"):
        assert (tmp_path / "storage").stat().st_mode & 0o777 == 0o600


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, text in (
        ("", "Is a directory"),
        ("fifo", "is not a regular file"),
        ("none/storage", "No such file or directory"),
        ("dangling", "is a symbolic link; name the file that it leads to"),
    ):
        with pytest.raises(ConfigError, match=text):
            open_storage(tmp_path / name)
    assert refused(tmp_path) == f"iproto: cannot use storage file {tmp_path}: Is a directory\n"


def test_a_file_that_others_can_write_to_or_name_is_refused_and_left_as_it_is(
    tmp_path: Path,
) -> None:
    victim = tmp_path / "victim"
    victim.touch(0o600)
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        open_storage(tmp_path / "link")
    assert victim.read_bytes() == b""
    for mode in (0o666, 0o620, 0o602):
        victim.chmod(mode)
        with pytest.raises(ConfigError, match=f"has mode {mode:04o}.*chmod 600"):
            open_storage(victim)
    victim.chmod(0o600)
    os.link(victim, tmp_path / "other name")
    with pytest.raises(ConfigError, match="has 2 names"):
        open_storage(victim)
    os.unlink(tmp_path / "other name")
    if os.geteuid() == 0:
        os.chown(victim, 12345, -1)
        with pytest.raises(
            ConfigError, match="belongs to user 12345, and the server runs as user 0"
        ):
            open_storage(victim)
        os.chown(victim, 0, -1)
    assert victim.read_bytes() == b""
    with open_storage(victim) as file:
        assert file.storage.read(0) == b""


def test_permission_is_denied_in_one_line(tmp_path: Path) -> None:
    through: tuple[str, ...] = ()
    if os.geteuid() == 0:
        through = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        if shutil.which("setpriv") is None or subprocess.call([*through, "true"]):
            pytest.skip("permissions: root has them all, and cannot be rid of them here")
    path = filled(tmp_path / "storage")
    path.chmod(0o444)
    before = path.read_bytes()
    line = f"iproto: cannot use storage file {path}: Permission denied\n"
    assert refused(path, through=through) == line
    assert path.read_bytes() == before
    tmp_path.chmod(0o555)
    missing = tmp_path / "other"
    assert refused(missing, through=through) == line.replace(str(path), str(missing))
    tmp_path.chmod(0o755)
    assert not missing.exists()


# Room.


def test_no_room_is_an_error_at_the_start_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """By a limit on files' sizes, for a file that is new, one that is empty, one that grows."""
    new, empty, small = tmp_path / "new", tmp_path / "empty", filled(tmp_path / "small")
    empty.touch()
    before = small.read_bytes()

    def limit(size: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    for path in (new, empty):
        line = refused(path, preexec_fn=limit(100_000))
        assert line == f"iproto: cannot use storage file {path}: File too large\n"
    assert "File too large" in refused(small, 2, preexec_fn=limit(len(before)))
    assert not new.exists()
    assert empty.read_bytes() == b""
    assert small.read_bytes() == before
    assert contents(small) == FILLED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one storage file, but not for two."""
    place = tmp_path / "disk"
    place.mkdir()
    size = iproto.Storage.size_for(1) * 3 // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip(FULL)
    if done.returncode:
        pytest.skip(FULL)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_an_error_at_the_start_and_leaves_nothing_behind(small_disk: Path) -> None:
    first, second = filled(small_disk / "first"), small_disk / "second"
    line = refused(second)
    assert line == f"iproto: cannot use storage file {second}: No space left on device\n"
    assert not second.exists()
    before = first.read_bytes()
    with pytest.raises(ConfigError, match="No space left on device"):
        open_storage(first, 100)
    assert first.read_bytes() == before
    assert contents(first) == FILLED


def test_holes_of_a_restored_copy_get_their_room(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    data = filled(tmp_path / "original").read_bytes()
    with path.open("wb") as file:
        file.truncate(len(data))
        for at in range(0, len(data), 4096):
            page = data[at : at + 4096]
            if page.strip(b"\0"):
                file.seek(at)
                file.write(page)
    assert contents(path) == FILLED
    assert path.stat().st_blocks * 512 >= len(data)


@pytest.mark.parametrize("error", [None, 95, 22])
def test_room_is_had_without_the_systems_help_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    """As on macOS, and on file systems that cannot allocate."""

    def fail(*_arguments: int) -> None:
        assert error is not None
        raise OSError(error, os.strerror(error))

    if error is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    path = filled(tmp_path / "storage")
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    with open_storage(path, 5):
        assert path.stat().st_size == iproto.Storage.size_for(5)
    assert contents(path) == FILLED


# What is checked.


def patch(path: Path, place: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(value)


def flip(path: Path, place: int, bits: int) -> None:
    with path.open("rb") as file:
        file.seek(place)
        (value,) = file.read(1)
    patch(path, place, bytes([value ^ bits]))


def check_refused(path: Path, text: str) -> None:
    """In one line with the path and what to do, and the file is left as it is."""
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=text) as caught:
        open_storage(path)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    assert re.search("restore a copy of it, or remove it|choose another path", said)
    assert path.read_bytes() == before


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    data = filled(path, workers=3).read_bytes()
    dice = random.Random(1)
    around = (READERS_AT - 1, READERS_AT, READERS_AT + 1)
    sizes = [8, 9, 4095, 4096, SLOTS_AT + 1, *around, len(data) - 1]
    for size in [*sizes, *(dice.randrange(8, len(data)) for _ in range(20))]:
        path.write_bytes(data[:size])
        check_refused(path, f"is cut off: it has {size} bytes of at least ")
    path.write_bytes(data[:READERS_AT])
    assert f"is cut off: it has {READERS_AT} bytes of at least {len(data)};" in refused(path)


def test_an_empty_file_is_a_new_one_and_an_unfinished_one_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    for begun in (b"", MAKING, MAKING + bytes(10_000)):
        path.write_bytes(begun)
        with open_storage(path) as file:
            assert file.storage.state is State.READ_WRITE
            assert file.storage.read(0) == b""
            file.storage.replace(0, b"kept")
        with open_storage(path) as file:
            assert file.storage.read(0) == b"kept"


@pytest.mark.parametrize(
    "data",
    [b"\x7fELF", b"{}\n", b"x" * 1_000_000, bytes(10), bytes(1_000_000), b"IPROTO02" * 100_000],
    ids=["ELF", "JSON", "long", "zeros", "many zeros", "another version's magic"],
)
def test_a_foreign_file_is_refused_and_left_as_it_is(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "storage"
    path.write_bytes(data)
    check_refused(path, "is no storage file of iproto, and is left as it is")
    if len(data) == 4:
        assert refused(path) == (
            f"iproto: storage file {path} is no storage file of iproto, and is left as it is; "
            "choose another path\n"
        )
        assert path.read_bytes() == data


@pytest.mark.skipif(sys.byteorder == "big", reason="the file is in the machine's byte order")
@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (8, 1, "layout version 1; this program knows version 2"),
        (12, 1001, "1001 slots of 256 bytes; expected 1000 of 256"),
        (16, 512, "1000 slots of 512 bytes"),
        (20, 2, "damaged: 2 workers and "),
        (20, 0, "damaged: 0 workers and "),
        (24, 0, "damaged: 1 workers and 0 bytes"),
        (32, 0, "keeps no hashes"),
        (32, 3, "damaged: its flag for hashes is 3"),
        (WRITER_AT, 2, "damaged: worker 1 holds its lock"),
        (TURN_AT, 2, "damaged: its lock waits for worker 1"),
        (STATE_AT, 0, "damaged: its state is 0x00000000"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, place: int, value: int, text: str) -> None:
    path = filled(tmp_path / "storage")
    patch(path, place, value.to_bytes(4, "little"))
    check_refused(path, text)


def test_every_flipped_byte_that_counts_is_noticed(tmp_path: Path) -> None:
    """In the header, and of each slot in `current`, its copy's length, hash and content."""
    path = filled(tmp_path / "storage")
    dice = random.Random(2)
    places = [*range(36), *range(STATE_AT, STATE_AT + 4)]
    for index in (0, 9, 10, 999):
        slot = slot_at(index)
        # Written twice, so the copy that is current is the first one again.
        places += [*range(slot, slot + 8), *range(slot + 12, slot + 16)]
        places += range(slot + 24, slot + 24 + len(b"second of 0") * (index < 10))
    for place in places:
        bits = dice.choice((1, 0x80, 0xFF))
        flip(path, place, bits)
        check_refused(path, "damaged|no storage|version|slots|hashes|cut off")
        flip(path, place, bits)
    assert contents(path) == FILLED
    flip(path, slot_at(9) + 24, 1)
    assert refused(path, 2) == (
        f"iproto: storage file {path} cannot be used: the store is damaged: slot 9 does not hold "
        "what was written; restore a copy of it, or remove it to begin with an empty storage, "
        f"or see 'iproto check {path}'\n"
    )


@pytest.mark.parametrize("word", [b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_a_slot_is_refused_whose_word_is_wiped_and_not_served_as_it_was_before(
    tmp_path: Path, word: bytes
) -> None:
    """Of all slots: the word says which content counts, and the older one is still there."""
    path = filled(tmp_path / "storage")
    whole = path.read_bytes()
    for index in range(iproto.wire.SLOT_COUNT):
        patch(path, slot_at(index), word)
        check_refused(path, f"slot {index} has an impossible head")
        patch(path, slot_at(index), whole[slot_at(index) :][:4])
    assert path.read_bytes() == whole
    # And another slot's word is not taken for this one's.
    patch(path, slot_at(3), current_words(4)[1].to_bytes(4, sys.byteorder))
    check_refused(path, "slot 3 has an impossible head")


def test_damage_to_what_does_not_count_is_no_error(tmp_path: Path) -> None:
    path = filled(tmp_path / "storage")
    for index in range(10):
        slot = slot_at(index)
        for place in (slot + 8, slot + 16, slot + 24 + 256, slot + 24 + 511):  # the other copy
            flip(path, place, 0xFF)
        flip(path, slot + 24 + len(b"second of 0"), 0xFF)  # behind the content
    for place in range(READERS_AT, READERS_AT + 100):
        flip(path, place, 0xFF)
    assert contents(path) == FILLED


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
    memory = mmap.mmap(-1, iproto.Storage.size_for() + 64)
    storage = iproto.Storage(memoryview(memory)[64:])  # not at a page, so the system refuses
    with Flusher(storage, 0.001):
        wait_until(lambda: len(caplog.records) > 2)
    assert {record.getMessage() for record in caplog.records} == {
        "cannot flush the storage file: Invalid argument"
    }
    assert {record.levelname for record in caplog.records} == {"ERROR"}
