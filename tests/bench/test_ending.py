"""How ``iproto bench`` ends early: by a signal, by the death of one of its processes."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import iproto
from iproto import FuncID
from tests.helpers.bench import COMMAND, checked, requests, started
from tests.helpers.frame_server import FrameServer
from tests.helpers.harness import PATIENCE, children, serve_process, serving, wait_until
from tests.helpers.metrics import value
from tests.helpers.workers import scrape

if TYPE_CHECKING:
    import socket


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


def test_sigint_ends_it_in_the_background_of_a_script_too() -> None:
    """A shell ignores SIGINT for such a process, and it inherits that."""
    ignoring_sigint = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    with serving() as served:
        process = subprocess.Popen(
            [*ignoring_sigint, *COMMAND, "--url", served.url, "--json", "--duration", "30"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: requests(served, FuncID.STORAGE_READ) > 5000)
            process.send_signal(signal.SIGINT)
            text, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
            process.communicate()
        assert (process.returncode, errors) == (128 + signal.SIGINT, "")
        assert 0 < checked(text)["seconds"] < 30


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


def test_a_rolling_restart_under_load_loses_nothing() -> None:
    with serve_process("--workers", "2") as running:
        url = f"iproto://{running.addresses[0]}"
        with started(url, "--mix", "read,write", "--connections", "16") as process:
            wait_until(lambda: value(scrape(running), "active_connections") >= 16)
            running.process.send_signal(signal.SIGHUP)
            running.wait_for("restarted$")
            process.send_signal(signal.SIGINT)
            text, errors = process.communicate(timeout=PATIENCE)
        assert errors == ""
        found = checked(text)
        counts = found["requests"]
        assert (counts["lost"], counts["doubled"], counts["wrong"]) == (0, 0, 0)
        assert counts["refused"] == {}
        assert found["problems"] == []
        assert found["reconnects"] >= 16
