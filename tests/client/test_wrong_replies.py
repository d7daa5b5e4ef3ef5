"""Both clients and replies that are wrong, or in the other dialect."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from iproto.errors import (
    CallTimeoutError,
    ConnectError,
    DialectError,
    ProtocolError,
)
from iproto.wire import Dialect, FuncID, State
from tests.helpers.bad_server import BadServer, Peer
from tests.helpers.client_cases import USER, dialects, read_anew, url_of
from tests.helpers.clients import (
    MANY,
    at_once,
    both,
    calling,
    on_one_connection,
    route_of,
)
from tests.helpers.frame_server import FrameServer

# --- Peers that break the protocol ----------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda a: a.reply(b"\xa1x", request_id=a.request_id + 7), "never sent"),
        (lambda a: a.reply(b"\xa1x", func_id=USER), "asked was 0x20002"),
        (lambda a: a.reply(b"\xa1x", length=1), "not the MsgPack str"),
        (lambda a: a.reply(b""), "not the MsgPack str"),
        (lambda a: a.reply(b"\x01"), "not the MsgPack str"),
        (lambda a: a.reply(b"\xa1x\xc0"), "not the MsgPack str"),
        (lambda a: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "never sent"),
    ],
    ids=["id", "function", "short", "empty", "type", "extra", "HTTP"],
)
async def test_a_wrong_reply_fails_all_in_flight_at_once(kind: str, bad: Any, said: str) -> None:
    def script(peer: Peer) -> None:
        asks = peer.asks(at_once(kind))
        peer.send(bad(asks[0]))
        peer.wait_end()

    def good(peer: Peer) -> None:
        peer.send(peer.ask().text("good"))
        peer.wait_end()

    with BadServer(script, good) as server:
        async with calling(kind, server.url) as client:
            outcomes = await asyncio.gather(
                *(client.read(i) for i in range(at_once(kind))), return_exceptions=True
            )
            for outcome in outcomes:
                assert isinstance(outcome, ProtocolError)
                assert said in str(outcome)
            assert len({id(outcome) for outcome in outcomes}) == at_once(kind)
            assert await client.read(1) == "good"


@both
@dialects
async def test_a_wrong_dialect_is_told_to_all_at_once(kind: str, mailru: bool) -> None:
    def script(peer: Peer) -> None:
        peer.send(b"".join(asked.text("abc", mailru=mailru) for asked in peer.asks(at_once(kind))))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, url_of(server, mailru=not mailru)) as client:
            outcomes = await asyncio.gather(
                *(client.read(i) for i in range(at_once(kind))), return_exceptions=True
            )
    for outcome in outcomes:
        assert isinstance(outcome, DialectError)
        assert f"it speaks dialect={'mailru' if mailru else 'vk'}" in str(outcome)


@both
async def test_a_time_out_tells_when_it_looks_like_the_other_dialect(kind: str) -> None:
    def script(peer: Peer) -> None:
        peer.send(peer.ask().reply(b"\x01", mailru=True))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            with pytest.raises(CallTimeoutError, match="if the server speaks dialect=mailru"):
                await client.call(USER, timeout=0.1)


@both
@dialects
@pytest.mark.parametrize("locked", [False, True], ids=["open", "locked"])
async def test_auto_finds_the_dialect(kind: str, mailru: bool, locked: bool) -> None:
    with FrameServer(mailru=mailru) as server:
        async with calling(kind, server.url, dialect="auto") as client:
            assert route_of(client).dialect is Dialect.AUTO
            if locked:
                server.state = State.MAINTENANCE
            await asyncio.gather(*(client.ping() for _ in range(MANY)))
            assert route_of(client).dialect is (Dialect.MAILRU if mailru else Dialect.VK)
            await client.switch_readwrite()
            await client.replace(1, "x")
            assert await client.read(1) == "x"
    assert server.accepted <= (1 if kind == "async" else MANY)


@on_one_connection
@dialects
async def test_auto_with_a_fragmented_reply_and_calls_that_wait_for_it(
    kind: str, mailru: bool
) -> None:
    def script(peer: Peer) -> None:
        probe = peer.ask()
        assert (probe.func_id, probe.slot) == (FuncID.STORAGE_READ, 0)
        for byte in probe.text("anything", mailru=mailru):
            peer.send(bytes([byte]))
        for asked in peer.asks(MANY):
            peer.send(asked.reply(b"\x07", mailru=mailru))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url, dialect="auto") as client:
            assert await asyncio.gather(*(client.call(USER) for _ in range(MANY))) == [7] * MANY


@both
async def test_auto_remembers_the_dialect_and_notices_another(kind: str) -> None:
    def probed(peer: Peer) -> None:
        peer.send(peer.ask().text("probe"))
        peer.send(peer.ask().text("one"))

    def remembered(peer: Peer) -> None:
        peer.send(peer.ask().text("two"))

    def changed(peer: Peer) -> None:
        peer.send(peer.ask().text("three", mailru=True))

    def probed_again(peer: Peer) -> None:
        peer.send(peer.ask().text("probe", mailru=True))
        peer.send(peer.ask().text("four", mailru=True))

    with BadServer(probed, remembered, changed, probed_again) as server:
        async with calling(kind, server.url, dialect="auto") as client:
            assert await client.read(1) == "one"
            server.wait_closed()
            assert await read_anew(client) == "two"
            server.wait_closed()
            with pytest.raises(DialectError):
                await read_anew(client)
            server.wait_closed()
            assert await read_anew(client) == "four"
            assert route_of(client).dialect is Dialect.MAILRU


@both
async def test_auto_and_no_dialect_at_all(kind: str) -> None:
    def script(peer: Peer) -> None:
        peer.send(peer.ask().reply(b"\x01"))
        peer.wait_end()

    def closing(peer: Peer) -> None:
        peer.ask()

    with BadServer(script, closing) as server:
        async with calling(kind, server.url, dialect="auto") as client:
            with pytest.raises(DialectError, match="name it"):
                await client.ping()
            with pytest.raises(ConnectError, match="closed the connection"):
                await client.ping()
