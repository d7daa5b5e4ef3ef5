"""A child of a serving process has nothing of the server, and does nothing to it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack
import pytest

from iproto import FuncID
from tests.helpers.harness import (
    Peer,
    ServerProcess,
    children,
    frame,
    replace_frame,
    serve_process,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are seen in /proc")

APP = """
import multiprocessing, os, signal, subprocess, sys, time
import iproto

app = iproto.App()
kept = []

def sleep():
    time.sleep(600)

@app.function(0x30001)
def fork() -> int:
    pid = os.fork()
    if pid == 0:
        sleep()
    return pid

@app.function(0x30002)
def multi() -> int:
    process = multiprocessing.get_context("fork").Process(target=sleep)
    process.start()
    kept.append(process)
    return process.pid

@app.function(0x30003)
def run() -> int:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    kept.append(subprocess.Popen(command, close_fds=False))
    return kept[-1].pid

@app.function(0x30004)
def come_back() -> int:
    return os.fork()
"""

MODES = {"one process": (), "a worker": ("--workers", "1")}
WAYS = {"os.fork": 0x30001, "multiprocessing": 0x30002, "subprocess": 0x30003}


@contextlib.contextmanager
def forking(folder: Path, *arguments: str) -> Iterator[ServerProcess]:
    (folder / "forking.py").write_text(APP)
    with serve_process("forking:app", *arguments, cwd=folder) as running:
        yield running


def serving_process(running: ServerProcess, mode: str) -> int:
    pid = running.process.pid
    return children(pid)[0] if mode == "a worker" else pid


def held(pid: int) -> set[str]:
    """What a process has open: sockets, event loops, files."""
    found = set()
    for fd in (Path("/proc") / str(pid) / "fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(fd))
    return found


def tcp_sockets() -> set[str]:
    """The TCP sockets of the machine, named as in /proc/PID/fd."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {f"socket:[{line.split()[9]}]" for line in lines}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
def test_a_child_holds_nothing_of_the_server_and_outlives_it_harmlessly(
    way: str, mode: str, tmp_path: Path
) -> None:
    file = tmp_path / "storage"

    def begin(peer: Peer) -> int:
        pid: int = peer.ask(WAYS[way]).value
        wait_until(lambda: not shared_with(pid))
        return pid

    def shared_with(pid: int) -> set[str]:
        """What of the server's a child has: its TCP sockets, the file, the file's memory."""
        common = held(pid) & tcp_sockets() | {str(file)} & held(pid)
        maps = Path(f"/proc/{pid}/maps").read_text()
        return common | {line for line in maps.splitlines() if str(file) in line}

    arguments = (*MODES[mode], "--storage-file", str(file))
    with forking(tmp_path, *arguments) as running, running.peer() as peer:
        child = begin(peer)
        try:
            os.kill(child, signal.SIGTERM)  # which is not one to the server
            child = begin(peer)
            peer.send(replace_frame(1, "kept"))
            assert peer.reply().code == 0
            os.kill(running.process.pid, signal.SIGKILL)
            running.process.wait()
            arguments = (*arguments, "--bind", running.addresses[0])
            with forking(tmp_path, *arguments) as again, again.peer() as other:
                assert other.read(1) == "kept"
            assert held(child)  # it has outlived the server
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("mode", MODES)
def test_a_child_that_comes_back_into_the_server_answers_nobody(
    mode: str, loop: str, tmp_path: Path
) -> None:
    with forking(tmp_path, *MODES[mode], "--loop", loop) as running:
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(running.peer()) for _ in range(8)]
            for number, peer in enumerate(peers):
                peer.send(replace_frame(number, f"slot {number}"))
                assert peer.reply().code == 0
            for _ in range(5):
                for number, peer in enumerate(peers):
                    read = frame(FuncID.STORAGE_READ, msgpack.packb(number), 7)
                    peer.send(read * 20 + frame(0x30004, b"", 8) + read * 20)
                for number, peer in enumerate(peers):
                    replies = peer.replies(41)
                    texts = [reply.value for reply in replies if reply.request_id == 7]
                    assert texts == [f"slot {number}"] * 40
                    assert next(reply.value for reply in replies if reply.request_id == 8) > 0
            server = serving_process(running, mode)
            wait_until(lambda: not children(server))  # each has ended, and said so
            assert len(children(running.process.pid)) == len(MODES[mode]) // 2
        running.process.send_signal(signal.SIGTERM)
        code, log = running.end()
        assert code == 0
        assert log.count("came back into the server") == 40
