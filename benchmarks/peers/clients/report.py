"""What is made of the clients' measurements: medians, spreads, ratios, goals; tables."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

from benchmarks.peers.common.report import LIMIT, short


@dataclass(frozen=True)
class Cell:
    """What is measured with one client on one server."""

    group: str
    """The table that it stands in: what stands in one is compared."""
    client: str
    server: str
    call: str
    size: int
    in_flight: int

    def __str__(self) -> str:
        size = f" of {self.size}" if self.size > 1 else ""
        return f"{self.client} {self.call}{size} on {self.server}"


@dataclass(frozen=True)
class Measurement:
    values_per_second: float
    cpu_us_per_value: float
    client_cpu: float


@dataclass(frozen=True)
class Goal:
    """How many times less CPU time than theirs a value is to take with ours, on our server."""

    client: str
    call: str
    size: int
    their_client: str
    their_call: str
    their_size: int
    in_flight: int
    times: float


GOALS = (
    Goal("iproto", "read", 1, "asynctnt", "select", 1, in_flight=500, times=2.0),
    Goal("iproto", "read_many", 1000, "redis-py", "pipeline", 100, in_flight=1, times=20.0),
)

Results = dict[Cell, list[Measurement]]


def median(rounds: list[Measurement], name: str) -> float:
    return float(statistics.median(getattr(measurement, name) for measurement in rounds))


def spread(rounds: list[Measurement], name: str) -> tuple[float, float]:
    found = [getattr(measurement, name) for measurement in rounds]
    return min(found), max(found)


def times(results: Results, ours: Cell, theirs: Cell) -> tuple[float, float]:
    """How many times as good ours is: by the client's CPU time for a value, by values a second."""
    cpu = median(results[theirs], "cpu_us_per_value") / median(results[ours], "cpu_us_per_value")
    wall = median(results[ours], "values_per_second") / median(results[theirs], "values_per_second")
    return cpu, wall


def tables(results: Results) -> str:
    """Return each group as a Markdown table, the least CPU time first."""
    groups: dict[str, list[Cell]] = {}
    for cell in results:
        groups.setdefault(cell.group, []).append(cell)
    return "\n\n".join(table(group, cells, results) for group, cells in groups.items())


def table(group: str, cells: list[Cell], results: Results) -> str:
    lines = [
        f"### {group}",
        "",
        "| client, call, server | CPU µs a value, median | min..max | ours is, by CPU "
        "| values/s, median | min..max | ours is, by seconds | client CPU |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    base = next((c for c in cells if c.client.startswith("iproto") and c.server == "iproto"), None)
    for cell in sorted(cells, key=lambda cell: median(results[cell], "cpu_us_per_value")):
        rounds = results[cell]
        low_cpu, high_cpu = spread(rounds, "cpu_us_per_value")
        low, high = spread(rounds, "values_per_second")
        cpu, wall = ("-", "-")
        if base is not None:
            cpu, wall = (f"{ratio:.2f} x" for ratio in times(results, base, cell))
        columns = [
            str(cell),
            f"{median(rounds, 'cpu_us_per_value'):.3g}",
            f"{low_cpu:.3g}..{high_cpu:.3g}",
            cpu,
            short(median(rounds, "values_per_second")),
            f"{short(low)}..{short(high)}",
            wall,
            f"{median(rounds, 'client_cpu'):.0%}",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def judged(results: Results) -> list[dict[str, object]]:
    """Hold the results against the goals; one whose clients were not measured is left out."""
    measured = {
        (cell.client, cell.call, cell.size, cell.in_flight): cell
        for cell in results
        if cell.server != LIMIT
    }
    found: list[dict[str, object]] = []
    for goal in GOALS:
        ours = measured.get((goal.client, goal.call, goal.size, goal.in_flight))
        theirs = measured.get((goal.their_client, goal.their_call, goal.their_size, goal.in_flight))
        if ours is None or theirs is None:
            continue
        cpu, wall = times(results, ours, theirs)
        found.append(
            {
                "ours": str(ours),
                "theirs": str(theirs),
                "in_flight": goal.in_flight,
                "times": goal.times,
                "by_cpu": cpu,
                "by_seconds": wall,
                "met": cpu >= goal.times,
            }
        )
    return found


def goal_table(goals: list[dict[str, object]]) -> str:
    lines = [
        "### Goals",
        "",
        "| ours | beside | in flight | goal | by CPU | by seconds | |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for goal in goals:
        lines.append(
            f"| {goal['ours']} | {goal['theirs']} | {goal['in_flight']} | ≥ {goal['times']:g} x "
            f"| {goal['by_cpu']:.2f} x | {goal['by_seconds']:.2f} x "
            f"| {'met' if goal['met'] else 'NOT MET'} |"
        )
    return "\n".join(lines)


def as_json(results: Results) -> list[dict[str, object]]:
    return [
        {
            **asdict(cell),
            **{
                name: {"median": median(rounds, name), "min": low, "max": high}
                for name in Measurement.__dataclass_fields__
                for low, high in [spread(rounds, name)]
            },
            "rounds": [asdict(measurement) for measurement in rounds],
        }
        for cell, rounds in results.items()
    ]
