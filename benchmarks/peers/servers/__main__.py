"""Compare servers: drive each with the same load, in interleaved rounds.

    python -m benchmarks.peers.servers --quick
    python -m benchmarks.peers.servers --experiments throughput --servers iproto,redis --rounds 5
    python -m benchmarks.peers.servers --json results.json --plots plots > results.md

A machine's speed drifts, so every round visits every server, and what counts is the ratio of
medians by CPU second of the server, not a figure by itself. With two cores or more a server has
one to itself and the load another. Servers that are not installed are left out by name.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import shlex
import signal
import sys
from pathlib import Path

from benchmarks.peers.common.command_line import build, chosen_from, counts, say, stop_on_signal
from benchmarks.peers.common.measure import Timing, pins, run_rounds
from benchmarks.peers.common.report import environment
from benchmarks.peers.common.servers import SERVERS
from benchmarks.peers.servers.experiments import EXPERIMENTS
from benchmarks.peers.servers.plots import draw
from benchmarks.peers.servers.report import as_json, section

MIXES = ("read", "write", "mixed")
MAX_VALUE_SIZE = 256  # what a slot of iproto's storage holds


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.servers",
        description="Compare servers under the same load; print Markdown.",
        epilog="servers: " + "; ".join(f"{s.name}: {s.about}" for s in SERVERS.values()),
    )
    parser.add_argument(
        "--experiments",
        type=lambda text: chosen_from(tuple(EXPERIMENTS), "experiment", text),
        default=list(EXPERIMENTS),
        metavar="NAME,...",
        help=f"({','.join(EXPERIMENTS)})",
    )
    parser.add_argument(
        "--servers",
        type=lambda text: chosen_from(tuple(SERVERS), "server", text),
        metavar="NAME,...",
        help="that are compared (all)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="of all servers (3)")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="of one cell (1)")
    parser.add_argument("--warmup", type=float, metavar="SECONDS", help="before it (0.2)")
    parser.add_argument(
        "--mix",
        type=lambda text: chosen_from(MIXES, "mix", text),
        default=list(MIXES),
        help="throughput: read, write, mixed: 80 %% reads (all)",
    )
    parser.add_argument("--depths", type=counts, default=[1, 16, 256], help="throughput (1,16,256)")
    parser.add_argument(
        "--rates",
        type=counts,
        default=[1000, 10_000, 50_000, 100_000, 200_000],
        help="latency: requests/s (1000,10000,50000,100000,200000)",
    )
    parser.add_argument(
        "--connections", type=counts, default=[1, 50, 1000], help="connections (1,50,1000)"
    )
    parser.add_argument("--value-size", type=int, default=64, metavar="BYTES", help="(64)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw them there (matplotlib)")
    parser.add_argument("--quick", action="store_true", help="one round of 0.3 s a cell")
    options = parser.parse_args()
    quick = options.quick
    for name, usual, fast in (("rounds", 3, 1), ("duration", 1.0, 0.3), ("warmup", 0.2, 0.1)):
        if getattr(options, name) is None:
            setattr(options, name, fast if quick else usual)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be 1 or more")
    if not 0 <= options.value_size <= MAX_VALUE_SIZE:
        parser.error(f"--value-size {options.value_size}: must be 0..{MAX_VALUE_SIZE}")
    if options.plots and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plots: matplotlib is not installed; pip install --group bench")
    return options


def allow_many_files() -> None:
    """1000 connections are more files than many systems allow a process by default."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def describe_cores() -> str:
    if not pins()[0]:
        return "servers and load share all cores"
    return "a server has one core and the load another; iproto-auto and its load share all"


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGTERM, stop_on_signal)
    allow_many_files()
    build()

    chosen = [SERVERS[name] for name in options.servers or SERVERS]
    reasons = {server.name: server.missing() for server in chosen}
    servers = [server for server in chosen if reasons[server.name] is None]
    left_out = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    timing = Timing(options.rounds, options.duration, options.warmup)
    facts = {
        **environment(),
        "servers": "; ".join(f"{server.name} ({server.version()})" for server in servers),
        "left out": "; ".join(left_out) or "none",
        "cores": describe_cores(),
        "command": f"`{shlex.join(['python', '-m', 'benchmarks.peers.servers', *sys.argv[1:]])}`",
        "rounds": f"{timing.rounds} of {timing.duration:g} s a cell, interleaved; "
        "medians, in parentheses the least and the greatest",
        "values": f"{options.value_size} bytes",
    }
    print("## Servers\n")
    for name, fact in facts.items():
        print(f"- {name}: {fact}")

    everything = {}
    problems = []
    for name in options.experiments:
        experiment = EXPERIMENTS[name](servers, options)
        results, found = run_rounds(experiment, timing, options.value_size)
        problems += found
        everything[name] = as_json(results)
        print(f"\n{section(experiment, results)}", flush=True)
        if options.plots and (path := draw(name, results, options.plots)):
            say(f"wrote {path}")
    for problem in problems:
        print(f"\nPROBLEM: {problem}")
    if options.json:
        document = {"facts": facts, "experiments": everything, "problems": problems}
        # A measured cell a line: smaller than with all fields apart, and a diff shows what changed.
        text = json.dumps(document, ensure_ascii=False).replace(', {"mix"', ',\n{"mix"')
        options.json.write_text(text + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
