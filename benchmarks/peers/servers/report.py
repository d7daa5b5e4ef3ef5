"""What is made of the measurements: Markdown tables, ratios, JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from benchmarks.peers.common.measure import BUSY, HELD
from benchmarks.peers.common.report import LIMIT, OURS, short

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.peers.common.measure import Cell, Experiment, Results, Summary


def microseconds(us: float) -> str:
    """Write a time to three significant digits: 59 µs, 4.27 ms, 1.02 s."""
    for unit, name in ((1e6, " s"), (1e3, " ms")):
        if us >= unit * 0.9995:
            return f"{us / unit:.3g}{name}"
    return f"{us:.0f} µs"


def with_spread(summary: Summary, name: str) -> str:
    low, high = summary.spread(name)
    return f"{short(summary.median(name))} ({short(low)}..{short(high)})"


def ratio(summaries: dict[str, Summary], name: str, base: str) -> str:
    """Compare by CPU second: on a quiet machine the same as by second, on a busy one still true."""
    if base not in summaries or name not in summaries:
        return "-"
    divisor = summaries[base].median("requests_per_cpu_second")
    share = summaries[name].median("requests_per_cpu_second")
    return f"{share / divisor:.2f}" if divisor else "-"


def markdown(columns: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|---{'|--:' * (len(columns) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def mark(summary: Summary) -> str:
    return "≥ " if summary.load_was_the_limit else "~ " if summary.disturbed else ""


def ratios(results: Results) -> str:
    """Return our server as a multiple of each that has a core to itself as well."""
    peers = dict.fromkeys(
        name
        for summaries in results.values()
        for name, summary in summaries.items()
        if summary.server.pinned
    )
    rows = [
        [peer, cell.mix, str(cell.depth), ratio(summaries, OURS, peer)]
        for peer in peers
        if peer != OURS
        for cell, summaries in results.items()
        if peer in summaries
    ]
    depths = list(dict.fromkeys(cell.depth for cell in results))
    table: dict[tuple[str, str], dict[int, str]] = {}
    for peer, mix, depth, found in rows:
        table.setdefault((peer, mix), {})[int(depth)] = found
    return markdown(
        [f"{OURS}, of", "mix", *(f"depth {depth}" for depth in depths)],
        (
            [peer, mix, *(by_depth.get(depth, "-") for depth in depths)]
            for (peer, mix), by_depth in table.items()
        ),
    )


def throughput_table(summaries: dict[str, Summary]) -> str:
    """Return a table of one cell of the closed loop, the cheapest server first."""
    order = sorted(summaries.items(), key=lambda s: -s[1].median("requests_per_cpu_second"))
    return markdown(
        [
            "server",
            "requests/s (min..max)",
            "per CPU second (min..max)",
            "of C",
            "of Redis",
            "p50",
            "p99",
            "server CPU",
            "load CPU",
        ],
        (
            [
                name,
                mark(summary) + with_spread(summary, "requests_per_second"),
                with_spread(summary, "requests_per_cpu_second"),
                ratio(summaries, name, LIMIT),
                ratio(summaries, name, "redis"),
                microseconds(summary.median("p50_us")),
                microseconds(summary.median("p99_us")),
                f"{summary.median('server_cpu'):.0%}",
                f"{summary.median('load_cpu'):.0%}",
            ]
            for name, summary in order
        ),
    )


def latency_row(name: str, summary: Summary) -> list[str]:
    at_least = "" if summary.held else "≥ "
    rate = short(summary.median("requests_per_second"))
    row = [name, rate if summary.held else f"**{rate}, not held**"]
    for percentile in ("p50_us", "p99_us", "p999_us"):
        low, high = summary.spread(percentile)
        middle = microseconds(summary.median(percentile))
        row.append(f"{at_least}{middle} ({microseconds(low)}..{microseconds(high)})")
    return [*row, short(summary.median("cpu_us"))]


def latency_table(summaries: dict[str, Summary]) -> str:
    """Return a table of one rate of the open loop."""
    return markdown(
        ["server", "answered/s", "p50 (min..max)", "p99", "p99.9", "CPU µs a request"],
        (latency_row(name, summary) for name, summary in summaries.items()),
    )


def by_server(results: Results) -> dict[str, dict[Cell, Summary]]:
    turned: dict[str, dict[Cell, Summary]] = {}
    for cell, summaries in results.items():
        for name, summary in summaries.items():
            turned.setdefault(name, {})[cell] = summary
    return turned


def cost_table(results: Results, columns: list[str], value: str) -> str:
    """Return a table of one value, its servers by its cells, medians and spreads."""
    return markdown(
        ["server", *columns],
        (
            [
                name,
                *(with_spread(cells[cell], value) if cell in cells else "-" for cell in results),
            ]
            for name, cells in by_server(results).items()
        ),
    )


def growth_column(cell: Cell) -> str:
    what = f"{cell.rate:,}/s" if cell.rate else f"depth {cell.depth}"
    return f"{what}, {cell.connections} connections each" if cell.each else what


def growth_table(results: Results, columns: list[str]) -> str:
    """Return a table of the CPU time a request, and its ratio to that of one process."""
    servers = by_server(results)
    headings = [
        heading for column in columns for heading in (f"{column}: CPU µs a request", "ratio")
    ]
    rows = []
    for name, cells in servers.items():
        alone = servers.get(f"{name.partition(',')[0]}, 1", {})
        row = [name]
        for cell in results:
            row.append(with_spread(cells[cell], "cpu_us") if cell in cells else "-")
            both = cell in cells and cell in alone
            divisor = alone[cell].median("cpu_us") if both else 0.0
            row.append(f"{cells[cell].median('cpu_us') / divisor:.2f}" if divisor else "-")
        rows.append(row)
    return markdown(["server, processes", *headings], rows)


def section(experiment: Experiment, results: Results) -> str:
    """Return all tables of an experiment, with what they show."""
    parts = [f"### {experiment.name.replace('-', ' ').capitalize()}", experiment.about]
    if experiment.name == "throughput":
        parts += [
            "Requests per CPU second of `iproto` as a multiple of each peer's:",
            ratios(results),
        ]
        for cell, summaries in results.items():
            parts += [f"#### {cell.title.capitalize()}", throughput_table(summaries)]
    elif experiment.name == "latency":
        for cell, summaries in results.items():
            parts += [f"#### {cell.rate:,} requests/s", latency_table(summaries)]
    elif experiment.name == "connections":
        counts = [f"connections: {cell.connections:,}" for cell in results]
        parts += ["CPU µs a request:", cost_table(results, counts, "cpu_us")]
        parts += ["Memory, MB:", cost_table(results, counts, "memory_mb")]
    else:
        parts.append(growth_table(results, [growth_column(cell) for cell in results]))
    return "\n\n".join([*parts, *notes(results)])


def notes(results: Results) -> Iterable[str]:
    """Explain the signs that occur in the tables."""
    all_summaries = [s for summaries in results.values() for s in summaries.values()]
    if any(summary.load_was_the_limit for summary in all_summaries):
        yield (
            f"≥ before requests/s: the load had its core full while the server's was under "
            f"{BUSY:.0%}; the server can do more."
        )
    if any(summary.disturbed for summary in all_summaries):
        yield (
            f"~: neither core was {BUSY:.0%} full: the server waits for something, or other "
            "work took the cores. Then only what is counted by the server's CPU second compares."
        )
    if any(summary.cell.rate and not summary.held for summary in all_summaries):
        yield (
            f"Not held: less than {HELD:.0%} of the requests that were due were answered in time. "
            "Those that were not count as late as the end of the run, so the percentiles are "
            "lower bounds."
        )


def as_json(results: Results) -> list[dict[str, object]]:
    return [
        {
            **asdict(cell),
            "server": name,
            "requests_per_second": summary.median("requests_per_second"),
            "requests_per_cpu_second": round(summary.median("requests_per_cpu_second"), 1),
            "cpu_us": round(summary.median("cpu_us"), 4),
            "memory_mb": summary.median("memory_mb"),
            "held": summary.held if cell.rate else None,
            "load_was_the_limit": summary.load_was_the_limit,
            "disturbed": summary.disturbed,
            "rounds": [asdict(measurement) for measurement in summary.rounds],
        }
        for cell, summaries in results.items()
        for name, summary in summaries.items()
    ]
