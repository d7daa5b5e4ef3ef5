"""How a server with workers ends: who is refused, who is told, and what is left behind."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iproto import FuncID
from iproto.address import parse_address
from tests.helpers.harness import (
    PATIENCE,
    Peer,
    ServerProcess,
    children,
    frame,
    read_frame,
    replace_frame,
    serve_process,
    wait_until,
)
from tests.helpers.lock_word import lock_words

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc"
)

SLOW = """
import asyncio, pathlib
import iproto

app = iproto.App()

@app.function(0x30001)
async def wait_for_file(path: str) -> str:
    while not pathlib.Path(path).exists():
        await asyncio.sleep(0.01)
    return "there"
"""

MARK = 0xFF010000
UNASKED_SHUTDOWN = struct.pack("<III", FuncID.SHUTDOWN, 0, 0)


@contextlib.contextmanager
def slow_server(folder: Path, *arguments: str) -> Iterator[ServerProcess]:
    (folder / "slow.py").write_text(SLOW)
    with serve_process("slow:app", "--drain-timeout", "20", *arguments, cwd=folder) as running:
        yield running


def wait_for(peer: Peer, path: Path, request_id: int = 1) -> None:
    """Starts a call that ends when the file is there."""
    text = os.fsencode(path)
    peer.send(frame(0x30001, b"\x91\xd9" + bytes([len(text)]) + text, request_id))


def is_refused(running: ServerProcess) -> bool:
    try:
        running.peer().sock.close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


@pytest.mark.parametrize("stuck", [False, True], ids=["", "one is stuck"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_who_connects_during_a_drain_is_refused(kind: str, stuck: bool, tmp_path: Path) -> None:
    bind = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    with slow_server(tmp_path, "--workers", "2", "--bind", bind) as running:
        peers = [running.peer() for _ in range(8)]
        for peer in peers:
            wait_for(peer, tmp_path / "go")
            assert peer.ask(FuncID.PING).func_id == FuncID.PING
        workers = children(running.process.pid)
        if stuck:
            os.kill(workers[0], signal.SIGSTOP)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(running))
        assert all(is_refused(running) for _ in range(20))
        (tmp_path / "go").touch()
        if stuck:
            os.kill(workers[0], signal.SIGKILL)
        answered = 0
        for peer in peers:
            with contextlib.suppress(ConnectionError, EOFError):
                answered += peer.reply().value == "there"
            peer.sock.close()
        assert stuck or answered == len(peers)
        assert running.end()[0] == (1 if stuck else 0)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_worker_that_is_sent_sigterm_is_replaced_and_its_queue_stays(
    kind: str, tmp_path: Path
) -> None:
    bind = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    with serve_process("--workers", "1", "--bind", bind, "--log-level", "DEBUG") as running:
        for _ in range(2):
            (worker,) = children(running.process.pid)
            os.kill(worker, signal.SIGTERM)
            running.wait_for("starting another")
            with running.peer() as peer:
                assert peer.read(0) == ""
            wait_until(lambda worker=worker: children(running.process.pid) != [worker])  # type: ignore[misc]


@pytest.mark.parametrize("kept", ["memory", "file"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_start_after_a_supervisors_death_succeeds_whatever_its_workers_do(
    kind: str, kept: str, tmp_path: Path
) -> None:
    bind = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s"
    storage = ("--storage-file", str(tmp_path / "storage")) if kept == "file" else ()
    with slow_server(tmp_path, "--workers", "3", "--bind", bind, *storage) as running:
        # With a file one is left to drain, and ended; without it would go by itself.
        stopped = children(running.process.pid)[: 2 if storage else 3]
        with running.peer() as peer, running.peer() as calling:
            wait_for(calling, tmp_path / "never")
            peer.send(replace_frame(5, "acknowledged"))
            assert peer.reply().code == 0
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            running.process.kill()
            running.process.wait()
            arguments = ("--workers", "2", "--bind", running.addresses[0], *storage)
            undisturbed = Undisturbed(tmp_path / "other")
            undisturbed.start()
            with slow_server(tmp_path, *arguments) as again, again.peer() as other:
                assert other.read(5) == ("acknowledged" if kept == "file" else "")
                again.process.send_signal(signal.SIGTERM)
                assert again.end()[0] == 0
            undisturbed.join(PATIENCE)
            assert serving_since(again) - undisturbed.since < 2 + undisturbed.seconds
            for pid in stopped:
                wait_until(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]


def serving_since(running: ServerProcess) -> float:
    """When a server began to serve, by its log; in seconds."""
    (line,) = (line for line in running.log if re.search("INFO.* serving ", line))
    return datetime.datetime.fromisoformat(line[:23].replace(",", ".")).timestamp()


class Undisturbed(threading.Thread):
    """A server that starts beside another one: as fast as the machine lets any start now."""

    since: float
    """When it began to serve."""
    seconds: float
    """How long that took."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder

    def run(self) -> None:
        self.folder.mkdir()
        storage = str(self.folder / "storage")
        begun = time.time()
        with slow_server(self.folder, "--workers", "2", "--storage-file", storage) as running:
            self.since = serving_since(running)
        self.seconds = self.since - begun


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_worker_that_dies_after_its_supervisor_does_not_keep_the_lock(tmp_path: Path) -> None:
    with slow_server(tmp_path, "--workers", "2") as running, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(running.peer()) for _ in range(12)]
        for peer in peers:  # both workers have calls to finish
            wait_for(peer, tmp_path / "go")
            assert peer.ask(FuncID.PING).func_id == FuncID.PING
        victim, survivor = children(running.process.pid)
        os.kill(victim, signal.SIGSTOP)
        with lock_words(victim) as words:
            words.claim()
            running.process.kill()
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: words.writer == bytes(4))
        assert is_alive(survivor)
        (tmp_path / "go").touch()
        wait_until(lambda: not is_alive(survivor))


# The announced end.


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "workers"])
@pytest.mark.parametrize("dialect", ["vk", "mailru"])
def test_a_drain_is_announced_to_clients_with_the_mark_and_to_nobody_else(
    dialect: str, workers: tuple[str, ...], tmp_path: Path
) -> None:
    with slow_server(tmp_path, "--dialect", dialect, *workers) as running:
        address = parse_address(running.addresses[0])
        calling, idle, unmarked, silent, dribbling = (
            Peer(address, dialect=dialect) for _ in range(5)
        )
        wait_for(calling, tmp_path / "go", MARK + 5)
        calling.send(read_frame(1, 7))
        assert calling.reply().request_id == 7
        idle.send(read_frame(1, MARK + 0xFFFF))
        assert idle.reply().code == 0
        unmarked.send(read_frame(1, MARK + 0x10000))
        unmarked.send(read_frame(1, MARK))  # only the first counts
        assert [reply.code for reply in unmarked.replies(2)] == [0, 0]
        for byte in read_frame(1, MARK + 1):
            dribbling.send(bytes([byte]))
        assert dribbling.reply().code == 0
        running.process.send_signal(signal.SIGTERM)
        assert idle.rest() == UNASKED_SHUTDOWN
        assert dribbling.rest() == UNASKED_SHUTDOWN
        assert unmarked.rest() == b""
        assert silent.rest() == b""
        (tmp_path / "go").touch()
        reply = calling.reply()
        assert (reply.request_id, reply.value) == (MARK + 5, "there")
        assert calling.rest() == UNASKED_SHUTDOWN
        for peer in (calling, idle, unmarked, silent, dribbling):
            peer.sock.close()
        assert running.end()[0] == 0


def test_each_worker_that_retires_announces_it() -> None:
    with serve_process("--workers", "2") as running:
        peers = [running.peer() for _ in range(10)]
        for peer in peers:
            peer.send(read_frame(1, MARK))
            assert peer.reply().code == 0
        running.process.send_signal(signal.SIGHUP)
        for peer in peers:
            assert peer.rest() == UNASKED_SHUTDOWN
            peer.sock.close()
        running.wait_for("restarted$")


def test_what_is_unanswered_at_the_announcement_was_not_executed() -> None:
    """A stream of writes: each up to the SHUTDOWN is acknowledged, none after it is there."""
    with serve_process("--workers", "2") as running, running.peer() as peer:
        sending = threading.Event()

        def send() -> None:
            with contextlib.suppress(OSError):
                for number in range(1_000_000):
                    peer.send(replace_frame(1, str(number), MARK + number % 0x10000))
                    if number == 1000:
                        sending.set()

        thread = threading.Thread(target=send)
        thread.start()
        received = bytearray()

        def receive() -> None:
            while chunk := peer.sock.recv(1 << 16):
                received.extend(chunk)

        reader = threading.Thread(target=receive)
        reader.start()
        sending.wait()
        running.process.send_signal(signal.SIGHUP)
        reader.join()
        with contextlib.suppress(OSError):
            peer.sock.shutdown(socket.SHUT_RDWR)
        thread.join()
        assert received.endswith(UNASKED_SHUTDOWN)
        replies = len(received) - len(UNASKED_SHUTDOWN)
        size = 12 + 4 + 1
        assert replies % size == 0
        with running.peer() as other:
            assert other.read(1) == str(replies // size - 1)
