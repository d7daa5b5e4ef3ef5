"""Calls of user functions under load: at their limits, for clients that leave or never read."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

import iproto
from iproto import FuncID, ReturnCode
from iproto.server.connection import Connection
from tests.helpers.harness import (
    PATIENCE,
    frame,
    read_frame,
    resident_bytes,
    serve_process,
    serving,
    wait_until,
)
from tests.helpers.metrics import value
from tests.helpers.workers import scrape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers.harness import ServerProcess

OWN = 0x00030001


def waiting_app() -> tuple[iproto.App, asyncio.Event]:
    """OWN waits until the event is set; OWN + 1 sets it."""
    app = iproto.App()
    gate = asyncio.Event()
    app.function(OWN, name="wait")(gate.wait)
    app.function(OWN + 1, name="release")(gate.set)
    return app, gate


def test_at_the_limit_of_calls_everything_else_is_answered_in_its_order(loop_name: str) -> None:
    app, _gate = waiting_app()
    with (
        serving(app, loop=loop_name, max_calls_per_connection=2) as served,
        served.peer() as peer,
        served.peer() as other,
    ):
        calls = b"".join(frame(OWN, request_id=number) for number in range(50))
        peer.send(calls + read_frame(0, request_id=100) + frame(FuncID.PING, request_id=101))
        assert [reply.request_id for reply in peer.replies(2)] == [100, 101]
        assert peer.ask(FuncID.PING, request_id=102).request_id == 102
        assert other.ask(OWN + 1).code == 0
        assert [reply.request_id for reply in peer.replies(50)] == [*range(50)]


def test_only_a_full_queue_stops_the_reading(loop_name: str) -> None:
    app, _gate = waiting_app()
    settings: dict[str, Any] = {"max_calls_per_connection": 1, "max_queue": 4096}
    with (
        serving(app, loop=loop_name, **settings) as served,
        served.peer() as peer,
        served.peer() as other,
    ):
        peer.send(frame(OWN) * 10 + read_frame(0, request_id=2))
        assert peer.reply().request_id == 2
        peer.send(frame(OWN) * 100 + read_frame(0, request_id=3))
        peer.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            peer.reply()
        peer.sock.settimeout(PATIENCE)
        assert other.ask(OWN + 1).code == 0
        assert 3 in {reply.request_id for reply in peer.replies(111)}


def test_a_call_that_waited_too_long_is_answered_overloaded(loop_name: str) -> None:
    app, _gate = waiting_app()
    settings: dict[str, Any] = {"max_calls_per_connection": 1, "queue_timeout": 0.05}
    with (
        serving(app, loop=loop_name, **settings) as served,
        served.peer() as peer,
        served.peer() as other,
    ):
        peer.send(b"".join(frame(OWN, request_id=number) for number in range(4)))
        late = peer.replies(3)
        assert [(reply.request_id, reply.code) for reply in late] == [
            (number, ReturnCode.OVERLOADED) for number in (1, 2, 3)
        ]
        assert "waited 0.05 s behind 1 calls of this connection" in late[0].value
        assert other.ask(OWN + 1).code == 0
        assert (peer.reply().code, peer.ask(OWN).code) == (0, 0)


def test_calls_end_at_once_when_their_client_is_reset_at_the_limit(loop_name: str) -> None:
    app, _gate = waiting_app()
    with serving(app, loop=loop_name, max_calls=40, max_calls_per_connection=20) as served:
        peers = [served.peer() for _ in range(2)]
        for peer in peers:
            peer.send(frame(OWN) * 40)
            assert peer.ask(FuncID.PING).code is None
        with served.peer() as other:
            assert other.ask(OWN).code == ReturnCode.OVERLOADED
            for peer in peers:
                peer.reset()
            assert served.wait_closed(2) == {"RESET": 2}
            wait_until(lambda: other.ask(OWN + 1).code == 0)


def test_cancelled_calls_end_some_in_a_turn_of_the_loop(loop_name: str) -> None:
    turns: list[int] = [0]
    cancelled: list[int] = []
    app = iproto.App()

    @app.function(OWN)
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(turns[0])

    def count(loop: asyncio.AbstractEventLoop) -> None:
        turns[0] += 1
        if len(cancelled) < 2000:
            loop.call_soon(count, loop)

    with serving(app, loop=loop_name, max_calls_per_connection=2000) as served:
        peer = served.peer()
        peer.send(frame(OWN) * 2000)
        wait_until(lambda: len(asyncio.all_tasks(served.loop)) > 2000)
        served.loop.call_soon_threadsafe(count, served.loop)
        peer.reset()
        wait_until(lambda: len(cancelled) == 2000)
        assert max(cancelled.count(turn) for turn in set(cancelled)) <= 256


# It runs in a process of its own: the allocator of one that ran other tests may keep more.
BIG_REPLIES_APP = """
import asyncio
import ctypes
import gc

import iproto

gc.disable()  # nothing is freed but by its last reference
app = iproto.App()
EIGHT_MB = "x" * (8 << 20)

@app.function(0x30001)
def plain() -> str:
    return EIGHT_MB

@app.function(0x30002, name="async")
async def at_once() -> str:
    return EIGHT_MB

@app.function(0x30003)
async def late() -> str:
    await asyncio.sleep(0.01)
    return EIGHT_MB

@app.function(0x30004)
def trim() -> None:
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
"""
TRIM = 0x00030004
EIGHT_MB = 8 << 20


def slow_readers(running: ServerProcess) -> float:
    """Connections that were closed because their peer did not take its replies."""
    return value(scrape(running), "iproto_connections_closed_total", reason="slow_reader")


@pytest.mark.parametrize("func_id", [0x30001, 0x30002, 0x30003], ids=["plain", "async", "late"])
def test_replies_that_nobody_takes_are_bounded_and_freed(
    func_id: int, loop_name: str, tmp_path: Path
) -> None:
    (tmp_path / "big.py").write_text(BIG_REPLIES_APP)
    # A client that takes nothing is closed when no further reply has room, or, if its calls
    # did not start for that reason, after the time-out.
    options = ("--loop", loop_name, "--max-unsent", str(32 << 20), "--idle-timeout", "2")
    with serve_process("big:app", *options, cwd=tmp_path) as running:

        def trimmed_bytes() -> int:
            with running.peer() as other:
                assert other.ask(TRIM).code == 0
            return resident_bytes(running.process.pid)

        with running.peer() as peer:
            assert len(peer.ask(func_id).value) == EIGHT_MB
        before = trimmed_bytes()
        peers = [running.peer(receive_buffer=1 << 16) for _ in range(3)]
        for peer in peers:
            peer.send(frame(func_id) * 64)
        with running.peer() as other:  # and others are served
            assert other.read(0) == ""
            assert other.ask(FuncID.PING).code is None
        # A buffer grows by doubling; one result more is in the making.
        assert resident_bytes(running.process.pid) - before < 3 * (64 << 20) + (32 << 20)
        wait_until(lambda: slow_readers(running) == 3)
        wait_until(lambda: trimmed_bytes() - before < 24 << 20)
        for peer in peers:
            peer.sock.close()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is freed but by its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_connection_that_ended_is_gone_without_the_collector(loop_name: str) -> None:
    app, _gate = waiting_app()

    def connections() -> int:
        return sum(isinstance(item, Connection) for item in gc.get_objects())

    with serving(app, loop=loop_name, max_calls_per_connection=2) as served:
        with served.peer() as asked:
            assert asked.ask(OWN + 1).code == 0
        reset = served.peer()
        reset.send(frame(OWN) * 5 + frame(FuncID.PING))
        reset.reply()
        reset.reset()
        served.wait_closed(2)
        wait_until(lambda: connections() == 0)


EVIL_APP = """
import asyncio
import sys
import time
import iproto

app = iproto.App()

@app.function(0x30001)
def plain(kind: str) -> None:
    raise {"interrupt": KeyboardInterrupt, "exit": SystemExit}[kind]

@app.function(0x30002)
async def waits(kind: str) -> None:
    await asyncio.sleep(0)
    plain(kind)

@app.function(0x30003)
async def in_a_task(kind: str) -> None:
    asyncio.ensure_future(waits(kind))

@app.function(0x30004)
def blocks() -> None:
    print("blocking", file=sys.stderr, flush=True)
    time.sleep(60)

@app.function(0x30005)
def computes() -> None:
    print("blocking", file=sys.stderr, flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass

@app.function(0x30006)
async def blocks_when_cancelled() -> None:
    print("blocking", file=sys.stderr, flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        time.sleep(60)
"""


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    (tmp_path / "evil.py").write_text(EVIL_APP)
    return tmp_path


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_function_that_raises_what_ends_a_program_ends_only_its_call(
    evil: Path, loop: str
) -> None:
    with serve_process("evil:app", "--loop", loop, cwd=evil) as running, running.peer() as peer:
        for func_id in (0x30001, 0x30002, 0x30003):
            for kind in (b"\xa9interrupt", b"\xa4exit"):
                code = 0 if func_id == 0x30003 else ReturnCode.INTERNAL
                assert peer.ask(func_id, kind).code == code
                assert peer.ask(FuncID.PING).code is None
        assert peer.read(0) == ""
        running.process.send_signal(signal.SIGTERM)
        assert peer.rest() == b""
        peer.sock.close()
        code, log = running.end()
        assert code == 0
        assert "a task of yours raised SystemExit, which does not end the server" in log


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("func_id", [0x30004, 0x30005, 0x30006])
def test_a_function_that_blocks_cannot_hold_the_process_over_the_drain_timeout(
    evil: Path, loop: str, func_id: int
) -> None:
    options = ("evil:app", "--loop", loop, "--drain-timeout", "0.5")
    with serve_process(*options, cwd=evil) as running, running.peer() as peer:
        peer.send(frame(func_id))
        running.wait_for("blocking")
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        code, log = running.end()
        assert code == 1
        assert time.monotonic() - begun < PATIENCE / 2
        assert "the event loop is blocked" in log or func_id == 0x30006


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_second_signal_ends_a_process_whose_loop_is_blocked(evil: Path, loop: str) -> None:
    options = ("evil:app", "--loop", loop, "--drain-timeout", "60")
    with serve_process(*options, cwd=evil) as running, running.peer() as peer:
        peer.send(frame(0x30004))
        running.wait_for("blocking")
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.05)  # two at once are one, for the system
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 128 + signal.SIGTERM
