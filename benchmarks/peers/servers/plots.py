"""The plots of the three experiments that compare servers, as SVG."""

from __future__ import annotations

import importlib
import math
import re
from typing import TYPE_CHECKING, Any

from benchmarks.peers.common.report import OURS
from benchmarks.peers.common.servers import SERVERS
from benchmarks.peers.servers.report import by_server, microseconds

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers.common.measure import Results, Summary

# Colours that stay apart for the colour-blind (Okabe and Ito), and a sign beside each.
STYLES = {
    "iproto": ("#d55e00", "o"),
    "iproto-auto": ("#e69f00", "s"),
    "c-epoll": ("#000000", "D"),
    "redis": ("#0072b2", "v"),
    "memcached": ("#56b4e9", "^"),
    "tarantool": ("#009e73", "P"),
    "asyncio": ("#cc79a7", "X"),
    "grpc": ("#888888", "d"),
}
SETTINGS = {
    "svg.hashsalt": "iproto",  # the same figures make the same file
    "svg.fonttype": "none",  # text as text: small, and sharp
    "font.family": "sans-serif",
    "font.sans-serif": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.handlelength": 1.6,
    "figure.facecolor": "white",  # for dark pages too
}


def style(name: str) -> dict[str, Any]:
    colour, marker = STYLES[name]
    ours = name == OURS
    shares_cores = not SERVERS[name].pinned
    return {
        "color": colour,
        "marker": marker,
        "markersize": 6 if ours else 5,
        "linewidth": 2.6 if ours else 1.4,
        "linestyle": "--" if shares_cores else "-",
        "zorder": 4 if ours else 3,
    }


def plot_line(
    axes: Any, name: str, summaries: list[Summary | None], value: str, *, apart: float = 0.0
) -> None:
    """Draw medians as a line, and bars from the least to the greatest round; None is a gap.

    Servers stand `apart`, where long bars would hide one another; on steep lines that misleads.
    """
    medians = [summary.median(value) if summary else math.nan for summary in summaries]
    spreads = [summary.spread(value) if summary else (math.nan, math.nan) for summary in summaries]
    beside = (list(STYLES).index(name) - (len(STYLES) - 1) / 2) * apart
    places = [place + beside for place in range(len(summaries))]
    below = [middle - low for middle, (low, _) in zip(medians, spreads, strict=True)]
    above = [high - middle for middle, (_, high) in zip(medians, spreads, strict=True)]
    axes.errorbar(
        places, medians, yerr=[below, above], capsize=2, elinewidth=0.9, label=name, **style(name)
    )


def number(value: float, _: object = None) -> str:
    """Write an axis's number: 30 M, 500 k, 1, 0.05."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def prepare(axes: Any, title: str, ticks: list[str], label: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(number)
    axes.minorticks_off()
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.3, len(ticks) - 0.7)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(label)


def draw_throughput(pyplot: Any, results: Results) -> Any:
    mixes = list(dict.fromkeys(cell.mix for cell in results))
    figure, panels = pyplot.subplots(
        1, len(mixes), figsize=(3.6 * len(mixes) + 1, 4.4), sharey=True, squeeze=False
    )
    depths = list(dict.fromkeys(cell.depth for cell in results))
    for axes, mix in zip(panels[0], mixes, strict=True):
        for name, cells in by_server(results).items():
            by_depth = {cell.depth: found for cell, found in cells.items() if cell.mix == mix}
            line = [by_depth.get(depth) for depth in depths]
            plot_line(axes, name, line, "requests_per_cpu_second")
        prepare(axes, mix, [str(depth) for depth in depths], "pipeline depth")
    panels[0][0].set_ylabel("requests per CPU second of the server")
    return figure


def draw_latency(pyplot: Any, results: Results) -> Any:
    """Servers that do not hold a rate have no place on its scale: they are named above it."""
    values = {"p50_us": "p50", "p99_us": "p99", "p999_us": "p99.9"}
    figure, panels = pyplot.subplots(1, len(values), figsize=(11.8, 4.4), sharey=True)
    rates = [cell.rate for cell in results]
    servers = by_server(results)
    for axes, (value, title) in zip(panels, values.items(), strict=True):
        for name, cells in servers.items():
            held = {cell: summary for cell, summary in cells.items() if summary.held}
            plot_line(axes, name, [held.get(cell) for cell in results], value, apart=0.03)
        prepare(axes, title, [number(rate) for rate in rates], "requests due in a second")
        strip = axes.get_xaxis_transform()  # heights from 0 to 1, above the curves
        for place, rate in enumerate(rates):
            late = [
                name
                for name, cells in servers.items()
                if any(s.cell.rate == rate and not s.held for s in cells.values())
            ]
            for i, name in enumerate(late):
                axes.plot(
                    [place + (i - (len(late) - 1) / 2) * 0.13],
                    [1.0],
                    marker="x",
                    markersize=5,
                    markeredgewidth=1.8,
                    color=STYLES[name][0],
                    transform=strip,
                    clip_on=False,
                )
    panels[0].yaxis.set_major_formatter(lambda us, _: microseconds(us))
    panels[0].set_ylabel("latency since the request was due")
    note = "crosses at the top: servers that do not hold this rate"
    figure.text(0.99, 0.01, note, ha="right", size=9)
    return figure


def draw_connections(pyplot: Any, results: Results) -> Any:
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.4))
    counts = [cell.connections for cell in results]
    for axes, value, title in (
        (panels[0], "cpu_us", "CPU time a request, µs"),
        (panels[1], "memory_mb", "memory, MB"),
    ):
        for name, cells in by_server(results).items():
            plot_line(axes, name, [cells.get(cell) for cell in results], value)
        prepare(axes, title, [f"{count:,}" for count in counts], "connections, one request on each")
    return figure


PLOTS = {
    "throughput": draw_throughput,
    "latency": draw_latency,
    "connections": draw_connections,
}


def draw(name: str, results: Results, directory: Path) -> Path | None:
    """Draw an experiment into `directory`, if it has a plot; return the path."""
    if name not in PLOTS or not any(results.values()):
        return None
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    with matplotlib.rc_context(SETTINGS):
        figure = PLOTS[name](pyplot, results)
        handles, names = figure.axes[0].get_legend_handles_labels()
        columns = len(names)
        figure.legend(
            handles,
            names,
            loc="upper center",
            ncols=columns,
            frameon=False,
            bbox_to_anchor=(0.5, 1),
        )
        figure.tight_layout(rect=(0, 0.02, 1, 0.94))
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.svg"
        figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        pyplot.close(figure)
        # matplotlib's lines begin and end in spaces.
        path.write_text(re.sub(r"[ \t]*\n[ \t]*", "\n", path.read_text()))
    return path
