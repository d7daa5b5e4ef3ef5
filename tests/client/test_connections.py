"""Connections of both clients: lost, refused, made again, closed; settings that are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from iproto.client.route import Backoff
from iproto.errors import (
    CallTimeoutError,
    ClientClosedError,
    ConfigError,
    ConnectError,
    ConnectionLostError,
)
from iproto.wire import Dialect
from tests.helpers.bad_server import BadServer, Peer
from tests.helpers.client_cases import USER, read_anew, refusing_port
from tests.helpers.clients import (
    MANY,
    READ_BYTES,
    at_once,
    both,
    calling,
    on_one_connection,
    route_of,
    until,
)
from tests.helpers.frame_server import FrameServer
from tests.helpers.tcp import keepalive_in, linux_only

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
    ("call", (USER, 1, object()), {}, TypeError, "argument 1, of type object, has no form"),
    ("call", (USER, 2**64), {}, OverflowError, "argument 0, of type int"),
    ("call", (USER, "\ud800"), {}, ValueError, "argument 0, of type str"),
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


@linux_only
@both
async def test_a_server_that_vanished_is_asked_whether_it_is_there(kind: str) -> None:
    with FrameServer() as server:
        async with calling(kind, server.url) as client:
            assert await client.read(1) == ""
            assert 30 < keepalive_in(remote=server.port) <= 60
