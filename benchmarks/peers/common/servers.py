"""The servers that are compared, and how each is started."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PEERS = Path(__file__).resolve().parents[1]
BUILD = PEERS.parent / "build"
ROOT = PEERS.parent.parent


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
    processes: int = 1
    """How many serve."""
    pinned: bool = True
    """Whether it has one core, and the load another; else both may use all."""
    serves_when_it_says: str = ""
    """What its output says once it serves; empty: it does when it accepts."""
    deepest: int | None = None
    """The closed loop leaves depths over this one out; the open loop goes no deeper."""

    def takes(self, depth: int, rate: int) -> bool:
        """Whether it can be driven so; a rate is that of the open loop."""
        return bool(rate) or self.deepest is None or depth <= self.deepest


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


def own_server(name: str) -> Callable[[int], list[str]]:
    module = f"benchmarks.peers.own.{name}"
    return lambda port: [sys.executable, "-m", module, "--port", str(port)]


def iproto_command(workers: str | None = None) -> Callable[[int], list[str]]:
    return lambda port: [
        program("iproto") or "iproto",
        "serve",
        "--bind",
        f"127.0.0.1:{port}",
        "--metrics-bind",
        f"127.0.0.1:{free_port()}",
        *(["--workers", workers] if workers else []),
    ]


def iproto_server(
    name: str, about: str, *, workers: str | None = None, pinned: bool = True
) -> Server:
    return Server(
        name=name,
        about=about,
        protocol="iproto",
        command=iproto_command(workers),
        missing=needs_iproto,
        version=packages("iproto", "uvloop"),
        processes=int(workers) if workers and workers.isdecimal() else 1,
        pinned=pinned,
        # A supervisor's sockets accept before its workers do.
        serves_when_it_says="serving" if workers else "",
    )


def c_server(name: str, about: str, *, processes: int = 1, pinned: bool = True) -> Server:
    several = ["--processes", str(processes)] if processes > 1 else []
    return Server(
        name=name,
        about=about,
        protocol="iproto",
        command=lambda port: [str(BUILD / "epoll_server"), "--port", str(port), *several],
        missing=lambda: None,
        version=program_version("cc"),
        processes=processes,
        pinned=pinned,
        serves_when_it_says="serving",
    )


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
        iproto_server("iproto", "this package, one process"),
        iproto_server(
            "iproto-auto",
            "this package, --workers auto: a supervisor, and a worker for each core that it shares "
            "with the load",
            workers="auto",
            pinned=False,
        ),
        c_server("c-epoll", "a bare epoll server in C, the same protocol: the limit"),
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
            about="memcached, one worker; text protocol; it sends each get's reply by itself",
            protocol="memcached",
            command=memcached_command,
            missing=needs_program("memcached"),
            version=program_version("memcached"),
        ),
        Server(
            name="tarantool",
            about="Tarantool, memtx, no write-ahead log; SELECT, REPLACE by primary key",
            protocol="tarantool",
            command=lambda port: ["tarantool", str(PEERS / "own" / "tarantool.lua"), str(port)],
            missing=needs_program("tarantool"),
            version=program_version("tarantool"),
        ),
        Server(
            name="asyncio",
            about="plain asyncio.Protocol, struct and msgpack; the same protocol",
            protocol="iproto",
            command=own_server("plain_asyncio_server"),
            missing=needs_modules("msgpack"),
            version=packages("msgpack", "uvloop"),
        ),
        Server(
            name="grpc",
            about="grpc.aio, the same bodies as raw bytes; driven by a Python client",
            protocol="grpc",
            command=own_server("grpc_server"),
            missing=needs_modules("grpc", "msgpack"),
            version=packages("grpcio"),
            # 50 connections of depth 256 are 12,800 calls in flight: seconds of work for it.
            deepest=16,
        ),
    )
}
