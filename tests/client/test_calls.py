"""Each method of both clients, and what it makes of a reply."""

from __future__ import annotations

import asyncio
import datetime
from typing import TYPE_CHECKING

import msgpack
import pytest

from iproto.errors import (
    ConnectError,
    Error,
    IllegalParamsError,
    LockedError,
    OutOfRangeError,
    ProtocolError,
    ReadOnlyError,
    TextError,
    error_from_reply,
)
from iproto.wire import FuncID, Header, Response, ReturnCode
from tests.helpers.bad_server import Asked, BadServer, Peer
from tests.helpers.clients import (
    MANY,
    both,
    calling,
    on_one_connection,
)
from tests.helpers.frame_server import FrameServer

if TYPE_CHECKING:
    from pathlib import Path


from tests.helpers.client_cases import USER, dialects, read_anew, url_of

# --- Calls that work ------------------------------------------------------------------------------


@both
@dialects
async def test_every_built_in_function_works(kind: str, mailru: bool) -> None:
    with FrameServer(mailru=mailru) as server:
        async with calling(kind, url_of(server, mailru=mailru)) as client:
            assert await client.read(0) == ""
            await client.replace(0, "тест")
            assert await client.read(0) == "тест"
            assert await client.read_bytes(0) == "тест".encode()
            await client.replace(999, b"x" * 256)
            contents: dict[int, str | bytes] = {1: "a", 2: b"b"}
            await client.replace_many(contents)
            await client.replace_many([(3, "c"), (3, "d")])
            assert await client.read_many(range(4)) == ["тест", "a", "b", "d"]
            assert await client.read_many_bytes(iter([999, 1])) == [b"x" * 256, b"a"]
            await client.ping()
            await client.switch_readonly()
            with pytest.raises(ReadOnlyError):
                await client.replace(0, "x")
            assert await client.read(0) == "тест"
            await client.switch_maintenance()
            with pytest.raises(LockedError):
                await client.read(0)
            await client.switch_readwrite()
            await client.replace(0, "")
            assert await client.read(0) == ""
    assert server.accepted == 1


@both
async def test_empty_bulks_need_no_server(kind: str) -> None:
    async with calling(kind, "iproto://127.0.0.1:1") as client:
        assert await client.read_many([]) == []
        assert await client.read_many_bytes([]) == []
        await client.replace_many({})


@both
async def test_a_bulk_of_100000_does_not_deadlock(kind: str) -> None:
    count = 100_000
    with FrameServer() as server:
        async with calling(kind, server.url, timeout=60) as client:
            await client.replace_many((i % 1000, f"{i:0256}") for i in range(count))
            texts = await client.read_many(i % 1000 for i in range(count))
    assert texts == [f"{count - 1000 + i % 1000:0256}" for i in range(count)]


@both
async def test_the_first_failed_item_of_a_bulk_is_named(kind: str) -> None:
    with FrameServer() as server:
        server.slots[5] = b"\xff"
        async with calling(kind, server.url) as client:
            with pytest.raises(OutOfRangeError) as caught:
                await client.read_many([1, 1000, 5, -1])
            assert caught.value.item == 1
            assert "item 1" in str(caught.value)
            with pytest.raises(TextError) as not_text:
                await client.read_many([1, 5, 1000])
            assert not_text.value.item == 1
            with pytest.raises(IllegalParamsError) as too_long:
                await client.replace_many([(1, "new"), (2, "x" * 257), (3, "new")])
            assert too_long.value.item == 1
            assert await client.read_many([1, 2, 3]) == ["new", "", "new"]


@both
async def test_bytes_that_are_not_utf8_are_an_error_and_never_a_guess(kind: str) -> None:
    with FrameServer() as server:
        async with calling(kind, server.url) as client:
            await client.replace(7, b"ok\xff")
            with pytest.raises(TextError, match="byte 2"):
                await client.read(7)
            assert await client.read_bytes(7) == b"ok\xff"


@both
async def test_a_users_function_gets_one_array_or_nothing_and_gives_one_object(kind: str) -> None:
    when = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc)
    asked: list[Asked] = []

    def script(peer: Peer) -> None:
        for body in (b"\xc0", msgpack.packb({1: [when, b"\xff"]}, datetime=True)):
            asked.append(peer.ask())
            peer.send(asked[-1].reply(body))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            assert await client.call(USER) is None
            assert await client.call(USER, 1, "two", b"3", when) == {1: [when, b"\xff"]}
    assert [a.func_id for a in asked] == [USER, USER]
    assert asked[0].body == b""
    assert msgpack.unpackb(asked[1].body, timestamp=3) == [1, "two", b"3", when]


@both
@pytest.mark.parametrize("body", [b"", b"\x01\x02", b"\xa3ab", b"\xc1"])
async def test_a_result_that_is_not_one_object_is_a_protocol_error(kind: str, body: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.send(peer.ask().reply(body))
        peer.send(peer.ask().reply(b"\x01"))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            with pytest.raises(ProtocolError, match=f"{len(body)} bytes"):
                await client.call(USER)
            assert await client.call(USER) == 1


@both
async def test_a_raw_request_raises_no_return_code(kind: str) -> None:
    def script(peer: Peer) -> None:
        asked = peer.ask()
        assert (asked.func_id, asked.body) == (USER, b"raw")
        peer.send(asked.text("no", 0x5102))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            response = await client.request(USER, b"raw")
    assert response == Response(
        Header(USER, 3, response.header.request_id), 0x5102, msgpack.packb("no")
    )


@both
async def test_shutdown_by_a_raw_request(kind: str) -> None:
    with FrameServer() as server:
        async with calling(kind, server.url) as client:
            response = await client.request(FuncID.SHUTDOWN, b"")
            assert response[1:] == (0, b"")
            await read_anew(client)
    assert server.accepted == 2


@both
async def test_every_return_code_has_its_class(kind: str) -> None:
    codes = [*(code for code in ReturnCode if code), 0x5102, 0x0001, 0xFFFFFFFF]

    def script(peer: Peer) -> None:
        for code in codes:
            peer.send(peer.ask().text(f"said {code}", code))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            for code in codes:
                with pytest.raises(Error) as caught:
                    await client.read(1)
                assert type(caught.value) is type(error_from_reply(code, ""))
                assert (caught.value.code, caught.value.text) == (code, f"said {code}")
                assert caught.value.retryable is (code & 0xFF == 1)


@both
async def test_unix_sockets(kind: str, tmp_path: Path) -> None:
    with FrameServer(path=str(tmp_path / "s")) as server:
        async with calling(kind, server.url) as client:
            await client.replace(1, "x")
            assert await client.read(1) == "x"
    async with calling(kind, f"iproto+unix://{tmp_path}/none") as client:
        with pytest.raises(ConnectError, match="none: No such file"):
            await client.ping()


# --- Pipelining -----------------------------------------------------------------------------------


@on_one_connection
async def test_replies_in_reverse_order_find_their_calls(kind: str) -> None:
    def script(peer: Peer) -> None:
        asks = peer.asks(MANY)
        assert len({asked.request_id for asked in asks}) == MANY
        peer.send(b"".join(asked.text(f"slot {asked.slot}") for asked in reversed(asks)))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            texts = await asyncio.gather(*(client.read(i) for i in range(MANY)))
    assert texts == [f"slot {i}" for i in range(MANY)]


@both
@pytest.mark.parametrize("told", ["vk", "mailru", "auto"])
async def test_a_reply_may_be_cut_anywhere(kind: str, told: str) -> None:
    mailru = told == "mailru"

    def script(peer: Peer) -> None:
        asked = peer.ask()
        if told == "auto":
            peer.send(asked.text("probed"))
            asked = peer.ask()
        for cut in range(1, len(asked.text("abc", mailru=mailru))):
            reply = asked.text("abc", mailru=mailru)
            peer.send(reply[:cut])
            # The next request is there only when this reply is complete.
            peer.send(reply[cut:])
            asked = peer.ask()
        for byte in asked.text("last", mailru=mailru):
            peer.send(bytes([byte]))
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url, dialect=told) as client:
            while (text := await client.read(1)) != "last":
                assert text == "abc"
