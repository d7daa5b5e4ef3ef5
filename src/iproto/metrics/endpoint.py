"""The HTTP endpoint: what /metrics, /healthz and /readyz answer."""

from __future__ import annotations

import asyncio
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
)

from iproto.address import Address, address_of
from iproto.errors import ConfigError
from iproto.metrics.collectors import (
    NamedCollector,
    Source,
    StorageCollector,
    YieldingCollector,
    why_not_ready,
)
from iproto.metrics.http import HTTPServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client.registry import Collector

# Seconds for which the loop may not have run before /healthz says so. A
# user function that blocks the loop for so long is a defect.
STUCK_AFTER = 10.0


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
            registry.register(YieldingCollector(collector))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._registry = registry
        self._scraping = threading.Lock()  # many at once would take each other's time
        try:
            self._http = HTTPServer.on(address, self._answer, listener)
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
        method = environ["REQUEST_METHOD"]
        if method == "GET":
            return self._get(environ, start_response)
        if method != "HEAD":
            refused = HTTPStatus.METHOD_NOT_ALLOWED
            return _plain(start_response, refused, "use GET or HEAD", Allow="GET, HEAD")
        head: list[Any] = []

        def keep(*given: Any) -> Callable[[bytes], object]:
            head.extend(given)
            return lambda _: None

        body = b"".join(self._get(environ, keep))
        start_response(head[0], [*head[1], ("Content-Length", str(len(body)))])
        return []

    def _get(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            with self._scraping:
                return self._metrics(environ, start_response)
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
            why = why_not_ready(self._source)
            if why is None:
                return _plain(start_response, HTTPStatus.OK, "ready")
            return _plain(start_response, HTTPStatus.SERVICE_UNAVAILABLE, why)
        return _plain(
            start_response, HTTPStatus.NOT_FOUND, "here are /metrics, /healthz and /readyz"
        )

    def _metrics(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        registry = self._registry
        names = parse_qs(environ.get("QUERY_STRING", "")).get("name[]")
        if names:
            named = NamedCollector(registry, names)
            if not named.metrics:
                text = f"no metric is called {' or '.join(names)}"
                return _plain(start_response, HTTPStatus.NOT_FOUND, text)
            registry = CollectorRegistry(auto_describe=False)
            registry.register(named)
        answer: Iterable[bytes] = make_wsgi_app(registry)(
            {**environ, "REQUEST_METHOD": "GET", "QUERY_STRING": ""}, start_response
        )
        return answer


def _plain(
    start_response: StartResponse, status: HTTPStatus, text: str, **headers: str
) -> Iterable[bytes]:
    start_response(
        f"{status.value} {status.phrase}",
        [("Content-Type", "text/plain; charset=utf-8"), *headers.items()],
    )
    return [text.encode() + b"\n"]
