"""Ends that the server announces: a drain, also to newcomers, the idle time-out, the age limit."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import TYPE_CHECKING, Any

import pytest

from iproto import AsyncClient, FuncID
from iproto._fastframe import ROWS
from iproto.server import deadlines
from tests.helpers.harness import PATIENCE, Peer, Served, read_frame, replace_frame, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

MARK = 0xFF010000
UNASKED_SHUTDOWN = struct.pack("<III", FuncID.SHUTDOWN, 0, 0)


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain that waits for a first header longer than any machine is busy."""
    monkeypatch.setattr(deadlines, "HEADER_WAIT", PATIENCE)


@contextlib.contextmanager
def accepted(served: Served, count: int = 1) -> Iterator[list[Peer]]:
    """Connections that the server has, and that brought nothing."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(served.peer()) for _ in range(count)]
        served.run(until_accepted(served, count))
        yield peers


async def until_accepted(served: Served, count: int) -> None:
    while served.server.connection_count < count:
        await asyncio.sleep(0)


def begin_drain(served: Served) -> Future[bool]:
    """Returns once the drain has told every connection."""
    drained = asyncio.run_coroutine_threadsafe(served.server.drain(), served.loop)

    async def begun() -> None:
        while served.server.ready:
            await asyncio.sleep(0)

    served.run(begun())
    return drained


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("cut", [0, 1, 11], ids=lambda cut: f"{cut} bytes came before")
def test_a_first_request_that_crosses_the_drain_is_told_that_it_was_not_executed(
    loop_name: str, cut: int
) -> None:
    with serving(loop=loop_name) as served, accepted(served, 2) as (marked, unmarked):
        request = replace_frame(1, "too late", MARK + 7)
        other = replace_frame(1, "too late", 7)
        marked.send(request[:cut])
        unmarked.send(other[:cut])
        drained = begin_drain(served)
        marked.send(request[cut:])
        unmarked.send(other[cut:])
        assert marked.rest() == UNASKED_SHUTDOWN
        assert unmarked.rest() == b""
        assert drained.result(PATIENCE)
        assert served.server.storage.read(1) == b""


@pytest.mark.usefixtures("patient")
def test_a_newcomer_that_closes_is_not_waited_for(loop_name: str) -> None:
    with serving(loop=loop_name) as served, accepted(served) as (peer,):
        drained = begin_drain(served)
        peer.sock.close()
        assert drained.result(PATIENCE)
        assert served.closed() == {"DRAIN": 1}


@pytest.mark.usefixtures("patient")
def test_a_newcomer_that_is_silent_makes_no_drain_fail() -> None:
    with serving() as served, accepted(served) as (peer,):
        assert served.run(served.server.drain(0.01))
        assert peer.rest() == b""


def test_a_newcomer_that_is_silent_does_not_hold_up_the_end(loop_name: str) -> None:
    with serving(loop=loop_name) as served, accepted(served) as (peer,):
        assert served.run(served.server.drain(PATIENCE))
        assert peer.rest() == b""
        assert served.closed() == {"DRAIN": 1}


def test_a_connection_that_has_asked_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "HEADER_WAIT", 10 * PATIENCE)
    with serving() as served, served.peer() as peer:
        peer.send(read_frame(1, MARK))
        assert peer.reply().code == 0
        assert begin_drain(served).result(PATIENCE)
        assert peer.rest() == UNASKED_SHUTDOWN


@pytest.mark.usefixtures("patient")
def test_a_call_of_ours_that_crosses_the_drain_is_made_at_the_next_server() -> None:
    async def use(first: Served) -> str:
        address = first.address
        async with AsyncClient(first.url, timeout=PATIENCE) as client:
            await client.connect()
            await asyncio.to_thread(first.run, until_accepted(first, 1))
            drained = await asyncio.to_thread(begin_drain, first)
            call = asyncio.ensure_future(client.read(1))
            await asyncio.wrap_future(drained)
            with serving(bind=str(address)) as second:
                second.server.storage.replace(1, b"here")
                return await call

    with serving() as first:
        assert asyncio.run(use(first)) == "here"


# Ends of single connections.


def test_the_idle_time_out_is_announced_to_clients_that_understand_it(loop_name: str) -> None:
    with serving(loop=loop_name, idle_timeout=0.2) as served, served.peer() as marked:
        marked.send(read_frame(1, MARK))
        assert marked.reply().code == 0
        assert marked.rest() == UNASKED_SHUTDOWN
        with served.peer() as unmarked:
            assert unmarked.read(1) == ""
            assert unmarked.rest() == b""
        assert served.wait_closed(2) == {"IDLE": 2}


def test_a_connection_has_an_age_limit_if_asked(loop_name: str) -> None:
    with (
        serving(loop=loop_name, max_connection_age=0.2) as served,
        served.peer() as marked,
        served.peer() as unmarked,
        served.peer() as silent,
    ):
        replies = 0
        with contextlib.suppress(EOFError, ConnectionError):
            while True:  # it is never idle
                marked.send(read_frame(1, MARK + replies % 0x10000))
                unmarked.send(read_frame(1, replies))
                reply = marked.reply()
                if reply.func_id == FuncID.SHUTDOWN:
                    break
                assert unmarked.reply().code == 0
                replies += 1
        assert replies
        assert silent.rest() == b""
        served.wait_closed(1)
        for peer in (marked, unmarked):
            with contextlib.suppress(ConnectionError):
                peer.rest()
        assert served.wait_closed(3) == {"AGED": 3}


def test_ages_are_spread_so_that_not_all_come_back_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delays = []
    later = asyncio.BaseEventLoop.call_later

    def call_later(loop: Any, delay: float, *args: Any, **options: Any) -> Any:
        delays.append(delay)
        return later(loop, delay, *args, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_later", call_later)
    with serving(loop="asyncio", max_connection_age=1000) as served, accepted(served, 20):
        ages = [delay for delay in delays if delay >= 1000]
        assert len(ages) == len(set(ages)) == 20
        assert all(1000 <= age <= 1100 for age in ages)


def test_no_call_of_ours_fails_by_an_age_limit() -> None:
    async def use(served: Served) -> None:
        async with AsyncClient(served.url, timeout=PATIENCE) as client:
            count = 0
            while served.closed().get("AGED", 0) < 5:
                count += 1
                await client.replace(1, str(count))
            assert await client.read(1) == str(count)
        writes = served.server.storage.counters()["requests"]
        assert writes[ROWS.index(FuncID.STORAGE_REPLACE)][0] == count

    with serving(max_connection_age=0.05) as served:
        asyncio.run(use(served))
