"""How a server stops: signals, the drain and its limit."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING

import pytest

import iproto
from iproto import FuncID
from iproto.address import parse_address
from tests.helpers.harness import (
    PATIENCE,
    Peer,
    frame,
    read_frame,
    replace_frame,
    serve_process,
    serving,
)

if TYPE_CHECKING:
    from pathlib import Path

SLOW_APP = """
import asyncio
import iproto

app = iproto.App()

@app.function(0x30001)
async def wait() -> str:
    print("running", flush=True)
    await asyncio.sleep(30)
    return "done"

gate = asyncio.Event()

@app.function(0x30002)
async def gated() -> str:
    await gate.wait()
    return "done"

@app.function(0x30003)
async def release_later() -> None:
    asyncio.get_running_loop().call_later(0.2, gate.set)
"""


@pytest.fixture
def slow_app(tmp_path: Path) -> Path:
    (tmp_path / "slow.py").write_text(SLOW_APP)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_signal_drains_and_the_exit_code_is_0(number: signal.Signals, loop: str) -> None:
    with serve_process("--loop", loop) as running, running.peer() as peer:
        assert peer.read(0) == ""
        running.process.send_signal(number)
        assert peer.rest() == b""
        peer.sock.close()
        code, log = running.end()
        assert code == 0
        assert f"{number.name}: draining" in log
        assert "stopped" in log


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_every_request_received_before_the_signal_is_answered(loop: str) -> None:
    """Pipelines lie in the sockets' buffers when the signal comes: 117 KB fit into one."""
    count = 9_000
    with serve_process("--loop", loop) as running:
        peers = [running.peer() for _ in range(5)]
        for peer in peers:
            assert peer.read(0) == ""
        running.process.send_signal(signal.SIGSTOP)  # what is sent now is not read yet
        for peer in peers:
            peer.send(b"".join(read_frame(0, request_id=i) for i in range(count)))
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGCONT)
        for peer in peers:
            assert [reply.request_id for reply in peer.replies(count)] == [*range(count)]
            assert peer.rest() == b""
            peer.sock.close()
        assert running.end()[0] == 0


def test_connections_that_wait_to_be_accepted_are_served_before_the_end() -> None:
    with serve_process() as running:
        running.process.send_signal(signal.SIGSTOP)
        peers = [running.peer() for _ in range(20)]
        for peer in peers:
            peer.send(replace_frame(1, "x", request_id=5))
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGCONT)
        for peer in peers:
            assert peer.reply() == (FuncID.STORAGE_REPLACE, 5, 0, b"\xc0")
            assert peer.rest() == b""
            peer.sock.close()
        assert running.end()[0] == 0


def test_an_acknowledged_write_under_load_is_never_followed_by_a_reset() -> None:
    """Writers at full speed see replies, then an orderly end; never an error."""
    with serve_process() as running:
        failures: list[str] = []
        ready = threading.Barrier(5)

        def write() -> None:
            sent = answered = 0
            with running.peer() as peer:
                ready.wait(PATIENCE)
                try:
                    while True:
                        batch = [replace_frame(1, "x", request_id=sent + i) for i in range(50)]
                        with contextlib.suppress(BrokenPipeError):
                            peer.send(b"".join(batch))
                        for i in range(50):
                            reply = peer.reply()
                            if (reply.request_id, reply.code) != (sent + i, 0):
                                failures.append(f"sent {sent + i}, got {reply}")
                            answered += 1
                        sent += 50
                except EOFError:
                    return
                except OSError as error:
                    failures.append(f"{error!r} after {answered} replies")

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        ready.wait(PATIENCE)
        with running.peer() as peer:
            assert peer.ask(FuncID.PING).code is None
        running.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(PATIENCE)
        assert failures == []
        assert running.end()[0] == 0


def test_a_drain_waits_for_calls_that_run(slow_app: Path) -> None:
    with serve_process("slow:app", cwd=slow_app) as running, running.peer() as peer:
        peer.send(frame(0x30002, request_id=1) + frame(0x30003, request_id=2))
        assert peer.reply().request_id == 2
        running.process.send_signal(signal.SIGTERM)
        assert peer.reply() == (0x30002, 1, 0, b"\xa4done")
        assert peer.rest() == b""
        peer.sock.close()
        assert running.end()[0] == 0


def test_a_drain_ends_at_its_time_limit_with_exit_code_1(slow_app: Path) -> None:
    with (
        serve_process("slow:app", "--drain-timeout", "0.2", cwd=slow_app) as running,
        running.peer() as peer,
    ):
        peer.send(frame(0x30001) + frame(FuncID.PING, request_id=3))
        assert peer.reply().request_id == 3
        running.process.send_signal(signal.SIGTERM)
        code, log = running.end()
        assert code == 1
        assert "aborting 1 connection not done in time" in log


STUBBORN_APP = """
import asyncio, time
import iproto

app = iproto.App()

@app.function(0x30001)
async def swallow() -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

@app.function(0x30002)
async def thread() -> None:
    await asyncio.to_thread(time.sleep, 60)
"""


@pytest.mark.parametrize("func_id", [0x30001, 0x30002])
def test_a_function_that_will_not_end_does_not_hold_up_the_end(
    tmp_path: Path, func_id: int
) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN_APP)
    with (
        serve_process("stubborn:app", "--drain-timeout", "0.1", cwd=tmp_path) as running,
        running.peer() as peer,
    ):
        peer.send(frame(func_id) + frame(FuncID.PING, request_id=3))
        assert peer.reply().request_id == 3
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 1


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_slow_reader_that_still_sends_gets_all_replies_of_a_drain(loop: str) -> None:
    """Closing while it sends would reset the connection, and destroy what it has not read."""
    count = 8000
    with (
        serve_process("--loop", loop, "--drain-timeout", "60") as running,
        running.peer() as filler,
    ):
        filler.send(replace_frame(0, bytes(256)))
        assert filler.reply().code == 0
        filler.sock.close()
        with Peer(parse_address(running.addresses[0]), receive_buffer=8192) as peer:
            peer.send(read_frame(0) * count)
            running.process.send_signal(signal.SIGTERM)
            running.wait_for("draining 1 connection")
            got = 0
            while chunk := peer.sock.recv(1 << 15):
                got += len(chunk)
                threading.Event().wait(0.02)  # 3 s and more in all: beyond the linger's 2 s
                with contextlib.suppress(OSError):
                    peer.send(frame(FuncID.PING))
            assert got == count * 275
            peer.sock.close()
        assert running.end()[0] == 0


def test_a_second_signal_ends_at_once(slow_app: Path) -> None:
    with serve_process("slow:app", cwd=slow_app) as running, running.peer() as peer:
        peer.send(frame(0x30001) + frame(FuncID.PING, request_id=3))
        assert peer.reply().request_id == 3
        running.process.send_signal(signal.SIGTERM)
        running.wait_for("draining 1 connection")
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 128 + signal.SIGTERM


def test_a_draining_server_accepts_nobody() -> None:
    app = iproto.App()
    gate = asyncio.Event()
    app.function(0x30001, name="wait")(gate.wait)
    with serving(app) as served, served.peer() as peer:
        address = served.address
        peer.send(frame(0x30001) + frame(FuncID.PING))
        assert peer.reply().func_id == FuncID.PING
        assert served.server.ready
        draining = asyncio.run_coroutine_threadsafe(served.server.drain(), served.loop)

        async def refused() -> None:
            while served.server.addresses:
                await asyncio.sleep(0.001)

        served.run(refused())
        assert not served.server.ready
        with pytest.raises(ConnectionRefusedError):
            Peer(address)
        served.loop.call_soon_threadsafe(gate.set)
        assert peer.reply().func_id == 0x30001
        assert peer.rest() == b""
        peer.sock.close()
        assert draining.result(PATIENCE)
        assert served.closed() == {"DRAIN": 1}


def test_requests_sent_after_the_drain_began_are_not_executed() -> None:
    app = iproto.App()
    gate = asyncio.Event()
    app.function(0x30001, name="wait")(gate.wait)
    with serving(app) as served, served.peer() as peer:
        peer.send(frame(0x30001) + frame(FuncID.PING))
        assert peer.reply().func_id == FuncID.PING
        draining = asyncio.run_coroutine_threadsafe(served.server.drain(), served.loop)

        async def begun() -> None:
            while served.server.addresses:
                await asyncio.sleep(0.001)

        served.run(begun())
        peer.send(replace_frame(0, "too late"))
        served.loop.call_soon_threadsafe(gate.set)
        assert peer.reply().func_id == 0x30001
        assert peer.rest() == b""
        peer.sock.close()
        assert draining.result(PATIENCE)
        assert served.server.storage.read(0) == b""


def test_a_client_that_keeps_its_side_open_does_not_hold_up_the_end() -> None:
    with serve_process() as running, running.peer() as peer:
        assert peer.read(0) == ""
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0
