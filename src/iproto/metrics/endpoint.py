"""Prometheus metrics over the native counters, and the HTTP endpoint.

The hot path only bumps words in the store; everything here happens when
somebody scrapes, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import io
import os
import platform
import resource
import socket
import threading
import time
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from iproto._fastframe import BUCKET_BOUNDS, CODE_COLUMNS, ROW_OF_UNKNOWN, ROWS, Storage
from iproto._version import __version__
from iproto.address import Address, address_of
from iproto.errors import ConfigError
from iproto.server.heartbeat import PERIOD
from iproto.wire import CloseReason, FuncID, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

# Seconds for which the loop may not have run before /healthz says so. A
# function of a user's that blocks the loop for so long is a defect.
STUCK_AFTER = 10.0

# Seconds that a scrape sleeps after each metric, so that the event loop's
# thread gets the GIL: a scrape makes no pause longer than one metric takes.
YIELD = 0.0002

# Seconds for a client of the endpoint to send its whole request, and then for
# each part of the answer (head and body) to be taken.
REQUEST_TIMEOUT = 5.0

# Requests answered at once, each in a thread; more wait to be accepted.
REQUESTS_AT_ONCE = 16

# Seconds without accepting after that failed: while the process is out of file
# descriptors the listener stays readable, and trying at once would use up a CPU.
ACCEPT_PAUSE = 0.5


# Seconds that an upgrade waits for requests that are being answered.
SUSPEND_WAIT = 2.0


class Source(Protocol):
    """What the metrics are about: a server."""

    storage: Storage

    @property
    def ready(self) -> bool: ...
    @property
    def silent_seconds(self) -> float: ...


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
            if not any(answered):
                continue
            for column, code in enumerate(columns):
                if answered[column]:
                    requests.add_metric([name, code], answered[column])
            seconds.add_metric(
                [name],
                buckets=_cumulative(counters["buckets"][row]),
                sum_value=counters["nanoseconds"][row] / 1e9,
            )
        yield requests
        yield seconds

    def _loop_metrics(self, counters: Any) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "iproto_asyncio_tasks", "asyncio tasks that are running", counters["tasks"]
        )
        lag = HistogramMetricFamily(
            "iproto_event_loop_lag_seconds",
            f"Lateness of a timer that the event loop was to run, looked at every {PERIOD} s",
        )
        lag.add_metric(
            [],
            buckets=_cumulative(counters["lag_buckets"]),
            sum_value=counters["lag_nanoseconds"] / 1e9,
        )
        yield lag

    def _state_metrics(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "iproto_ready", "1 while connections are accepted", int(self._source.ready)
        )
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
            requests answered, CPU seconds used, resident bytes, and restarts.
    """

    def __init__(
        self, figures: Callable[[], Iterable[tuple[int, int, int, float, int, int]]]
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
        ]
        for position, *values in self._figures():
            for family, value in zip(families, values, strict=True):
                family.add_metric([str(position)], value)
        yield from families


class _YieldingCollector(Collector):
    """Another collector, with a short sleep after each metric; see YIELD."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():
            yield metric
            time.sleep(YIELD)


class MetricsEndpoint:
    """Serves /metrics, /healthz and /readyz over HTTP, from a thread.

    Args:
        address: where to listen.
        source: the server.
        more: collectors beside that of the storage.
        listener: descriptor of a socket that listens at the address already; it is
            copied, not closed. None to bind one.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        address: Address,
        source: Source,
        more: Iterable[Collector] = (),
        *,
        listener: int | None = None,
    ) -> None:
        self._source = source
        registry = CollectorRegistry(auto_describe=False)
        for collector in (StorageCollector(source), *more):
            registry.register(_YieldingCollector(collector))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._metrics_app: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        try:
            self._http = _HTTPServer.on(address, self._answer, listener)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address} for metrics: {error.strerror or error}; "
                "choose another with --metrics-bind, or 'off'"
            ) from None
        self.address = address_of(self._http.socket)
        self._thread: threading.Thread
        self.resume()

    def fileno(self) -> int:
        """The descriptor of the listening socket."""
        return self._http.fileno()

    def resume(self) -> None:
        """Answers requests, from a thread; connections that have waited come first."""
        self._thread = threading.Thread(
            target=self._http.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="iproto-metrics",
            daemon=True,
        )
        self._thread.start()

    async def suspend(self) -> None:
        """Finishes the requests that have begun; later ones wait at the socket until ``resume``."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._http.shutdown)
        self._thread.join()
        await loop.run_in_executor(None, self._http.finish_requests)

    async def close(self) -> None:
        """Stops listening, and waits for the thread."""
        await asyncio.get_running_loop().run_in_executor(None, self._http.shutdown)
        self._http.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return self._metrics_app(environ, start_response)
        if path == "/healthz":
            silent = self._source.silent_seconds
            if silent < STUCK_AFTER:
                return _plain(start_response, HTTPStatus.OK, "alive")
            return _plain(
                start_response,
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the event loop has not run for {silent:.1f} s",
            )
        if path == "/readyz":
            if self._source.ready:
                return _plain(start_response, HTTPStatus.OK, "ready")
            return _plain(start_response, HTTPStatus.SERVICE_UNAVAILABLE, "not accepting")
        return _plain(
            start_response, HTTPStatus.NOT_FOUND, "here are /metrics, /healthz and /readyz"
        )


class _RequestReader(io.RawIOBase):
    """Reads a socket for REQUEST_TIMEOUT in all, however the bytes dribble in."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._end = time.monotonic() + REQUEST_TIMEOUT

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        try:
            return self._sock.recv_into(buffer)
        finally:
            self._sock.settimeout(REQUEST_TIMEOUT)


class _RequestHandler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_RequestReader(self.connection))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds is no news."""


class _HTTPServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int]) -> None:
        self._free = threading.Semaphore(REQUESTS_AT_ONCE)
        super().__init__(address, _RequestHandler, bind_and_activate=False)

    @classmethod
    def on(cls, address: Address, app: Any, listener: int | None) -> _HTTPServer:
        kind = _HTTPServer6 if ":" in address.host else cls
        server = kind((address.host, address.port))
        try:
            if listener is None:
                server.server_bind()
                server.server_activate()
            else:
                server.socket.close()
                server.socket = socket.socket(fileno=os.dup(listener))
                server._name_itself()
        except BaseException:
            server.server_close()
            raise
        server.set_app(app)
        return server

    def finish_requests(self) -> None:
        """Waits for the requests that are being answered, SUSPEND_WAIT seconds at most."""
        end = time.monotonic() + SUSPEND_WAIT
        taken = 0
        while taken < REQUESTS_AT_ONCE:
            if not self._free.acquire(timeout=max(0.0, end - time.monotonic())):
                break
            taken += 1
        for _ in range(taken):
            self._free.release()

    def server_bind(self) -> None:
        # As in the base class, without its reverse look-up of the host's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self._name_itself()

    def _name_itself(self) -> None:
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.server_address = (self.server_name, self.server_port)
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        # The base class swallows an OSError, and comes back if the listener is readable.
        if not self._free.acquire(timeout=ACCEPT_PAUSE):
            raise TimeoutError
        try:
            return super().get_request()
        except OSError:
            self._free.release()
            time.sleep(ACCEPT_PAUSE)
            raise

    def shutdown_request(self, request: Any) -> None:
        # The base class calls it once for every request, whatever became of it.
        try:
            super().shutdown_request(request)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client of the endpoint that goes away is no news."""


class _HTTPServer6(_HTTPServer):
    address_family = socket.AF_INET6


def _plain(start_response: StartResponse, status: HTTPStatus, text: str) -> Iterable[bytes]:
    start_response(
        f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")]
    )
    return [text.encode() + b"\n"]


def _counter(name: str, documentation: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, documentation, value)


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    total = 0
    buckets = []
    for bound, count in zip((*BUCKET_BOUNDS, float("inf")), counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
    return buckets
