"""Limits of a client over several workers, one of which is killed."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest

from iproto import FuncID
from tests.helpers.harness import (
    Peer,
    ServerProcess,
    children,
    read_frame,
    serve_process,
    wait_until,
)

# So few a second that no test sees a second one come.
NEVER_AGAIN = "0.01"


def passed(peers: list[Peer], each: int) -> int:
    """Sends everything at once, then counts what was executed."""
    for peer in peers:
        peer.send(read_frame(1) * each)
    return sum(reply.code == 0 for peer in peers for reply in peer.replies(each))


def workers_of(running: ServerProcess) -> list[int]:
    return children(running.process.pid)


@pytest.mark.parametrize("workers", [2, 4])
def test_a_rate_is_exact_over_workers_and_a_killed_one_gives_nothing_back(workers: int) -> None:
    with (
        serve_process("--workers", str(workers), "--rate-limit", f"{NEVER_AGAIN}:1000") as running,
        ExitStack() as stack,
    ):
        peers = [stack.enter_context(running.peer()) for _ in range(4 * workers)]
        assert passed(peers, 20) == 4 * workers * 20
        os.kill(workers_of(running)[0], signal.SIGKILL)
        running.wait_for("killed by SIGKILL")
        more = [stack.enter_context(running.peer()) for _ in range(20)]
        # What is left of 1000, to the last one; each of them is refused too little to be paused.
        assert passed(more, 60) == 1000 - 4 * workers * 20


@pytest.mark.parametrize("workers", [2, 4])
def test_connections_of_a_client_are_counted_over_workers_and_not_after_a_death(
    workers: int,
) -> None:
    limit = 5 * workers
    settings = ("--workers", str(workers), "--max-connections-per-client", str(limit))
    with serve_process(*settings) as running, ExitStack() as stack:

        def taken(count: int) -> int:
            found = 0
            for _ in range(count):
                peer = stack.enter_context(running.peer())
                found += peer.ask(FuncID.STORAGE_READ, b"\x01").code == 0
            return found

        assert taken(limit + 5) == limit
        peers = stack.pop_all()
        os.kill(workers_of(running)[0], signal.SIGKILL)
        running.wait_for("killed by SIGKILL")
        wait_until(lambda: len(workers_of(running)) == workers)
        peers.close()

        def is_free() -> bool:
            with running.peer() as peer:
                return peer.ask(FuncID.STORAGE_READ, b"\x01").code == 0

        # Those of the dead worker are gone, and so are the others once they are closed.
        wait_until(is_free)
        assert taken(limit + 5) == limit
