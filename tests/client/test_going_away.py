"""Both clients: a server that announces its end, what is too long, arguments of calls."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import decimal
import enum
import struct
import uuid
from functools import partial
from typing import Any

import msgpack
import pytest

from iproto.errors import (
    CallTimeoutError,
    ConnectError,
    ConnectionLostError,
    IllegalParamsError,
    LockedError,
    ReplyTooLongError,
)
from iproto.wire import FuncID, ReturnCode
from tests.helpers.bad_server import BadServer, Peer
from tests.helpers.client_cases import USER
from tests.helpers.clients import at_once, both, calling
from tests.helpers.frame_server import FrameServer
from tests.helpers.harness import wait_until

SHUTDOWN_UNASKED = struct.pack("<III", FuncID.SHUTDOWN, 0, 0)


@both
async def test_what_a_server_did_not_execute_at_its_shutdown_goes_to_the_next(kind: str) -> None:
    bodies: list[bytes] = []

    def leaving(peer: Peer) -> None:
        answered = peer.ask()
        peer.send(answered.text("answered"))
        peer.asks(at_once(kind))
        peer.send(SHUTDOWN_UNASKED)

    def good(peer: Peer) -> None:
        for asked in peer.asks(at_once(kind)):
            bodies.append(asked.body)
            peer.send(asked.reply())
        peer.wait_end()

    with BadServer(leaving, good) as server:
        async with calling(kind, server.url) as client:
            assert await client.read(1) == "answered"
            await asyncio.gather(*(client.replace(i, "x") for i in range(at_once(kind))))
    assert sorted(bodies) == [bytes([i]) + b"\xa1x" for i in range(at_once(kind))]


@both
@pytest.mark.parametrize("refused", [None, 1, 2])
async def test_of_a_bulk_only_what_was_not_executed_is_sent_again(
    kind: str, refused: int | None
) -> None:
    def leaving(peer: Peer) -> None:
        asks = peer.asks(4)
        peer.send(asks[2].text("two", ReturnCode.LOCKED if refused == 2 else 0))
        peer.send(asks[0].text("zero") + SHUTDOWN_UNASKED)

    def good(peer: Peer) -> None:
        one, three = peer.asks(2)
        assert (one.slot, three.slot) == (11, 13)
        peer.send(three.text("three") + one.text("one", ReturnCode.LOCKED if refused == 1 else 0))
        peer.wait_end()

    with BadServer(leaving, good) as server:
        async with calling(kind, server.url) as client:
            bulk = client.read_many([10, 11, 12, 13])
            if refused is None:
                assert await bulk == ["zero", "one", "two", "three"]
            else:
                with pytest.raises(LockedError) as caught:
                    await bulk
                assert caught.value.item == refused


@both
async def test_a_bare_end_of_the_stream_sends_nothing_again(kind: str) -> None:
    def leaving(peer: Peer) -> None:
        peer.ask()

    with BadServer(leaving) as server:
        async with calling(kind, server.url) as client:
            with pytest.raises(ConnectionLostError) as caught:
                await client.replace(1, "x")
            assert caught.value.may_have_executed


@both
async def test_a_shutdown_while_idle_costs_no_call(kind: str) -> None:
    def leaving(peer: Peer) -> None:
        peer.send(peer.ask().text("first") + SHUTDOWN_UNASKED)

    def good(peer: Peer) -> None:
        peer.send(peer.ask().text("second"))
        peer.wait_end()

    with BadServer(leaving, good) as server:
        async with calling(kind, server.url) as client:
            assert await client.read(1) == "first"
            assert await client.read(1) == "second"


@both
async def test_a_shutdown_instead_of_the_dialect_is_no_failure(kind: str) -> None:
    def leaving(peer: Peer) -> None:
        peer.ask()
        peer.send(SHUTDOWN_UNASKED)

    def good(peer: Peer) -> None:
        peer.send(peer.ask().text("probed"))
        peer.send(peer.ask().text("read"))
        peer.wait_end()

    with BadServer(leaving, good) as server:
        async with calling(kind, server.url, dialect="auto") as client:
            assert await client.read(1) == "read"


@both
async def test_servers_that_all_go_away_are_a_timeout_of_what_was_not_executed(kind: str) -> None:
    def leaving(peer: Peer) -> None:
        with contextlib.suppress(EOFError):
            peer.ask()
            peer.send(SHUTDOWN_UNASKED)

    with BadServer(*[leaving] * 4) as server:
        async with calling(kind, server.url) as client:
            with pytest.raises((CallTimeoutError, ConnectError)) as caught:
                await client.replace(1, "x", timeout=1)
            assert not caught.value.may_have_executed


@both
async def test_after_a_long_body_was_refused_calls_take_a_new_connection(kind: str) -> None:
    def refusing(peer: Peer) -> None:
        peer.send(peer.ask().text("too long", ReturnCode.ILLEGAL_PARAMS))
        peer.wait_end()

    def good(peer: Peer) -> None:
        peer.send(peer.ask().text("good"))
        peer.wait_end()

    with BadServer(refusing, good) as server:
        async with calling(kind, server.url) as client:
            with pytest.raises(IllegalParamsError, match="too long"):
                await client.call(USER, "x" * 2000)
            assert await client.read(1) == "good"


def has_accepted(server: FrameServer, connections: int) -> bool:
    return server.accepted == connections


@both
async def test_a_request_over_the_limit_is_refused_before_it_is_sent(kind: str) -> None:
    with FrameServer() as server:
        async with calling(kind, server.url, max_request=100) as client:
            for connections in (0, 1):
                with pytest.raises(IllegalParamsError, match="max_request"):
                    await client.request(USER, bytes(101))
                with pytest.raises(IllegalParamsError, match="max_request") as caught:
                    await client.replace_many([(1, "x"), (2, "x" * 99)])
                assert caught.value.item == 1
                # The server's thread counts a connection a moment after the client has it.
                await asyncio.to_thread(wait_until, partial(has_accepted, server, connections))
                await client.connect()
            assert await client.read_many([1, 2]) == ["", ""]


@both
async def test_a_reply_over_the_limit_fails_its_own_call_only(kind: str) -> None:
    def script(peer: Peer) -> None:
        peer.send(peer.ask().text("x" * 500_000))
        peer.send(peer.ask().text("fits"))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url, max_body=1000) as client:
            with pytest.raises(
                ReplyTooLongError, match=r"500005 bytes .* 1000 \(max_body\)"
            ) as caught:
                await client.read(1)
            assert caught.value.may_have_executed
            assert await client.read(1) == "fits"


@dataclasses.dataclass
class Order:
    sku: str
    count: int = 1


class Color(enum.Enum):
    RED = "red"


@both
async def test_arguments_are_converted_as_the_server_documents_for_results(kind: str) -> None:
    got: list[Any] = []

    def script(peer: Peer) -> None:
        asked = peer.ask()
        got.extend(msgpack.unpackb(asked.body))
        peer.send(asked.reply())
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            await client.call(
                USER,
                Order("a"),
                Color.RED,
                uuid.UUID(int=1),
                decimal.Decimal("1.50"),
                datetime.date(2024, 2, 29),
                {7},
                [Order("b", 2)],
            )
    assert got == [
        {"sku": "a", "count": 1},
        "red",
        "00000000-0000-0000-0000-000000000001",
        "1.50",
        "2024-02-29",
        [7],
        [{"sku": "b", "count": 2}],
    ]
