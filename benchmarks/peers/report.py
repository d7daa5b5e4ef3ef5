"""What is made of the measurements: medians, spreads, ratios; tables, plots."""

from __future__ import annotations

import importlib
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

LIMIT = "c-epoll"
BUSY = 0.9  # of a core: less than this, and it was not the server that was the limit


@dataclass(frozen=True)
class Cell:
    """One column of the matrix."""

    mix: str
    connections: int
    depth: int


@dataclass(frozen=True)
class Measurement:
    """One run of the load against one server."""

    requests_per_second: float
    p50_us: float
    p99_us: float
    server_cpu: float
    load_cpu: float

    @property
    def requests_per_cpu_second(self) -> float:
        """Return what a whole core would do; it stands when other work takes the core away."""
        return self.requests_per_second / self.server_cpu if self.server_cpu else 0.0


@dataclass(frozen=True)
class Summary:
    rounds: list[Measurement]

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(measured, name) for measured in self.rounds))

    @property
    def rate(self) -> float:
        return self.median("requests_per_second")

    @property
    def per_cpu_second(self) -> float:
        return self.median("requests_per_cpu_second")

    @property
    def spread(self) -> tuple[float, float]:
        rates = [measurement.requests_per_second for measurement in self.rounds]
        return min(rates), max(rates)

    @property
    def load_was_the_limit(self) -> bool:
        return self.median("server_cpu") < BUSY <= self.median("load_cpu")

    @property
    def disturbed(self) -> bool:
        return self.median("server_cpu") < BUSY and self.median("load_cpu") < BUSY

    @property
    def mark(self) -> str:
        return "≥ " if self.load_was_the_limit else "~ " if self.disturbed else ""


Results = dict[Cell, dict[str, Summary]]


def environment() -> dict[str, str]:
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "machine": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def short(rate: float) -> str:
    """Write a rate to three significant digits: 31.4 M, 1.67 M, 254 k, 900."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if rate >= unit:
            digits = 2 if rate < 10 * unit else 1 if rate < 100 * unit else 0
            return f"{rate / unit:.{digits}f}{name}"
    return f"{rate:.0f}"


def ratio(summaries: dict[str, Summary], name: str, base: str) -> str:
    """Compare by CPU second: on a quiet machine the same as by second, on a busy one still true."""
    if base not in summaries or not summaries[base].per_cpu_second:
        return "-"
    return f"{summaries[name].per_cpu_second / summaries[base].per_cpu_second:.2f}"


def table(cell: Cell, summaries: dict[str, Summary]) -> str:
    """Return one cell of the matrix as a Markdown table, the fastest server first."""
    lines = [
        f"### {cell.mix}, {cell.connections} connections, depth {cell.depth}",
        "",
        "| server | requests/s, median | min..max | per CPU second | of C | of Redis "
        "| p50, µs | p99, µs | server CPU | load CPU |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, summary in sorted(summaries.items(), key=lambda item: -item[1].per_cpu_second):
        low, high = summary.spread
        columns = [
            name,
            summary.mark + short(summary.rate),
            f"{short(low)}..{short(high)}",
            short(summary.per_cpu_second),
            ratio(summaries, name, LIMIT),
            ratio(summaries, name, "redis"),
            f"{summary.median('p50_us'):.0f}",
            f"{summary.median('p99_us'):.0f}",
            f"{summary.median('server_cpu'):.0%}",
            f"{summary.median('load_cpu'):.0%}",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def notes(results: Results) -> Iterable[str]:
    yield "of C, of Redis: ratios of requests per CPU second of the server."
    all_summaries = [s for summaries in results.values() for s in summaries.values()]
    if any(summary.load_was_the_limit for summary in all_summaries):
        yield (
            f"≥: the load had its core full while the server's was under {BUSY:.0%}; "
            "the server can do more."
        )
    if any(summary.disturbed for summary in all_summaries):
        yield (
            f"~: neither core was {BUSY:.0%} full: the server waits for something, or other "
            "work took the cores. Then only what is counted by the server's CPU second compares."
        )


def as_json(results: Results) -> list[dict[str, object]]:
    return [
        {
            **asdict(cell),
            "server": name,
            "requests_per_second": {
                "median": summary.rate,
                "min": summary.spread[0],
                "max": summary.spread[1],
            },
            "requests_per_cpu_second": summary.per_cpu_second,
            "load_was_the_limit": summary.load_was_the_limit,
            "disturbed": summary.disturbed,
            "rounds": [asdict(measurement) for measurement in summary.rounds],
        }
        for cell, summaries in results.items()
        for name, summary in summaries.items()
    ]


def draw(results: Results, directory: Path) -> list[Path]:
    """Draw a picture for each mix and number of connections: rates and latencies by depth."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for mix, connections in dict.fromkeys((cell.mix, cell.connections) for cell in results):
        cells = [c for c in results if (c.mix, c.connections) == (mix, connections)]
        names = list(dict.fromkeys(name for cell in cells for name in results[cell]))
        figure, (rates, latencies) = pyplot.subplots(1, 2, figsize=(12, 4.5))
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            places, summaries = [], []
            for j, cell in enumerate(cells):
                if name in results[cell]:
                    places.append(j + (i - (len(names) - 1) / 2) * width)
                    summaries.append(results[cell][name])
            medians = [summary.rate for summary in summaries]
            below = [summary.rate - summary.spread[0] for summary in summaries]
            above = [summary.spread[1] - summary.rate for summary in summaries]
            rates.bar(places, medians, width, yerr=[below, above], capsize=2, label=name)
            latencies.bar(places, [summary.median("p99_us") for summary in summaries], width)
        for axes, title in ((rates, "requests/s"), (latencies, "p99 latency, µs")):
            axes.set_yscale("log")
            axes.set_title(title)
            axes.set_xticks(range(len(cells)), [f"depth {cell.depth}" for cell in cells])
            axes.grid(axis="y", alpha=0.3)
        rates.legend(fontsize="small")
        figure.suptitle(f"{mix}, {connections} connections, one core a server")
        figure.tight_layout()
        path = directory / f"{mix}-{connections}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        written.append(path)
    return written
