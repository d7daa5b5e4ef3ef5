"""Compare clients: ours beside those of Redis and Tarantool, each on its own server.

    python -m benchmarks.peers.clients --quick
    python -m benchmarks.peers.clients --rounds 5 --json clients.json

Every measurement is a process of its own (`clients.load`), which fills the slots, then gets strings
and compares each with what it wrote. All servers run all the time, and one client is measured
after the other, so that a machine's drift meets all of them alike. With two cores or more the
servers have one and the client another. What counts is the client's CPU time for a value: other
work on the machine changes it little, and a slow server not at all. Seconds are shown too. All
asyncio clients run on uvloop. Clients and servers that are not installed are left out by name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.clients.report import (
    Cell,
    Measurement,
    Results,
    as_json,
    goal_table,
    judged,
    tables,
)
from benchmarks.peers.common.command_line import build, chosen_from, counts, say, stop_on_signal
from benchmarks.peers.common.measure import LoadError, last_words_of, pins, run_load
from benchmarks.peers.common.report import environment
from benchmarks.peers.common.running import Running, ServerError, running
from benchmarks.peers.common.servers import SERVERS, needs_modules, packages

if TYPE_CHECKING:
    from collections.abc import Callable

VALUE_SIZE = 64


@dataclass(frozen=True)
class Client:
    name: str
    about: str
    servers: tuple[str, ...]
    single: str
    """The call for one value."""
    bulk: tuple[tuple[str, int], ...]
    """The calls for many, each with how many."""
    missing: Callable[[], str | None]
    version: Callable[[], str]
    blocking: bool = False


OURS = (("read_many", 1000), ("read_many", 100))
OUR_SERVERS = ("iproto", "c-epoll")
CLIENTS = {
    client.name: client
    for client in (
        Client(
            name="iproto",
            about="our AsyncClient; read_many: a request for each value, all in one write",
            servers=OUR_SERVERS,
            single="read",
            bulk=OURS,
            missing=needs_modules("iproto", "uvloop"),
            version=packages("iproto", "uvloop"),
        ),
        Client(
            name="asynctnt",
            about="without schema, pings and time-outs; gather: a select for each value",
            servers=("tarantool",),
            single="select",
            bulk=(("gather", 100),),
            missing=needs_modules("asynctnt", "uvloop"),
            version=packages("asynctnt"),
        ),
        Client(
            name="redis-py",
            about="redis.asyncio with hiredis, a connection for each call in flight; pipeline: "
            "a GET for each value, no transaction; mget: one command, one reply with all",
            servers=("redis",),
            single="get",
            bulk=(("pipeline", 100), ("pipeline", 1000), ("mget", 1000)),
            missing=needs_modules("redis", "hiredis", "uvloop"),
            version=packages("redis", "hiredis"),
        ),
        Client(
            name="coredis",
            about="all calls share a connection; pipeline and mget as redis-py's",
            servers=("redis",),
            single="get",
            bulk=(("pipeline", 100), ("mget", 1000)),
            missing=needs_modules("coredis", "uvloop"),
            version=packages("coredis"),
        ),
        Client(
            name="iproto-blocking",
            about="our Client; the threads share it",
            servers=OUR_SERVERS,
            single="read",
            bulk=OURS,
            missing=needs_modules("iproto"),
            version=packages("iproto"),
            blocking=True,
        ),
        Client(
            name="redis-py-blocking",
            about="redis.Redis with hiredis; the threads share it, each with a connection",
            servers=("redis",),
            single="get",
            bulk=(("pipeline", 100), ("pipeline", 1000), ("mget", 1000)),
            missing=needs_modules("redis", "hiredis"),
            version=packages("redis", "hiredis"),
            blocking=True,
        ),
    )
}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.clients",
        description="Compare clients, each on its own server.",
        epilog="clients: " + "; ".join(f"{c.name}: {c.about}" for c in CLIENTS.values()),
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="of all clients (5)")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="of one cell (1)")
    parser.add_argument("--warmup", type=float, metavar="SECONDS", help="before it (0.2)")
    parser.add_argument(
        "--clients",
        type=lambda text: chosen_from(tuple(CLIENTS), "client", text),
        default=list(CLIENTS),
        metavar="NAME,...",
        help="(all)",
    )
    parser.add_argument("--tasks", type=counts, default=[1, 50, 500], help="(1,50,500)")
    parser.add_argument("--threads", type=counts, default=[1, 8], help="(1,8)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there")
    parser.add_argument("--quick", action="store_true", help="one round of 0.3 seconds a cell")
    options = parser.parse_args()
    for name, usual, fast in (("rounds", 5, 1), ("duration", 1.0, 0.3), ("warmup", 0.2, 0.1)):
        if getattr(options, name) is None:
            setattr(options, name, fast if options.quick else usual)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be 1 or more")
    if options.duration <= 0:
        parser.error(f"--duration {options.duration:g}: must be over 0 seconds")
    return options


def cells_of(client: Client, options: argparse.Namespace) -> list[Cell]:
    in_flight = options.threads if client.blocking else options.tasks
    calls = [(client.single, 1, count) for count in in_flight]
    calls += [(call, size, 1) for call, size in client.bulk]
    return [
        Cell(group_of(client, call, count), client.name, server, call, size, count)
        for call, size, count in calls
        for server in client.servers
    ]


def group_of(client: Client, call: str, in_flight: int) -> str:
    way, workers = ("blocking", "threads") if client.blocking else ("asyncio", "tasks")
    if call == client.single:
        return f"Single reads, {way}, {workers}: {in_flight}"
    return f"Many values a call, {way}"


def measure(
    cell: Cell, server: Running, pin: list[str], options: argparse.Namespace
) -> Measurement:
    command = [*pin, sys.executable, "-m", "benchmarks.peers.clients.load"]
    for name, value in (
        ("client", cell.client),
        ("call", cell.call),
        ("size", cell.size),
        ("in-flight", cell.in_flight),
        ("port", server.port),
        ("value-size", VALUE_SIZE),
        ("duration", options.duration),
        ("warmup", options.warmup),
    ):
        command += [f"--{name}", str(value)]
    done = run_load(command, options.warmup + options.duration)
    if done.returncode:
        raise LoadError(last_words_of(done))
    result = json.loads(done.stdout)
    return Measurement(
        values_per_second=result["values"] / result["seconds"],
        cpu_us_per_value=result["cpu_seconds"] / result["values"] * 1e6,
        client_cpu=result["cpu_seconds"] / result["seconds"],
    )


def run_rounds(cells: list[Cell], options: argparse.Namespace) -> tuple[Results, list[str]]:
    """Measure; return the results and what went wrong."""
    server_pin, client_pin = pins()
    results: Results = {}
    problems: list[str] = []
    try:
        with contextlib.ExitStack() as stack:
            servers = {
                name: stack.enter_context(running(SERVERS[name], server_pin))
                for name in dict.fromkeys(cell.server for cell in cells)
            }
            for number in range(1, options.rounds + 1):
                for cell in cells:
                    what = f"round {number}, {cell}, {cell.in_flight} in flight"
                    try:
                        measurement = measure(cell, servers[cell.server], client_pin, options)
                    except LoadError as error:
                        problems.append(f"{what}: {error}")
                        say(problems[-1])
                        continue
                    results.setdefault(cell, []).append(measurement)
                    say(f"{what}: {measurement.cpu_us_per_value:.3g} µs of CPU a value")
    except ServerError as error:
        problems.append(str(error))
        say(problems[-1])
    return results, problems


def sorted_out(chosen: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the clients that can be measured here, and why the others can't."""
    names, skipped = [], {}
    for name in chosen:
        client = CLIENTS[name]
        reasons = [client.missing(), *(SERVERS[server].missing() for server in client.servers)]
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None:
            names.append(name)
        else:
            skipped[name] = reason
    return names, skipped


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGTERM, stop_on_signal)
    build()
    names, skipped = sorted_out(options.clients)
    cells = [cell for name in names for cell in cells_of(CLIENTS[name], options)]
    cells.sort(key=lambda cell: (cell.group, cell.server != "iproto"))  # the compared ones meet
    servers = dict.fromkeys(cell.server for cell in cells)
    facts = {
        **environment(),
        "clients": "; ".join(f"{name} ({CLIENTS[name].version()})" for name in names),
        "servers": "; ".join(f"{name} ({SERVERS[name].version()})" for name in servers),
        "left out": "; ".join(f"{name}: {why}" for name, why in skipped.items()) or "none",
        "cores": "the servers on one, the client on another" if pins()[0] else "shared",
        "event loop": "uvloop, for all asyncio clients",
        "command": shlex.join(["python", "-m", "benchmarks.peers.clients", *sys.argv[1:]]),
        "rounds": f"{options.rounds} of {options.duration:g} s a cell, interleaved; medians",
        "values": f"{VALUE_SIZE} bytes",
    }
    print("## Clients\n")
    for name, fact in facts.items():
        print(f"- {name}: {fact}")
    for name in names:
        print(f"- {name}: {CLIENTS[name].about}")
    print(flush=True)

    results, problems = run_rounds(cells, options)
    goals = judged(results)
    print(tables(results), end="\n\n")
    if goals:
        print(goal_table(goals), end="\n\n")
    print("by CPU: the client's CPU time for a value, which decides; by seconds: values a second.")
    for problem in problems:
        print(f"PROBLEM: {problem}")
    if options.json:
        document = {
            "facts": facts,
            "results": as_json(results),
            "goals": goals,
            "problems": problems,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
