"""Compare TLS of this server with that of Redis: requests by CPU second, handshakes, memory.

    python -m benchmarks.peers.tls [--rounds N] [--duration SECONDS] [--idle N]

Every round visits both servers at every depth, with 50 connections that read one string of ten
bytes by TLS 1.3. What counts is the CPU time of the server, so a slow load does not matter; a
ratio is that of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.peers.common import watch
from benchmarks.peers.common.command_line import say, stop_on_signal
from benchmarks.peers.common.running import Running, ServerError, running
from benchmarks.peers.common.servers import (
    Server,
    iproto_command,
    needs_iproto,
    needs_program,
    packages,
    program_version,
)
from benchmarks.peers.tls.client import Kind, Peer, iproto, redis

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 50
DEPTHS = (1, 16, 256)
HANDSHAKES = 300  # one after the other, for the CPU time of one
STORM = 500  # at once, while another client asks
PACE = 0.001  # seconds between two questions of that client


class Contestant(NamedTuple):
    """A server, and how it is spoken to."""

    server: Server
    kind: Kind


def contestants(cert: str, key: str) -> list[Contestant]:
    command = iproto_command()
    ours = Server(
        name="iproto",
        about="this package",
        protocol="iproto",
        command=lambda port: [
            *command(port),
            *("--tls-cert", cert, "--tls-key", key, "--idle-timeout", "3600"),
        ],
        missing=needs_iproto,
        version=packages("iproto", "uvloop"),
    )
    theirs = Server(
        name="redis",
        about="Redis, of Debian",
        protocol="redis",
        command=lambda port: [
            *("redis-server", "--port", "0", "--tls-port", str(port), "--save", ""),
            *("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert),
            *("--tls-auth-clients", "no", "--bind", "127.0.0.1"),
        ],
        missing=needs_program("redis-server"),
        version=program_version("redis-server"),
    )
    return [Contestant(ours, iproto), Contestant(theirs, redis)]


def make_certificate(folder: str) -> tuple[str, str]:
    cert, key = f"{folder}/cert.pem", f"{folder}/key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


@contextlib.contextmanager
def peers(started: Running, kind: Kind, count: int) -> Iterator[list[Peer]]:
    with contextlib.ExitStack() as stack:
        context = client_context()
        yield [stack.enter_context(Peer(started.port, kind, context)) for _ in range(count)]


def requests_by_cpu_second(started: Running, kind: Kind, depth: int, seconds: float) -> float:
    with peers(started, kind, CONNECTIONS) as connected:
        connected[0].prepare()
        for peer in connected:
            peer.ask(depth)  # not measured: buffers grow
            peer.take(depth)
        begun, end, asked = started.cpu_seconds(), time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for peer in connected:
                peer.ask(depth)
            for peer in connected:
                peer.take(depth)
            asked += CONNECTIONS * depth
        return asked / (started.cpu_seconds() - begun)


def handshake_seconds(started: Running, kind: Kind) -> float:
    """CPU time of the server for one connection: accepting, a full handshake, the close."""
    begun = started.cpu_seconds()
    context = client_context()
    for _ in range(HANDSHAKES):
        with Peer(started.port, kind, context) as peer:
            peer.ask(1)
            peer.take(1)
    return (started.cpu_seconds() - begun) / HANDSHAKES


def idle_bytes(started: Running, kind: Kind, count: int) -> float:
    """Memory of the server for one connection that has had a reply."""
    with peers(started, kind, 10):
        pass
    before = watch.memory_bytes(started.pids())
    with peers(started, kind, count) as connected:
        for peer in connected:
            peer.ask(1)
            peer.take(1)
        return (watch.memory_bytes(started.pids()) - before) / count


def storm_latencies(started: Running, kind: Kind) -> list[float]:
    """What another client's questions take while STORM handshakes come at once, from a process."""
    command = [sys.executable, "-m", "benchmarks.peers.tls.storm", str(started.port), str(STORM)]
    taken = []
    with peers(started, kind, 1) as (peer,), subprocess.Popen(command) as storm:
        while storm.poll() is None:
            begun = time.perf_counter()
            peer.ask(1)
            peer.take(1)
            taken.append(time.perf_counter() - begun)
            time.sleep(PACE)
    if storm.returncode:
        raise ServerError("a handshake of the storm failed")
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=2.0)
    parser.add_argument("--idle", type=int, default=2000)
    options = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, stop_on_signal)
    with tempfile.TemporaryDirectory() as folder:
        chosen = contestants(*make_certificate(folder))
        for server, _ in chosen:
            missing = server.missing()
            if missing:
                say(f"{server.name} cannot be measured: {missing}")
                return 1
        figures: dict[str, dict[str, list[float]]] = {}
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            for server, kind in chosen:
                with running(server, []) as started:
                    measure(started, kind, figures, options)
    report(figures)
    return 0


def measure(
    started: Running,
    kind: Kind,
    figures: dict[str, dict[str, list[float]]],
    options: argparse.Namespace,
) -> None:
    def note(what: str, figure: float) -> None:
        figures.setdefault(what, {}).setdefault(kind.name, []).append(figure)

    note("idle connection, KiB", idle_bytes(started, kind, options.idle) / 1024)
    for depth in DEPTHS:
        rate = requests_by_cpu_second(started, kind, depth, options.duration)
        note(f"requests by CPU second, depth {depth}", rate)
    note("CPU of a handshake, us", 1e6 * handshake_seconds(started, kind))
    latencies = sorted(storm_latencies(started, kind))
    note(f"p99 beside {STORM} handshakes, ms", 1e3 * latencies[len(latencies) * 99 // 100])


def report(figures: dict[str, dict[str, list[float]]]) -> None:
    print("| | iproto | redis | iproto / redis |")
    print("|---|---|---|---|")
    for what, by_name in figures.items():
        ours, theirs = (statistics.median(by_name[name]) for name in ("iproto", "redis"))
        print(f"| {what} | {ours:,.1f} | {theirs:,.1f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
