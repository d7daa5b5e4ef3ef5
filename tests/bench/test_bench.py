"""``iproto bench`` as a user runs it, against good servers and bad ones."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import queue
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iproto
from iproto import FuncID
from iproto._fastframe import ROWS
from iproto.bench.latency import Latency
from iproto.bench.workload import Dealer
from tests.helpers.frame_server import FrameServer
from tests.helpers.harness import PATIENCE, children, serve_process, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from tests.helpers.harness import Served

COMMAND = (sys.executable, "-m", "iproto", "bench")


def bench(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--url", url, *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def report(url: str, *options: str, code: int = 0) -> dict[str, Any]:
    """What a short test reports, whose accounts must add up."""
    options = ("--duration", "0.3", "--connections", "4", "--json", *options)
    ended = bench(url, *options)
    assert (ended.returncode, ended.stderr) == (code, ""), ended.stderr
    return checked(ended.stdout)


def checked(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    counts = found["requests"]
    assert counts["sent"] == counts["answered"] + counts["lost"] + counts["handed_back"]
    return found


@contextlib.contextmanager
def started(url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A test of half a minute, which somebody has to end."""
    process = subprocess.Popen(
        [*COMMAND, "--url", url, "--json", "--duration", "30", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def requests(served: Served, func_id: FuncID) -> int:
    """How many the server has counted."""
    return sum(served.server.storage.counters()["requests"][ROWS.index(func_id)])


def test_every_request_is_answered_and_none_is_wrong() -> None:
    with serving() as served:
        served.server.storage.replace(7, b"\xff kept")
        found = report(served.url, "--depth", "8")
        counts = found["requests"]
        assert counts["answered"] > 0
        assert counts == {
            **counts,
            "refused": {},
            "wrong": 0,
            "doubled": 0,
            "lost": 0,
            "handed_back": 0,
            "unsent": 0,
        }
        # And the server counts the same, but for the look at the slots before.
        assert requests(served, FuncID.STORAGE_READ) == counts["answered"] + 1000
        latency = list(found["latency_ms"].values())[1:]
        assert latency == sorted(latency)
        assert 0 < latency[0] <= latency[-1]
        assert found["problems"] == []


@pytest.mark.parametrize(("place", "dialect"), [("tcp", "mailru"), ("unix", "auto")])
def test_both_dialects_on_both_kinds_of_socket(tmp_path: Path, place: str, dialect: str) -> None:
    bind = f"unix:{tmp_path}/s" if place == "unix" else "127.0.0.1:0"
    with serving(dialect="mailru", bind=bind) as served:
        url = served.url.replace("dialect=mailru", f"dialect={dialect}")
        assert report(url, "--processes", "2")["requests"]["answered"] > 0


def test_a_mix_is_kept_and_the_slots_get_back_what_they_held() -> None:
    app = iproto.App()

    @app.function(0x30001)
    async def repeat(text: str, times: int) -> str:
        return text * times

    with serving(app) as served:
        storage = served.server.storage
        for index in range(1000):
            storage.replace(index, b"own %d" % index)
        mix = ("--mix", "read=5,write=3,ping=1,call=1", "--call", "0x30001", '"ab"', "3")
        found = report(served.url, *mix, "--depth", "10", "--slots", "10-19")
        assert found["mix"] == {"read": 0.5, "write": 0.3, "ping": 0.1, "call": 0.1}
        for index in range(1000):
            assert storage.read(index) == b"own %d" % index
        sent = found["requests"]["sent"]
        reads = requests(served, FuncID.STORAGE_READ) - 10
        writes = requests(served, FuncID.STORAGE_REPLACE) - 20
        assert abs(reads - sent * 0.5) <= 10
        assert abs(writes - sent * 0.3) <= 10


@settings(max_examples=30)
@given(
    weights=st.lists(st.integers(1, 100), min_size=1, max_size=4),
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=50),
)
def test_what_is_dealt_is_true_to_the_mix(weights: list[int], counts: list[int]) -> None:
    kinds = ("read", "write", "ping", "call")
    mix = {kind: w / sum(weights) for kind, w in zip(kinds, weights, strict=False)}
    dealer = Dealer(mix, {0: b""})
    dealt = dict.fromkeys(mix, 0)
    for count in counts:
        kinds_dealt = dealer.kinds(count)
        assert sum(number for _, number in kinds_dealt) == count
        for kind, number in kinds_dealt:
            dealt[kind] += number
    for kind, share in mix.items():
        assert abs(dealt[kind] - share * sum(counts)) < len(mix) + 1


@given(st.lists(st.floats(0, 100), min_size=1))
def test_percentiles_are_exact_to_a_thousandth_and_a_microsecond(seconds: list[float]) -> None:
    one, other = Latency(), Latency()
    for number, value in enumerate(seconds):
        (one if number % 2 else other).record(value)
    one.add(other)
    assert one.count == len(seconds)
    assert one.most == max(seconds)
    assert one.mean == pytest.approx(sum(seconds) / len(seconds))
    in_order = sorted(seconds)
    for percent in (1.0, 50.0, 99.0, 100.0):
        # The smallest that so many per cent do not exceed.
        place = max(1, -(-len(in_order) * percent // 100))
        exact = in_order[int(place) - 1]
        assert one.percentile(percent) == pytest.approx(exact, rel=1 / 1000, abs=2e-6)


def test_an_open_loop_sends_what_is_due_and_no_more() -> None:
    with serving() as served:
        found = report(served.url, "--rate", "2000", "--duration", "0.5", "--mix", "read,ping")
        assert found["rate"] == 2000
        counts = found["requests"]
        assert (counts["sent"], counts["unsent"]) == (1000, 0)


def test_what_an_open_loop_could_not_send_is_not_forgotten_nor_called_lost() -> None:
    with FrameServer() as server:
        found = report(server.url + "?timeout=1", "--rate", "1e7", code=1)
    counts = found["requests"]
    assert counts["sent"] + counts["unsent"] == 3_000_000
    assert counts["lost"] == 0
    assert found["problems"] == []
    assert found["generator"]["late"] <= 3_000_000


class Pausing(FrameServer):
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


class Doubling(FrameServer):
    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        return super()._reply(func_id, request_id, body) * (1 if request_id % 10 else 2)


def test_replies_that_come_twice_are_counted() -> None:
    with Doubling() as server:
        found = report(server.url, "--depth", "20", code=1)
    counts = found["requests"]
    assert counts["doubled"] >= counts["answered"] // 10 - 4
    assert (counts["lost"], counts["wrong"]) == (0, 0)


class Forgetful(FrameServer):
    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        reply = super()._reply(func_id, request_id, body)
        return b"" if request_id == 2000 else reply


def test_requests_that_are_never_answered_are_lost() -> None:
    with Forgetful() as server:
        found = report(server.url + "?timeout=0.4", "--depth", "1000", code=1)
    assert found["requests"]["lost"] == 4  # one on each connection
    assert found["problems"] == ["no reply within 0.4 s"]


class Swapping(FrameServer):
    def _execute(self, func_id: int, body: bytes) -> tuple[int, str | bytes | None]:
        code, value = super()._execute(func_id, body)
        swapped = body == b"\x07" and len(self.chunks) > 10
        return code, b"other" if swapped else value


def test_replies_with_another_slots_content_are_wrong() -> None:
    with Swapping() as server:
        found = report(server.url, "--slots", "5-8", code=1)
    counts = found["requests"]
    assert 0 < counts["wrong"] < counts["answered"]
    assert "another string" in found["problems"][0]


class Breaking(FrameServer):
    """Ends a connection at its 1500th request, by a reset or in good order."""

    resets = True

    def _serve(self, sock: socket.socket) -> None:
        if self.resets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        super()._serve(sock)

    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        if request_id == 1500:
            raise OSError("enough")
        return super()._reply(func_id, request_id, body)


class Leaving(Breaking):
    resets = False


def test_what_a_reset_leaves_unanswered_is_lost_and_the_load_goes_on() -> None:
    with Breaking() as server:
        found = report(server.url, code=1)
    assert found["requests"]["lost"] > 0
    assert found["requests"]["handed_back"] == 0
    assert found["requests"]["answered"] > 1500
    assert found["reconnects"] > 0
    assert "Connection reset by peer" in found["problems"][0]


def test_what_an_orderly_end_leaves_unanswered_is_not_lost() -> None:
    with Leaving() as server:
        found = report(server.url)
    assert found["requests"]["lost"] == 0
    assert found["requests"]["handed_back"] > 0
    assert found["reconnects"] > 0


class Cutting(FrameServer):
    """Answers with half a reply what comes after the first requests, and ends the connection."""

    def _serve(self, sock: socket.socket) -> None:
        if self.accepted <= 2:
            super()._serve(sock)
            return
        with sock, contextlib.suppress(OSError):
            data = sock.recv(1 << 16)
            (request_id,) = struct.unpack_from("<I", data, 8)
            sock.sendall(self._reply(FuncID.STORAGE_READ, request_id, b"\x00")[:14])
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass


def test_an_end_in_the_midst_of_a_reply_is_no_orderly_one() -> None:
    with Cutting() as server:
        found = report(server.url, code=1)
    assert found["requests"]["lost"] == found["requests"]["sent"] > 0
    assert found["requests"]["handed_back"] == 0
    assert "in the midst of a reply" in found["problems"][0]


class Closing(FrameServer):
    """Reads what comes after the first requests, and ends the connection in good order."""

    def _serve(self, sock: socket.socket) -> None:
        if self.accepted <= 2:
            super()._serve(sock)
            return
        with sock, contextlib.suppress(OSError):
            sock.recv(1 << 16)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass


def test_a_server_that_never_answers_fails_and_is_not_hammered() -> None:
    with Closing() as server:
        found = report(server.url, code=1)
        assert found["requests"]["handed_back"] == found["requests"]["sent"]
        assert found["latency_ms"] is None
        assert 0 < found["reconnects"] <= 4 * found["seconds"] / 0.05 + 4
    with Closing() as server:
        ended = bench(server.url, "--duration", "0.1")
    assert "latency    none" in ended.stdout


def test_a_server_that_is_gone_in_the_end_fails() -> None:
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serving())
        with started(served.url, "--duration", "1") as process:
            wait_until(lambda: requests(served, FuncID.STORAGE_READ) > 5000)
            stack.close()  # in good order
            text, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (1, "")
    assert "cannot connect: Connection refused" in checked(text)["problems"]


class Talkative(FrameServer):
    def _execute(self, func_id: int, body: bytes) -> tuple[int, str | bytes | None]:
        if self.accepted > 2:
            return 0x1234, "no\nlost       0\x1b[2J"
        return super()._execute(func_id, body)


def test_what_a_server_says_stays_in_its_line() -> None:
    with Talkative() as server:
        ended = bench(server.url, "--duration", "0.1", "--connections", "1")
    lines = [line for line in ended.stdout.splitlines() if "no" in line.split()]
    assert lines == ["problem    no lost       0 [2J (item 0) [0x1234]"]
    assert ended.stdout.isascii()
    assert "\x1b" not in ended.stdout


class Unhurried(FrameServer):
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


class Nonsense(FrameServer):
    def _reply(self, func_id: int, request_id: int, body: bytes) -> bytes:
        return super()._reply(func_id, request_id + (1 << 30) * (request_id == 1500), body)


def test_a_reply_to_nothing_breaks_the_connection_and_is_wrong() -> None:
    with Nonsense() as server:
        found = report(server.url, code=1)
    assert found["requests"]["wrong"] > 0
    assert found["reconnects"] > 0
    assert "which was never sent" in found["problems"][0]


def test_refusals_are_counted_by_return_code() -> None:
    app = iproto.App()

    @app.function(0x30001)
    async def refuse() -> None:
        raise iproto.Error(0x1234_0002, "no")

    with serving(app) as served:
        mix = ("--mix", "call=1,ping=1", "--call", "0x30001")
        found = report(served.url, *mix, code=1)
        assert found["requests"]["refused"].keys() == {"0x12340002"}
        assert found["requests"]["refused"]["0x12340002"] == pytest.approx(
            found["requests"]["answered"] / 2, abs=10
        )
        mix = ("--mix", "call", "--call", "0x30099")
        found = report(served.url, *mix, code=1)
        assert found["requests"]["refused"].keys() == {"UNSUPPORTED_COMMAND"}


def test_the_text_says_it_all() -> None:
    with serving() as served:
        ended = bench(served.url, "--duration", "0.2", "--connections", "2", "--mix", "write")
        assert ended.returncode == 0
        lines = ended.stdout.splitlines()
        assert lines[0] == f"{served.url}: 2 connections, depth 16, write; closed loop"
        assert [line.split()[0] for line in lines[1:]] == [
            *("answered", "latency", "lost", "doubled", "wrong", "refused", "generator")
        ]
        ended = bench(served.url, "--duration", "0.2", "--rate", "3000")
        assert "; open loop, 3,000 a second" in ended.stdout
        assert "over 1 ms late" in ended.stdout


def test_a_terminal_sees_how_far_it_is() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with serving() as served:
        command = [*COMMAND, "--url", served.url, "--duration", "0.5"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the last one to hold it open has left
            while chunk := os.read(ours, 1 << 16):
                shown += chunk
        os.close(ours)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert b"answered" in shown
    assert b"0%|" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_early_with_the_report_and_the_slots_restored(
    number: signal.Signals,
) -> None:
    with serving() as served:
        storage = served.server.storage
        storage.replace(7, b"kept")
        with started(served.url, "--mix", "write", "--processes", "2") as process:
            wait_until(lambda: requests(served, FuncID.STORAGE_REPLACE) > 5000)
            os.killpg(process.pid, number)  # as a terminal does, and `timeout`
            text, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (128 + number, "")
        found = checked(text)
        assert 0 < found["seconds"] < 30
        assert found["requests"]["lost"] == 0
        assert storage.read(7) == b"kept"


class Signalling(FrameServer):
    """Sends a signal to the test as soon as it begins to write."""

    def __init__(self) -> None:
        super().__init__()
        self.pid: queue.Queue[int] = queue.Queue()
        self.writes = 0

    def _execute(self, func_id: int, body: bytes) -> tuple[int, str | bytes | None]:
        if func_id == FuncID.STORAGE_REPLACE:
            if not self.writes:
                os.kill(self.pid.get(), signal.SIGTERM)
            self.writes += 1
        return super()._execute(func_id, body)


def test_a_signal_before_the_load_has_begun_ends_it_too() -> None:
    with Signalling() as server:
        server.slots[7] = b"kept"
        with started(server.url, "--mix", "write", "--processes", "2") as process:
            server.pid.put(process.pid)
            text, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (128 + signal.SIGTERM, "")
        assert checked(text)["requests"]["sent"] == 0
        assert server.slots[7] == b"kept"
        assert server.writes == 2000


class Silent(FrameServer):
    """Answers what comes before the load, and nothing of the load."""

    def __init__(self) -> None:
        super().__init__()
        self.unanswered: list[bytes] = []

    def _serve(self, sock: socket.socket) -> None:
        if self.accepted <= 2:
            super()._serve(sock)
        else:
            with sock, contextlib.suppress(OSError):
                while data := sock.recv(1 << 16):
                    self.unanswered.append(data)


def test_a_second_signal_does_not_wait_for_the_last_replies() -> None:
    with Silent() as server:
        url = server.url + "?timeout=3600"
        with started(url, "--connections", "4", "--depth", "8") as process:
            wait_until(lambda: len(server.unanswered) >= 4)
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            text, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""
    found = checked(text)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert found["requests"]["lost"] == 32
    assert found["problems"] == ["the test was ended without waiting for the last replies"]


def load_processes(parent: int) -> list[int]:
    return [
        pid
        for pid in children(parent)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_a_load_process_that_dies_voids_the_test_and_the_slots_are_restored() -> None:
    with serving() as served:
        storage = served.server.storage
        storage.replace(7, b"kept")
        with started(served.url, "--mix", "write", "--processes", "2") as process:
            wait_until(lambda: requests(served, FuncID.STORAGE_REPLACE) > 5000)
            one, other = load_processes(process.pid)
            os.kill(one, signal.SIGKILL)
            text, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, text) == (3, "")
        assert errors == "iproto: a process of the load died; the test is void\n"
        assert not Path(f"/proc/{other}").exists()
        wait_until(lambda: storage.read(7) == b"kept")


def test_load_processes_end_with_the_one_that_started_them() -> None:
    with serving() as served, started(served.url, "--processes", "2") as process:
        wait_until(lambda: requests(served, FuncID.STORAGE_READ) > 5000)
        process.kill()
        text, errors = process.communicate(timeout=PATIENCE)  # till they all have closed it
        assert (text, errors) == ("", "")


def test_the_report_is_there_even_if_the_slots_cannot_be_put_back() -> None:
    with serving() as served:
        with started(served.url, "--mix", "write") as process:
            wait_until(lambda: requests(served, FuncID.STORAGE_REPLACE) > 5000)
            served.server.storage.switch(iproto.State.MAINTENANCE)
            process.send_signal(signal.SIGINT)
            text, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 3
        assert checked(text)["requests"]["answered"] > 0
        assert errors.startswith("iproto: what slots 0-999 held could not be put back: ")
        assert errors.count("\n") == 1


def test_neither_output_needs_to_be_open() -> None:
    with serving() as served:
        for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
            command = [*COMMAND, "--url", served.url, "--duration", "0.1"]
            shell = ["/bin/sh", "-c", f'exec "$@" {closed}', "-", *command]
            ended = subprocess.run(shell, capture_output=True, timeout=PATIENCE, check=False)
            assert (ended.returncode, ended.stderr) == (0, b"")
            assert (b"answered" in ended.stdout) == (closed == "2>&-")


def test_a_rolling_restart_under_load_loses_nothing() -> None:
    with serve_process("--workers", "2") as running:
        url = f"iproto://{running.addresses[0]}"
        with started(url, "--mix", "read,write", "--connections", "16") as process:
            running.process.send_signal(signal.SIGHUP)
            running.wait_for("restarted$")
            process.send_signal(signal.SIGINT)
            text, errors = process.communicate(timeout=PATIENCE)
        assert errors == ""
        counts = checked(text)["requests"]
        assert (counts["lost"], counts["doubled"], counts["wrong"]) == (0, 0, 0)
        assert counts["refused"] == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--connections", "0"],
            "--connections is 0; it must be a number of connections, 1..100000",
        ),
        (["--depth", "10001"], "--depth is 10001; it must be a number of requests, 1..10000"),
        (
            ["--rate", "0"],
            "--rate is 0.0; it must be a number of requests a second, over 0, at most 100000000",
        ),
        (["--rate", "nan"], "--rate is nan; it must be a number"),
        (
            ["--duration", "-1"],
            "--duration is -1.0; it must be a number of seconds, over 0, at most 86400",
        ),
        (["--value-size", "257"], "--value-size is 257; it must be a number of bytes, 4..256"),
        (["--processes", "51"], "--processes is 51; it must be a number of processes, 1..50"),
        (["--mix", "reads"], "--mix: no kind 'reads'; there are read, write, ping, call"),
        (["--mix", "read=x"], "--mix: 'x' is no share of read"),
        (["--mix", "read,read=2"], "--mix: read is there twice"),
        (["--mix", "call"], "--call, and 'call' in --mix, go together"),
        (["--call", "1"], "--call, and 'call' in --mix, go together"),
        (["--mix", "call", "--call", "x"], "--call: 'x' is no function number"),
        (["--mix", "call", "--call", "1", "x"], "--call: 'x' is not JSON"),
        (["--slots", "5-1000"], "--slots '5-1000': use A-B or A, within 0-999"),
        (["--slots", "9-5"], "--slots '9-5': the first is after the last"),
        (["--url", "http://x"], "scheme 'http'"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], says: str) -> None:
    ended = bench("iproto://127.0.0.1:1", *options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert says in ended.stderr


def test_a_server_that_is_not_there_is_exit_code_3() -> None:
    ended = bench("iproto://127.0.0.1:1")
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr == (
        "iproto: cannot connect to 127.0.0.1:1: Connection refused; the request was not executed\n"
    )


def test_connections_beyond_the_limit_of_files_are_told() -> None:
    with serving() as served:
        ended = subprocess.run(
            [
                *("/bin/sh", "-c", 'ulimit -n 64; exec "$@"', "-"),
                *(*COMMAND, "--url", served.url, "--connections", "100"),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.count("\n") == 1
    assert "100 connections" in ended.stderr
    assert "Too many open files; the request was not executed\n" in ended.stderr
    assert ended.stderr.count("not executed") == 1


def test_a_storage_that_cannot_be_written_is_refused_at_once() -> None:
    with serving() as served:
        served.server.storage.switch(iproto.State.READ_ONLY)
        ended = bench(served.url, "--mix", "write")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "READ_ONLY" in ended.stderr
