"""What is acknowledged while workers are killed, and on sockets of every kind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from iproto.address import parse_address
from tests.helpers.harness import (
    PATIENCE,
    Peer,
    read_frame,
    replace_frame,
    wait_until,
)
from tests.helpers.workers import pids, supervised

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc"
)


def test_unix_sockets_are_shared_by_all_workers(tmp_path: Path) -> None:
    with supervised("--bind", f"unix:{tmp_path}/s") as running:
        address = parse_address(running.addresses[0])
        peers = [Peer(address) for _ in range(10)]
        for peer in peers:
            assert peer.read(0) == ""
        for pid in pids(running)[:1]:
            os.kill(pid, signal.SIGKILL)
        running.wait_for("is ready")
        with Peer(address) as peer:
            assert peer.read(0) == ""
        for peer in peers:
            peer.sock.close()
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0
    assert not (tmp_path / "s").exists()


def test_writers_under_load_lose_nothing_acknowledged_while_workers_are_killed() -> None:
    """Each writer has slots of its own, so that it knows what must be there."""
    with supervised() as running:
        stop = threading.Event()
        failures: list[str] = []
        acknowledged: list[dict[int, int]] = [{} for _ in range(4)]

        def write(number: int) -> None:
            counter = 0
            known = acknowledged[number]
            while not stop.is_set():
                with contextlib.suppress(OSError, EOFError), running.peer() as peer:
                    while not stop.is_set():
                        batch = range(counter, counter + 20)
                        counter += 20
                        for i in batch:
                            peer.send(replace_frame(slot(number, i), content(i), i))
                        for i in batch:
                            reply = peer.reply()
                            if (reply.request_id, reply.code) != (i, 0):
                                failures.append(f"{i}: {reply}")
                            known[slot(number, i)] = i
                        for i in batch:
                            peer.send(read_frame(slot(number, i), i))
                        for i in batch:
                            got = peer.reply().value
                            if not re.fullmatch(r"(\d+)(;\1)*", got):
                                failures.append(f"torn: {got!r}")
                            elif int(got.split(";")[0]) < i:
                                failures.append(f"slot {slot(number, i)}: {got} after {i}")

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            time.sleep(0.1)
            if found := pids(running):
                os.kill(found[_ % len(found)], signal.SIGKILL)
        wait_until(lambda: len(pids(running)) == 2)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert failures == []
        assert all(acknowledged)
        with running.peer() as peer:
            for known in acknowledged:
                for index, least in known.items():
                    assert int(peer.read(index).split(";")[0]) >= least


def slot(number: int, i: int) -> int:
    return number * 10 + i % 10


def content(i: int) -> str:
    """Repeats itself, so that a torn one is seen."""
    return ";".join([str(i)] * (240 // (len(str(i)) + 1)))
