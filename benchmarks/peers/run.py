"""Compare servers: drive each with the same load, in interleaved rounds.

    python -m benchmarks.peers.run --quick
    python -m benchmarks.peers.run --rounds 5 --json results.json --plots plots

A machine's speed drifts, so every round visits every server, and what counts is the ratio of
medians by CPU second of the server, not a figure by itself. With two cores or more a server has
one to itself and the load another. Servers that are not installed are left out by name.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from benchmarks.peers.report import (
    Cell,
    Measurement,
    Results,
    Summary,
    as_json,
    draw,
    environment,
    notes,
    table,
)
from benchmarks.peers.servers import BUILD, PEERS, ROOT, SERVERS, Running, ServerError, running

MIXES = ("read", "write", "mixed")
MAX_VALUE_SIZE = 256  # what a slot of iproto's storage holds
LOAD_GRACE_SECONDS = 30.0  # over its own duration: prefill, connections, the last replies


class LoadError(Exception):
    """The load failed, or some replies were not what they should be."""


def counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 1,16,256")
    return [int(part) for part in parts]


def chosen_from(names: tuple[str, ...], what: str, text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in names:
            raise argparse.ArgumentTypeError(f"no {what} {name!r}; there are {', '.join(names)}")
    return chosen


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.run",
        description="Compare servers under the same load.",
        epilog="servers: " + "; ".join(f"{s.name}: {s.about}" for s in SERVERS.values()),
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="of all servers (5)")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="of one cell (2)")
    parser.add_argument("--warmup", type=float, metavar="SECONDS", help="before it (0.5)")
    parser.add_argument(
        "--servers",
        type=lambda text: chosen_from(tuple(SERVERS), "server", text),
        metavar="NAME,...",
        help="(all)",
    )
    parser.add_argument("--depths", type=counts, default=[1, 16, 256], help="(1,16,256)")
    parser.add_argument("--connections", type=counts, default=[50], help="(50)")
    parser.add_argument(
        "--mix",
        type=lambda text: chosen_from(MIXES, "mix", text),
        default=["read", "write"],
        help="read, write, mixed: 80 %% reads (read,write)",
    )
    parser.add_argument("--value-size", type=int, default=64, metavar="BYTES", help="(64)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw them there (matplotlib)")
    parser.add_argument("--quick", action="store_true", help="one round of half a second a cell")
    options = parser.parse_args()
    quick = options.quick
    for name, usual, fast in (("rounds", 5, 1), ("duration", 2.0, 0.5), ("warmup", 0.5, 0.2)):
        if getattr(options, name) is None:
            setattr(options, name, fast if quick else usual)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be 1 or more")
    if not 0 <= options.value_size <= MAX_VALUE_SIZE:
        parser.error(f"--value-size {options.value_size}: must be 0..{MAX_VALUE_SIZE}")
    if options.plots and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plots: matplotlib is not installed")
    return options


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build() -> None:
    subprocess.run(["make", "--quiet", "-C", str(PEERS)], check=True)


def pins() -> tuple[list[str], list[str]]:
    """Return what goes before a server's command line, and before the load's."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or shutil.which("taskset") is None:
        return [], []
    return ["taskset", "-c", str(cores[0])], ["taskset", "-c", str(cores[1])]


def load_command(server: Running, cell: Cell, options: argparse.Namespace) -> list[str]:
    if server.server.protocol == "grpc":
        command = [sys.executable, "-m", "benchmarks.peers.grpc_load"]
    else:
        command = [str(BUILD / "load"), "--json", "--protocol", server.server.protocol]
    for name, value in (
        ("port", server.port),
        ("connections", cell.connections),
        ("depth", cell.depth),
        ("mix", cell.mix),
        ("value-size", options.value_size),
        ("duration", options.duration),
        ("warmup", options.warmup),
    ):
        command += [f"--{name}", str(value)]
    return command


def measure(
    server: Running, cell: Cell, pin: list[str], options: argparse.Namespace
) -> Measurement:
    cpu_before = server.cpu_seconds()
    try:
        done = subprocess.run(
            [*pin, *load_command(server, cell, options)],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=options.warmup + options.duration + LOAD_GRACE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"no result after {error.timeout:g} s") from None
    if done.returncode:
        raise LoadError((done.stderr.strip().splitlines() or ["failed and said nothing"])[-1])
    result = json.loads(done.stdout)
    return Measurement(
        requests_per_second=result["requests_per_second"],
        p50_us=result["latency_us"]["p50"],
        p99_us=result["latency_us"]["p99"],
        server_cpu=round((server.cpu_seconds() - cpu_before) / result["seconds"], 3),
        load_cpu=result["load_cpu"],
    )


def run_rounds(
    names: list[str], cells: list[Cell], options: argparse.Namespace
) -> tuple[Results, list[str]]:
    """Measure; return the results and what went wrong."""
    server_pin, load_pin = pins()
    measured: dict[Cell, dict[str, list[Measurement]]] = {cell: {} for cell in cells}
    problems = []
    for number in range(1, options.rounds + 1):
        for name in names:
            server = SERVERS[name]
            try:
                with running(server, server_pin) as started:
                    for cell in cells:
                        if server.deepest is not None and cell.depth > server.deepest:
                            continue
                        what = f"round {number}, {name}, {cell.mix}, depth {cell.depth}"
                        try:
                            measurement = measure(started, cell, load_pin, options)
                        except LoadError as error:
                            problems.append(f"{what}: {error}")
                            say(problems[-1])
                            continue
                        measured[cell].setdefault(name, []).append(measurement)
                        say(f"{what}: {measurement.requests_per_second:,.0f} requests/s")
            except ServerError as error:
                problems.append(f"round {number}: {error}")
                say(problems[-1])
    results = {
        cell: {name: Summary(rounds) for name, rounds in by_name.items()}
        for cell, by_name in measured.items()
    }
    return results, problems


def stop_on_signal(*_: object) -> NoReturn:
    sys.exit(1)  # as an exception, so that the server that runs is stopped


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGTERM, stop_on_signal)
    build()

    skipped = {}
    names = []
    for name in options.servers or SERVERS:
        reason = SERVERS[name].missing()
        if reason is None:
            names.append(name)
        else:
            skipped[name] = reason
    cells = [
        Cell(mix, connections, depth)
        for mix in options.mix
        for connections in options.connections
        for depth in options.depths
    ]

    facts = {
        **environment(),
        "servers": "; ".join(f"{name} ({SERVERS[name].version()})" for name in names),
        "left out": "; ".join(f"{name}: {why}" for name, why in skipped.items()) or "none",
        "cores": "a server on one, the load on another" if pins()[0] else "shared",
        "command": shlex.join(["python", "-m", "benchmarks.peers.run", *sys.argv[1:]]),
        "rounds": f"{options.rounds} of {options.duration:g} s a cell, interleaved; medians",
        "values": f"{options.value_size} bytes",
    }
    for name, fact in facts.items():
        print(f"- {name}: {fact}")
    print(flush=True)

    results, problems = run_rounds(names, cells, options)
    for cell, summaries in results.items():
        if summaries:
            print(table(cell, summaries), end="\n\n")
    for line in [*notes(results), *(f"PROBLEM: {problem}" for problem in problems)]:
        print(line)
    if options.json:
        document = {"facts": facts, "results": as_json(results), "problems": problems}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.plots and any(results.values()):
        for path in draw({c: s for c, s in results.items() if s}, options.plots):
            say(f"wrote {path}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
