"""The metrics of a scrape: which there are, and that they add up."""

from __future__ import annotations

import resource
import sys
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

import iproto
from iproto import FuncID
from tests.helpers.harness import PATIENCE, frame, read_frame, replace_frame, serving
from tests.helpers.metrics import get, scrape, value


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
    functions = [*iproto.FuncID.__members__, "unknown", "DESCRIBE_FUNCTIONS", "mine"]
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
