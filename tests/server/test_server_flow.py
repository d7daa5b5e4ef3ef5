"""Backpressure, half-close, time-outs: what a server meets besides requests."""

from __future__ import annotations

import contextlib
import struct
import threading
import time

import iproto
from iproto import FuncID
from tests.helpers.harness import (
    PATIENCE,
    Peer,
    Served,
    frame,
    read_frame,
    replace_frame,
    resident_bytes,
    serving,
)


def send_until_it_blocks(peer: Peer, stream: bytes) -> int:
    """Sends without reading until nothing more is taken for a while; bytes sent."""
    peer.sock.settimeout(0.3)
    sent = 0
    try:
        while sent < len(stream):
            sent += peer.sock.send(stream[sent : sent + (1 << 16)])
    except (TimeoutError, ConnectionError):
        pass  # it blocks, or the server had enough of waiting
    finally:
        peer.sock.settimeout(PATIENCE)
    return sent


def test_a_client_that_never_reads_is_paused_and_gets_every_reply_once_it_reads(
    loop_name: str,
) -> None:
    pairs = 60_000  # 17 MB of requests, as much of replies: more than the system buffers
    stream = b"".join(
        replace_frame(i % 1000, struct.pack("<I", i) * 64, request_id=i)
        + read_frame(i % 1000, request_id=i)
        for i in range(pairs)
    )
    with serving(loop=loop_name) as served, served.peer(receive_buffer=1 << 16) as peer:
        before = resident_bytes()
        sent = send_until_it_blocks(peer, stream)
        assert sent < len(stream), "the server took everything of a client that never reads"
        assert resident_bytes() - before < 8 << 20
        # Others are served meanwhile.
        with served.peer() as other:
            assert other.ask(FuncID.STORAGE_READ, b"\x00").code == 0
        rest = threading.Thread(target=peer.send, args=(stream[sent:],), daemon=True)
        rest.start()
        for i in range(pairs):
            written, read = peer.replies(2)
            assert (written.request_id, written.code) == (i, 0)
            assert (read.request_id, read.body[3:]) == (i, struct.pack("<I", i) * 64)
        rest.join()
        assert resident_bytes() - before < 16 << 20


def test_a_greedy_connection_does_not_starve_the_others(loop_name: str) -> None:
    stream = b"".join(read_frame(i % 1000) for i in range(200_000))
    with serving(loop=loop_name) as served, served.peer() as greedy, served.peer() as modest:
        sender = threading.Thread(target=greedy.send, args=(stream,), daemon=True)
        sender.start()
        assert greedy.reply().code == 0
        # Each of these is answered while the greedy one is at it, or the test
        # would end only with the greedy replies: they are not read before.
        for _ in range(20):
            assert modest.read(0) == ""
        assert all(reply.code == 0 for reply in greedy.replies(199_999))
        sender.join()


def test_after_a_half_close_all_replies_come_and_then_the_end(loop_name: str) -> None:
    with serving(loop=loop_name) as served, served.peer() as peer:
        peer.send(b"".join(read_frame(1, request_id=i) for i in range(5000)))
        peer.finish_sending()
        assert [reply.request_id for reply in peer.replies(5000)] == [*range(5000)]
        assert peer.rest() == b""
        assert served.wait_closed() == {"CLIENT": 1}


def test_a_half_close_within_a_frame_is_just_the_end(loop_name: str) -> None:
    with serving(loop=loop_name) as served, served.peer() as peer:
        peer.send(read_frame(1) + read_frame(2)[:7])
        peer.finish_sending()
        assert peer.reply().code == 0
        assert peer.rest() == b""


def test_a_half_close_waits_for_the_calls_that_run(loop_name: str) -> None:
    app, release = gate_app()
    with serving(app, loop=loop_name) as served, served.peer() as peer:
        peer.send(frame(0x30001, request_id=8))
        peer.finish_sending()
        with served.peer() as other:
            assert other.ask(0x30002).code == 0  # releases the first
        assert peer.reply() == (0x30001, 8, 0, b"\xa4done")
        assert peer.rest() == b""
    assert release


def gate_app() -> tuple[iproto.App, list[int]]:
    """0x30001 waits until 0x30002 is called."""
    import asyncio

    app = iproto.App()
    opened: list[int] = []
    gate = asyncio.Event()

    @app.function(0x30001)
    async def wait() -> str:
        await gate.wait()
        return "done"

    @app.function(0x30002)
    def release() -> None:
        opened.append(1)
        gate.set()

    return app, opened


def test_shutdown_waits_for_the_calls_that_run(loop_name: str) -> None:
    app, _ = gate_app()
    with serving(app, loop=loop_name) as served, served.peer() as peer:
        peer.send(frame(0x30001, request_id=8) + frame(FuncID.SHUTDOWN, request_id=9))
        with served.peer() as other:
            assert other.ask(0x30002).code == 0
        assert peer.reply() == (0x30001, 8, 0, b"\xa4done")
        assert peer.reply() == (FuncID.SHUTDOWN, 9, None, b"")
        assert peer.rest() == b""


def test_a_quiet_connection_is_closed_as_idle(loop_name: str) -> None:
    with serving(loop=loop_name, idle_timeout=0.1) as served, served.peer() as peer:
        assert peer.read(0) == ""
        assert peer.rest() == b""
        assert served.wait_closed() == {"IDLE": 1}


def test_a_frame_that_is_begun_and_trickles_is_closed(loop_name: str) -> None:
    """A byte now and then does not keep a connection alive."""
    with serving(loop=loop_name, idle_timeout=0.3) as served, served.peer() as peer:
        peer.sock.settimeout(0.02)
        trickle = frame(FuncID.STORAGE_REPLACE, bytes(1000))
        begun = time.monotonic()
        for i in range(len(trickle)):
            try:
                peer.send(trickle[i : i + 1])
                if peer.sock.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert served.wait_closed() == {"INCOMPLETE_FRAME": 1}
        assert time.monotonic() - begun < PATIENCE / 2


class Pace:
    """Whether the test itself kept up: a busy machine may keep it from its socket for long."""

    def __init__(self, seconds: float) -> None:
        self.longest = 0.0
        self._seconds = seconds
        self._last = time.monotonic()

    def step(self) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last)
        self._last = now

    @property
    def kept(self) -> bool:
        self.step()
        return self.longest < self._seconds


def test_traffic_keeps_a_connection_alive() -> None:
    """Five times longer than the time-out, with requests within it."""
    idle_timeout = 0.2
    while not lives_on(idle_timeout):
        idle_timeout *= 2


def lives_on(idle_timeout: float) -> bool:
    """Whether it does; False says nothing, for the test was too slow itself."""
    with serving(idle_timeout=idle_timeout) as served, served.peer() as peer:
        pace = Pace(idle_timeout / 2)
        end = time.monotonic() + 5 * idle_timeout
        try:
            while time.monotonic() < end:
                assert peer.read(0) == ""
                threading.Event().wait(idle_timeout / 10)
                pace.step()
            assert served.closed() == {}
        except (AssertionError, ConnectionError, EOFError):
            if pace.kept:
                raise
            return False
    return True


def test_a_reader_that_takes_nothing_is_closed_as_slow(loop_name: str) -> None:
    with (
        serving(loop=loop_name, idle_timeout=0.3) as served,
        served.peer(receive_buffer=4096) as peer,
    ):
        send_until_it_blocks(peer, read_frame(0) * 2_000_000)
        assert served.wait_closed() == {"SLOW_READER": 1}


def test_a_reader_that_is_slow_but_reads_is_kept() -> None:
    idle_timeout = 1.0
    while not is_kept(idle_timeout):
        idle_timeout *= 2


def is_kept(idle_timeout: float) -> bool:
    """Whether it is; False says nothing, for the test was too slow itself."""
    count = 60_000  # 16 MB of replies: the server has some to send till near the end
    pauses = 40
    with (
        serving(idle_timeout=idle_timeout) as served,
        served.peer(receive_buffer=4096) as peer,
    ):
        peer.send(replace_frame(0, bytes(256)))
        assert peer.reply().code == 0

        def send() -> None:
            with contextlib.suppress(OSError):  # the server's end is found by the reader
                peer.send(read_frame(0) * count)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        pace = Pace(idle_timeout / 2)
        try:
            for i in range(count):
                if i % 750 == 0 and i < 750 * pauses:
                    threading.Event().wait(1.4 * idle_timeout / pauses)
                assert peer.reply().code == 0
                pace.step()
        except (ConnectionError, EOFError):
            if pace.kept:
                raise
            return False
        sender.join()
    return True


def test_a_call_that_runs_keeps_its_connection() -> None:
    """The time-out is for clients that are idle, not for functions that take long."""
    import asyncio

    app = iproto.App()

    @app.function(0x30001)
    async def long() -> str:
        await asyncio.sleep(0.5)
        return "done"

    with serving(app, idle_timeout=0.1) as served, served.peer() as peer:
        assert peer.ask(0x30001).value == "done"
        assert peer.rest() == b""
        assert served.wait_closed() == {"IDLE": 1}


def test_a_reset_is_counted_as_one(loop_name: str) -> None:
    with serving(loop=loop_name) as served:
        peer = served.peer()
        assert peer.read(0) == ""
        peer.reset()
        assert served.wait_closed() == {"RESET": 1}


def test_many_connections_come_and_go(loop_name: str) -> None:
    with serving(loop=loop_name) as served:
        peers = [served.peer() for _ in range(300)]
        for peer in peers:
            peer.send(read_frame(0))
        assert all(peer.reply().code == 0 for peer in peers)
        assert served.server.connection_count == 300
        for peer in peers:
            peer.sock.close()
        assert served.wait_closed(300) == {"CLIENT": 300}
        assert served.server.connection_count == 0


def test_claimed_lengths_cost_no_memory() -> None:
    """Nothing is allocated from a length that a peer merely claims."""
    with serving(max_body=1 << 30) as served:
        before = resident_bytes()
        peers = [served.peer() for _ in range(200)]
        for peer in peers:
            peer.send(struct.pack("<III", FuncID.STORAGE_REPLACE, 1 << 30, 1))
        barrier(served)
        assert resident_bytes() - before < 16 << 20
        for peer in peers:
            peer.sock.close()


def barrier(served: Served) -> None:
    """Everything sent before has been read by the server."""
    with served.peer() as peer:
        assert peer.read(0) == ""


def test_a_client_that_lingers_half_open_after_shutdown_is_let_go() -> None:
    """It got its echo and the end of the stream; it never closes its own side."""
    with serving() as served, served.peer() as peer:
        peer.send(frame(FuncID.SHUTDOWN))
        assert peer.rest() == frame(FuncID.SHUTDOWN)
        assert served.wait_closed() == {"SHUTDOWN": 1}


def test_what_came_while_the_loop_stood_still_counts_before_any_time_out(loop_name: str) -> None:
    """A function blocks the loop for several idle time-outs; the others have sent meanwhile."""
    app = iproto.App()
    entered, go_on = threading.Event(), threading.Event()

    @app.function(0x00030001)
    def block() -> None:
        entered.set()
        go_on.wait(PATIENCE)

    timeout = 0.8
    with (
        serving(app, loop=loop_name, idle_timeout=timeout) as served,
        served.peer() as blocking,
        served.peer() as idle,
        served.peer() as partial,
    ):
        request = replace_frame(1, "x", request_id=7)
        partial.send(request[:-1])
        assert idle.ask(FuncID.PING).request_id == 1  # both are open
        blocking.send(frame(0x00030001, b"\x90", request_id=1))
        assert entered.wait(PATIENCE)
        idle.send(frame(FuncID.PING, b"", request_id=8))
        partial.send(request[-1:])
        time.sleep(1.5 * timeout)
        go_on.set()
        assert idle.reply().request_id == 8
        assert partial.reply().request_id == 7


def test_much_of_a_frame_at_once_does_not_extend_its_time(loop_name: str) -> None:
    """A connection that has more than its share of a turn waits for the next, which is no pause."""
    size = 64 << 20
    with (
        serving(loop=loop_name, idle_timeout=0.5, max_body=size) as served,
        served.peer() as peer,
    ):
        sent = 0
        peer.send(struct.pack("<III", FuncID.STORAGE_REPLACE, size, 1))
        end = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                peer.send(bytes(1 << 20))
                sent += 1 << 20
                assert sent < size - (1 << 20), "the whole body was taken"
                time.sleep(0.05)
        assert served.wait_closed() == {"INCOMPLETE_FRAME": 1}
