"""``iproto bench`` against servers that are slow, wrong, or go away."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from iproto import FuncID
from tests.helpers.bench import bench, checked, report, report_once, requests, started
from tests.helpers.frame_server import FrameServer
from tests.helpers.harness import PATIENCE, serving, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self


def test_what_an_open_loop_could_not_send_is_not_forgotten_nor_called_lost() -> None:
    with FrameServer() as server:
        found = report(server.url + f"?timeout={PATIENCE / 10:g}", "--rate", "1e7", code=1)
    counts = found["requests"]
    assert counts["sent"] + counts["unsent"] == 3_000_000
    assert counts["lost"] == 0
    assert found["problems"] == []
    assert found["generator"]["late"] <= 3_000_000


class LoadedServer(FrameServer):
    """Knows the load from what comes before it."""

    @property
    def is_loaded(self) -> bool:
        """Whether the connections of the load come: two others, one after the other, come first."""
        return self.accepted > 2


class Pausing(LoadedServer):
    """Answers nobody for a while, once, from its so many thousandth request on."""

    pause = 0.5
    seen = 0

    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        self.seen += 1
        if self.seen == 1100:
            time.sleep(self.pause)
        return super()._reply(func_id, request_id, body)


def test_latencies_count_from_when_a_request_was_due() -> None:
    with Pausing() as server:
        options = ("--rate", "1000", "--depth", "1", "--connections", "1", "--duration", "0.6")
        found = report(server.url, *options)
    # One request was on its way in the pause. Counted from their sending, all others,
    # which had to wait for it to end, would look as if nothing had been.
    assert found["requests"]["answered"] == 600
    assert found["latency_ms"]["max"] >= 500
    assert found["latency_ms"]["p50"] >= 100


class Doubling(LoadedServer):
    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        return super()._reply(func_id, request_id, body) * (1 if self.number % 10 else 2)


def test_replies_that_come_twice_are_counted() -> None:
    with Doubling() as server:
        found = report(server.url, "--depth", "20", code=1)
    counts = found["requests"]
    assert counts["doubled"] >= counts["answered"] // 10 - 4
    assert (counts["lost"], counts["wrong"]) == (0, 0)


class Forgetful(LoadedServer):
    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        reply = super()._reply(func_id, request_id, body)
        return b"" if self.is_loaded and self.number == 10 else reply


def test_requests_that_are_never_answered_are_lost() -> None:
    timeout = PATIENCE / 10  # also of the requests around the load, which are answered
    with Forgetful() as server:
        found = report(f"{server.url}?timeout={timeout:g}", "--depth", "20", code=1)
    assert found["requests"]["lost"] == 4  # one on each connection
    assert found["problems"] == [f"no reply within {timeout:g} s"]


class Swapping(LoadedServer):
    def _execute(self, func_id: int, body: bytes) -> tuple[int, str | bytes | None]:
        code, value = super()._execute(func_id, body)
        swapped = body == b"\x07" and self.is_loaded
        return code, b"other" if swapped else value


def test_replies_with_another_slots_content_are_wrong() -> None:
    with Swapping() as server:
        found = report(server.url, "--slots", "5-8", code=1)
    counts = found["requests"]
    assert 0 < counts["wrong"] < counts["answered"]
    assert "another string" in found["problems"][0]


class Breaking(LoadedServer):
    """Ends each connection of the load at its 40th request: by a reset, or unannounced."""

    resets = True

    def _serve(self, sock: socket.socket) -> None:
        if self.resets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        super()._serve(sock)

    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        if self.is_loaded and self.number == 40:
            raise OSError("enough")
        return super()._reply(func_id, request_id, body)


class Leaving(Breaking):
    resets = False


def test_what_a_reset_leaves_unanswered_is_lost_and_the_load_goes_on() -> None:
    with Breaking() as server:
        found = report_once(lambda: server.accepted >= 20, server.url)
    assert found["requests"]["lost"] > 0
    assert found["requests"]["resent"] == 0
    # The first 32 of each of the connections that were followed by another one.
    assert found["requests"]["answered"] >= 32 * (20 - 2 - 4)
    assert found["reconnects"] >= 20 - 2 - 4
    assert "Connection reset by peer" in found["problems"][0]


def test_what_an_unannounced_end_leaves_unanswered_is_lost_for_it_may_have_been_executed() -> None:
    with Leaving() as server:
        found = report_once(lambda: server.accepted >= 20, server.url)
    assert found["requests"]["lost"] > 0
    assert found["requests"]["resent"] == 0
    assert found["reconnects"] >= 20 - 2 - 4
    assert found["problems"][0].endswith("closed the connection")


class Announcing(LoadedServer):
    """Announces the end of each connection of the load in place of the reply to its 40th request.

    From its seventh connection on it lets the client wait first.
    """

    pause = 0.3

    def _serve(self, sock: socket.socket) -> None:
        self._here.ends = self.is_loaded
        if self.accepted >= 7:
            time.sleep(self.pause)
        super()._serve(sock)

    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        if self._here.ends and self.number >= 40:
            return struct.pack("<III", FuncID.SHUTDOWN, 0, 0) if self.number == 40 else b""
        return super()._reply(func_id, request_id, body)


@pytest.mark.parametrize("mix", ["read", "read,write", "ping"])
def test_what_an_announced_end_leaves_unexecuted_is_sent_again(mix: str) -> None:
    with Announcing() as server:
        found = report(server.url, "--mix", mix)
    counts = found["requests"]
    assert counts["answered"] == counts["sent"] > 4 * 40
    # Of the third batch of 16 seven are answered, and nine are not.
    assert counts["resent"] == 9 * found["reconnects"] > 0
    assert found["problems"] == []
    assert found["latency_ms"]["max"] >= 300  # from when they were sent first


class Polite(LoadedServer):
    """Ends each connection of the load after one reply."""

    def _serve(self, sock: socket.socket) -> None:
        if not self.is_loaded:
            super()._serve(sock)
            return
        with sock, contextlib.suppress(OSError):
            if data := sock.recv(1 << 16):
                (request_id,) = struct.unpack_from("<I", data, 8)
                sock.sendall(self._reply(FuncID.STORAGE_READ, request_id, b"\x00"))


def test_an_end_that_leaves_nothing_unanswered_is_no_problem() -> None:
    with Polite() as server:
        found = report(server.url, "--rate", "4", "--duration", "1.1")
    assert found["requests"]["answered"] == 4
    assert found["problems"] == []


class Cutting(LoadedServer):
    """Answers with half a reply what comes after the first requests, and ends the connection."""

    def _serve(self, sock: socket.socket) -> None:
        if not self.is_loaded:
            super()._serve(sock)
            return
        with sock, contextlib.suppress(OSError):
            data = sock.recv(1 << 16)
            if not data:  # the load's time was over before its first request
                return
            (request_id,) = struct.unpack_from("<I", data, 8)
            sock.sendall(self._reply(FuncID.STORAGE_READ, request_id, b"\x00")[:14])
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass


def test_an_end_in_the_midst_of_a_reply_is_no_orderly_one() -> None:
    with Cutting() as server:
        found = report(server.url, code=1)
    assert found["requests"]["lost"] == found["requests"]["sent"] > 0
    assert "in the midst of a reply" in found["problems"][0]


class Closing(LoadedServer):
    """Reads what comes after the first requests, and ends the connection in good order."""

    def _serve(self, sock: socket.socket) -> None:
        if not self.is_loaded:
            super()._serve(sock)
            return
        with sock, contextlib.suppress(OSError):
            sock.recv(1 << 16)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass


def test_a_server_that_never_answers_fails_and_is_not_hammered() -> None:
    with Closing() as server:
        found = report_once(lambda: server.accepted >= 20, server.url)
        assert found["requests"]["lost"] == found["requests"]["sent"]
        assert found["latency_ms"] is None
        assert 20 - 2 - 4 <= found["reconnects"] <= 4 * found["seconds"] / 0.05 + 4
    with Closing() as server:
        ended = bench(server.url, "--duration", "0.1")
    assert ended.returncode == 1
    assert "latency    none" in ended.stdout


def test_a_server_that_is_gone_in_the_end_fails() -> None:
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serving())
        with started(served.url + "&timeout=2", "--duration", "3") as process:
            wait_until(lambda: requests(served, FuncID.STORAGE_READ) > 1000)  # the load's own
            stack.close()  # in good order
            text, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (1, "")
    assert "cannot connect: Connection refused" in checked(text)["problems"]


class Talkative(LoadedServer):
    def _execute(self, func_id: int, body: bytes) -> tuple[int, str | bytes | None]:
        if self.is_loaded:
            return 0x1234, "no\nlost       0\x1b[2J"
        return super()._execute(func_id, body)


def test_what_a_server_says_stays_in_its_line() -> None:
    with Talkative() as server:
        ended = bench(server.url, "--duration", "0.1", "--connections", "1")
    lines = [line for line in ended.stdout.splitlines() if "no" in line.split()]
    assert lines == ["problem    no lost       0 [2J (item 0) [0x1234]"]
    assert ended.stdout.isascii()
    assert "\x1b" not in ended.stdout


class Unhurried(LoadedServer):
    """Takes one connection after the other, and does not let many wait."""

    def __enter__(self) -> Self:
        entered = super().__enter__()
        self._listener.listen(1)
        return entered


def test_a_unix_socket_whose_queue_is_full_is_tried_again(tmp_path: Path) -> None:
    with Unhurried(path=f"{tmp_path}/s") as server:
        found = report(server.url, "--connections", "100")
        assert server.accepted == 101
    assert found["requests"]["answered"] > 0


class Nonsense(LoadedServer):
    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        wrong = self.is_loaded and self.number == 40
        return super()._reply(func_id, request_id ^ (1 << 30) * wrong, body)


def test_a_reply_to_nothing_breaks_the_connection_and_is_wrong() -> None:
    with Nonsense() as server:
        found = report_once(lambda: server.accepted >= 20, server.url)
    assert found["requests"]["wrong"] > 0
    assert found["reconnects"] >= 20 - 2 - 4
    assert "which was never sent" in found["problems"][0]
