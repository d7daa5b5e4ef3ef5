"""The log of a serving process: it makes nobody wait, and does not repeat itself."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import iproto
from iproto import FuncID
from iproto.address import Address, parse_address
from tests.helpers.harness import PATIENCE, Peer, frame, serving, wait_until
from tests.helpers.metrics import get, parse, value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

# More connections than there are lines in the smallest pipe and in the queue; each writes two.
CONNECTIONS = 900

OPTIONS = ("--metrics-bind", "127.0.0.1:0", "--log-level", "DEBUG")


def accepts(path: str) -> bool:
    """Whether a server listens there: the path alone is there a moment before."""
    with contextlib.suppress(OSError), Peer(Address("", 0, path)):
        return True
    return False


@contextlib.contextmanager
def served_with_a_full_log(path: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server at a unix socket, and the end of its log, which nobody has read."""
    read_end, write_end = os.pipe()
    if sys.platform == "linux":
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(
        [sys.executable, "-m", "iproto", "serve", "--bind", f"unix:{path}", *OPTIONS],
        stderr=write_end,
    )
    os.close(write_end)
    try:
        wait_until(lambda: accepts(path))
        for _ in range(CONNECTIONS):
            with Peer(Address("", 0, path)) as peer:
                assert peer.ask(FuncID.PING).func_id == FuncID.PING
        yield process, read_end
    finally:
        process.kill()
        process.wait()
        os.close(read_end)


def test_a_log_that_nobody_reads_stops_neither_the_server_nor_its_end(tmp_path: Path) -> None:
    with served_with_a_full_log(f"{tmp_path}/s") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_log_that_is_read_again_says_how_many_lines_were_dropped(tmp_path: Path) -> None:
    with served_with_a_full_log(f"{tmp_path}/s") as (process, read_end):
        text = b""
        while b"log lines were dropped" not in text:
            text += os.read(read_end, 1 << 16)
        # The lines that wait are read before the end, which gives them no more than a second.
        with Peer(Address("", 0, f"{tmp_path}/s")) as peer:
            peer.ask(FuncID.SHUTDOWN)
        while b"closed: SHUTDOWN" not in text:
            text += os.read(read_end, 1 << 16)
        process.send_signal(signal.SIGTERM)
        while data := os.read(read_end, 1 << 16):
            text += data
        assert process.wait(PATIENCE) == 0
        # What is logged after that is there to the end.
        assert text.splitlines()[-1].endswith(b"INFO [%d] iproto.server: stopped" % process.pid)


def test_dropped_lines_are_counted(tmp_path: Path) -> None:
    with served_with_a_full_log(f"{tmp_path}/s") as (_, read_end):
        text = ""
        while not (found := re.search(r"metrics on http://(\S+)/metrics", text)):
            text += os.read(read_end, 4096).decode()
        metrics = parse_address(found[1])

        def are_counted() -> bool:
            samples = parse(get(metrics, "/metrics")[1])
            return value(samples, "iproto_log_lines_dropped_total") > 0

        wait_until(are_counted)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What user functions' failures wrote; asyncio may log what an earlier test left behind."""
    return [record.getMessage() for record in caplog.records if record.name == "iproto.app"]


def test_one_traceback_of_a_kind_is_written_and_then_how_many_more(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iproto.server.repeats.PERIOD", 10 * PATIENCE)
    app = iproto.App()

    @app.function(0x30001)
    def broken(kind: str) -> None:
        raise {"value": ValueError, "key": KeyError}[kind](f"no {kind}")

    with caplog.at_level(logging.ERROR), serving(app) as served, served.peer() as peer:
        for _ in range(100):
            assert peer.ask(0x30001, b"\xa5value").code == iproto.ReturnCode.INTERNAL
        for _ in range(10):
            assert peer.ask(0x30001, b"\xa3key").code == iproto.ReturnCode.INTERNAL
        assert caplog.text.count("Traceback") == 2
    assert messages(caplog) == [
        "function broken (0x00030001) failed: ValueError",
        "function broken (0x00030001) failed: KeyError",
        "function broken (0x00030001) failed: ValueError: and 99 more",
        "function broken (0x00030001) failed: KeyError: and 9 more",
    ]


def test_after_a_while_a_failure_is_written_whole_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iproto.server.repeats.PERIOD", 0.01)
    app = iproto.App()

    @app.function(0x30001)
    def broken() -> None:
        raise ValueError

    with caplog.at_level(logging.ERROR), serving(app) as served, served.peer() as peer:

        def fails_again() -> bool:
            peer.send(frame(0x30001))
            peer.reply()
            return caplog.text.count("Traceback") > 2

        wait_until(fails_again)


def test_kinds_without_end_become_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iproto.server.repeats.PERIOD", 10 * PATIENCE)
    monkeypatch.setattr("iproto.server.repeats.MAX_KINDS", 3)
    app = iproto.App()

    @app.function(0x30001)
    def broken() -> None:
        raise type("Fresh", (Exception,), {})

    with caplog.at_level(logging.ERROR), serving(app) as served, served.peer() as peer:
        for _ in range(20):
            assert peer.ask(0x30001).code == iproto.ReturnCode.INTERNAL
        assert caplog.text.count("Traceback") == 4
    assert messages(caplog)[-1].endswith("failed: Fresh: and 16 more")
