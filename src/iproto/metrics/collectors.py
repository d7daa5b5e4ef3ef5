"""Prometheus metrics over the native counters.

The hot path only bumps words in the store; everything here happens at a scrape.
"""

from __future__ import annotations

import contextlib
import platform
import resource
import time
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from iproto._fastframe import (
    BUCKET_BOUNDS,
    CODE_COLUMNS,
    LAG_BUCKET_BOUNDS,
    ROW_OF_UNKNOWN,
    ROWS,
    Storage,
)
from iproto._version import __version__
from iproto.errors import InternalError
from iproto.wire import CloseReason, FuncID, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Seconds that a scrape sleeps after each metric, so that the event loop's
# thread gets the GIL: a scrape makes no pause longer than one metric takes.
YIELD = 0.0002


class WatchedFile(Protocol):
    """The file that a storage is in, while it is watched."""

    KINDS: ClassVar[tuple[str, ...]]

    @property
    def problem(self) -> tuple[str, str, bool] | None:
        """Its kind, what happened to the file, and whether that loses writes."""
        ...


class Source(Protocol):
    """What the metrics are about: a server."""

    storage: Storage
    file_watch: WatchedFile | None

    @property
    def ready(self) -> bool: ...
    @property
    def silent_seconds(self) -> float: ...


def why_not_ready(source: Source) -> str | None:
    """Why no client should be sent here; None if all is well."""
    if not source.ready:
        return "not accepting"
    problem = None if source.file_watch is None else source.file_watch.problem
    if problem is not None and problem[2]:
        return f"the storage file {problem[1]}"
    return None


class StorageCollector(Collector):
    """The metrics of one storage and of who serves it.

    Args:
        source: the server.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._storage = source.storage

    def describe(self) -> Iterable[Metric]:
        """Nothing: saves the registry a collection at registration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Reads the counters once; every metric of a scrape is of the same moment."""
        counters = self._storage.counters()
        yield from self._storage_metrics(counters["requests"])
        yield from self._connection_metrics(counters)
        yield from self._function_metrics(counters)
        yield from self._loop_metrics(counters)
        yield from self._state_metrics()

    def _storage_metrics(self, requests: list[list[int]]) -> Iterator[Metric]:
        for func_id, name in ((FuncID.STORAGE_READ, "read"), (FuncID.STORAGE_REPLACE, "write")):
            codes = requests[ROWS.index(func_id)]
            total, succeeded = sum(codes), codes[0]
            yield _counter(f"storage_{name}s", f"Storage {name}s asked for", total)
            yield _counter(f"storage_successful_{name}s", f"Storage {name}s done", succeeded)
            yield _counter(f"storage_error_{name}s", f"Storage {name}s refused", total - succeeded)
        for func_id, state in (
            (FuncID.ADM_STORAGE_SWITCH_READWRITE, "read_write"),
            (FuncID.ADM_STORAGE_SWITCH_READONLY, "read_only"),
            (FuncID.ADM_STORAGE_SWITCH_MAINTENANCE, "maintenance"),
        ):
            yield _counter(
                f"change_storage_state_on_{state}",
                f"Switches of the storage to {state.upper()}",
                requests[ROWS.index(func_id)][0],
            )

    def _connection_metrics(self, counters: Any) -> Iterator[Metric]:
        opened, closed = counters["opened"], counters["closed"]
        yield GaugeMetricFamily("active_connections", "Connections open now", opened - sum(closed))
        yield _counter("iproto_connections_opened", "Connections accepted", opened)
        by_reason = CounterMetricFamily(
            "iproto_connections_closed", "Connections closed, by reason", labels=["reason"]
        )
        for reason in CloseReason:
            by_reason.add_metric([reason.name.lower()], closed[reason])
        yield by_reason
        yield _counter("iproto_received_bytes", "Bytes received", counters["bytes_in"])
        yield _counter("iproto_sent_bytes", "Bytes of replies built", counters["bytes_out"])

    def _function_metrics(self, counters: Any) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "iproto_requests",
            "Requests answered, by function and return code",
            labels=["function", "code"],
        )
        seconds = HistogramMetricFamily(
            "iproto_service_seconds",
            "From a request's arrival to its reply handed to the socket",
            labels=["function"],
        )
        names = {row: func_id.name for row, func_id in enumerate(ROWS)}
        names[ROW_OF_UNKNOWN] = "unknown"
        names |= self._storage.row_names
        columns = [code.name for code in CODE_COLUMNS] + ["other"]
        for row, name in names.items():
            answered = counters["requests"][row]
            # Every series is there from the start, with 0: rate() misses the first
            # failures of one that appears with them.
            for column, code in enumerate(columns):
                requests.add_metric([name, code], answered[column])
            seconds.add_metric(
                [name],
                buckets=_cumulative(counters["buckets"][row], BUCKET_BOUNDS),
                sum_value=counters["nanoseconds"][row] / 1e9,
            )
        yield requests
        yield seconds

    def _loop_metrics(self, counters: Any) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "iproto_asyncio_tasks",
            "asyncio tasks that are running, of all worker processes together",
            counters["tasks"],
        )
        yield GaugeMetricFamily(
            "go_goroutines",
            "The same, by the name that dashboards for services in Go have for it",
            counters["tasks"],
        )
        yield _counter(
            "iproto_log_lines_dropped",
            "Log lines that were dropped, for nobody read them in time",
            counters["dropped_lines"],
        )
        lag = HistogramMetricFamily(
            "iproto_event_loop_lag_seconds",
            "Lateness of a timer that the event loop was to run",
        )
        lag.add_metric(
            [],
            buckets=_cumulative(counters["lag_buckets"], LAG_BUCKET_BOUNDS),
            sum_value=counters["lag_nanoseconds"] / 1e9,
        )
        yield lag

    def _state_metrics(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "iproto_ready", "1 while clients are welcome", int(why_not_ready(self._source) is None)
        )
        if self._source.file_watch is not None:
            problem = self._source.file_watch.problem
            problems = GaugeMetricFamily(
                "iproto_storage_file_problem",
                "1 for what is wrong with the storage file that is served, 0 for the others",
                labels=["problem"],
            )
            for kind in self._source.file_watch.KINDS:
                problems.add_metric([kind], int(problem is not None and problem[0] == kind))
            yield problems
        current = None
        with contextlib.suppress(InternalError):  # it is damaged, and none of the three
            current = self._storage.state
        states = GaugeMetricFamily(
            "iproto_storage_state", "1 for the storage's state, 0 for the others", labels=["state"]
        )
        for state in State:
            states.add_metric([state.name], int(state is current))
        yield states
        build = InfoMetricFamily("iproto_build", "What is running")
        build.add_metric([], {"version": __version__, "python": platform.python_version()})
        yield build
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        yield GaugeMetricFamily(
            "process_virtual_memory_max_bytes",
            "Maximum amount of virtual memory available in bytes (-1: unlimited)",
            -1 if limit == resource.RLIM_INFINITY else limit,
        )


class WorkersCollector(Collector):
    """One series for each position of a worker process.

    A position stays when its worker is replaced, so no counter goes down and
    no series is left behind.

    Args:
        figures: looks them up: for each position its number, connections open now,
            requests answered, CPU seconds used, resident bytes, restarts, open
            descriptors, and how many may be open.
    """

    def __init__(
        self, figures: Callable[[], Iterable[tuple[int, int, int, float, int, int, int, int]]]
    ) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """Nothing: saves the registry a collection at registration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Looks at every worker once."""
        labels = ["worker"]
        families: list[GaugeMetricFamily | CounterMetricFamily] = [
            GaugeMetricFamily("iproto_worker_connections", "Connections open now", labels=labels),
            CounterMetricFamily("iproto_worker_requests", "Requests answered", labels=labels),
            CounterMetricFamily("iproto_worker_cpu_seconds", "CPU time used", labels=labels),
            GaugeMetricFamily(
                "iproto_worker_resident_memory_bytes", "Resident memory now", labels=labels
            ),
            CounterMetricFamily(
                "iproto_worker_restarts", "Workers that died and were replaced", labels=labels
            ),
            GaugeMetricFamily("iproto_worker_open_fds", "Open file descriptors", labels=labels),
            GaugeMetricFamily(
                "iproto_worker_max_fds", "File descriptors that may be open", labels=labels
            ),
        ]
        for position, *values in self._figures():
            for family, value in zip(families, values, strict=True):
                family.add_metric([str(position)], value)
        yield from families


class NamedCollector(Collector):
    """The metrics of certain names, collected at once.

    Args:
        collector: of all metrics.
        names: of metrics, or of their samples: ``storage_reads`` or ``storage_reads_total``.
    """

    def __init__(self, collector: Collector, names: Iterable[str]) -> None:
        wanted = set(names)
        self.metrics: list[Metric] = []
        """Those that there are."""
        for metric in collector.collect():
            samples = [s for s in metric.samples if wanted & {metric.name, s.name}]
            if samples:
                metric.samples = samples
                self.metrics.append(metric)

    def describe(self) -> Iterable[Metric]:
        """Nothing: saves the registry a collection at registration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Those metrics."""
        yield from self.metrics


class YieldingCollector(Collector):
    """Another collector, with a short sleep after each metric; see YIELD."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def describe(self) -> Iterable[Metric]:
        """Nothing: saves the registry a collection at registration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """What the other one collects, with pauses."""
        for metric in self._collector.collect():
            yield metric
            time.sleep(YIELD)


def _counter(name: str, documentation: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, documentation, value)


def _cumulative(counts: list[int], bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    total = 0
    buckets = []
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
    return buckets
