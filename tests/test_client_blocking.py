"""What only the blocking client has: threads that share it, and a quick start."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bad_server import PATIENCE, BadServer, Peer
from frame_server import FrameServer
from iproto import polling
from iproto.blocking import Client
from iproto.errors import CallTimeoutError, ClientClosedError, ConnectionLostError


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
    code = f"import sys, iproto.blocking; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


class _Interruption(BaseException):
    """What a signal handler raises."""


class _InterruptedLock:
    """A lock around whose next acquire or release a signal arrives."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.where = ""

    def acquire(self, *args: Any, **options: Any) -> Any:
        self._interrupt("before acquire")
        taken = self.lock.acquire(*args, **options)
        self._interrupt("after acquire")
        return taken

    def release(self) -> None:
        self._interrupt("before release")
        self.lock.release()
        self._interrupt("after release")

    def _is_owned(self) -> Any:
        return self.lock._is_owned()

    def _interrupt(self, here: str) -> None:
        if here == self.where:
            self.where = ""
            raise _Interruption


@pytest.mark.parametrize(
    "where", ["before acquire", "after acquire", "before release", "after release"]
)
def test_an_exception_from_a_signal_handler_leaves_the_client_whole(where: str) -> None:
    with FrameServer() as server, Client(server.url, timeout=10) as client:
        client.replace(1, "x")
        lock = client._channel.lock
        interrupted = _InterruptedLock(lock._lock)
        lock._lock = interrupted
        lock.acquire, lock.release = interrupted.acquire, interrupted.release
        for _ in range(3):
            with contextlib.suppress(_Interruption), lock:
                link = client._channel.link
                assert link is not None
                interrupted.where = where
                link._lead(0.01)
            assert not lock.is_ours()
            assert client.read(1) == "x"
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(client.read, 1).result(10) == "x"


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
