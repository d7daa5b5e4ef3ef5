"""Connections are shared out evenly over the workers, after restarts and deaths too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from iproto import AsyncClient, ConnectionLostError
from iproto.workers import balance
from iproto.workers.balance import Balance, is_even, is_uneven, targets
from iproto.workers.worker import LEVEL, LIMIT, SHED
from tests.helpers.harness import PATIENCE, Peer, ServerProcess, read_frame, wait_until
from tests.helpers.metrics import value
from tests.helpers.workers import pids, scrape, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iproto.workers.pool import Pool

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc"
)

WORKERS = 4
MARK = 0xFF010000


def connections(running: ServerProcess) -> list[int]:
    """How many connections each worker has open."""
    return [int(count) for count in scrape(running)["iproto_worker_connections"].values()]


def is_bound(counts: list[int], total: int) -> bool:
    """Whether all clients are connected, and the workers as even as is promised."""
    if sum(counts) != total:
        return False
    if total < 20:
        return max(counts) - min(counts) <= 2
    return max(counts) <= 1.3 * min(counts)


class Clients(threading.Thread):
    """Clients that call all the time, each over its one connection."""

    def __init__(self, running: ServerProcess, count: int) -> None:
        super().__init__(daemon=True)
        address = running.addresses[0]
        scheme = "iproto+unix" if address.startswith("unix:") else "iproto"
        self.url = f"{scheme}://{address.removeprefix('unix:')}?timeout={PATIENCE:g}"
        self.count = count
        self.stop = threading.Event()
        self.lost = 0
        self.failures: list[Exception] = []

    def __enter__(self) -> Clients:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop.set()
        self.join(PATIENCE)

    def run(self) -> None:
        async def call() -> None:
            async with AsyncClient(self.url) as client:
                while not self.stop.is_set():
                    try:
                        await client.read(0)
                    except ConnectionLostError:
                        self.lost += 1
                    except Exception as error:
                        self.failures.append(error)
                    await asyncio.sleep(0.01)

        async def call_all() -> None:
            await asyncio.gather(*(call() for _ in range(self.count)))

        asyncio.run(call_all())


@pytest.mark.parametrize(("total", "kind"), [(20, "tcp"), (10, "tcp"), (10, "unix")])
def test_after_restarts_and_deaths_all_workers_are_as_busy(
    total: int, kind: str, tmp_path: Path
) -> None:
    bind = ("--bind", f"unix:{tmp_path}/s") if kind == "unix" else ()
    with supervised(*bind, workers=WORKERS) as running, Clients(running, total) as clients:
        wait_until(lambda: is_bound(connections(running), total))
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("restarted$")
        wait_until(lambda: is_bound(connections(running), total))
        assert clients.lost == 0
        assert clients.failures == []
        for victim in pids(running)[:2]:
            os.kill(victim, signal.SIGKILL)
        for _ in range(2):
            running.wait_for("is ready")
        wait_until(lambda: is_bound(connections(running), total))
        assert clients.failures == []
        shed = value(scrape(running), "iproto_connections_closed_total", reason="balanced")
        assert shed < 10 * total


@contextlib.contextmanager
def lopsided(count: int) -> Iterator[tuple[ServerProcess, list[Peer]]]:
    """Two workers, and connections to one of them."""
    with supervised(workers=2) as running, contextlib.ExitStack() as stack:
        victim, _ = pids(running)
        os.kill(victim, signal.SIGKILL)
        running.wait_for("starting another")
        peers = [stack.enter_context(running.peer()) for _ in range(count)]
        yield running, peers


def test_connections_that_cannot_be_told_stay_and_new_ones_go_where_there_is_room() -> None:
    with lopsided(12) as (running, peers):
        for peer in peers:
            assert peer.read(0) == ""
        running.wait_for("is ready")
        running.wait_for("evening out the workers' connections")
        assert sorted(connections(running)) == [0, 12]
        with contextlib.ExitStack() as stack:
            while min(connections(running)) < 10:
                stack.enter_context(running.peer()).read(0)
            # The worker that has many may have accepted one before it heard of it.
            assert max(connections(running)) <= 13
        for peer in peers:
            assert peer.read(0) == ""
        assert value(scrape(running), "iproto_connections_closed_total", reason="balanced") == 0


def test_the_longest_idle_go_first_and_what_was_asked_is_answered() -> None:
    with lopsided(4) as (running, peers):
        for peer in peers:
            peer.send(read_frame(0, MARK))
            assert peer.reply().code == 0
        gone: list[int] = []

        def ended(number: int) -> None:
            peers[number].rest()
            gone.append(number)

        # The last two ask all the time: the others have been idle for longer.
        threads = [threading.Thread(target=ended, args=[number]) for number in range(2)]
        for thread in threads:
            thread.start()
        while len(gone) < 2:
            for peer in peers[2:]:
                peer.send(read_frame(0, MARK + 1))
                assert peer.reply().code == 0
        for thread in threads:
            thread.join(PATIENCE)
        # The server closes a moment after it has ended its side.
        wait_until(lambda: sorted(connections(running)) == [0, 2])


# What the supervisor decides, without processes.


@pytest.mark.parametrize(
    ("counts", "uneven", "even"),
    [
        ([0, 0], False, True),
        ([0, 1], False, True),
        ([0, 2], False, False),
        ([0, 3], True, False),
        ([4, 6, 5, 5], True, False),
        ([5, 6, 5, 5], False, True),
        ([0, 19, 1], True, False),
        ([100, 121], True, False),
        ([100, 115], False, False),
        ([100, 110], False, True),
        ([7], False, True),
    ],
)
def test_when_workers_are_uneven_and_when_they_are_even_again(
    counts: list[int], uneven: bool, even: bool
) -> None:
    assert is_uneven(counts) == uneven
    assert is_even(counts) == even
    assert is_even(targets(counts, sum(counts)))


def test_targets_share_out_all_and_move_as_few_as_can_be() -> None:
    assert targets([6, 6, 6, 3], 21) == [6, 5, 5, 5]
    assert targets([3, 6, 6, 7], 23) == [5, 6, 6, 6]
    assert targets([9, 1], 10) == [5, 5]
    assert targets([5, 1], 10) == [5, 5]
    assert targets([0, 0, 0], 2) == [1, 1, 0]


class Simulation:
    """Workers and their clients, which come back to any worker that accepts.

    Args:
        counts: connections of each worker.
        returns: the part of the clients that come back at once; the others never do.
        seed: of where they come back to.
    """

    def __init__(self, counts: list[int], returns: float, seed: int) -> None:
        self.counts = counts
        self.limits: list[int | None] = [None] * len(counts)
        self.returns = returns
        self.random = random.Random(seed)
        self.shed = 0
        self.away = 0
        self.lost = 0
        workers = [
            SimpleNamespace(area=number, ready=self, retiring=False, send=self.send_to(number))
            for number in range(len(counts))
        ]
        self.pool = SimpleNamespace(workers=workers, stopping=False, storage=self)

    def is_set(self) -> bool:
        return True

    def connections(self, area: int) -> int:
        return self.counts[area]

    def silent_seconds(self, _area: int) -> float:
        return 0.0

    def send_to(self, number: int) -> Any:
        def send(kind: str, target: int | None = None) -> None:
            if kind == LEVEL:
                self.limits[number] = None
            elif kind == LIMIT:
                self.limits[number] = target
            else:
                assert kind == SHED
                assert target is not None
                surplus = max(0, self.counts[number] - target)
                self.counts[number] -= surplus
                self.shed += surplus
                self.away += surplus

        return send

    def come_back(self) -> None:
        for _ in range(self.away):
            room = [
                number
                for number, limit in enumerate(self.limits)
                if limit is None or self.counts[number] < limit
            ]
            if self.random.random() < self.returns:
                assert room, "a client that waits for a worker"
                self.counts[self.random.choice(room)] += 1
            else:
                self.lost += 1
        self.away = 0

    def looks(self, seconds: float) -> None:
        """Time passes; the clients come back between two looks."""
        supervisor = Balance(cast("Pool", self.pool), lambda: False)
        for look in range(int(seconds / balance.PERIOD)):
            supervisor.look(look * balance.PERIOD)
            self.come_back()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "counts", [[9, 1], [20, 0, 0, 0], [6, 4, 5, 5], [5, 5, 0, 0], [900, 20, 30, 50], [40, 0]]
)
def test_they_are_even_within_a_minute_and_stay_so(counts: list[int], seed: int) -> None:
    total = sum(counts)
    simulation = Simulation(list(counts), 1.0, seed)
    simulation.looks(60)
    assert is_bound(simulation.counts, total)
    assert simulation.limits == [None] * len(counts)
    # None is sent away but those that were too many.
    surplus = sum(
        max(0, count - target) for count, target in zip(counts, targets(counts, total), strict=True)
    )
    assert simulation.shed <= surplus
    before = simulation.shed
    simulation.looks(60)
    assert simulation.shed == before


@pytest.mark.parametrize("seed", range(5))
def test_it_ends_with_clients_that_do_not_come_back(seed: int) -> None:
    simulation = Simulation([0, 16], 0.0, seed)
    simulation.looks(60)
    assert simulation.limits == [None, None]
    assert simulation.counts == [0, 1]
