"""The HTTP endpoint of the metrics: health, readiness, slow and many clients."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import itertools
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, NoReturn

import iproto
from iproto import FuncID
from iproto.sockets import SpareDescriptor
from tests.helpers.harness import PATIENCE, frame, serve_process, serving
from tests.helpers.metrics import get, parse

if TYPE_CHECKING:
    import pytest

    from iproto.address import Address


def test_a_scrape_may_name_its_metrics() -> None:
    with serving(metrics_bind="127.0.0.1:0") as served:
        metrics = served.server.metrics_address
        query = "/metrics?name[]=storage_reads_total&name[]=iproto_ready"
        status, text = get(metrics, query)
        assert (status, set(parse(text))) == (200, {"storage_reads_total", "iproto_ready"})
        status, text = get(metrics, "/metrics?name[]=iproto_connections_closed")
        assert (status, set(parse(text))) == (200, {"iproto_connections_closed_total"})
        status, text = get(metrics, "/metrics?name[]=nothing")
        assert (status, text) == (404, "no metric is called nothing\n")


def test_head_is_get_without_the_body_and_other_methods_are_refused() -> None:
    with serving(metrics_bind="127.0.0.1:0") as served:
        metrics = served.server.metrics_address
        assert metrics is not None
        for path, status in (("/metrics", 200), ("/readyz", 200), ("/", 404)):
            raw = exchange(metrics, f"HEAD {path} HTTP/1.0\r\n\r\n")
            head, _, body = raw.partition("\n\n")
            assert (head.split()[1], body) == (str(status), "")
            length = re.search(r"^Content-Length: (\d+)$", head, re.MULTILINE)
            assert length is not None
            if path != "/metrics":
                assert int(length[1]) == len(get(metrics, path)[1])
        raw = exchange(metrics, "POST /metrics HTTP/1.0\r\n\r\n")
        assert raw.split()[1] == "405"
        assert "\nAllow: GET, HEAD" in raw


def exchange(address: Address, request: str) -> str:
    """All bytes that come for a request, as they come."""
    with socket.create_connection((address.host, address.port), PATIENCE) as sock:
        sock.sendall(request.encode())
        with sock.makefile("rb") as file:
            return file.read().decode().replace("\r\n", "\n")


def test_silent_clients_do_not_keep_health_from_its_answer() -> None:
    """Far more of them than are served at once, and the time-out is far away."""
    with serving(metrics_bind="127.0.0.1:0") as served, contextlib.ExitStack() as stack:
        metrics = served.server.metrics_address
        assert metrics is not None
        for _ in range(65):
            silent = socket.create_connection((metrics.host, metrics.port), PATIENCE)
            stack.enter_context(silent)
        begun = time.monotonic()
        for path in ("/healthz", "/readyz", "/metrics") * 3:
            assert get(metrics, path)[0] == 200
        # None of them waited for a silent client's time: that is 5 seconds for each.
        assert time.monotonic() - begun < 5


def test_healthz_and_readyz_follow_the_server() -> None:
    app = iproto.App()
    gate = asyncio.Event()
    app.function(0x30001, name="wait")(gate.wait)
    with serving(app, metrics_bind="127.0.0.1:0") as served, served.peer() as peer:
        metrics = served.server.metrics_address
        assert get(metrics, "/healthz") == (200, "alive\n")
        assert get(metrics, "/readyz") == (200, "ready\n")
        status, text = get(metrics, "/")
        assert (status, "/metrics" in text) == (404, True)
        peer.send(frame(0x30001) + frame(FuncID.PING))
        assert peer.reply().func_id == FuncID.PING
        draining = asyncio.run_coroutine_threadsafe(served.server.drain(), served.loop)

        async def begun() -> None:
            while served.server.ready:
                await asyncio.sleep(0.001)

        served.run(begun())
        assert get(metrics, "/readyz") == (503, "not accepting\n")
        assert get(metrics, "/healthz")[0] == 200
        served.loop.call_soon_threadsafe(gate.set)
        assert peer.reply().func_id == 0x30001
        peer.sock.close()
        assert draining.result(PATIENCE)


def test_healthz_tells_that_the_loop_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iproto.metrics.endpoint.STUCK_AFTER", 0.05)
    monkeypatch.setattr("iproto.server.heartbeat.PERIOD", 0.01)
    app = iproto.App()
    release = threading.Event()
    app.function(0x30001, name="block")(lambda: release.wait(PATIENCE))
    with serving(app, metrics_bind="127.0.0.1:0") as served, served.peer() as peer:
        peer.send(frame(0x30001))
        end = time.monotonic() + PATIENCE
        while (answer := get(served.server.metrics_address, "/healthz"))[0] == 200:
            assert time.monotonic() < end
        assert "has not run for" in answer[1]
        release.set()
        assert peer.reply().value is True


def counted_accepts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the endpoint tried to accept a connection; every try fails."""
    tries: list[float] = []

    def fail(_self: object, _listener: object) -> NoReturn:
        tries.append(time.monotonic())
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(SpareDescriptor, "accept", fail)
    return tries


def test_the_endpoint_waits_after_accepting_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the process is out of files: the listener stays readable all the time."""
    with serving(metrics_bind="127.0.0.1:0") as served:
        metrics = served.server.metrics_address
        assert metrics is not None
        with monkeypatch.context() as patch:
            tries = counted_accepts(patch)
            with socket.create_connection((metrics.host, metrics.port)):
                threading.Event().wait(1.2)
        assert 1 <= len(tries) <= 4
        assert all(b - a >= 0.4 for a, b in itertools.pairwise(tries))
        # It goes on as soon as accepting succeeds, more often than there are threads.
        for _ in range(20):
            assert get(metrics, "/readyz") == (200, "ready\n")


def test_a_request_that_dribbles_in_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iproto.metrics.http.REQUEST_TIMEOUT", 0.3)
    with serving(metrics_bind="127.0.0.1:0") as served:
        metrics = served.server.metrics_address
        assert metrics is not None
        with socket.create_connection((metrics.host, metrics.port), PATIENCE) as slow:
            slow.settimeout(0.02)  # of each look whether it was closed
            end = time.monotonic() + PATIENCE
            with contextlib.suppress(ConnectionError):
                while True:
                    assert time.monotonic() < end
                    slow.sendall(b"x")
                    with contextlib.suppress(TimeoutError):
                        if slow.recv(1) == b"":
                            break


def test_the_threads_of_the_endpoint_are_bounded_and_come_back() -> None:
    """A connection over the bound is served, and one that was silent for long is cut off."""
    with serving(metrics_bind="127.0.0.1:0") as served:
        metrics = served.server.metrics_address
        assert metrics is not None
        before = threading.active_count()
        silent = [socket.create_connection((metrics.host, metrics.port)) for _ in range(40)]
        end = time.monotonic() + PATIENCE
        while threading.active_count() - before < 16:
            assert time.monotonic() < end
        for _ in range(20):
            assert threading.active_count() - before <= 16
            threading.Event().wait(0.01)
        assert get(metrics, "/readyz") == (200, "ready\n")
        for sock in silent:
            sock.close()
        for _ in range(20):
            assert get(metrics, "/readyz") == (200, "ready\n")


def test_the_process_serves_its_metrics_where_it_says() -> None:
    with serve_process() as running, running.peer() as peer:
        assert peer.read(0) == ""
        host, port = running.metrics.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        connection.request("GET", "/metrics")
        assert "storage_reads_total 1.0" in connection.getresponse().read().decode()
        connection.close()
