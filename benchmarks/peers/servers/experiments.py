"""The experiments: which servers are driven with what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers.common.measure import Cell, Experiment
from benchmarks.peers.common.servers import c_server, iproto_server

if TYPE_CHECKING:
    import argparse

    from benchmarks.peers.common.servers import Server

CONNECTIONS = 50  # where their number is not what is asked
OPEN_LOOP_DEPTH = 256  # in flight on a connection at most: more than a server that keeps up needs
WORKERS = (1, 2, 4)
WORKERS_CONNECTIONS = 48  # a multiple of each
WORKERS_DEPTHS = (1, 16)
WORKERS_RATES = (10_000, 50_000)  # well below what one worker holds


def throughput(servers: list[Server], options: argparse.Namespace) -> Experiment:
    return Experiment(
        name="throughput",
        about="As many requests as the server takes, by the depth of pipelines: the closed loop.",
        servers=servers,
        cells=[Cell(mix, CONNECTIONS, depth) for mix in options.mix for depth in options.depths],
    )


def latency(servers: list[Server], options: argparse.Namespace) -> Experiment:
    return Experiment(
        name="latency",
        about="Reads that are due at a fixed rate: the open loop. A latency counts from when the "
        "request was due, so one that waits for a stalled server is charged for the wait.",
        servers=servers,
        cells=[Cell("read", CONNECTIONS, OPEN_LOOP_DEPTH, rate) for rate in options.rates],
    )


def connections(servers: list[Server], options: argparse.Namespace) -> Experiment:
    return Experiment(
        name="connections",
        about="Reads, one at a time on each connection: what a request costs, and the memory of "
        "the server's processes with all connections open.",
        servers=servers,
        cells=[Cell("read", count, 1) for count in sorted(options.connections)],
    )


def several_processes(*, pinned: bool) -> list[Server]:
    """Return our server and the C one in as many processes as each of WORKERS."""
    ours = [
        iproto_server(f"iproto, {count}", "workers", workers=str(count), pinned=pinned)
        for count in WORKERS
    ]
    bare = [
        c_server(f"c-epoll, {count}", "processes", processes=count, pinned=pinned)
        for count in WORKERS
    ]
    return ours + bare


def workers_on_one_core(_: list[Server], options: argparse.Namespace) -> Experiment:
    return Experiment(
        name="workers-one-core",
        about="1, 2 and 4 workers that share one core, while the load has the other: the closed "
        f"loop, with {WORKERS_CONNECTIONS} connections in all, and with as many for each worker. "
        "Beside them as many processes of the C server.",
        servers=several_processes(pinned=True),
        cells=[
            Cell("read", WORKERS_CONNECTIONS, depth, each=each)
            for each in (False, True)
            for depth in WORKERS_DEPTHS
        ],
    )


def workers_on_all_cores(_: list[Server], options: argparse.Namespace) -> Experiment:
    return Experiment(
        name="workers-all-cores",
        about="The same rate for 1, 2 and 4 workers, well below what one of them holds; workers "
        "and load share all cores: the open loop. Beside them as many processes of the C server.",
        servers=several_processes(pinned=False),
        cells=[Cell("read", WORKERS_CONNECTIONS, OPEN_LOOP_DEPTH, rate) for rate in WORKERS_RATES],
    )


EXPERIMENTS = {
    "throughput": throughput,
    "latency": latency,
    "connections": connections,
    "workers-one-core": workers_on_one_core,
    "workers-all-cores": workers_on_all_cores,
}
