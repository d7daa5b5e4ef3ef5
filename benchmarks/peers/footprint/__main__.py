"""What a server takes besides its requests: its start, its memory, its metrics, own functions.

    python -m benchmarks.peers.footprint --quick
    python -m benchmarks.peers.footprint --rounds 5 --json footprint.json

Each figure is held against its goal. What is compared within a figure (scraped and unscraped, this
function and gRPC's) is measured in turns; times are medians of the rounds, with the minimum beside
them, for other work on the machine only adds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.common.command_line import build, chosen_from, say, stop_on_signal
from benchmarks.peers.common.measure import pins
from benchmarks.peers.common.report import environment
from benchmarks.peers.common.running import ServerError
from benchmarks.peers.common.servers import SERVERS
from benchmarks.peers.footprint import figures

if TYPE_CHECKING:
    from collections.abc import Callable

Measured = dict[str, float]


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    unit: str
    goal: float | None
    """None: there is none, the figure only tells."""
    at_least: bool = False
    """Whether more is better."""

    @property
    def goal_text(self) -> str:
        if self.goal is None:
            return "-"
        return f"{'≥' if self.at_least else '≤'} {self.goal:g} {self.unit}"

    def met(self, value: float) -> bool | None:
        if self.goal is None:
            return None
        return value >= self.goal if self.at_least else value <= self.goal


@dataclass(frozen=True)
class Part:
    """Figures that are measured together, once a round."""

    about: str
    figures: dict[str, Figure]
    """By what `measure` calls them."""
    measure: Callable[[argparse.Namespace], Measured]
    missing: Callable[[argparse.Namespace], str | None] = field(default=lambda _: None)
    """Why it can't be measured here, or None."""


PARTS = {
    "start": Part(
        "from exec to the first reply",
        {
            "one": Figure("`iproto serve`, to the first reply", "ms", 250),
            "one_cpu": Figure("the same, CPU time", "ms", 250),
            "two": Figure("`iproto serve --workers 2`, to the first reply", "ms", 250),
            "two_cpu": Figure("the same, CPU time of supervisor and one worker", "ms", 250),
        },
        figures.start,
    ),
    "import": Part(
        "a Python process that imports a client, over one that imports nothing",
        {
            "client": Figure("`iproto.Client`, over bare Python", "ms", 60),
            "client_cpu": Figure("the same, CPU time", "ms", 60),
            "async_client": Figure("`iproto.AsyncClient`, over bare Python", "ms", 60),
            "async_client_cpu": Figure("the same, CPU time", "ms", 60),
            "asyncio": Figure("for comparison, `import asyncio`, over bare Python", "ms", None),
            "bare": Figure("for comparison, bare Python", "ms", None),
        },
        figures.imports,
    ),
    "memory": Part(
        "connections that made one request each and then keep still",
        {
            "user": Figure("an idle connection, memory of the server process", "KiB", 8),
            "kernel": Figure("the same, kernel memory of both of its ends", "KiB", None),
        },
        figures.memory,
        figures.too_few_files,
    ),
    "metrics": Part(
        "reads at depth 16, scraped every second, beside the same unscraped",
        {
            "by_cpu": Figure("scraped, of unscraped requests, by CPU second", "x", 0.95, True),
            "by_second": Figure("the same, by second", "x", None),
            "often": Figure("for comparison, scraped 20 times a second, by CPU", "x", None),
            "alone": Figure("a scrape while nothing else happens, CPU time", "ms", None),
        },
        figures.metrics,
    ),
    "function": Part(
        "an async function of a user's own, string to string, 50 connections of depth 16",
        {
            "by_cpu": Figure("own function, of grpc.aio, by the server's CPU second", "x", 5, True),
            "ours": Figure("own function, a CPU second", "calls", None),
            "grpc": Figure("grpc.aio, a CPU second", "calls", None),
        },
        figures.function,
        figures.no_grpc,
    ),
}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.footprint",
        description="Measure what a server takes besides its requests.",
        epilog="parts: " + "; ".join(f"{name}: {part.about}" for name, part in PARTS.items()),
    )
    parser.add_argument(
        "--parts",
        type=lambda text: chosen_from(tuple(PARTS), "part", text),
        default=list(PARTS),
        metavar="NAME,...",
        help="(all)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="of each part (5)")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="of one load (3)")
    parser.add_argument("--warmup", type=float, metavar="SECONDS", help="before it (0.5)")
    parser.add_argument("--connections", type=int, metavar="N", help="idle ones (10000)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there")
    parser.add_argument("--quick", action="store_true", help="one round, shorter loads")
    options = parser.parse_args()
    for name, usual, fast in (
        ("rounds", 5, 1),
        ("duration", 3.0, 1.2),
        ("warmup", 0.5, 0.2),
        ("connections", 10_000, 10_000),
    ):
        if getattr(options, name) is None:
            setattr(options, name, fast if options.quick else usual)
    for name in ("rounds", "connections"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: must be 1 or more")
    if not 0 < options.duration < figures.PATIENCE:
        parser.error(
            f"--duration {options.duration:g}: must be over 0 and under {figures.PATIENCE:g} s"
        )
    return options


def run_rounds(
    names: list[str], options: argparse.Namespace
) -> tuple[dict[str, list[Measured]], list[str]]:
    """Measure; return the rounds of each part, and what went wrong."""
    measured: dict[str, list[Measured]] = {}
    problems: list[str] = []
    for number in range(1, options.rounds + 1):
        for name in names:
            try:
                found = PARTS[name].measure(options)
            except (figures.FootprintError, ServerError) as error:
                problems.append(f"round {number}, {name}: {error}")
                say(problems[-1])
                continue
            measured.setdefault(name, []).append(found)
            values = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            say(f"round {number}, {name}: {values}")
    return measured, problems


def as_json(measured: dict[str, list[Measured]]) -> list[dict[str, object]]:
    found = []
    for part, rounds in measured.items():
        for key, figure in PARTS[part].figures.items():
            values = [values_of_round[key] for values_of_round in rounds]
            median = statistics.median(values)
            summary = {"median": median, "min": min(values), "max": max(values)}
            found.append(
                {
                    "part": part,
                    "key": key,
                    **asdict(figure),
                    **summary,
                    "met": figure.met(median),
                    "rounds": values,
                }
            )
    return found


def table(measured: dict[str, list[Measured]]) -> str:
    lines = ["| figure | goal | median | min..max | |", "|---|--:|--:|--:|---|"]
    for part, rounds in measured.items():
        for key, figure in PARTS[part].figures.items():
            values = [values_of_round[key] for values_of_round in rounds]
            median = statistics.median(values)
            verdict = {True: "met", False: "NOT MET", None: ""}[figure.met(median)]
            lines.append(
                f"| {figure.name} | {figure.goal_text} | {written(median)} {figure.unit} "
                f"| {written(min(values))}..{written(max(values))} | {verdict} |"
            )
    return "\n".join(lines)


def written(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGTERM, stop_on_signal)
    reason = SERVERS["iproto"].missing()
    if reason is not None:
        say(f"nothing can be measured: {reason}")
        return 1
    build()
    figures.compile_package()
    skipped = {name: PARTS[name].missing(options) for name in options.parts}
    names = [name for name, reason in skipped.items() if reason is None]
    facts = {
        **environment(),
        "left out": "; ".join(f"{n}: {why}" for n, why in skipped.items() if why) or "none",
        "cores": "under load, the server on one, the load on another" if pins()[0] else "shared",
        "command": shlex.join(["python", "-m", "benchmarks.peers.footprint", *sys.argv[1:]]),
        "rounds": f"{options.rounds}, medians; loads of {options.duration:g} s",
        "idle connections": f"{options.connections:,}",
        "memory": "the process's is PSS; the kernel's is Slab and the pages that TCP's data has",
    }
    print("## Footprint\n")
    for name, fact in facts.items():
        print(f"- {name}: {fact}")
    print(flush=True)
    measured, problems = run_rounds(names, options)
    print(table(measured))
    for problem in problems:
        print(f"PROBLEM: {problem}")
    if options.json:
        document = {"facts": facts, "figures": as_json(measured), "problems": problems}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
