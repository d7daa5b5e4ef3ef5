"""User functions: how they are called, answered, bounded and cancelled."""

from __future__ import annotations

import asyncio
import logging

import pytest

import iproto
from iproto import ReturnCode
from tests.helpers.functions import OWN, app_of, pack
from tests.helpers.harness import Peer, frame, read_frame, serving
from tests.server.test_function_arguments import repeat


def test_an_error_of_the_users_own_is_answered_with_its_code(loop_name: str) -> None:
    def fail(kind: str) -> None:
        if kind == "own":
            raise iproto.Error(0x5102, "no such thing")
        raise iproto.RateLimitedError("wait 3 s")

    with serving(app_of(fail), loop=loop_name) as served, served.peer() as peer:
        reply = peer.ask(OWN, pack("own"))
        assert (reply.code, reply.value) == (0x5102, "no such thing")
        reply = peer.ask(OWN, pack("limit"))
        assert (reply.code, reply.value) == (ReturnCode.RATE_LIMITED, "wait 3 s")


class Careless(iproto.Error):
    """Does not call its base class, so that it has neither code nor text."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("secret"),
        SystemExit(3),
        asyncio.CancelledError(),
        BaseException("base"),
        GeneratorExit(),
        iproto.Error(0x5102, "a name that is not UTF-8: \udc80"),
        Careless(),
    ],
)
def test_an_unexpected_exception_is_internal_to_the_client_and_whole_in_the_log(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise error

    def broken_too() -> None:
        raise error

    app = app_of(broken)
    app.function(OWN + 1)(broken_too)
    with serving(app) as served, served.peer() as peer, caplog.at_level(logging.ERROR):
        for func_id, name in ((OWN, "broken"), (OWN + 1, "broken_too")):
            reply = peer.ask(func_id)
            assert reply.code == ReturnCode.INTERNAL
            assert reply.value == f"{name} failed; the server's log has the details"
        assert peer.read(0) == ""
    assert caplog.text.count("failed") >= 2
    assert "Traceback" in caplog.text


def test_a_result_that_msgpack_cannot_carry_is_internal(caplog: pytest.LogCaptureFixture) -> None:
    with serving(app_of(object, name="strange")) as served, served.peer() as peer:
        assert peer.ask(OWN).code == ReturnCode.INTERNAL
    assert "failed" in caplog.text


def test_async_functions_run_at_once_and_answer_when_they_are_ready(loop_name: str) -> None:
    gates: dict[int, asyncio.Event] = {}

    async def wait(number: int) -> int:
        gates.setdefault(number, asyncio.Event())
        await gates[number].wait()
        return number

    def open_gate(number: int) -> None:
        gates.setdefault(number, asyncio.Event()).set()

    app = app_of(wait)
    app.function(OWN + 1)(open_gate)
    with serving(app, loop=loop_name) as served, served.peer() as peer:
        peer.send(b"".join(frame(OWN, pack(n), request_id=n) for n in range(5)))
        for n in (3, 1, 4, 0, 2):
            peer.send(frame(OWN + 1, pack(n), request_id=100))
            answers = {reply.request_id: reply for reply in peer.replies(2)}
            assert answers.keys() == {100, n}
            assert answers[n].value == n


def test_built_in_frames_overtake_calls_that_run() -> None:
    gate = asyncio.Event()
    app = app_of(gate.wait, name="wait")
    app.function(OWN + 1)(gate.set)
    with serving(app) as served, served.peer() as peer:
        peer.send(frame(OWN, request_id=1) + read_frame(0, request_id=2))
        assert peer.reply().request_id == 2
        peer.send(frame(OWN + 1, request_id=3))
        assert {reply.request_id for reply in peer.replies(2)} == {1, 3}


def test_the_calls_of_a_connection_are_bounded_and_then_it_is_not_read(loop_name: str) -> None:
    running = most = 0
    gate = asyncio.Event()

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    app = app_of(work)
    app.function(OWN + 1)(gate.set)
    with (
        serving(app, loop=loop_name, max_calls_per_connection=4) as served,
        served.peer() as peer,
        served.peer() as other,
    ):
        calls = b"".join(frame(OWN, request_id=i) for i in range(50))
        peer.send(calls + read_frame(0, request_id=99))
        while running < 4:
            assert other.read(0) == ""
        assert other.ask(OWN + 1).code == 0
        assert {reply.request_id for reply in peer.replies(51)} == {*range(50), 99}
        assert most == 4


def test_over_the_servers_limit_calls_are_answered_overloaded() -> None:
    gate = asyncio.Event()
    app = app_of(gate.wait, name="wait")
    app.function(OWN + 1)(gate.set)
    with serving(app, max_calls=2) as served, served.peer() as peer:
        peer.send(b"".join(frame(OWN, request_id=i) for i in range(3)))
        reply = peer.reply()
        assert (reply.request_id, reply.code) == (2, ReturnCode.OVERLOADED)
        assert "2 calls are running" in reply.value
        assert iproto.OverloadedError(reply.value).retryable
        with served.peer() as other:
            assert other.ask(OWN + 1).code == ReturnCode.OVERLOADED
        served.loop.call_soon_threadsafe(gate.set)
        assert {r.request_id: r.code for r in peer.replies(2)} == {0: 0, 1: 0}
        assert peer.ask(OWN, request_id=4).code == 0


def test_a_function_that_takes_too_long_is_cancelled_and_answered_timeout(loop_name: str) -> None:
    cancelled = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    with serving(app_of(slow, timeout=0.05), loop=loop_name) as served, served.peer() as peer:
        reply = peer.ask(OWN, request_id=2)
        assert (reply.request_id, reply.code) == (2, ReturnCode.TIMEOUT)
        assert reply.value == "slow ran for its limit of 0.05 s"
        assert peer.read(0) == ""
    assert cancelled == [1]


def test_a_call_that_fails_badly_takes_no_neighbour_along(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> None:
        raise Careless

    app = app_of(broken)
    app.function(OWN + 1, name="fine")(lambda: "fine")
    with serving(app, max_calls_per_connection=4) as served, served.peer() as peer:
        peer.send(b"".join(frame(OWN + i % 2, request_id=i) for i in range(40)))
        answers = {reply.request_id: reply for reply in peer.replies(40)}
        assert {i: answers[i].code for i in range(0, 40, 2)} == dict.fromkeys(range(0, 40, 2), 2)
        assert all(answers[i].value == "fine" for i in range(1, 40, 2))
    assert "broken" in caplog.text


def test_a_reset_is_noticed_while_the_connection_is_not_read(loop_name: str) -> None:
    """The queue of its calls is full; nothing waits for a time-out."""
    ended: asyncio.Queue[int] = asyncio.Queue()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.put_nowait(1)

    with serving(
        app_of(wait), loop=loop_name, max_calls_per_connection=2, max_queue=1024
    ) as served:
        peer = served.peer()
        peer.send(frame(OWN) * 20 + read_frame(0))
        with served.peer() as other:
            assert other.read(0) == ""
        peer.reset()
        assert [served.run(ended.get()) for _ in range(2)] == [1, 1]
        assert served.wait_closed().get("RESET") == 1


def test_a_function_that_cancels_itself_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def strange() -> None:
        raise asyncio.CancelledError

    with serving(app_of(strange)) as served, served.peer() as peer:
        assert peer.ask(OWN).code == ReturnCode.INTERNAL
    assert "strange" in caplog.text


def test_calls_are_cancelled_when_their_connection_is_gone(loop_name: str) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()

    async def work() -> None:
        await events.put("started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await events.put("cancelled")
            raise

    with serving(app_of(work), loop=loop_name) as served:
        peer = served.peer()
        peer.send(frame(OWN))
        assert served.run(events.get()) == "started"
        peer.reset()
        assert served.run(events.get()) == "cancelled"


def test_calls_and_replies_by_the_thousand_are_all_matched(loop_name: str) -> None:
    def ask_all(peer: Peer) -> None:
        peer.send(b"".join(frame(OWN, pack("x", n % 9), request_id=n) for n in range(5000)))
        answers = {reply.request_id: reply.value for reply in peer.replies(5000)}
        assert answers == {n: "x" * (n % 9) for n in range(5000)}

    with serving(app_of(repeat), loop=loop_name) as served, served.peer() as peer:
        ask_all(peer)
