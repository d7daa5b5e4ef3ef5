"""What only the asyncio client has: one loop, its turns, futures and cancellation."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from iproto.client.async_client import AsyncClient
from iproto.client.async_connection import Connection
from iproto.client.async_link import Link
from iproto.client.route import Route
from iproto.client.url import Target
from iproto.errors import CallTimeoutError, ClientClosedError, ConnectionLostError
from iproto.wire import Dialect
from tests.helpers.bad_server import Asked, BadServer, Peer
from tests.helpers.clients import READ_BYTES, until
from tests.helpers.frame_server import FrameServer
from tests.helpers.harness import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

USER = 0x00030001


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test body on each kind of loop (``loop_name`` of conftest), and looks for litter."""

    @functools.wraps(test)
    def run(loop_name: str, **arguments: Any) -> None:
        loop = uvloop.new_event_loop() if loop_name == "uvloop" else asyncio.new_event_loop()
        try:
            loop.run_until_complete(test(**arguments))
            assert not asyncio.all_tasks(loop)
            gc.collect()  # a warning about what was left open belongs to this test
        finally:
            loop.close()

    signature = inspect.signature(test)
    name = inspect.Parameter("loop_name", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[name, *signature.parameters.values()]
    )
    return run


def link_of(client: AsyncClient) -> Link:
    link = client._connection._link
    assert link is not None
    return link


class Spy:
    """A transport that writes down what it is told to write."""

    def __init__(self, transport: Any = None) -> None:
        self.transport = transport
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        if self.transport is not None:
            self.transport.write(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


@on_a_loop
async def test_the_frames_of_one_turn_leave_in_one_write() -> None:
    with FrameServer() as server:
        async with AsyncClient(server.url) as client:
            await client.connect()
            link: Any = link_of(client)
            link._transport = spy = Spy(link._transport)
            await asyncio.gather(*(client.read(i % 100) for i in range(500)))
            assert [len(data) for data in spy.writes] == [500 * READ_BYTES]
            await asyncio.gather(
                client.ping(),
                client.replace(1, "x"),
                client.call(1),
                *[client.read_many([1, 2]) for _ in range(2)],
                return_exceptions=True,
            )
            assert len(spy.writes) == 2
    assert len(server.chunks[0]) == 500 * READ_BYTES


@on_a_loop
async def test_calls_set_one_timer_and_not_one_each() -> None:
    with FrameServer() as server:
        async with AsyncClient(server.url) as client:
            timers: list[float] = []
            set_timer = client._connection.set_timer

            def count(deadline: float, **options: Any) -> None:
                timers.append(deadline)
                set_timer(deadline, **options)

            client._connection.set_timer = count  # type: ignore[method-assign]
            for _ in range(50):
                await asyncio.gather(*(client.read(i) for i in range(20)))
            assert len(timers) == 1
            await client.read(1, timeout=1)  # ends earlier
            assert len(timers) == 2
            await client.read(1, timeout=10)
            assert len(timers) == 2


@on_a_loop
async def test_a_cancelled_call_shifts_no_later_reply() -> None:
    def script(peer: Peer) -> None:
        asks = peer.asks(3)
        peer.send(asks[1].text("1") + asks[0].text("0") + asks[2].text("2"))
        peer.send(peer.ask().text("3"))
        peer.wait_end()

    with BadServer(script) as server:
        async with AsyncClient(server.url) as client:
            await client.connect()
            calls = [asyncio.ensure_future(client.read(i)) for i in range(3)]
            await asyncio.sleep(0)
            calls[1].cancel()
            assert await calls[0] == "0"
            assert await calls[2] == "2"
            with pytest.raises(asyncio.CancelledError):
                await calls[1]
            assert await client.read(3) == "3"
            assert link_of(client).frames.waiting == 0


@on_a_loop
async def test_a_cancelled_bulk_leaves_nothing_behind() -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        asks = peer.asks(3)
        assert go.wait(10)
        peer.send(b"".join(asked.text("late") for asked in asks))
        peer.send(peer.ask().text("next"))
        peer.wait_end()

    with BadServer(script) as server:
        async with AsyncClient(server.url) as client:
            await client.connect()
            bulk = asyncio.ensure_future(client.read_many([1, 2, 3]))
            await until(lambda: server.received == 3 * READ_BYTES)
            bulk.cancel()
            with pytest.raises(asyncio.CancelledError):
                await bulk
            assert link_of(client).frames.waiting == 0
            go.set()
            assert await client.read(1) == "next"


@on_a_loop
async def test_wait_for_works_as_on_any_coroutine() -> None:
    def script(peer: Peer) -> None:
        while (ask := peer.ask()).body != b"\x02":
            pass
        peer.send(ask.text("second"))
        peer.wait_end()

    with BadServer(script) as server:
        async with AsyncClient(server.url, timeout=PATIENCE) as client:
            await client.connect()
            with pytest.raises((asyncio.TimeoutError, TimeoutError)) as caught:
                await asyncio.wait_for(client.read(1), 0.02)
            assert not isinstance(caught.value, CallTimeoutError)
            assert await client.read(2) == "second"


@on_a_loop
async def test_an_attempt_that_nobody_waits_for_is_given_up() -> None:
    def script(peer: Peer) -> None:
        peer.ask()  # the question for the dialect; never answered
        peer.wait_end()

    with BadServer(script) as server:
        async with AsyncClient(server.url, dialect="auto") as client:
            calls = [asyncio.ensure_future(client.ping()) for _ in range(3)]
            await until(lambda: server.received > 0)
            attempt = client._connection._connecting
            assert attempt is not None
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert client._connection._connecting is None
            await asyncio.wait([attempt])
            assert attempt.cancelled()


@on_a_loop
async def test_what_never_left_was_not_executed() -> None:
    with FrameServer() as server:
        async with AsyncClient(server.url) as client:
            await client.ping()
            unsent = client.replace(1, "x")
            unsent.send(None)  # as far as its first wait; it leaves at the end of this turn
            link_of(client).end("cut by the test")
            with pytest.raises(ConnectionLostError, match="cut by the test") as lost:
                unsent.send(None)
            assert not lost.value.may_have_executed
            await client.ping()
    assert server.slots[1] == b""
    assert server.accepted == 2


@on_a_loop
async def test_a_call_closed_in_its_own_turn_never_leaves() -> None:
    with FrameServer() as server:
        client = AsyncClient(server.url)
        await client.ping()
        call = client.replace(1, "x")
        call.send(None)  # as far as its first wait
        await client.aclose()
        with pytest.raises(ClientClosedError) as caught:
            call.send(None)
        assert not caught.value.may_have_executed
    assert server.slots[1] == b""


@on_a_loop
async def test_an_abandoned_call_is_forgotten() -> None:
    with FrameServer() as server:
        async with AsyncClient(server.url) as client:
            await client.ping()
            call = client.read(1)
            call.send(None)
            call.close()
            assert link_of(client).frames.waiting == 0
            assert await client.read(1) == ""


def test_another_loop_is_told_so() -> None:
    with FrameServer() as server:
        client = AsyncClient(server.url)
        first = asyncio.new_event_loop()
        first.run_until_complete(client.ping())

        async def elsewhere() -> None:
            for call in (client.ping(), client.read_many([]), client.connect(), client.aclose()):
                with pytest.raises(RuntimeError, match="another event loop"):
                    await call

        asyncio.run(elsewhere())
        first.run_until_complete(client.ping())
        first.run_until_complete(client.aclose())
        first.close()
    assert server.accepted == 1


@on_a_loop
async def test_paused_writing_holds_new_calls_back_until_it_resumes() -> None:
    with FrameServer() as server:
        async with AsyncClient(server.url) as client:
            await client.ping()
            link = link_of(client)
            link.pause_writing()
            calls = [asyncio.ensure_future(client.read(i)) for i in range(5)]
            with pytest.raises(CallTimeoutError, match="takes requests") as caught:
                await client.read(1, timeout=0.01)
            assert not caught.value.may_have_executed
            assert link.frames.waiting == 0
            link.resume_writing()
            assert await asyncio.gather(*calls) == [""] * 5
    assert server.accepted == 1


@on_a_loop
async def test_who_waits_for_a_paused_connection_that_ends_gets_the_next() -> None:
    with FrameServer() as server:
        async with AsyncClient(server.url) as client:
            await client.ping()
            link_of(client).pause_writing()
            call = asyncio.ensure_future(client.read(1))
            await asyncio.sleep(0)
            link_of(client).end("cut by the test")
            assert await call == ""
    assert server.accepted == 2


@on_a_loop
@pytest.mark.parametrize("mailru", [False, True, None])
async def test_a_reply_cut_at_every_byte(mailru: bool | None) -> None:
    dialect = {False: Dialect.VK, True: Dialect.MAILRU, None: Dialect.AUTO}[mailru]
    loop = asyncio.get_running_loop()
    asked = Asked(0x20002, 1, b"\x01")
    reply = asked.text("тест", mailru=bool(mailru))
    for cut in range(len(reply) + 1):
        route = Route(Target(dialect=dialect), 1 << 20, 1 << 20)
        link = Link(Connection(route), route.new_link())
        link.connection_made(Spy())  # type: ignore[arg-type]
        waiter: asyncio.Future[Any] = loop.create_future()
        link.frames._set_ids(1)
        link.frames.read(1, 2, waiter, 1e9)
        link.data_received(reply[:cut])
        assert waiter.done() is (cut == len(reply))
        link.data_received(reply[cut:])
        assert waiter.result() == "тест"
        link.connection_lost(None)


@on_a_loop
async def test_a_reply_and_a_cancellation_in_the_same_turn() -> None:
    with FrameServer() as server:
        async with AsyncClient(server.url) as client:
            await client.ping()
            link = link_of(client)
            call = asyncio.ensure_future(client.read(1))
            await asyncio.sleep(0)
            call.cancel()
            link.data_received(Asked(0x20002, 2, b"").text("now"))
            with pytest.raises(asyncio.CancelledError):
                await call
            # The server's own reply to the call is the second then, and is ignored.
            assert await client.read(1) == ""


@on_a_loop
async def test_a_client_that_never_connected_closes() -> None:
    client = AsyncClient("iproto://127.0.0.1:1")
    await client.aclose()
    with pytest.raises(ClientClosedError):
        await client.ping()


@on_a_loop
async def test_a_client_that_was_not_closed_is_named_and_closed() -> None:
    def script(peer: Peer) -> None:
        peer.send(peer.ask().text("x"))
        peer.wait_end()

    with BadServer(script) as server:
        client = AsyncClient(server.url)
        assert repr(client) == f"<iproto.AsyncClient {server.url}, not connected>"
        await client.read(1)
        assert repr(client) == f"<iproto.AsyncClient {server.url}, connected>"
        with pytest.warns(ResourceWarning, match=f"<iproto.AsyncClient {server.url}.* not closed"):
            del client
        await until(lambda: not server.is_running)


def test_a_forked_child_is_told_to_make_its_own() -> None:
    code = """
import asyncio, os, sys
import iproto
loop = asyncio.new_event_loop()
client = iproto.AsyncClient(sys.argv[1])
loop.run_until_complete(client.ping())
child = os.fork()
if child == 0:
    try:
        loop.run_until_complete(client.ping())
    except RuntimeError as error:
        os._exit(0 if "before a fork" in str(error) else 2)
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0
loop.run_until_complete(client.ping())
loop.run_until_complete(client.aclose())
"""
    with FrameServer() as server:
        ended = subprocess.run(
            [sys.executable, "-c", code, server.url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (0, "")
