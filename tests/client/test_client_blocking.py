"""What only the blocking client has: threads that share it, and a quick start."""

from __future__ import annotations

import itertools
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from iproto.client import blocking_client as blocking
from iproto.client import blocking_link, link, polling
from iproto.client import pool as pool_module
from iproto.client.blocking_client import Client
from iproto.client.blocking_link import Waiter
from iproto.errors import CallTimeoutError, ClientClosedError
from tests.helpers.bad_server import BadServer, Peer
from tests.helpers.clients import swallowing
from tests.helpers.frame_server import FrameServer
from tests.helpers.harness import PATIENCE

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
        assert not client._pool._users
        assert client._pool.connected == server.accepted <= threads


def test_one_thread_uses_one_connection() -> None:
    with FrameServer() as server, Client(server.url) as client:
        for i in range(100):
            client.replace(i, "x")
    assert server.accepted == 1


def test_calls_beyond_the_connections_wait_for_one() -> None:
    came, release = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        first = peer.ask()
        came.set()
        assert release.wait(PATIENCE)
        peer.send(first.text("first"))
        peer.send(peer.ask().text("second"))
        peer.wait_end()

    with (
        BadServer(script) as server,
        Client(server.url, max_connections=1, timeout=PATIENCE) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(client.read, 1)
        assert came.wait(PATIENCE)
        with pytest.raises(CallTimeoutError, match=r"all 1 connections .* taken") as caught:
            client.read(2, timeout=0.05)
        assert not caught.value.may_have_executed
        second = pool.submit(client.read, 2)
        while not client._pool._asleep:
            time.sleep(0.001)
        release.set()
        assert (first.result(), second.result()) == ("first", "second")


def test_a_call_that_times_out_closes_its_connection() -> None:
    def silent(peer: Peer) -> None:
        peer.ask()
        assert peer.wait_end() == b""

    def good(peer: Peer) -> None:
        peer.send(peer.ask().text("good"))
        peer.wait_end()

    with BadServer(silent, good) as server, Client(server.url) as client:
        with pytest.raises(CallTimeoutError, match="is dropped") as late:
            client.read(1, timeout=0.05)
        assert late.value.may_have_executed
        assert client.read(1) == "good"


def test_connections_that_no_call_needs_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with FrameServer() as server, Client(server.url) as client:
        first, second = Waiter(), Waiter()
        for waiter in (first, second):
            client._pool.take(waiter, monotonic() + 1, 1).connect(monotonic() + 1, 1)
        for waiter in (first, second):
            client._pool.release(waiter)
        assert client._pool.connected == 2
        client._pool._links[1].used_at = monotonic() - 1000
        monkeypatch.setattr(client._pool, "_next_sweep", monotonic())
        assert client.read(1) == ""
        assert client._pool.connected == 1


def test_a_destructor_or_a_signal_handler_may_call_within_a_call() -> None:
    with FrameServer() as server, Client(server.url, timeout=10) as client:
        inner: list[str] = []

        class Index:
            def __index__(self) -> int:
                inner.append(client.read(1))
                return 2

        client.replace_many({1: "one", 2: "two"})
        assert client.read(Index()) == "two"  # type: ignore[arg-type]
        assert set(inner) == {"one"}
        assert client.read(1) == "one"


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
        peer.ask()
        came.set()
        peer.wait_end()

    with BadServer(script) as server, ThreadPoolExecutor(4) as pool:
        client = Client(server.url, max_connections=1, timeout=60)
        calls = [pool.submit(client.read, i) for i in range(4)]
        assert came.wait(PATIENCE)
        while len(client._pool._asleep) < 3:
            time.sleep(0.001)
        client.close()
        for call in calls:
            assert isinstance(call.exception(), ClientClosedError)


def test_an_interrupt_leaves_the_client_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    with FrameServer() as server, Client(server.url) as client:
        client.ping()
        poll: Any = client._pool._links[0]._poll
        wait = poll.wait

        def interrupt(*, out: bool, seconds: float) -> Any:
            if seconds:
                raise KeyboardInterrupt
            return wait(out=out, seconds=seconds)

        with monkeypatch.context() as patch:
            patch.setattr(poll, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.read(1)
        assert not client._pool._users
        assert client.read(1) == ""
    assert server.accepted == 2


def test_without_poll_there_is_select(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "poll")
    with FrameServer() as server, Client(server.url, timeout=60) as client:
        assert client.read_many([1] * 20_000) == [""] * 20_000
        client.replace_many((i % 1000, "x" * 256) for i in range(20_000))
        assert isinstance(client._pool._links[0]._poll, polling.Select)


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
_FILES = {
    module.__file__ for module in (blocking_link, blocking, link, polling, pool_module, threading)
}


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


class _Alarm(TimeoutError):
    """What a handler of SIGALRM raises to bound a wait."""


@pytest.mark.parametrize("error", [_Alarm("of the handler"), TimeoutError("of the handler")])
def test_a_signal_handlers_exception_during_a_connect_is_the_callers(error: Exception) -> None:
    def raise_it(*_: object) -> None:
        raise error

    with swallowing() as (host, port):
        before = signal.signal(signal.SIGALRM, raise_it)
        try:
            with Client(f"iproto://{host}:{port}", timeout=60) as client:
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with pytest.raises(TimeoutError) as caught:
                    client.read(1)
                assert caught.value is error
                assert not client._pool._users
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_a_client_that_was_not_closed_is_named() -> None:
    with FrameServer() as server:
        client = Client(server.url)
        client.ping()
        assert repr(client) == f"<iproto.Client {server.url}, 1 connection>"
        with pytest.warns(ResourceWarning, match=f"<iproto.Client {server.url}.* not closed"):
            del client
        with Client(server.url) as client:
            client.ping()
        assert repr(client) == f"<iproto.Client {server.url}, closed>"


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


def test_a_fork_in_the_midst_of_other_threads_calls_leaves_both_processes_usable() -> None:
    with FrameServer() as server:
        code = """
import os, sys, threading
import iproto
client = iproto.Client(sys.argv[1], timeout=10, max_connections=4)
stop = threading.Event()
def work():
    while not stop.is_set():
        client.read(1)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
codes = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        os._exit(client.read(1) != "" or client.read(2) != "")
    codes.append(os.waitpid(child, 0)[1])
stop.set()
for thread in threads:
    thread.join()
sys.exit(any(codes) or client.read(1) != "" or client.close())
"""
        ended = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, server.url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (0, "")
