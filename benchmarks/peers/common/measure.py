"""Driving servers with the load: one run of it, and interleaved rounds of many."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.peers.common.command_line import say
from benchmarks.peers.common.running import ServerError, running
from benchmarks.peers.common.servers import BUILD, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peers.common.running import Running
    from benchmarks.peers.common.servers import Server

BUSY = 0.9  # of a core: less than this, and it was not the server that was the limit
HELD = 0.99  # of the requests that were due, answered in time: the server holds the rate
LOAD_GRACE_SECONDS = 30.0  # over its own duration: prefill, connections, the last replies
FAILURES = ("lost", "doubled", "wrong", "out_of_order", "errors", "connection_errors")


class LoadError(Exception):
    """The load failed, or some replies were not what they should be."""


@dataclass(frozen=True)
class Cell:
    """What a server is driven with.

    Args:
        mix: ``read``, ``write``, ``mixed``.
        connections: how many.
        depth: requests in flight on each connection, at most.
        rate: requests due in a second, in all; 0 is the closed loop.
        each: whether each of the server's processes gets this many connections.
    """

    mix: str
    connections: int
    depth: int
    rate: int = 0
    each: bool = False

    @property
    def title(self) -> str:
        what = f"{self.mix}, {self.connections} connections"
        return f"{what}, {self.rate:,} requests/s" if self.rate else f"{what}, depth {self.depth}"


@dataclass(frozen=True)
class Measurement:
    """One run of the load against one server; CPU in cores, of the measured time alone."""

    requests_per_second: float
    server_cpu: float
    load_cpu: float
    memory_mb: float
    p50_us: float
    p99_us: float
    p999_us: float

    @property
    def requests_per_cpu_second(self) -> float:
        """Return what a whole core would do; it stands when other work takes the core away."""
        return self.requests_per_second / self.server_cpu if self.server_cpu else 0.0

    @property
    def cpu_us(self) -> float:
        """Return microseconds of the server's CPU time that a request takes."""
        return self.server_cpu * 1e6 / self.requests_per_second


@dataclass(frozen=True)
class Summary:
    """All rounds of one server in one cell."""

    server: Server
    cell: Cell
    rounds: list[Measurement] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        return [float(getattr(measured, name)) for measured in self.rounds]

    def median(self, name: str) -> float:
        return float(statistics.median(self.values(name)))

    def spread(self, name: str) -> tuple[float, float]:
        values = self.values(name)
        return min(values), max(values)

    @property
    def held(self) -> bool:
        return self.median("requests_per_second") >= HELD * self.cell.rate

    @property
    def load_was_the_limit(self) -> bool:
        return self._measures_itself and self.median("server_cpu") < BUSY <= self.median("load_cpu")

    @property
    def disturbed(self) -> bool:
        busiest = max(self.median("server_cpu"), self.median("load_cpu"))
        return self._measures_itself and busiest < BUSY

    @property
    def _measures_itself(self) -> bool:
        """Whether one of the two should have had its core full."""
        return self.server.pinned and not self.cell.rate and self.cell.connections > 1


Results = dict[Cell, dict[str, Summary]]


@dataclass(frozen=True)
class Timing:
    """How often and how long each cell is measured: seconds."""

    rounds: int
    duration: float
    warmup: float


@dataclass(frozen=True)
class Experiment:
    """A matrix of servers and cells, and what it is to show."""

    name: str
    about: str
    servers: list[Server]
    cells: list[Cell]


def pins() -> tuple[list[str], list[str]]:
    """Return what goes before a pinned server's command line, and before its load's."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or shutil.which("taskset") is None:
        return [], []
    return ["taskset", "-c", str(cores[0])], ["taskset", "-c", str(cores[1])]


def load_command(running: Running, cell: Cell, value_size: int, timing: Timing) -> list[str]:
    if running.server.protocol == "grpc":
        command = [sys.executable, "-m", "benchmarks.peers.load.grpc_load"]
    else:
        command = [str(BUILD / "load"), "--json", "--protocol", running.server.protocol]
    options = {
        "port": running.port,
        "connections": cell.connections * (running.server.processes if cell.each else 1),
        "depth": min(cell.depth, running.server.deepest or cell.depth),
        "mix": cell.mix,
        "value-size": value_size,
        "duration": timing.duration,
        "warmup": timing.warmup,
        "watch": ",".join(map(str, running.pids())),
    }
    if cell.rate:
        options["rate"] = cell.rate
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    _, pin = pins()
    return [*pin, *command] if running.server.pinned else command


def run_load(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a program that puts on a load for so long.

    Raises:
        LoadError: it takes far longer.
    """
    try:
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=seconds + LOAD_GRACE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"no result after {error.timeout:g} s") from None


def last_words_of(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or ["failed and said nothing"])[-1]


def measure(command: list[str], timing: Timing) -> Measurement:
    """Run the load once.

    Raises:
        LoadError: it failed, or a reply was missing or was not what it should be.
    """
    done = run_load(command, timing.warmup + timing.duration)
    last_words = last_words_of(done)
    if not done.stdout:
        raise LoadError(last_words)
    result = json.loads(done.stdout)
    # Requests that were due and not sent are no failure: the server does not hold the rate.
    if any(result.get(name) for name in FAILURES):
        raise LoadError(last_words)
    if not result["replies"]:
        raise LoadError("no reply within the measured time; is the machine busy elsewhere?")
    latency = result["latency_us"]
    return Measurement(
        requests_per_second=result["requests_per_second"],
        server_cpu=round(result["server_cpu_seconds"] / result["seconds"], 4),
        load_cpu=round(result["load_cpu_seconds"] / result["seconds"], 4),
        memory_mb=round(result["server_memory_bytes"] / 1e6, 2),
        p50_us=latency["p50"],
        p99_us=latency["p99"],
        p999_us=latency["p99.9"],
    )


def run_rounds(
    experiment: Experiment, timing: Timing, value_size: int
) -> tuple[Results, list[str]]:
    """Measure; return the results and what went wrong."""
    results: Results = {cell: {} for cell in experiment.cells}
    problems: list[str] = []
    for number in range(1, timing.rounds + 1):
        for server in experiment.servers:
            name = f"{experiment.name}, round {number}, {server.name}"
            cells = [cell for cell in experiment.cells if server.takes(cell.depth, cell.rate)]
            try:
                for cell, outcome in visit(server, cells, timing, value_size):
                    if isinstance(outcome, LoadError):
                        problems.append(f"{name}, {cell.title}: {outcome}")
                        say(problems[-1])
                        continue
                    summary = results[cell].setdefault(server.name, Summary(server, cell))
                    summary.rounds.append(outcome)
                    say(f"{name}, {cell.title}: {outcome.requests_per_second:,.0f} requests/s")
            except ServerError as error:
                problems.append(f"{name}: {error}")
                say(problems[-1])
    return results, problems


def visit(
    server: Server, cells: list[Cell], timing: Timing, value_size: int
) -> Iterator[tuple[Cell, Measurement | LoadError]]:
    """Start a server, and measure it once in each cell.

    Raises:
        ServerError: it does not start, or ends.
    """
    pin, _ = pins()
    with running(server, pin if server.pinned else []) as started:
        for cell in cells:
            try:
                yield cell, measure(load_command(started, cell, value_size, timing), timing)
            except LoadError as error:
                yield cell, error
