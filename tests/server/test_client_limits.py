"""Limits of a client: connections, calls and requests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

import pytest

import iproto
from iproto import FuncID, ReturnCode
from iproto._fastframe import Clients, RateLimit
from iproto.server.places import Places
from tests.helpers.harness import Peer, frame, read_frame, replace_frame, serving

SLOW = 0x00030001

# So few a second that no test sees a second one come.
NEVER_AGAIN = "0.01"


def refused(peer: Peer) -> bool:
    with contextlib.suppress(ConnectionError, EOFError):
        return peer.ask(FuncID.STORAGE_READ, b"\x01").code == ReturnCode.OVERLOADED
    return True


def codes(peer: Peer, data: bytes, count: int) -> list[int | None]:
    peer.send(data)
    return [reply.code for reply in peer.replies(count)]


@pytest.mark.parametrize("dialect", ["vk", "mailru"])
def test_a_burst_passes_and_what_is_over_it_is_told_when_to_come_back(
    loop_name: str, dialect: str
) -> None:
    with (
        serving(loop=loop_name, dialect=dialect, rate_limit=f"{NEVER_AGAIN}:10") as served,
        served.peer() as peer,
    ):
        found = codes(peer, read_frame(1) * 9 + frame(FuncID.PING) + read_frame(1) * 5, 15)
        assert found == [0] * 9 + [None] + [ReturnCode.RATE_LIMITED] * 5
        reply = peer.ask(FuncID.PING)
        assert reply.code == ReturnCode.RATE_LIMITED
        error = iproto.RateLimitedError(reply.value)
        assert error.retry_after is not None
        assert 95 < error.retry_after <= 100
        assert not error.may_have_executed
        # SHUTDOWN always works.
        assert peer.ask(FuncID.SHUTDOWN).code is None


def test_a_request_over_the_rate_is_not_executed(loop_name: str) -> None:
    with serving(loop=loop_name, rate_limit=f"{NEVER_AGAIN}:1") as served, served.peer() as peer:
        data = replace_frame(1, "first") + replace_frame(1, "second")
        assert codes(peer, data, 2) == [0, ReturnCode.RATE_LIMITED]
        assert served.server.storage.read(1) == b"first"


@pytest.mark.parametrize("depth", [1, 7, 100, 1500])
def test_connections_of_one_client_share_its_rate_to_the_last_request(
    loop_name: str, depth: int
) -> None:
    with (
        serving(loop=loop_name, rate_limit=f"{NEVER_AGAIN}:{5 * depth}") as served,
        contextlib.ExitStack() as stack,
    ):
        peers = [stack.enter_context(served.peer()) for _ in range(6)]
        passed = sum(codes(peer, read_frame(1) * depth, depth).count(0) for peer in peers[:5])
        assert passed == 5 * depth
        assert peers[5].ask(FuncID.STORAGE_READ, b"\x01").code == ReturnCode.RATE_LIMITED


def test_a_rate_comes_back_with_time(loop_name: str) -> None:
    with serving(loop=loop_name, rate_limit="50:5") as served, served.peer() as peer:
        began = time.monotonic()
        passed = 0
        while passed < 30:
            passed += codes(peer, read_frame(1), 1) == [0]
        # The first five at once, and 25 more at 50 a second.
        assert time.monotonic() - began >= 25 / 50 - 0.02


def test_a_client_far_over_its_rate_is_not_read_until_it_may(loop_name: str) -> None:
    with serving(loop=loop_name, rate_limit="1000:10") as served, served.peer() as peer:
        count = 2000
        began = time.monotonic()
        found = codes(peer, read_frame(1) * count, count)
        took = time.monotonic() - began
        assert set(found) <= {0, ReturnCode.RATE_LIMITED}
        # Nearly all were kept waiting, not refused, and none passed before its time.
        assert found.count(0) >= count - 200
        assert took >= (found.count(0) - 10) / 1000 - 0.02


def test_a_rate_is_one_for_connections_that_come_and_go(loop_name: str) -> None:
    with serving(loop=loop_name, rate_limit=f"{NEVER_AGAIN}:5") as served:
        passed = 0
        for _ in range(12):
            with served.peer() as peer:
                passed += codes(peer, read_frame(1), 1) == [0]
        assert passed == 5


def test_a_client_may_have_so_many_connections(loop_name: str) -> None:
    with serving(loop=loop_name, max_connections_per_client=3) as served:
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(served.peer()) for _ in range(5)]
            assert [refused(peer) for peer in peers] == [False] * 3 + [True] * 2
        served.wait_closed(5)
        with served.peer() as peer:  # their places are free again
            assert not refused(peer)
        assert served.closed()["TOO_MANY"] == 2


def test_a_refused_connection_is_answered_with_its_own_request(loop_name: str) -> None:
    for dialect in ("vk", "mailru"):
        with serving(loop=loop_name, dialect=dialect, max_connections=1) as served:
            with served.peer() as first, served.peer() as second:
                assert first.ask(FuncID.PING).code is None
                second.send(frame(FuncID.STORAGE_REPLACE, b"\x01\xa1x", 77)[:5])
                second.send(frame(FuncID.STORAGE_REPLACE, b"\x01\xa1x", 77)[5:])
                reply = second.reply()
                assert (reply.func_id, reply.request_id) == (FuncID.STORAGE_REPLACE, 77)
                assert reply.code == ReturnCode.OVERLOADED
                assert "places for connections are taken" in reply.value
                assert second.rest() == b""
            assert served.server.storage.read(1) == b""


def test_refused_connections_that_say_nothing_are_closed_within_a_second_and_few_wait(
    loop_name: str,
) -> None:
    with serving(loop=loop_name, max_connections=1) as served, served.peer() as first:
        assert first.ask(FuncID.PING).code is None
        with contextlib.ExitStack() as stack:
            began = time.monotonic()
            peers = [stack.enter_context(served.peer()) for _ in range(80)]
            # The last ones find 64 waiting, and are closed at once.
            assert peers[-1].rest() == b""
            assert peers[0].rest() == b""
            assert time.monotonic() - began >= 0.9
        assert first.ask(FuncID.PING).code is None


def test_the_idlest_of_the_client_that_has_most_goes_for_a_newcomer(loop_name: str) -> None:
    both = ("127.0.0.1:0", "[::1]:0")
    with serving(loop=loop_name, bind=both, max_connections=4) as served:
        ipv4, ipv6 = served.server.addresses
        with contextlib.ExitStack() as stack:
            many = [stack.enter_context(Peer(ipv4)) for _ in range(4)]
            for peer in many:
                assert peer.ask(FuncID.PING).code is None
            time.sleep(0.01)
            for peer in (many[0], many[1], many[3]):
                assert peer.read(1) == ""
            # PINGs do not hold a place.
            for _ in range(3):
                assert many[2].ask(FuncID.PING).code is None
            newcomer = stack.enter_context(Peer(ipv6))
            assert newcomer.read(1) == ""
            assert many[2].rest() == b""
            assert served.closed() == {"EVICTED": 1}
            # One more of the client that has most is refused itself.
            assert refused(stack.enter_context(Peer(ipv4)))
            assert newcomer.read(1) == many[0].read(1) == ""


def test_who_may_switch_still_finds_a_place(loop_name: str) -> None:
    with serving(loop=loop_name, max_connections=1, admin_bind="127.0.0.1:0") as served:
        ordinary, admin = served.server.addresses
        with Peer(ordinary) as first, Peer(ordinary) as second:
            assert first.ask(FuncID.PING).code is None
            assert refused(second)
            with Peer(admin) as peer:
                assert peer.ask(FuncID.ADM_STORAGE_SWITCH_READONLY).code == 0


def test_a_client_that_connects_too_often_is_told_when_to_come_back(loop_name: str) -> None:
    with serving(loop=loop_name, connect_rate=f"{NEVER_AGAIN}:3") as served:
        for number in range(5):
            with served.peer() as peer:
                reply = peer.ask(FuncID.STORAGE_READ, b"\x01")
                if number < 3:
                    assert reply.code == 0
                else:
                    assert reply.code == ReturnCode.RATE_LIMITED
                    wait = iproto.RateLimitedError(reply.value).retry_after
                    assert wait is not None
                    assert 95 < wait <= 100
        assert served.wait_closed(5)["TOO_MANY"] == 2


def test_a_client_may_have_so_many_calls(loop_name: str) -> None:
    app = iproto.App()
    opened: list[asyncio.Event] = []

    @app.function(SLOW)
    async def slow() -> str:
        if not opened:
            opened.append(asyncio.Event())
        await opened[0].wait()
        return "done"

    with (
        serving(app, loop=loop_name, max_calls_per_client=3) as served,
        served.peer() as one,
        served.peer() as other,
    ):
        one.send(frame(SLOW, b"", 1) * 2 + read_frame(1, 9))
        assert one.reply().request_id == 9
        other.send(frame(SLOW, b"", 1) + frame(SLOW, b"", 2))
        reply = other.reply()
        assert (reply.request_id, reply.code) == (2, ReturnCode.OVERLOADED)
        assert "3 calls of this client are running, its limit" in reply.value
        served.loop.call_soon_threadsafe(opened[0].set)
        assert [r.value for r in (*one.replies(2), other.reply())] == ["done"] * 3
        assert other.ask(SLOW).value == "done"  # its place is free again


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate_limit", "fast"),
        ("rate_limit", "100:0"),
        ("rate_limit", "0"),
        ("rate_limit", -5),
        ("rate_limit", "100:20:3"),
        ("connect_rate", "2000000"),
        ("connect_rate", True),
        ("max_connections", 0),
        ("max_connections", "some"),
        ("max_connections_per_client", -1),
        ("max_calls_per_client", 65_001),
    ],
)
def test_a_wrong_limit_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(iproto.ConfigError, match=f"{name} is .*; it must be a"):
        iproto.Config(**{name: value})


def test_a_rate_may_be_a_number() -> None:
    number: Any = 100
    assert iproto.Config(rate_limit=number).rate_limit == "100"


# The table.


def test_a_flood_of_clients_gains_nothing() -> None:
    clients, limit = Clients(), RateLimit(0.01, 2)
    passed = 0
    # All in one set of eight ways; each is gone before the next one comes.
    for number in range(1000):
        account = clients.claim((number << 3) + 1)
        passed += account.take_connect(limit)
        account.release()
    assert passed <= 8 * 2


def test_a_client_with_a_connection_keeps_its_place() -> None:
    clients, limit = Clients(), RateLimit(0.01, 2)
    held = [clients.claim(number) for number in range(1, 9)]
    for account in held:
        assert account.take_connect(limit)
    more = clients.claim(9)  # shares a way with one of them
    assert sorted(account.connections for account in held) == [1] * 7 + [2]
    more.release()
    assert all(account.connections == 1 for account in held)
    assert [account.take_connect(limit) for account in held].count(True) == 8


def test_shares_are_added_up_over_workers_and_a_dead_one_has_none() -> None:
    import mmap

    memory = mmap.mmap(-1, Clients.size_for(3))
    tables = [Clients(memory, areas=3, area=area) for area in range(3)]
    accounts = [table.claim(42) for table in tables for _ in range(2)]
    assert {account.connections for account in accounts} == {6}
    assert tables[0].connections == 6
    tables[0].recover(2)
    assert accounts[0].connections == 4
    assert tables[0].connections == 4
    tables[2].detach()  # its accounts change nothing any more
    for account in accounts:
        account.release()
    assert tables[0].connections == 0


def test_a_child_process_changes_nothing_in_the_table() -> None:
    import mmap

    memory = mmap.mmap(-1, Clients.size_for(1))
    table = Clients(memory)
    account = table.claim(7)
    pid = os.fork()
    if pid == 0:
        table.detach()
        account.release()
        os._exit(0)
    os.waitpid(pid, 0)
    assert account.connections == 1


class _Connection:
    def __init__(self, client: str, idle: float) -> None:
        self.peer = type("Peer", (), {"client": client})
        self.idle = idle

    def seconds_without_request(self) -> float:
        return self.idle


def test_places_name_the_client_that_has_most() -> None:
    places: Any = Places()
    a = [_Connection("a", idle) for idle in (1.0, 3.0, 2.0)]
    b = [_Connection("b", 9.0)]
    for connection in (*a, *b):
        places.add(connection)
    assert places.victim("b") is a[1]
    assert places.victim("c") is a[1]
    assert places.victim("a") is None
    places.remove(a[1])
    assert places.victim("b") is None
    assert places.victim("c") is a[2]
    for connection in (a[0], a[2], b[0]):
        places.remove(connection)
    assert (places.victim("c"), len(places)) == (None, 0)
