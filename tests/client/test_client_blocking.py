"""What only the blocking client has: threads that share it, and a quick start."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from iproto.client import blocking_client as blocking
from iproto.client import blocking_link as channel
from iproto.client import polling
from iproto.client.blocking_client import Client
from iproto.errors import CallTimeoutError, ClientClosedError, ConnectionLostError
from tests.helpers.bad_server import PATIENCE, BadServer, Peer
from tests.helpers.frame_server import FrameServer

if TYPE_CHECKING:
    from types import FrameType


def test_threads_share_one_client_and_get_their_own_replies() -> None:
    threads, calls = 8, 200

    def work(client: Client, number: int) -> None:
        for i in range(calls):
            client.replace(number, f"{number}:{i}")
            assert client.read(number) == f"{number}:{i}"

    with FrameServer() as server, Client(server.url) as client:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work, client, number) for number in range(threads)]:
                done.result()
        link = client._channel.link
        assert link is not None
        assert link.frames.waiting == 0
        assert not link._followers
    assert server.accepted == 1


def test_a_thread_sends_while_another_waits_for_its_reply() -> None:
    first_came = threading.Event()

    def script(peer: Peer) -> None:
        first = peer.ask()
        first_came.set()
        second = peer.ask()
        peer.send(second.text("second") + first.text("first"))
        peer.wait_end()

    with (
        BadServer(script) as server,
        Client(server.url) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.read, 1)
        assert first_came.wait(PATIENCE)
        assert client.read(2) == "second"
        assert first.result() == "first"


def test_the_leader_hands_over_when_it_is_done() -> None:
    answered = threading.Event()

    def script(peer: Peer) -> None:
        asks = {asked.slot: asked for asked in peer.asks(3)}
        peer.send(asks[1].text("leader"))
        assert answered.wait(PATIENCE)
        peer.send(asks[2].text("follower"))
        peer.send(asks[3].text("last"))
        peer.wait_end()

    with (
        BadServer(script) as server,
        Client(server.url) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        leader = pool.submit(client.read, 1)
        others = [pool.submit(client.read, 2), pool.submit(client.read, 3)]
        assert leader.result() == "leader"
        answered.set()
        assert [other.result() for other in others] == ["follower", "last"]


def test_a_leader_that_times_out_hands_over() -> None:
    came = threading.Event()
    late = threading.Event()

    def script(peer: Peer) -> None:
        first = peer.ask()
        came.set()
        second = peer.ask()
        peer.send(second.text("x")[:1])  # the server lives
        assert late.wait(PATIENCE)
        peer.send(second.text("x")[1:] + first.text("late"))
        peer.wait_end()

    with (
        BadServer(script) as server,
        Client(server.url) as client,
        ThreadPoolExecutor(1) as pool,
    ):

        def lead() -> None:
            with pytest.raises(CallTimeoutError):
                client.read(1, timeout=0.1)
            late.set()

        leader = pool.submit(lead)
        assert came.wait(PATIENCE)
        assert client.read(2) == "x"
        leader.result()


def test_a_short_deadline_does_not_end_the_attempt_of_others() -> None:
    asked = threading.Event()

    def silent(peer: Peer) -> None:
        peer.ask()
        asked.set()
        peer.wait_end()

    def good(peer: Peer) -> None:
        peer.send(peer.ask().text("the dialect"))
        peer.send(peer.ask().text("good"))
        peer.wait_end()

    def give_up(client: Client) -> None:
        with pytest.raises(CallTimeoutError) as caught:
            client.read(1, timeout=0.1)
        assert not caught.value.may_have_executed

    with (
        BadServer(silent, good) as server,
        Client(server.url, dialect="auto") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        short = pool.submit(give_up, client)
        assert asked.wait(PATIENCE)
        assert client.read(1) == "good"
        short.result()


def test_an_end_while_idle_is_seen_before_the_next_call() -> None:
    def script(peer: Peer) -> None:
        peer.send(peer.ask().text("x"))

    with BadServer(script, script) as server, Client(server.url) as client:
        assert client.read(1) == "x"
        server.wait_closed()
        assert client.read(1) == "x"


def test_closing_from_another_thread_wakes_all() -> None:
    came = threading.Event()

    def script(peer: Peer) -> None:
        peer.asks(4)
        came.set()
        peer.wait_end()

    with BadServer(script) as server, ThreadPoolExecutor(4) as pool:
        client = Client(server.url)
        calls = [pool.submit(client.read, i) for i in range(4)]
        assert came.wait(PATIENCE)
        client.close()
        for call in calls:
            assert isinstance(call.exception(), ClientClosedError)


def test_an_interrupt_forgets_the_call_and_leaves_the_client_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FrameServer() as server, Client(server.url) as client:
        client.ping()
        link = client._channel.link
        assert link is not None
        wait = link._poll.wait

        def interrupt(*, out: bool, seconds: float) -> tuple[bool, bool, bool]:
            if seconds:
                raise KeyboardInterrupt
            return wait(out=out, seconds=seconds)

        with monkeypatch.context() as patch:
            patch.setattr(link._poll, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.read(1)
        assert link.frames.waiting == 0
        assert client.read(1) == ""
    assert server.accepted == 1


def test_without_poll_there_is_select(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "poll")
    with FrameServer() as server, Client(server.url, timeout=60) as client:
        assert client.read_many([1] * 20_000) == [""] * 20_000
        client.replace_many((i % 1000, "x" * 256) for i in range(20_000))
        link: Any = client._channel.link
        assert isinstance(link._poll, polling.Select)


def test_a_lost_connection_is_closed_by_the_thread_that_polls_it() -> None:
    def script(peer: Peer) -> None:
        peer.asks(2)
        peer.wait_end()

    with BadServer(script) as server, Client(server.url) as client, ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.read, 1)
        for _ in range(2):
            with pytest.raises(CallTimeoutError):
                client.read(2, timeout=0.1)
        assert isinstance(long.exception(), ConnectionLostError)


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = {"asyncio", "msgpack", "msgspec", "ssl", "uvloop", "prometheus_client", "logging"}
    code = f"import sys, iproto.client.blocking_client; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


class _Interruption(BaseException):
    """What a signal handler raises."""


# Where Python lets a signal handler raise: a function begins, or one in C has returned.
_POINTS = {"call", "c_return"}
_FILES = {channel.__file__, blocking.__file__, polling.__file__, threading.__file__}


def _interrupted_at(point: int, client: Client) -> bool:
    """Whether a read has such a point, at which it was interrupted."""
    passed = 0

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal passed
        if event in _POINTS and frame.f_code.co_filename in _FILES:
            passed += 1
            if passed == point:
                raise _Interruption

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        client.read(1)
    except _Interruption:
        return True
    finally:
        sys.setprofile(before)
    return False


@pytest.mark.parametrize("others", [0, 2])
def test_an_exception_from_a_signal_handler_leaves_the_client_whole(others: int) -> None:
    def work(client: Client, stop: threading.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(ConnectionLostError):  # a time-out is a failure
                assert client.read(2) == ""

    with FrameServer() as server, ThreadPoolExecutor(others + 1) as pool:
        for point in itertools.count(1):
            with Client(server.url, timeout=PATIENCE) as client:
                client.connect()
                stop = threading.Event()
                works = [pool.submit(work, client, stop) for _ in range(others)]
                interrupted = _interrupted_at(point, client)
                assert pool.submit(client.read, 1).result(PATIENCE) == ""
                stop.set()
                for each in works:
                    each.result(PATIENCE)
                assert client.read(1) == ""
            if not interrupted:
                break
    assert point > 20


def test_a_call_from_a_signal_handler_within_a_call_is_refused_at_once() -> None:
    refused: list[str] = []

    def script(peer: Peer) -> None:
        asked = peer.ask()
        os.kill(os.getpid(), signal.SIGALRM)
        assert handled.wait(PATIENCE)
        peer.send(asked.text("x"))
        peer.wait_end()

    def handler(*_: object) -> None:
        try:
            client.ping()
        except RuntimeError as error:
            refused.append(str(error))
        handled.set()

    handled = threading.Event()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with BadServer(script) as server, Client(server.url, timeout=PATIENCE) as client:
            assert client.read(1) == "x"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(refused) == 1
    assert "inside a call" in refused[0]


def test_a_call_from_a_destructor_within_a_call_is_refused_not_a_deadlock() -> None:
    with FrameServer() as server, Client(server.url, timeout=10) as client:
        refused: list[str] = []

        class Index:
            def __index__(self) -> int:
                try:
                    client.read(1)
                except RuntimeError as error:
                    refused.append(str(error))
                return 2

        assert client.read(Index()) == ""  # type: ignore[arg-type]
        assert refused
        assert "inside a call" in refused[0]
        assert client.read(1) == ""


def test_a_forked_child_has_a_connection_of_its_own() -> None:
    code = """
import os, sys
import iproto
client = iproto.Client(sys.argv[1])
client.replace_many({1: "one", 2: "two"})
child = os.fork()
index, text = (2, "two") if child == 0 else (1, "one")
right = all(client.read(index) == text for _ in range(300))
client.close()
if child == 0:
    os._exit(0 if right else 1)
sys.exit(0 if right and os.waitpid(child, 0)[1] == 0 else 1)
"""
    with FrameServer() as server:
        ended = subprocess.run(
            [sys.executable, "-c", code, server.url],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_forked_child_needs_no_lock_that_a_thread_of_its_parent_holds() -> None:
    with FrameServer() as server:
        code = """
import os, sys, threading
import iproto
client = iproto.Client(sys.argv[1], timeout=10)
client.connect()
held, leave = threading.Event(), threading.Event()
def hold(channel):
    held.set()
    leave.wait()
thread = threading.Thread(target=lambda: client._channel.locked(hold))
thread.start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(client.read(1) != "")
code = os.waitpid(child, 0)[1]
leave.set()
thread.join()
sys.exit(code != 0 or client.read(1) != "")
"""
        ended = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, server.url],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (0, "")
