"""What holds for the asyncio client and for the blocking one alike."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import msgpack
import pytest

from iproto.client.dial import interleaved
from iproto.client.route import Backoff
from iproto.errors import (
    CallTimeoutError,
    ClientClosedError,
    ConfigError,
    ConnectError,
    ConnectionLostError,
    DialectError,
    Error,
    IllegalParamsError,
    LockedError,
    OutOfRangeError,
    ProtocolError,
    ReadOnlyError,
    TextError,
    error_from_reply,
)
from iproto.wire import Dialect, FuncID, Header, Response, ReturnCode, State
from tests.helpers.bad_server import Asked, BadServer, Peer
from tests.helpers.clients import (
    MANY,
    READ_BYTES,
    at_once,
    both,
    calling,
    on_one_connection,
    route_of,
    swallowing,
    until,
)
from tests.helpers.frame_server import FrameServer
from tests.helpers.harness import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from iproto.client.async_client import AsyncClient

USER = 0x00030001

dialects = pytest.mark.parametrize("mailru", [False, True], ids=["vk", "mailru"])


def url_of(server: FrameServer | BadServer, *, mailru: bool) -> str:
    return f"{server.url}?dialect={'mailru' if mailru else 'vk'}"


async def read_anew(client: AsyncClient) -> str:
    """A read after the server closed: on the new connection, whether the end was seen or not."""
    while True:
        with contextlib.suppress(ConnectionLostError):
            return await client.read(1)


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port that is taken, and refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


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
        assert release.wait(10)
        for _ in range(2):
            peer.send(peer.ask().reply(b"\x01"))
        peer.wait_end()

    # More than the buffers of both ends take.
    big = bytes(16 << 20)
    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
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
        asked.set()
        asks += peer.asks(3)
        ids.extend(each.request_id for each in asks)
        peer.send(b"".join(each.text(str(each.slot)) for each in reversed(asks)))
        peer.wait_end()

    asked = threading.Event()
    ids: list[int] = []
    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            old = asyncio.ensure_future(client.read(7))
            await until(asked.is_set)
            frames: Any = cast("Any", client._connection._link).frames
            frames._next_id = 2**32 - 1
            texts = await client.read_many([1, 2, 3])
            assert texts == ["1", "2", "3"]
            assert await old == "7"
    assert len(set(ids)) == 4


# --- Peers that break the protocol ----------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda a: a.reply(b"\xa1x", request_id=a.request_id + 7), "never sent"),
        (lambda a: a.reply(b"\xa1x", func_id=USER), "asked was 0x20002"),
        (lambda a: a.reply(b"\xa1x", length=0xFFFFFFFF), "over the limit"),
        (lambda a: a.reply(b"\xa1x", length=1), "not the MsgPack str"),
        (lambda a: a.reply(b""), "not the MsgPack str"),
        (lambda a: a.reply(b"\x01"), "not the MsgPack str"),
        (lambda a: a.reply(b"\xa1x\xc0"), "not the MsgPack str"),
        (lambda a: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "over the limit"),
    ],
    ids=["id", "function", "huge", "short", "empty", "type", "extra", "HTTP"],
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


# --- Connections that end, or never begin ---------------------------------------------------------


@both
@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_connection_lost_in_flight_may_have_executed(kind: str, how: str) -> None:
    def script(peer: Peer) -> None:
        peer.asks(at_once(kind))
        if how == "reset":
            peer.reset()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            outcomes = await asyncio.gather(
                *(client.read(i) for i in range(at_once(kind))), return_exceptions=True
            )
    for outcome in outcomes:
        assert isinstance(outcome, ConnectionLostError)
        assert isinstance(outcome, ConnectionError)
        assert outcome.may_have_executed
        assert f"127.0.0.1:{server.port}" in str(outcome)
        assert ("reset by peer" if how == "reset" else "closed the connection") in str(outcome)


@both
async def test_a_refused_connection_is_named_and_not_executed(kind: str) -> None:
    with refusing_port() as port:
        async with calling(kind, f"iproto://127.0.0.1:{port}") as client:
            outcomes = await asyncio.gather(
                *(client.ping() for _ in range(MANY)), return_exceptions=True
            )
    for outcome in outcomes:
        assert isinstance(outcome, ConnectError)
        assert not outcome.may_have_executed
        assert f"cannot connect to 127.0.0.1:{port}: Connection refused" in str(outcome)


@both
async def test_a_host_that_is_not_known_is_a_connect_error(kind: str) -> None:
    async with calling(kind, "iproto://" + "x" * 70 + ".invalid") as client:
        with pytest.raises(ConnectError, match=r"x\.invalid:8080: "):
            await client.ping()


@both
async def test_a_server_that_accepts_and_closes_costs_a_call_one_attempt(kind: str) -> None:
    def closing(_: Peer) -> None:
        pass

    with BadServer(closing, closing, closing) as server:
        async with calling(kind, server.url) as client:
            for failures in (1, 2, 3):
                with pytest.raises((ConnectionLostError, ConnectError), match=r"closed|reset|pipe"):
                    await client.read(1)
                assert route_of(client).backoff._failures == failures


@both
async def test_calls_that_wait_for_the_backoff_share_one_attempt(kind: str) -> None:
    with refusing_port() as port:
        async with calling(kind, f"iproto://127.0.0.1:{port}") as client:
            route_of(client).backoff.failed("of the test")
            outcomes = await asyncio.gather(
                *(client.ping() for _ in range(MANY)), return_exceptions=True
            )
            for outcome in outcomes:
                assert isinstance(outcome, ConnectError)
            assert route_of(client).backoff._failures < 5


@on_one_connection
async def test_concurrent_first_calls_share_one_connection(kind: str) -> None:
    with FrameServer() as server:
        async with calling(kind, server.url) as client:
            await asyncio.gather(*(client.ping() for _ in range(MANY)))
    assert server.accepted == 1


@both
async def test_the_next_call_after_a_restart_reconnects(kind: str) -> None:
    with FrameServer() as server:
        client_of = calling(kind, server.url)
        client = await client_of.__aenter__()
        await client.replace(1, "before")
    try:
        with pytest.raises(ConnectError):
            await read_anew(client)
        with FrameServer(port=server.port) as again:
            assert await read_anew(client) == ""
            assert again.accepted == 1
    finally:
        await client_of.__aexit__(None, None, None)


def test_backoff_doubles_up_to_five_seconds_with_jitter() -> None:
    now, jitter = 100.0, 1.0
    backoff = Backoff(clock=lambda: now, random=lambda: jitter)
    assert backoff.delay() == 0
    delays = []
    for _ in range(10):
        backoff.failed("refused")
        delays.append(round(backoff.delay(), 6))
        now += backoff.delay()
        assert backoff.delay() == 0
    assert delays == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    jitter = 0.0
    backoff.failed("refused")
    assert backoff.delay() == pytest.approx(2.5)
    assert backoff.reason == "refused"
    backoff.succeeded()
    assert backoff.delay() == 0
    backoff.failed("refused")
    assert backoff.delay() == pytest.approx(0.025)
    jitter = Backoff()._random()
    assert 0 <= jitter <= 1


@both
async def test_failed_attempts_are_spaced(kind: str) -> None:
    now = 100.0
    waits: list[float] = []

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds
        waits.append(round(seconds, 6))

    async def pass_time_async(seconds: float) -> None:
        pass_time(seconds)

    with refusing_port() as port:
        async with calling(kind, f"iproto://127.0.0.1:{port}", timeout=60) as client:
            route_of(client).backoff = Backoff(clock=lambda: now, random=lambda: 1.0)
            seam: Any = client
            if kind == "async":
                seam._connection._sleep = pass_time_async
            else:
                seam.client._pool.pause = pass_time
            for _ in range(4):
                with pytest.raises(ConnectError):
                    await client.ping()
            assert waits == [0.05, 0.1, 0.2]
            now += 10
            with pytest.raises(ConnectError):
                await client.ping()
            assert waits == [0.05, 0.1, 0.2]


@both
async def test_a_call_waits_for_the_backoff_within_its_deadline(kind: str) -> None:
    with refusing_port() as port:
        async with calling(kind, f"iproto://127.0.0.1:{port}") as client:
            route_of(client).backoff = Backoff(random=lambda: 1.0)
            for _ in range(3):
                with pytest.raises(ConnectError):
                    await client.ping()
            with pytest.raises(CallTimeoutError, match="last failure: Connection refused"):
                await client.ping(timeout=0.01)


# --- Closing --------------------------------------------------------------------------------------


@both
async def test_closing_fails_what_is_in_flight(kind: str) -> None:
    def script(peer: Peer) -> None:
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url) as client:
            calls = [asyncio.ensure_future(client.read(i)) for i in range(at_once(kind))]
            await until(lambda: server.received >= at_once(kind) * READ_BYTES)
            await client.aclose()
            await client.aclose()
            for call in calls:
                with pytest.raises(ClientClosedError) as caught:
                    await call
                assert caught.value.may_have_executed


@both
async def test_closing_fails_who_waits_for_a_connection(kind: str) -> None:
    def script(peer: Peer) -> None:
        peer.ask()  # which is never answered
        peer.wait_end()

    with BadServer(script) as server:
        async with calling(kind, server.url, dialect="auto") as client:
            calls = [asyncio.ensure_future(client.ping()) for _ in range(at_once(kind))]
            await until(lambda: server.received >= READ_BYTES)
            await client.aclose()
            for call in calls:
                with pytest.raises(ClientClosedError) as caught:
                    await call
                assert not caught.value.may_have_executed


@both
async def test_a_closed_client_makes_no_calls(kind: str) -> None:
    with FrameServer() as server:
        async with calling(kind, server.url) as client:
            await client.ping()
            await client.aclose()
            for call in (client.ping(), client.read_many([]), client.connect(), client.read(1)):
                with pytest.raises(ClientClosedError) as caught:
                    await call
                assert not caught.value.may_have_executed
    assert server.accepted == 1


@both
async def test_connect_is_there_before_the_first_call(kind: str) -> None:
    with FrameServer() as server:
        async with calling(kind, server.url) as client:
            await client.connect()
            await client.connect(timeout=1)
            await client.ping()
    assert server.accepted == 1
    with refusing_port() as port:
        async with calling(kind, f"iproto://127.0.0.1:{port}") as client:
            with pytest.raises(ConnectError):
                await client.connect()


# --- Arguments ------------------------------------------------------------------------------------

BAD_CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("read", ("1",), {}, TypeError, "index is an int, not str"),
    ("read", (1.5,), {}, TypeError, "not float"),
    ("read", (None,), {}, TypeError, "not NoneType"),
    ("read_bytes", (2**70,), {}, ValueError, "does not fit"),
    ("read_many", ([1, "2"],), {}, TypeError, "not str"),
    ("read_many", (1,), {}, TypeError, "not iterable"),
    ("replace", (1, 2), {}, TypeError, "str or bytes, not int"),
    ("replace", (1, bytearray(b"x")), {}, TypeError, "not bytearray"),
    ("replace", (1, "\ud800"), {}, ValueError, "surrogates"),
    ("replace_many", ([(1, "x"), 2],), {}, TypeError, "item 1 is not a tuple"),
    ("replace_many", ([(1, "x", 3)],), {}, TypeError, "item 0 is not a tuple"),
    ("replace_many", ({1: None},), {}, TypeError, "not NoneType"),
    ("call", (-1,), {}, ConfigError, "func_id -0x1"),
    ("call", (2**32,), {}, ConfigError, "0..0xffffffff"),
    ("call", ("x",), {}, TypeError, "func_id is an int, not str"),
    ("call", (USER, object()), {}, TypeError, "object"),
    ("request", (True, b""), {}, TypeError, "not bool"),
    ("request", (USER, "x"), {}, TypeError, "bytes (MsgPack), not str"),
    (
        "ping",
        (),
        {"timeout": 0},
        ConfigError,
        "timeout is 0; it must be a number of seconds, over 0",
    ),
    ("ping", (), {"timeout": -1.5}, ConfigError, "timeout is -1.5"),
    ("ping", (), {"timeout": float("nan")}, ConfigError, "nan"),
    ("ping", (), {"timeout": 86401}, ConfigError, "at most 86400"),
    ("ping", (), {"timeout": "1"}, TypeError, "not str"),
    ("connect", (), {"timeout": True}, TypeError, "not bool"),
]


@both
async def test_bad_arguments_are_named_and_nothing_is_sent(kind: str) -> None:
    with FrameServer() as server:
        async with calling(kind, server.url) as client:
            for connected in (False, True):
                for name, args, options, error, said in BAD_CALLS:
                    with pytest.raises(error) as caught:
                        await getattr(client, name)(*args, **options)
                    assert said in str(caught.value), name
                if not connected:
                    assert server.accepted == 0
                    await client.connect()
            await client.ping()
    assert server.chunks == [b"\0\xff\0\0" + bytes(4) + server.chunks[0][8:12]]


@both
async def test_bad_settings_are_named(kind: str) -> None:
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"dialect": "redis"}, ConfigError, "'redis'"),
        ({"timeout": 0}, ConfigError, "timeout is 0"),
        ({"max_body": 0}, ConfigError, "max_body is 0"),
        ({"max_body": 2**32}, ConfigError, "max_body"),
        ({"max_body": 1.5}, TypeError, "float"),
    ]
    for options, error, said in bad:
        with pytest.raises(error, match=said):
            async with calling(kind, "iproto://h", **options):
                pass


@both
async def test_arguments_override_the_url(kind: str) -> None:
    async with calling(
        kind, "iproto://h?dialect=vk&timeout=5", dialect=Dialect.MAILRU, timeout=1
    ) as client:
        target = route_of(client).target
    assert (target.dialect, target.timeout) == (Dialect.MAILRU, 1.0)
