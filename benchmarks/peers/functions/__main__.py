"""Compare user functions with the same function over a protocol written by hand.

    python -m benchmarks.peers.functions [--rounds N] [--duration SECONDS]

Every round visits every server at every depth, with 50 connections and one string of 40 bytes in
and out. What counts is the ratio of medians of requests by CPU second of the server.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys

from benchmarks.peers.common.command_line import build, counts, say, stop_on_signal
from benchmarks.peers.common.measure import LoadError, Timing, measure, pins
from benchmarks.peers.common.running import Running, ServerError, running
from benchmarks.peers.common.servers import (
    BUILD,
    Server,
    iproto_command,
    needs_iproto,
    needs_modules,
    own_server,
    packages,
)
from benchmarks.peers.functions.app import FUNC_ID

CONNECTIONS = 50
BODY = b"\x91\xd9\x28" + b"x" * 40  # MsgPack: an array of one str


def ours(name: str, about: str, app: str) -> Server:
    command = iproto_command()
    return Server(
        name=name,
        about=about,
        protocol="iproto",
        command=lambda port: [*command(port), f"benchmarks.peers.functions.app:{app}"],
        missing=needs_iproto,
        version=packages("iproto", "uvloop", "msgspec"),
    )


def by_hand(name: str, about: str, *arguments: str) -> Server:
    command = own_server("function_server")
    return Server(
        name=name,
        about=about,
        protocol="iproto",
        command=lambda port: [*command(port), *arguments],
        missing=needs_modules("msgspec", "uvloop"),
        version=packages("msgspec", "uvloop"),
    )


SERVERS = (
    ours("plain", "`def` of this package", "plain"),
    ours("async", "`async def` of this package", "coroutine"),
    by_hand("by hand", "asyncio.Protocol and msgspec"),
    by_hand("by hand, tasks", "the same with a task a call", "--tasks"),
)


def load_command(server: Running, depth: int, timing: Timing) -> list[str]:
    _, pin = pins()
    options = {
        "protocol": "iproto",
        "port": server.port,
        "connections": CONNECTIONS,
        "depth": depth,
        "func-id": f"{FUNC_ID:#010x}",
        "body-hex": BODY.hex(),
        "duration": timing.duration,
        "warmup": timing.warmup,
        "watch": ",".join(map(str, server.pids())),
    }
    command = [*pin, str(BUILD / "load"), "--json"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return command


def table(figures: dict[tuple[str, int], list[float]], depths: list[int]) -> str:
    """Medians, in thousands by CPU second, and their ratios to what is written by hand."""
    titles = [f"depth {depth}" for depth in depths]
    lines = ["| server | " + " | ".join(titles) + " |", "|---" * (len(depths) + 1) + "|"]
    for server in SERVERS:
        cells = []
        for depth in depths:
            median = statistics.median(figures[server.name, depth] or [0.0])
            hand = statistics.median(figures["by hand", depth] or [0.0])
            tasks = statistics.median(figures["by hand, tasks", depth] or [0.0])
            ratios = f"{median / hand:.2f}, {median / tasks:.2f}" if hand and tasks else "-"
            cells.append(f"{median / 1000:.0f}k ({ratios})")
        lines.append(f"| {server.name}: {server.about} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.functions",
        description="Compare user functions with one over a protocol written by hand.",
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of all servers (7)")
    parser.add_argument("--duration", type=float, default=1.0, metavar="SECONDS", help="(1)")
    parser.add_argument("--warmup", type=float, default=0.2, metavar="SECONDS", help="(0.2)")
    parser.add_argument("--depths", type=counts, default=[1, 16, 64], help="(1,16,64)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop_on_signal)
    build()
    timing = Timing(options.rounds, options.duration, options.warmup)
    figures: dict[tuple[str, int], list[float]] = {
        (server.name, depth): [] for server in SERVERS for depth in options.depths
    }
    failed = False
    for number in range(1, timing.rounds + 1):
        for server in SERVERS:
            try:
                with running(server, pins()[0]) as started:
                    for depth in options.depths:
                        measured = measure(load_command(started, depth, timing), timing)
                        figures[server.name, depth].append(measured.requests_per_cpu_second)
            except (LoadError, ServerError) as error:
                failed = True
                say(f"round {number}, {server.name}: {error}")
    print("In parentheses the ratios to `by hand`, and to `by hand, tasks`.\n")
    print(table(figures, options.depths))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
