"""What a server says to systemd: that it serves, reloads, stops, and lives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from iproto.server import systemd
from tests.helpers.harness import PATIENCE, serve_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd runs on Linux")


class Manager:
    """The service manager's end of the notify socket."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(PATIENCE)
        self.sock.bind(name.replace("@", "\0"))
        self.variables = {"NOTIFY_SOCKET": name}

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def next(self) -> dict[str, str]:
        """The next message that is not the watchdog's."""
        while True:
            message = self.sock.recv(4096).decode()
            fields = dict(line.split("=", 1) for line in message.splitlines())
            if "WATCHDOG" not in fields:
                return fields


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@iproto-test-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/notify"
    with Manager(name) as manager:
        yield manager


def test_a_service_says_when_it_serves_and_when_it_stops(manager: Manager) -> None:
    with serve_process(env=manager.variables) as running, running.peer() as peer:
        where = running.addresses[0]
        assert manager.next() == {"READY": "1", "STATUS": f"serving {where}"}
        running.process.send_signal(signal.SIGTERM)
        assert manager.next() == {"STOPPING": "1", "STATUS": "draining"}
        assert peer.rest() == b""
        peer.sock.close()
        assert running.end()[0] == 0


def test_a_supervisor_says_when_its_workers_serve_restart_and_stop(manager: Manager) -> None:
    with serve_process("--workers", "2", env=manager.variables) as running:
        where = running.addresses[0]
        ready = {"READY": "1", "STATUS": f"serving {where} with 2 workers"}
        assert manager.next() == ready
        with running.peer() as peer:
            assert peer.read(0) == ""
        before = time.monotonic_ns() // 1000
        running.process.send_signal(signal.SIGHUP)
        reloading = manager.next()
        assert reloading.pop("RELOADING") == "1"
        assert before <= int(reloading.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
        assert reloading == {}
        assert manager.next() == ready
        running.wait_for("restarted$")
        running.process.send_signal(signal.SIGUSR2)
        assert "RELOADING" in manager.next()
        assert manager.next() == ready  # of the new program, in the same process
        assert "RELOADING" in manager.next()
        assert manager.next() == ready
        running.process.send_signal(signal.SIGHUP)
        assert "RELOADING" in manager.next()
        running.process.send_signal(signal.SIGTERM)  # in the middle of it
        assert manager.next() == {"STOPPING": "1", "STATUS": "draining"}
        assert running.end()[0] == 0
    manager.sock.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.next()


def test_a_reload_that_is_refused_is_over_and_says_why(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("")
    with (
        Manager(f"{tmp_path}/notify") as manager,
        serve_process("--workers", "1", "--config", str(file), env=manager.variables) as running,
    ):
        ready = manager.next()
        file.write_text("max_body = 1")
        for number, outcome in (
            (signal.SIGHUP, "not restarted, workers and settings stay as they are"),
            (signal.SIGUSR2, "cannot upgrade, this version goes on"),
        ):
            running.process.send_signal(number)
            assert "RELOADING" in manager.next()
            said = manager.next()
            assert said.pop("STATUS").startswith(f"{outcome}: settings file {file}: max_body is 1")
            assert said == {"READY": "1"}
        file.write_text("max_body = 2048")
        running.process.send_signal(signal.SIGHUP)
        assert "RELOADING" in manager.next()
        assert manager.next() == ready


def test_nothing_is_said_to_serve_if_it_does_not(tmp_path: Path) -> None:
    with Manager(f"{tmp_path}/notify") as manager, serve_process("--workers", "1") as other:
        done = subprocess.run(
            [sys.executable, "-m", "iproto", "serve", "--bind", other.addresses[0]],
            env={**os.environ, **manager.variables},
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 2
        manager.sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            manager.next()


@pytest.mark.parametrize("workers", [(), ("--workers", "1")], ids=["alone", "workers"])
def test_the_watchdog_is_fed_twice_as_often_as_asked(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    with Manager(f"{tmp_path}/notify") as manager:
        variables = {**manager.variables, "WATCHDOG_USEC": "200000"}
        with serve_process(*workers, env=variables):
            manager.sock.settimeout(0)
            with contextlib.suppress(BlockingIOError):  # what came while it started
                while True:
                    manager.sock.recv(4096)
            manager.sock.settimeout(PATIENCE)
            begun = time.monotonic()
            fed = 0
            while fed < 5:  # READY may still come in between
                fed += manager.sock.recv(4096) == b"WATCHDOG=1"
            # Four times 0.1 s and more lie between the five; there may be a wait for the first.
            assert time.monotonic() - begun > 0.35


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "x"},
        {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"},
    ],
    ids=["nobody", "0", "no number", "another process"],
)
def test_no_watchdog_is_fed_that_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asyncio.run(asyncio.wait_for(systemd.feed_watchdog(), PATIENCE))


def test_a_manager_that_is_gone_costs_a_log_line_and_nothing_else(tmp_path: Path) -> None:
    with serve_process(env={"NOTIFY_SOCKET": f"{tmp_path}/gone"}) as running:
        running.process.send_signal(signal.SIGTERM)
        code, log = running.end()
    assert code == 0
    assert "cannot notify systemd: No such file or directory" in log
