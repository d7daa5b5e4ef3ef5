"""How long the other workers pause when one is killed: at any moment, and with the lock held.

``make pauses KILLS=100`` for the figures in docs/workers.md; test_soak.py makes a few.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import select
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tests.helpers.harness import (
    PATIENCE,
    Peer,
    ServerProcess,
    children,
    read_frame,
    replace_frame,
    serve_process,
)
from tests.helpers.lock_word import lock_words

WORKERS = 3
PERIOD = 0.001
"""Seconds between a reply and the connection's next request."""

WINDOW = 0.5
"""Seconds of traffic that are looked at before a kill, and again from the kill on."""

APP = """
import os

import iproto

app = iproto.App()


@app.function(0x30001)
def pid() -> int:
    return os.getpid()
"""


class Kill(NamedTuple):
    """What one kill did to the others.

    Args:
        before: seconds that the slowest request took in the window before.
        after: seconds that the slowest of those took that were sent or waited for
            an answer after it.
        refused: requests that were answered with an error.
        freed: seconds until the lock was free that it held; None if it held none.
    """

    before: float
    after: float
    refused: int
    freed: float | None


class Traffic:
    """A write and a read at a time to each of some workers, from one thread."""

    def __init__(self, peers: list[Peer]) -> None:
        self.peers = {peer.sock.fileno(): peer for peer in peers}
        self.sent: dict[int, float] = {}  # descriptor → when, of what has no answer yet
        self.next = dict.fromkeys(self.peers, 0.0)  # descriptor → when it is to send again
        self.slots = {fd: number for number, fd in enumerate(self.peers)}
        self.refused = 0

    def run(self, seconds: float) -> float:
        """Goes on for so long, and until all is answered; the slowest request's seconds."""
        end = time.perf_counter() + seconds
        slowest = 0.0
        while (now := time.perf_counter()) < end or self.sent:
            if now < end:
                self._send(now)
            ready, _, _ = select.select([*self.peers], [], [], PERIOD)
            for fd in ready:
                self.refused += sum(reply.code != 0 for reply in self.peers[fd].replies(2))
                now = time.perf_counter()
                slowest = max(slowest, now - self.sent.pop(fd))
                self.next[fd] = now + PERIOD
        return slowest

    def _send(self, now: float) -> None:
        for fd, peer in self.peers.items():
            if fd not in self.sent and now >= self.next[fd]:
                slot = self.slots[fd]
                self.sent[fd] = time.perf_counter()
                peer.send(replace_frame(slot, "x") + read_frame(slot))


def one_each(running: ServerProcess) -> dict[int, Peer]:
    """A connection to every worker, by its process."""
    wanted = set(children(running.process.pid))
    found: dict[int, Peer] = {}
    end = time.monotonic() + PATIENCE
    while found.keys() != wanted:
        assert time.monotonic() < end, "some worker gets no connection"
        peer = running.peer()
        pid = peer.ask(0x30001).value
        if pid in found:
            peer.sock.close()
        else:
            found[pid] = peer
    return found


def kill(pid: int) -> None:
    """Wherever it is."""
    os.kill(pid, signal.SIGKILL)


def kill_holding_the_lock(pid: int) -> float:
    """As if it had been hit just behind the instruction that claims the lock.

    Returns:
        Seconds until the lock was free again.
    """
    with lock_words(pid) as words:
        os.kill(pid, signal.SIGSTOP)
        words.claim()
        begun = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        while words.writes:
            time.sleep(0.0002)
        return time.perf_counter() - begun


def measure(*, lock_held: bool, seed: int) -> Kill:
    """Kills one worker of a fresh server.

    Args:
        lock_held: whether it holds the storage's lock then.
        seed: of whom, and when.
    """
    chance = random.Random(seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_process("myservice:app", "--workers", str(WORKERS), cwd=with_app(folder)) as running,
    ):
        peers = one_each(running)
        victim = chance.choice([*peers])
        gone = peers.pop(victim)
        traffic = Traffic([*peers.values()])
        before = traffic.run(WINDOW)
        freed: list[float | None] = []
        deed = kill_holding_the_lock if lock_held else kill
        killer = threading.Timer(chance.uniform(0, 0.05), lambda: freed.append(deed(victim)))
        killer.start()
        after = traffic.run(WINDOW)
        killer.join()
        for peer in (gone, *peers.values()):
            peer.sock.close()
        if lock_held:
            running.wait_for(rf"pid {victim}\) was killed by SIGKILL.*, holding the storage's lock")
        return Kill(before, after, traffic.refused, freed[0])


def with_app(folder: str) -> str:
    """The folder, with an app in it whose function 0x30001 tells the worker's process."""
    Path(folder, "myservice.py").write_text(APP)
    return folder


def summary(seconds: list[float]) -> str:
    """Median, 90th and 99th percentile and worst, in milliseconds."""
    ordered = sorted(seconds)
    figures = [
        statistics.median(ordered),
        *(ordered[math.ceil(len(ordered) * share) - 1] for share in (0.9, 0.99)),
        ordered[-1],
    ]
    return "  ".join(f"{1000 * figure:7.1f}" for figure in figures)


def main() -> int:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each kind")
    options = parser.parse_args()
    print(f"Slowest request to the {WORKERS - 1} other workers within {WINDOW} s; ms.")
    print(" " * 30 + "median      90%      99%    worst")
    found: dict[bool, list[Kill]] = {False: [], True: []}
    for seed in range(options.kills):  # interleaved, for machines drift
        for lock_held, kills in found.items():
            kills.append(measure(lock_held=lock_held, seed=seed))
    everything = found[False] + found[True]
    for name, seconds in (
        ("nobody killed", [one.before for one in everything]),
        ("killed", [one.after for one in found[False]]),
        ("killed, holding the lock", [one.after for one in found[True]]),
        ("  until the lock is free", [one.freed for one in found[True] if one.freed]),
    ):
        print(f"{name:27}{summary(seconds)}")
    refused = sum(one.refused for one in everything)
    print(f"{len(everything)} kills, {refused} requests refused")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
