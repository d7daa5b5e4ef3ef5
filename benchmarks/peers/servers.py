"""The servers that are compared: how each is started, found ready, and stopped."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEERS = Path(__file__).resolve().parent
BUILD = PEERS.parent / "build"
ROOT = PEERS.parent.parent

READY_SECONDS = 15.0  # to accept a connection; Tarantool writes a snapshot first
STOP_SECONDS = 5.0  # to end after SIGTERM, before SIGKILL
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server did not start, or ended while it was measured."""


@dataclass(frozen=True)
class Server:
    name: str
    about: str
    protocol: str
    """What `load` is to speak; "grpc" stands for grpc_load."""
    command: Callable[[int], list[str]]
    """The command line that serves on the given port of 127.0.0.1."""
    missing: Callable[[], str | None]
    """Why the server can't be started here, or None."""
    version: Callable[[], str]
    deepest: int | None = None
    """Depths over this one are left out."""


def program(name: str) -> str | None:
    """Find a program beside this interpreter (its virtual environment) or in PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def needs_program(name: str) -> Callable[[], str | None]:
    return lambda: None if program(name) else f"{name} is not installed"


def needs_modules(*names: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        absent = [name for name in names if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    return missing


def needs_iproto() -> str | None:
    """Ours may be installed while its command is not there, as in a tree that is not built."""
    path = program("iproto")
    if path is None:
        return "the iproto command is not installed"
    tried = output_of([path, "serve", "--help"])
    if tried.returncode:
        return f"iproto serve does not run: {(tried.stderr.strip().splitlines() or ['?'])[-1]}"
    return None


def output_of(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)


def program_version(name: str) -> Callable[[], str]:
    def version() -> str:
        done = output_of([program(name) or name, "--version"])
        found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
        return f"{name} {found.group() if found else 'of unknown version'}"

    return version


def packages(*names: str) -> Callable[[], str]:
    def version() -> str:
        found = []
        for name in names:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.append(f"{name} {importlib.metadata.version(name)}")
        return ", ".join(found)

    return version


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def python_module(name: str) -> Callable[[int], list[str]]:
    module = f"benchmarks.peers.{name}"
    return lambda port: [sys.executable, "-m", module, "--port", str(port)]


def iproto_command(port: int) -> list[str]:
    return [
        program("iproto") or "iproto",
        "serve",
        "--bind",
        f"127.0.0.1:{port}",
        "--metrics-bind",
        f"127.0.0.1:{free_port()}",
    ]


def memcached_command(port: int) -> list[str]:
    # One worker: every server here has one core. As root, memcached wants a user to become.
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    return ["memcached", "-l", "127.0.0.1", "-p", str(port), "-t", "1", *user]


def redis_command(port: int) -> list[str]:
    address = ["--bind", "127.0.0.1", "--port", str(port)]
    return ["redis-server", *address, "--save", "", "--appendonly", "no"]


SERVERS = {
    server.name: server
    for server in (
        Server(
            name="iproto",
            about="this package",
            protocol="iproto",
            command=iproto_command,
            missing=needs_iproto,
            version=packages("iproto", "uvloop"),
        ),
        Server(
            name="c-epoll",
            about="a bare epoll server in C, the same protocol: the limit",
            protocol="iproto",
            command=lambda port: [str(BUILD / "epoll_server"), "--port", str(port)],
            missing=lambda: None,
            version=program_version("cc"),
        ),
        Server(
            name="redis",
            about="Redis, no persistence; GET, SET",
            protocol="redis",
            command=redis_command,
            missing=needs_program("redis-server"),
            version=program_version("redis-server"),
        ),
        Server(
            name="memcached",
            about="memcached, one worker, text protocol; it sends each get's reply by itself",
            protocol="memcached",
            command=memcached_command,
            missing=needs_program("memcached"),
            version=program_version("memcached"),
        ),
        Server(
            name="tarantool",
            about="Tarantool, memtx, no write-ahead log; SELECT, REPLACE by primary key",
            protocol="tarantool",
            command=lambda port: ["tarantool", str(PEERS / "tarantool.lua"), str(port)],
            missing=needs_program("tarantool"),
            version=program_version("tarantool"),
        ),
        Server(
            name="asyncio",
            about="plain asyncio.Protocol, struct and msgpack; the same protocol",
            protocol="iproto",
            command=python_module("plain_asyncio_server"),
            missing=needs_modules("msgpack"),
            version=packages("msgpack", "uvloop"),
        ),
        Server(
            name="grpc",
            about="grpc.aio, the same bodies as raw bytes; driven by a Python client",
            protocol="grpc",
            command=python_module("grpc_server"),
            missing=needs_modules("grpc", "msgpack"),
            version=packages("grpcio"),
            # 50 connections of depth 256 are 12,800 calls in flight: seconds of work for it.
            deepest=16,
        ),
    )
}


class Running:
    """A server that runs, in a process group of its own."""

    def __init__(self, server: Server, port: int, process: subprocess.Popen[bytes]) -> None:
        self.server = server
        self.port = port
        self._process = process

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server's processes have taken so far."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                # The name, in parentheses, may hold spaces; what follows is state, ppid, pgrp ...
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self._process.pid:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / CLOCK_TICKS

    def check(self) -> None:
        if self._process.poll() is not None:
            raise ServerError(f"{self.server.name} ended with {self._process.returncode}")

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            self.check()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.server.name} accepts no connection after {READY_SECONDS:g} s"
                )
            time.sleep(0.02)

    def stop(self) -> None:
        self._signal_group(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._signal_group(signal.SIGKILL)  # the rest of the group, if the leader left any
        self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def running(server: Server, pin: list[str]) -> Iterator[Running]:
    """Run a server, in an empty directory, for as long as the block lasts."""
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile() as output,
    ):
        process = subprocess.Popen(
            [*pin, *server.command(port)],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        started = Running(server, port, process)
        try:
            started.wait_until_ready()
            yield started
            started.check()
        except ServerError as error:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise ServerError(f"{error}; its last words: {lines[-1] if lines else '-'}") from None
        finally:
            started.stop()
