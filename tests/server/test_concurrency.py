"""Limits of one function: how many of its calls run at once, and how long others wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import iproto
from iproto import ConfigError, ReturnCode
from tests.helpers.harness import frame, read_frame, serving, wait_until

if TYPE_CHECKING:
    from tests.helpers.harness import Served

SLOW, OTHER = 0x00030001, 0x00030002


class Slow:
    """A function whose calls end when the test says so."""

    def __init__(self, **limits: Any) -> None:
        self.app = iproto.App()
        self.running = 0
        self.most = 0
        self.begun = 0
        self._go: asyncio.Event | None = None
        self.app.function(SLOW, name="slow", **limits)(self.call)
        self.app.function(OTHER, name="quick")(lambda: "quick")

    async def call(self) -> int:
        self._go = self._go or asyncio.Event()
        self.running += 1
        self.begun += 1
        self.most = max(self.most, self.running)
        number = self.begun
        try:
            await self._go.wait()
        finally:
            self.running -= 1
        return number

    def go(self, served: Served) -> None:
        assert self._go is not None
        served.loop.call_soon_threadsafe(self._go.set)


def test_further_calls_wait_and_hold_up_no_other_function(loop_name: str) -> None:
    slow = Slow(concurrency=2)
    with serving(slow.app, loop=loop_name) as served, served.peer() as peer, served.peer() as more:
        peer.send(b"".join(frame(SLOW, request_id=number) for number in range(4)))
        more.send(frame(SLOW, request_id=9))
        wait_until(lambda: slow.begun == 2)
        for one in (peer, more):
            one.send(frame(OTHER, request_id=7) + read_frame(1, request_id=8))
            assert {one.reply().request_id for _ in range(2)} == {7, 8}
        assert slow.begun == 2
        slow.go(served)
        assert sorted(peer.reply().value for _ in range(4)) == [1, 2, 3, 4]
        assert more.reply()[1:] == (9, 0, b"\x05")
        assert slow.most == 2


def test_a_call_that_waits_too_long_is_never_run(loop_name: str) -> None:
    slow = Slow(concurrency=1, queue_timeout=0.05)
    with serving(slow.app, loop=loop_name) as served, served.peer() as peer:
        peer.send(frame(SLOW, request_id=1) + frame(SLOW, request_id=2))
        reply = peer.reply()
        assert (reply.request_id, reply.code) == (2, ReturnCode.OVERLOADED)
        assert "slow has no place for another call, and this one waited for 0.05 s" in reply.value
        slow.go(served)
        assert peer.reply().request_id == 1
        assert slow.begun == 1
        assert peer.ask(SLOW).value == 2


@pytest.mark.parametrize("gone", ["waiting", "running"])
def test_the_place_of_a_client_that_is_gone_is_free(gone: str) -> None:
    slow = Slow(concurrency=1)
    with serving(slow.app) as served, served.peer() as first, served.peer() as second:
        first.send(frame(SLOW))
        wait_until(lambda: slow.begun == 1)
        second.send(frame(SLOW) + frame(OTHER))
        assert second.reply().value == "quick"
        (first if gone == "running" else second).reset()
        served.wait_closed()
        slow.go(served)
        if gone == "running":
            assert second.reply().value == 2
        else:
            assert first.reply().value == 1
            assert first.ask(SLOW).value == 2  # the call of the client that is gone never ran


def test_the_time_out_begins_when_a_call_runs() -> None:
    slow = Slow(concurrency=1, timeout=0.2)
    with serving(slow.app) as served, served.peer() as peer:
        peer.send(frame(SLOW, request_id=1) + frame(SLOW, request_id=2))
        codes = [(reply.request_id, reply.code) for reply in (peer.reply(), peer.reply())]
        assert codes == [(1, ReturnCode.TIMEOUT), (2, ReturnCode.TIMEOUT)]
        assert slow.begun == 2


def test_a_time_out_of_the_settings_is_for_functions_without_their_own() -> None:
    slow = Slow()

    @slow.app.function(0x00030003, timeout=60)
    async def patient() -> str:
        await asyncio.sleep(0.1)
        return "done"

    with serving(slow.app, call_timeout=0.02) as served, served.peer() as peer:
        reply = peer.ask(SLOW)
        assert (reply.code, reply.value) == (ReturnCode.TIMEOUT, "slow ran for its limit of 0.02 s")
        assert peer.ask(0x00030003).value == "done"
        assert peer.ask(OTHER).value == "quick"


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"concurrency": 0}, r"it is a number of calls, 1\.\.2\*\*31"),
        ({"concurrency": True}, "it is a number of calls"),
        ({"concurrency": 1, "queue_timeout": 0}, "it is a number of seconds, over 0"),
        ({"queue_timeout": 1}, "concurrency= goes with it"),
    ],
)
def test_a_limit_that_is_none_is_refused(limits: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Slow(**limits)


def test_a_plain_function_has_no_calls_at_once() -> None:
    app = iproto.App()
    with pytest.raises(ConfigError, match="only an 'async def'"):
        app.function(OTHER, concurrency=2)(lambda: None)
