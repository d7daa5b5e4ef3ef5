"""Workers are killed under load, and the history of every slot must stay linearizable.

``make soak SECONDS=60`` for the long run; test_soak.py makes a short one.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
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
from tests.helpers.linearizability import Operation, violations

SLOTS = 8
"""Slots that all clients work on: few, so that they meet."""

CLIENTS = 6
DEPTH = 16
"""Operations of a client on their way at once."""


class Report(NamedTuple):
    """What a soak found.

    Args:
        operations: with a reply.
        unanswered: without one, because a worker died.
        kills: workers killed.
        worst_pause: seconds that the slowest answered operation took.
        wrong: what must not be; empty if all is well.
    """

    operations: int
    unanswered: int
    kills: int
    worst_pause: float
    wrong: list[str]

    def __str__(self) -> str:
        return (
            f"{self.operations} operations answered, {self.unanswered} not, {self.kills} workers "
            f"killed, slowest operation {self.worst_pause * 1000:.1f} ms, {len(self.wrong)} wrong"
        )


class Client(threading.Thread):
    """Reads and writes slots in pipelines, and writes down what it saw when."""

    def __init__(self, running: ServerProcess, number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.running = running
        self.number = number
        self.stop = stop
        self.random = random.Random(number)
        self.history: list[Operation] = []
        self.wrong: list[str] = []
        self.written = 0

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                with self.running.peer() as peer:
                    while not self.stop.is_set():
                        self.pipeline(peer)
            except (OSError, EOFError):
                continue  # the worker was killed; the pipeline has noted what has no reply

    def pipeline(self, peer: Peer) -> None:
        """Sends a batch, then takes its replies, each with the time it came."""
        batch = [self.operation() for _ in range(DEPTH)]
        answered = 0
        begun = time.perf_counter()
        try:
            peer.send(b"".join(frame for _, _, _, frame in batch))
            for slot, is_write, value, _ in batch:
                reply = peer.reply()
                ended = time.perf_counter()
                answered += 1
                if reply.code != 0:
                    self.wrong.append(f"refused: {reply}")
                elif is_write:
                    self.note(slot, True, value, begun, ended)
                else:
                    self.note(slot, False, self.decode(reply.value), begun, ended)
        finally:
            for slot, is_write, value, _ in batch[answered:]:
                self.note(slot, is_write, value, begun, None)

    def operation(self) -> tuple[int, bool, str, bytes]:
        slot = self.random.randrange(SLOTS)
        if self.random.random() < 0.5:
            return slot, False, "", read_frame(slot)
        self.written += 1
        value = f"{self.number}.{self.written}"
        return slot, True, value, replace_frame(slot, encode(value))

    def decode(self, text: str) -> str:
        """The value, if the text is whole."""
        value = text.partition(";")[0]
        if text and text != encode(value):
            self.wrong.append(f"torn: {text!r}")
        return value

    def note(
        self, slot: int, is_write: bool, value: str, begun: float, ended: float | None
    ) -> None:
        name = f"client {self.number}"
        self.history.append(Operation(slot, is_write, value, begun, ended, name))


def encode(value: str) -> str:
    """Repeats a value over most of a slot, so that a torn one is seen."""
    return ";".join([value] * (250 // (len(value) + 1)))


def soak(seconds: float, workers: int = 2, period: float = 0.3, seed: int = 1) -> Report:
    """Kills a worker every so often while clients are at work.

    Args:
        seconds: how long.
        workers: processes of the server.
        period: seconds between two kills, on average.
        seed: of when and whom.
    """
    chance = random.Random(seed)
    stop = threading.Event()
    kills = 0
    with serve_process("--workers", str(workers)) as running:
        clients = [Client(running, number, stop) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stop.wait(chance.uniform(0.5, 1.5) * period)
            victims = children(running.process.pid)
            if victims:
                os.kill(chance.choice(victims), signal.SIGKILL)
                kills += 1
        stop.set()
        for client in clients:
            client.join(PATIENCE)
    history = [operation for client in clients for operation in client.history]
    wrong = [text for client in clients for text in client.wrong]
    wrong += [f"slot {slot}: {text}" for slot, text in violations(history, initial="").items()]
    times = [o.ended - o.begun for o in history if o.ended is not None]
    return Report(len(times), len(history) - len(times), kills, max(times, default=0.0), wrong)


def main() -> int:
    """Runs a soak from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = soak(options.seconds, options.workers, seed=options.seed)
    print(report)
    for text in report.wrong[:20]:
        print(text)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
