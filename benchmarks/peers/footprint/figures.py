"""How each part of the footprint is measured, once."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import resource
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.common import watch
from benchmarks.peers.common.measure import pins
from benchmarks.peers.common.running import STOP_SECONDS, Running, running
from benchmarks.peers.common.servers import (
    BUILD,
    ROOT,
    SERVERS,
    Server,
    free_port,
    needs_modules,
    program,
)
from benchmarks.peers.footprint.greeting import FUNC_ID, GREETING, NAME

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

READ = struct.pack("<IIIB", 0x00020002, 1, 7, 0)  # slot 0
CONNECTIONS, DEPTH = 50, 16
PATIENCE = 30.0  # seconds for a first reply, and over a load's own duration
SPARE_FILES = 200  # over the connections: what a process has open besides
SCRAPE_EVERY = 1.0  # seconds
OFTEN = 0.05  # likewise; what a scrape costs is so small that one a second drowns in noise
ALONE = 50  # scrapes of a server that has nothing else to do
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class FootprintError(Exception):
    """Something could not be measured, or did another thing than was asked."""


def compile_package() -> None:
    """Have the package compiled, as pip leaves it; a checkout may not be."""
    found = importlib.util.find_spec("iproto")
    for folder in (found and found.submodule_search_locations) or []:
        subprocess.run([sys.executable, "-m", "compileall", "-q", folder], check=False)


def iproto_server(*arguments: str, metrics_port: int | None = None) -> Server:
    """`iproto serve` with these arguments too."""
    metrics = "off" if metrics_port is None else f"127.0.0.1:{metrics_port}"

    def command(port: int) -> list[str]:
        address = ["--bind", f"127.0.0.1:{port}", "--metrics-bind", metrics]
        return [program("iproto") or "iproto", "serve", *address, *arguments]

    return dataclasses.replace(SERVERS["iproto"], command=command)


# From exec to the first reply.


def start(_: argparse.Namespace) -> dict[str, float]:
    with serving() as server:
        found = {"one": server.first_reply_ms, "one_cpu": cpu_ms(server.pid)}
    with serving("--workers", "2") as server:
        # The other worker starts beside that one.
        worker = max(map(cpu_ms, children(server.pid)), default=0.0)
        return {**found, "two": server.first_reply_ms, "two_cpu": cpu_ms(server.pid) + worker}


def stat(pid: int) -> list[str]:
    """What the system says of a process, from its state on; the name before may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_ms(pid: int) -> float:
    return watch.cpu_seconds([pid]) * 1e3


def children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if int(stat(int(folder.name))[1]) == pid:
                found.append(int(folder.name))
    return found


@dataclasses.dataclass(frozen=True)
class Serving:
    pid: int
    port: int
    first_reply_ms: float


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Serving]:
    """Start a server with its metrics, as users have it, and ask until it answers."""
    port = free_port()
    server = iproto_server("--log-level", "ERROR", *arguments, metrics_port=free_port())
    command = server.command(port)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while not answers(port):
            if process.poll() is not None:
                raise FootprintError(f"{shlex.join(command)} ended, as it said")
            if time.perf_counter() - started > PATIENCE:
                raise FootprintError(f"no reply from {shlex.join(command)}")
            time.sleep(0.001)
        yield Serving(process.pid, port, (time.perf_counter() - started) * 1e3)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(READ)
            return len(connection.recv(64)) > 0
    except OSError:
        return False


# What an import takes.


@dataclasses.dataclass(frozen=True)
class Took:
    ms: float
    cpu_ms: float


def imports(_: argparse.Namespace) -> dict[str, float]:
    bare = python("pass")
    client = python("import iproto; iproto.Client")
    async_client = python("import iproto; iproto.AsyncClient")
    asyncio = python("import asyncio")
    return {
        "client": client.ms - bare.ms,
        "client_cpu": client.cpu_ms - bare.cpu_ms,
        "async_client": async_client.ms - bare.ms,
        "async_client_cpu": async_client.cpu_ms - bare.cpu_ms,
        "asyncio": asyncio.ms - bare.ms,
        "bare": bare.ms,
    }


def python(code: str) -> Took:
    """Run this in a fresh interpreter; what that takes, start and end included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], check=False, stdin=subprocess.DEVNULL)
    took = time.perf_counter() - started
    if done.returncode:
        raise FootprintError(f"python -c {code!r} ended with {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(took * 1e3, cpu * 1e3)


# The memory of idle connections.


def too_few_files(options: argparse.Namespace) -> str | None:
    """Raise the limit of open files, for the server and the generator inherit it."""
    if not Path("/proc/self/smaps_rollup").exists():
        return "memory is read from /proc/PID/smaps_rollup, which this system does not have"
    needed = options.connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    except (ValueError, OSError):
        return (
            f"{needed} open files are needed and {hard} allowed: run `ulimit -n {needed}` as root "
            f"before it, or ask for fewer with --connections {max(1, hard - SPARE_FILES)}"
        )
    return None


def memory(options: argparse.Namespace) -> dict[str, float]:
    # None of them is to be closed for its silence before all are there.
    with serving("--idle-timeout", "3600") as server:
        user, kernel = user_kib(server.pid), kernel_kib()
        with idle_connections(server.port, options.connections):
            user, kernel = user_kib(server.pid) - user, kernel_kib() - kernel
    return {"user": user / options.connections, "kernel": kernel / options.connections}


@contextlib.contextmanager
def idle_connections(port: int, count: int) -> Iterator[None]:
    arguments = ["--port", str(port), "--connections", str(count)]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.footprint.idle_connections", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise FootprintError(f"{count} connections could not be opened, as said above")
            yield
        finally:
            process.kill()


def user_kib(pid: int) -> int:
    """The memory of the server's process, what it shares counted in part."""
    return kib_in(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def kernel_kib() -> int:
    """The memory that the whole kernel has for objects and for TCP's data."""
    pages = re.search(r"^TCP:.* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.MULTILINE)
    return kib_in(Path("/proc/meminfo"), "Slab") + (int(pages[1]) * PAGE_KIB if pages else 0)


def kib_in(file: Path, name: str) -> int:
    found = re.search(rf"^{name}: +(\d+) kB", file.read_text(), re.MULTILINE)
    if found is None:
        raise FootprintError(f"{file} has no {name}")
    return int(found[1])


# What being scraped costs, and own functions.


LOAD = [str(BUILD / "load"), "--json", "--protocol", "iproto"]


@dataclasses.dataclass(frozen=True)
class Rates:
    by_second: float
    by_cpu: float


def driven(server: Running, command: list[str], options: argparse.Namespace) -> Rates:
    """Put a load on the server; what that printed, and the server's CPU time."""
    duration = options.duration
    while duration < PATIENCE:
        before = server.cpu_seconds()
        result = printed_by(
            command,
            ("port", server.port),
            ("connections", CONNECTIONS),
            ("depth", DEPTH),
            ("duration", duration),
            ("warmup", options.warmup),
        )
        rate = result["requests_per_second"]
        cpu = (server.cpu_seconds() - before) / result["seconds"]
        if rate > 0 and cpu > 0:
            return Rates(rate, rate / cpu)
        duration *= 2  # it was too short for the CPU clock's ticks, or for the first reply
    raise FootprintError(f"the server did nothing under a load of {duration / 2:g} s")


def printed_by(command: list[str], *settings: tuple[str, float]) -> dict[str, float]:
    for name, value in settings:
        command = [*command, f"--{name}", str(value)]
    try:
        done = subprocess.run(
            [*pins()[1], *command],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=3 * PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise FootprintError(f"the load gave no result after {error.timeout:g} s") from None
    if done.returncode:
        raise FootprintError((done.stderr.strip().splitlines() or ["the load failed"])[-1])
    result: dict[str, float] = json.loads(done.stdout)
    return result


def metrics(options: argparse.Namespace) -> dict[str, float]:
    metrics_port = free_port()
    with running(iproto_server(metrics_port=metrics_port), pins()[0]) as server:
        loads: dict[float | None, list[Rates]] = {}
        for every in (None, SCRAPE_EVERY, OFTEN, OFTEN, SCRAPE_EVERY, None):  # a drift meets all
            with scraping(metrics_port, every):
                loads.setdefault(every, []).append(driven(server, LOAD, options))
        before = server.cpu_seconds()
        for _ in range(ALONE):
            scrape(metrics_port)
        alone = (server.cpu_seconds() - before) / ALONE

    def of_unscraped(every: float, name: str) -> float:
        scraped, without = (sum(getattr(r, name) for r in loads[e]) for e in (every, None))
        return float(scraped / without)

    return {
        "by_cpu": of_unscraped(SCRAPE_EVERY, "by_cpu"),
        "by_second": of_unscraped(SCRAPE_EVERY, "by_second"),
        "often": of_unscraped(OFTEN, "by_cpu"),
        "alone": alone * 1e3,
    }


def scrape(port: int) -> None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as page:
            text: bytes = page.read()
    except OSError as error:
        raise FootprintError(f"the metrics cannot be scraped: {error}") from None
    if b"storage_reads_total" not in text:
        raise FootprintError("the metrics lack storage_reads_total")


@contextlib.contextmanager
def scraping(port: int, every: float | None) -> Iterator[None]:
    """Scrape every this many seconds, the first time at once; not at all if None."""
    if every is None:
        yield
        return
    over = threading.Event()

    def work() -> None:
        scrape(port)
        while not over.wait(every):
            scrape(port)

    with ThreadPoolExecutor(1) as pool:
        scraper = pool.submit(work)
        try:
            yield
        finally:
            over.set()
        scraper.result()


GRPC = [sys.executable, "-m", "benchmarks.peers.footprint.grpc_function"]
GRPC_SERVER = dataclasses.replace(
    SERVERS["grpc"], command=lambda port: [*GRPC, "serve", "--port", str(port)]
)


def no_grpc(_: argparse.Namespace) -> str | None:
    return needs_modules("grpc", "uvloop")()


def function(options: argparse.Namespace) -> dict[str, float]:
    # `load` does not look into the replies of a user's function.
    import msgpack

    import iproto

    server_pin = pins()[0]
    with running(
        iproto_server("benchmarks.peers.footprint.function_app:app"), server_pin
    ) as server:
        with iproto.Client(f"iproto://127.0.0.1:{server.port}") as client:
            reply = client.call(FUNC_ID, NAME)
        if reply != GREETING:
            raise FootprintError(f"another reply than {GREETING!r}: {reply!r}")
        body = msgpack.packb([NAME])
        call = ["--func-id", hex(FUNC_ID), "--body-hex", body.hex()]
        ours = driven(server, [*LOAD, *call], options)
    with running(GRPC_SERVER, server_pin) as server:
        theirs = driven(server, [*GRPC, "load"], options)
    return {"ours": ours.by_cpu, "grpc": theirs.by_cpu, "by_cpu": ours.by_cpu / theirs.by_cpu}
