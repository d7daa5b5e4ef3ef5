"""The metrics, scraped from a running server over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import itertools
import re
import resource
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

import pytest
from prometheus_client.parser import text_string_to_metric_families

import iproto
from iproto import FuncID
from iproto.sockets import SpareDescriptor
from tests.helpers.harness import (
    PATIENCE,
    Served,
    frame,
    read_frame,
    replace_frame,
    serve_process,
    serving,
)

if TYPE_CHECKING:
    from iproto.address import Address

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def get(address: Address | None, path: str) -> tuple[int, str]:
    assert address is not None
    connection = http.client.HTTPConnection(address.host, address.port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def parse(text: str) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def scrape(served: Served) -> Samples:
    status, text = get(served.server.metrics_address, "/metrics")
    assert status == 200
    return parse(text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name][tuple(sorted(labels.items()))]


def test_the_tasks_names_are_there_and_add_up(loop_name: str) -> None:
    with serving(loop=loop_name, metrics_bind="127.0.0.1:0") as served, served.peer() as peer:
        peer.send(
            b"".join(replace_frame(i, "x") for i in range(10))
            + b"".join(read_frame(i) for i in range(20))
            + read_frame(1000)
            + frame(FuncID.STORAGE_READ, b"\xc3")
            + frame(FuncID.ADM_STORAGE_SWITCH_READONLY, b"\xc0")
            + replace_frame(0, "y")
            + frame(FuncID.ADM_STORAGE_SWITCH_MAINTENANCE, b"\xc0") * 2
            + read_frame(0)
            + frame(FuncID.ADM_STORAGE_SWITCH_READWRITE, b"\xc0") * 3
            + frame(FuncID.ADM_STORAGE_SWITCH_READWRITE, b"\xc2")
        )
        peer.replies(41)
        samples = scrape(served)
        expected = {
            "storage_reads_total": 23,
            "storage_successful_reads_total": 20,
            "storage_error_reads_total": 3,
            "storage_writes_total": 11,
            "storage_successful_writes_total": 10,
            "storage_error_writes_total": 1,
            "change_storage_state_on_read_only_total": 1,
            "change_storage_state_on_maintenance_total": 2,
            "change_storage_state_on_read_write_total": 3,
            "active_connections": 1,
        }
        assert {name: value(samples, name) for name in expected} == expected
        codes = {
            (dict(labels)["function"], dict(labels)["code"]): count
            for labels, count in samples["iproto_requests_total"].items()
            if count
        }
        assert codes == {
            ("STORAGE_REPLACE", "OK"): 10,
            ("STORAGE_REPLACE", "READ_ONLY"): 1,
            ("STORAGE_READ", "OK"): 20,
            ("STORAGE_READ", "NUMBER_OUT_OF_RANGE"): 1,
            ("STORAGE_READ", "ILLEGAL_PARAMS"): 1,
            ("STORAGE_READ", "LOCKED"): 1,
            ("ADM_STORAGE_SWITCH_READONLY", "OK"): 1,
            ("ADM_STORAGE_SWITCH_MAINTENANCE", "OK"): 2,
            ("ADM_STORAGE_SWITCH_READWRITE", "OK"): 3,
            ("ADM_STORAGE_SWITCH_READWRITE", "ILLEGAL_PARAMS"): 1,
        }
        for function in ("STORAGE_READ", "STORAGE_REPLACE"):
            answered = sum(count for (name, _), count in codes.items() if name == function)
            assert value(samples, "iproto_service_seconds_count", function=function) == answered
            assert (
                value(samples, "iproto_service_seconds_bucket", function=function, le="+Inf")
                == answered
            )
            assert value(samples, "iproto_service_seconds_sum", function=function) > 0


def test_bytes_and_connections_are_counted() -> None:
    with serving(metrics_bind="127.0.0.1:0") as served:
        with served.peer() as peer:
            peer.send(read_frame(0))
            assert peer.reply().code == 0
        with served.peer() as peer:
            peer.send(frame(FuncID.SHUTDOWN))
            assert peer.rest() == frame(FuncID.SHUTDOWN)
        served.wait_closed(2)
        samples = scrape(served)
        assert value(samples, "iproto_received_bytes_total") == 13 + 12
        assert value(samples, "iproto_sent_bytes_total") == 17 + 12
        assert value(samples, "iproto_connections_opened_total") == 2
        assert value(samples, "iproto_connections_closed_total", reason="client") == 1
        assert value(samples, "iproto_connections_closed_total", reason="shutdown") == 1
        assert len(samples["iproto_connections_closed_total"]) == len(iproto.CloseReason)
        assert value(samples, "active_connections") == 0


def test_users_functions_have_their_names_and_the_unknown_share_one() -> None:
    app = iproto.App()

    @app.function(0x30001)
    async def repeat(text: str) -> str:
        return text * 2

    with serving(app, metrics_bind="127.0.0.1:0") as served, served.peer() as peer:
        assert peer.ask(0x30001, b"\xa1x").code == 0
        assert peer.ask(0x30001, b"\x01").code != 0
        for unknown in range(50):
            assert peer.ask(0x40000 + unknown).code != 0
        samples = scrape(served)
        assert value(samples, "iproto_requests_total", function="repeat", code="OK") == 1
        assert (
            value(samples, "iproto_requests_total", function="repeat", code="ILLEGAL_PARAMS") == 1
        )
        assert (
            value(samples, "iproto_requests_total", function="unknown", code="UNSUPPORTED_COMMAND")
            == 50
        )
        assert value(samples, "iproto_service_seconds_count", function="repeat") == 2


def test_every_series_of_the_known_functions_is_there_from_the_start() -> None:
    app = iproto.App()
    app.function(0x30001, name="mine")(lambda: None)
    functions = [*iproto.FuncID.__members__, "unknown", "mine"]
    with serving(app, metrics_bind="127.0.0.1:0") as served:
        samples = scrape(served)
    expected = {
        (("code", code), ("function", function))
        for function in functions
        for code in [*iproto.ReturnCode.__members__, "other"]
    }
    assert samples["iproto_requests_total"] == dict.fromkeys(expected, 0.0)
    for function in functions:
        assert value(samples, "iproto_service_seconds_count", function=function) == 0


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


def test_the_state_is_one_of_three() -> None:
    storage = iproto.Storage()
    with serving(storage=storage, metrics_bind="127.0.0.1:0") as served:
        for state in iproto.State:
            storage.switch(state)
            states = scrape(served)["iproto_storage_state"]
            assert {dict(labels)["state"]: on for labels, on in states.items()} == {
                other.name: float(other is state) for other in iproto.State
            }


def test_process_loop_and_build_are_described() -> None:
    with serving(metrics_bind="127.0.0.1:0") as served:
        samples = scrape(served)
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        expected = -1 if limit == resource.RLIM_INFINITY else limit
        assert value(samples, "process_virtual_memory_max_bytes") == expected
        assert value(samples, "iproto_asyncio_tasks") >= 1
        assert value(samples, "go_goroutines") == value(samples, "iproto_asyncio_tasks")
        assert value(samples, "iproto_ready") == 1
        assert "iproto_event_loop_lag_seconds_count" in samples
        ((build, on),) = samples["iproto_build_info"].items()
        assert on == 1
        assert dict(build)["version"] == iproto.__version__


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_process_family_is_there() -> None:
    with serving(metrics_bind="127.0.0.1:0") as served:
        samples = scrape(served)
        for name in (
            "process_cpu_seconds_total",
            "process_open_fds",
            "process_max_fds",
            "process_start_time_seconds",
            "process_virtual_memory_bytes",
            "process_resident_memory_bytes",
        ):
            assert value(samples, name) > 0


def test_names_keep_prometheus_rules() -> None:
    """Counters end in _total, units are base units, help is there."""
    with serving(metrics_bind="127.0.0.1:0") as served, served.peer() as peer:
        assert peer.read(0) == ""
        _, text = get(served.server.metrics_address, "/metrics")
        for family in text_string_to_metric_families(text):
            assert family.documentation, family.name
            if family.type == "counter":
                assert all(sample.name.endswith("_total") for sample in family.samples)
            assert not any(word in family.name for word in ("_ms", "milli", "nano", "_kb"))


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


def test_a_scrape_while_the_server_is_busy_is_whole() -> None:
    with serving(metrics_bind="127.0.0.1:0") as served, served.peer() as peer:
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                peer.send(read_frame(0) * 100)
                peer.replies(100)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            before = 0.0
            for _ in range(10):
                samples = scrape(served)
                reads = value(samples, "storage_reads_total")
                assert reads >= before
                assert reads == value(samples, "storage_successful_reads_total")
                before = reads
        finally:
            stop.set()
            thread.join(PATIENCE)


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
