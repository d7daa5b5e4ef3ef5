"""Compare the server of this package with one of Go's own net/rpc, of the same storage.

    python -m benchmarks.peers.netrpc [--rounds N] [--duration SECONDS]

The client is one of Go's net/rpc, too; it reads slots. Every round visits both servers at every
depth. What counts is the ratio of the medians: of calls a second, which the client may limit, and
of calls by CPU second of the server.
"""

from __future__ import annotations

import argparse
import re
import signal
import statistics
import subprocess
import sys
from typing import NamedTuple

from benchmarks.peers.common.command_line import counts, say, stop_on_signal
from benchmarks.peers.common.measure import pins
from benchmarks.peers.common.running import Running, ServerError, running
from benchmarks.peers.common.servers import (
    BUILD,
    PEERS,
    Server,
    free_port,
    iproto_command,
    needs_iproto,
    needs_program,
    output_of,
    packages,
)


def ours(port: int) -> list[str]:
    return [*iproto_command()(free_port()), "--net-rpc-bind", f"127.0.0.1:{port}"]


def go_version() -> str:
    return output_of(["go", "version"]).stdout.strip()


SERVERS = (
    Server(
        name="iproto",
        about="this package, one process, `--net-rpc-bind`",
        protocol="net/rpc",
        command=ours,
        missing=needs_iproto,
        version=packages("iproto", "uvloop"),
    ),
    Server(
        name="go",
        about="Go's net/rpc, the same storage under a `sync.RWMutex`",
        protocol="net/rpc",
        command=lambda port: [str(BUILD / "net_rpc" / "server"), f"127.0.0.1:{port}"],
        missing=needs_program("go"),
        version=go_version,
    ),
)


class Measured(NamedTuple):
    """One run of the client: calls a second, their median time, the server's CPU a call."""

    rate: float
    p50_us: float
    cpu_us: float


def measure(server: Running, connections: int, depth: int, duration: float) -> Measured:
    """Run the client against a server."""
    command = [*pins()[1], str(BUILD / "net_rpc" / "client"), f"127.0.0.1:{server.port}", "bench"]
    command += [str(duration), str(connections), str(depth)]
    before = server.cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    used = server.cpu_seconds() - before
    found = re.match(r"calls_per_second (\d+) p50_us (\d+) ", done.stdout)
    if done.returncode or found is None:
        raise ServerError(f"the client ended with {done.returncode}: {done.stderr.strip()}")
    rate = float(found[1])
    return Measured(rate, float(found[2]), used * 1e6 / (rate * duration))


Figures = dict[tuple[str, int], list[Measured]]


def table(figures: Figures, depths: list[int]) -> str:
    """Medians of both, and the ratios."""
    lines = [
        "| depth | server | calls/s | median | server CPU a call | by calls/s | by CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for depth in depths:
        medians = {
            server.name: Measured(
                *map(statistics.median, zip(*figures[server.name, depth], strict=True))
            )
            for server in SERVERS
        }
        go = medians["go"]
        for server in SERVERS:
            own = medians[server.name]
            lines.append(
                f"| {depth} | {server.name}: {server.about} | {own.rate:,.0f} "
                f"| {own.p50_us:.0f} us | {own.cpu_us:.1f} us "
                f"| {own.rate / go.rate:.2f} | {go.cpu_us / own.cpu_us:.2f} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.netrpc",
        description="Compare this package with a server of Go's own net/rpc.",
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of both servers (7)")
    parser.add_argument("--duration", type=float, default=1.0, metavar="SECONDS", help="(1)")
    parser.add_argument("--connections", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--depths", type=counts, default=[1, 64], help="(1,64)")
    options = parser.parse_args()
    for server in SERVERS:
        if why := server.missing():
            say(f"{server.name}: {why}")
            return 1
    signal.signal(signal.SIGTERM, stop_on_signal)
    subprocess.run(["make", "--quiet", "-C", str(PEERS), "net_rpc"], check=True)
    figures: Figures = {(server.name, depth): [] for server in SERVERS for depth in options.depths}
    for number in range(1, options.rounds + 1):
        for server in SERVERS:
            with running(server, pins()[0]) as started:
                for depth in options.depths:
                    one = measure(started, options.connections, depth, options.duration)
                    figures[server.name, depth].append(one)
                    say(f"round {number}, {server.name}, depth {depth}: {one.rate:,.0f} calls/s")
    print(f"{SERVERS[1].version()}; {options.connections} connections, {options.rounds} rounds\n")
    print(table(figures, options.depths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
