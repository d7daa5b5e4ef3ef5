"""Both clients and servers that are silent, slow, or do not read."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from iproto.client.dial import interleaved
from iproto.errors import (
    CallTimeoutError,
    ConnectionLostError,
)
from iproto.wire import FuncID
from tests.helpers.bad_server import BadServer, Peer
from tests.helpers.clients import (
    READ_BYTES,
    both,
    calling,
    on_one_connection,
    swallowing,
    until,
)
from tests.helpers.frame_server import FrameServer
from tests.helpers.harness import PATIENCE

if TYPE_CHECKING:
    from iproto.client.async_client import AsyncClient

from tests.helpers.client_cases import USER, refusing_port

# --- Deadlines ------------------------------------------------------------------------------------


@on_one_connection
async def test_silence_is_a_timeout_and_at_the_second_the_connection_is_dropped(kind: str) -> None:
    def script(peer: Peer) -> None:
        peer.wait_end()

    def answer(peer: Peer) -> None:
        peer.send(peer.ask().text("again"))
        peer.wait_end()

    with BadServer(script, answer) as server:
        async with calling(kind, server.url) as client:
            begun = time.monotonic()
            with pytest.raises(CallTimeoutError, match=r"within 0.05 s;") as caught:
                await client.read(1, timeout=0.05)
            assert 0.05 <= time.monotonic() - begun < 2
            assert caught.value.may_have_executed
            with pytest.raises(CallTimeoutError, match=r"within 0.05 s, nor any other"):
                await client.read(1, timeout=0.05)
            assert await client.read(1) == "again"


@on_one_connection
async def test_short_time_outs_in_a_pause_do_not_end_the_calls_beside_them(kind: str) -> None:
    pause_over = threading.Event()

    def script(peer: Peer) -> None:
        writes = peer.asks(5)
        assert pause_over.wait(10)
        peer.send(b"".join(asked.reply() for asked in writes))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            writes = [asyncio.ensure_future(client.replace(i, "x")) for i in range(5)]
            await asyncio.sleep(0)
            for _ in range(3):
                with pytest.raises(CallTimeoutError, match=r"within 0.05 s;"):
                    await client.ping(timeout=0.05)
            pause_over.set()
            await asyncio.gather(*writes)


@on_one_connection
async def test_a_silence_that_lasts_ends_the_calls_that_have_time_left(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iproto.client.link.SILENCE", 0.1)

    def script(peer: Peer) -> None:
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            other = asyncio.ensure_future(client.read(2))
            await asyncio.sleep(0)
            for _ in range(2):
                with pytest.raises(CallTimeoutError):
                    await client.read(1, timeout=0.1)
            with pytest.raises(ConnectionLostError, match="dropped: no byte came") as lost:
                await other
            assert lost.value.may_have_executed


@on_one_connection
async def test_a_call_that_times_out_leaves_a_slow_one_beside_it_alone(kind: str) -> None:
    """The client asks for a sign of life, and a server that lives gives it."""
    slow_may_go = threading.Event()

    def script(peer: Peer) -> None:
        slow, quick, ping = peer.asks(3)
        assert (ping.func_id, ping.body) == (FuncID.PING, b"")
        peer.send(struct.pack("<III", ping.func_id, 0, ping.request_id))
        quick_again = peer.ask()
        assert slow_may_go.wait(10)
        peer.send(quick.text("late") + quick_again.text("late too") + slow.text("slow"))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            slow = asyncio.ensure_future(client.read(2))
            await asyncio.sleep(0)
            for _ in range(2):
                with pytest.raises(CallTimeoutError, match=r"within 0.1 s;"):
                    await client.read(1, timeout=0.1)
            slow_may_go.set()
            assert await slow == "slow"


@on_one_connection
async def test_a_late_reply_is_ignored_and_the_connection_kept(kind: str) -> None:
    late = threading.Event()

    def script(peer: Peer) -> None:
        first = peer.ask()
        peer.send(first.text("x")[:3])  # the server lives
        assert late.wait(10)
        peer.send(first.text("late")[3:])
        second = peer.ask()
        peer.send(first.text("later still") + second.text("second"))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            with pytest.raises(CallTimeoutError, match=r"no reply from .* within 0.1 s;"):
                await client.read(1, timeout=0.1)
            late.set()
            assert await client.read(2) == "second"


@on_one_connection
async def test_a_bulk_that_times_out_shifts_nothing(kind: str) -> None:
    late = threading.Event()

    def script(peer: Peer) -> None:
        asks = peer.asks(3)
        peer.send(asks[1].text("one"))
        assert late.wait(10)
        peer.send(asks[0].text("zero") + asks[2].text("two"))
        peer.send(peer.ask().text("next"))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            with pytest.raises(CallTimeoutError):
                await client.read_many([0, 1, 2], timeout=0.1)
            late.set()
            assert await client.read(3) == "next"


@on_one_connection
async def test_deadlines_of_all_lengths_are_kept(kind: str) -> None:
    def script(peer: Peer) -> None:
        long = peer.ask()
        for _ in lengths:
            while (ask := peer.ask()).body != b"\x02":
                pass
            peer.send(ask.text("answered"))
        assert expired.wait(PATIENCE)
        peer.send(long.text("in time"))
        peer.wait_end()

    async def timed(client: AsyncClient, seconds: float) -> float:
        begun = time.monotonic()
        with pytest.raises(CallTimeoutError):
            await client.read(1, timeout=seconds)
        return time.monotonic() - begun

    lengths = [0.15, 0.05, 0.1]
    expired = threading.Event()
    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            await client.connect()
            long = asyncio.ensure_future(client.read(0, timeout=2 * PATIENCE))
            await until(lambda: server.received >= READ_BYTES)
            for seconds in lengths:
                assert seconds <= await timed(client, seconds) < PATIENCE
                # Or the next time-out were the second without a byte, which ends the connection.
                assert await client.read(2, timeout=PATIENCE) == "answered"
            assert not long.done()
            expired.set()
            assert await long == "in time"


@both
async def test_a_connection_that_is_not_accepted_in_time_is_a_timeout(kind: str) -> None:
    with swallowing() as (host, port):
        async with calling(kind, f"iproto://{host}:{port}") as client:
            with pytest.raises(CallTimeoutError, match=f"no connection to {host}:{port}") as caught:
                await client.ping(timeout=0.05)
            assert not caught.value.may_have_executed


@both
async def test_a_first_address_that_swallows_everything_costs_a_quarter_second(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with swallowing() as dead, FrameServer() as server, refusing_port() as refusing:
        places = [dead, ("127.0.0.1", refusing), ("127.0.0.1", server.port)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        async with calling(kind, "iproto://three.example", timeout=20) as client:
            begun = time.monotonic()
            await client.ping()
            assert 0.2 <= time.monotonic() - begun < 10
        assert server.accepted == 1


def test_addresses_of_each_family_are_tried_in_turn() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    places = [(six, 1), (six, 2), (six, 3), (four, 4)]
    assert interleaved(places) == [(six, 1), (four, 4), (six, 2), (six, 3)]


@on_one_connection
async def test_a_server_that_does_not_read_stops_new_calls(kind: str) -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        assert release.wait(PATIENCE)
        for _ in range(2):
            peer.send(peer.ask().reply(b"\x01"))
        peer.wait_end()

    # More than the buffers of both ends take.
    big = bytes(16 << 20)
    with BadServer(script) as server:
        async with calling(kind, server.url, max_request=len(big)) as client:
            first = asyncio.ensure_future(client.request(USER, big))
            await until(lambda: stuck(client))
            with pytest.raises(CallTimeoutError, match="takes requests") as caught:
                await client.ping(timeout=0.05)
            assert not caught.value.may_have_executed
            second = asyncio.ensure_future(client.request(USER, b"small"))
            await asyncio.sleep(0)
            release.set()
            assert (await first).body == b"\x01"
            assert (await second).body == b"\x01"


def stuck(client: Any) -> bool:
    """Whether the client has a connection that takes no calls just now."""
    return client._connection._link is not None and client._connection.open is None


@on_one_connection
async def test_an_id_that_comes_round_is_passed_over_while_its_call_waits(kind: str) -> None:
    def script(peer: Peer) -> None:
        asks = [peer.ask()]
        ids.append(asks[0].request_id)
        asked.set()
        asks += peer.asks(3)
        ids.extend(each.request_id for each in asks[1:])
        peer.send(b"".join(each.text(str(each.slot)) for each in reversed(asks)))
        peer.wait_end()

    asked = threading.Event()
    ids: list[int] = []
    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            old = asyncio.ensure_future(client.read(7))
            await until(asked.is_set)
            frames: Any = cast("Any", client._connection._link).frames
            frames._set_ids(ids[0] - 1, issued=2**32)
            texts = await client.read_many([1, 2, 3])
            assert texts == ["1", "2", "3"]
            assert await old == "7"
    assert len(set(ids)) == 4
