"""The lock between workers, when one of them stands still inside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iproto import FuncID, ReturnCode
from tests.helpers.harness import PATIENCE, Peer, ServerProcess, read_frame, replace_frame
from tests.helpers.lock_word import freeze_holding, lock_words
from tests.helpers.workers import alive, pids, supervised
from tests.workers.pauses import one_each, with_app

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc"
)


@contextlib.contextmanager
def under_load(peer: Peer, frames: bytes) -> Iterator[None]:
    """Sends frames to a worker again and again, and drops its replies."""
    stop = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                peer.sock.sendall(frames)

    def receive() -> None:
        with contextlib.suppress(OSError):
            while peer.sock.recv(1 << 20):
                pass

    threads = [threading.Thread(target=each, daemon=True) for each in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE)


def to_each(running: ServerProcess, workers: list[int], count: int) -> dict[int, list[Peer]]:
    """So many connections to each of these workers, which are all that answer.

    Those to other workers stay until the end: where few are, more are led to.
    """
    found: dict[int, list[Peer]] = {pid: [] for pid in workers}
    with contextlib.ExitStack() as others:
        while min(map(len, found.values())) < count:
            peer = running.peer()
            pid = peer.ask(0x30001).value
            if pid in found:
                found[pid].append(peer)
            else:
                others.enter_context(peer)
    return found


@pytest.mark.parametrize("for_write", [True, False], ids=["writing", "reading"])
def test_a_holder_of_the_lock_that_is_frozen_costs_the_others_one_short_wait(
    tmp_path: Path, *, for_write: bool
) -> None:
    """With 15 connections to each of the others, which would wait one after the other."""
    make = replace_frame if for_write else lambda index, _: read_frame(index)
    load = b"".join(make(index, "x" * 200) for index in range(1000))
    with supervised("myservice:app", workers=3, cwd=with_app(str(tmp_path))) as running:
        victim, *others = pids(running)
        one_to_each = one_each(running)
        peers = [peer for each in to_each(running, others, 15).values() for peer in each]
        with lock_words(victim) as words, under_load(one_to_each[victim], load):
            freeze_holding(words, for_write=for_write)
            begun = time.monotonic()
            for _ in range(3):
                for peer in peers:
                    peer.send(replace_frame(1, "refused"))
                assert {peer.reply().code for peer in peers} == {ReturnCode.OVERLOADED}
                for peer in peers:
                    peer.send(read_frame(1))
                codes = {peer.reply().code for peer in peers}
                assert codes == {ReturnCode.OVERLOADED if for_write else ReturnCode.OK}
                for peer in peers:
                    assert peer.ask(FuncID.PING).code is None
            took = time.monotonic() - begun
            # A wait for each of the writes would be 9 s, at 0.1 s each.
            assert took < 5.0, f"270 requests took {took:.1f} s"
            assert all(map(alive, others))
            os.kill(victim, signal.SIGCONT)
            write_until_done(peers[0])
        for peer in one_to_each.values():
            peer.sock.close()
        for peer in peers:
            write_until_done(peer)
            # The worker that was frozen may still have a write of its load to execute.
            assert peer.read(1) in ("written", "x" * 200)
            peer.sock.close()


def write_until_done(peer: Peer) -> None:
    """The lock is free soon; until then a write may still be refused."""
    end = time.monotonic() + PATIENCE
    while True:
        peer.send(replace_frame(1, "written"))
        code = peer.reply().code
        if code == ReturnCode.OK:
            return
        assert code == ReturnCode.OVERLOADED
        assert time.monotonic() < end
