"""New code and new versions, in one worker after the other."""

from __future__ import annotations

import http.client
import os
import re
import signal
import threading
from pathlib import Path

import pytest

from iproto import FuncID, ReturnCode
from tests.helpers.harness import PATIENCE, replace_frame
from tests.helpers.metrics import value
from tests.helpers.workers import APP, Resender, installed, pids, scrape, supervised, write_code
from tests.workers.restarts import restart_under_load

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc"
)


def test_sighup_brings_new_code_in_one_worker_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(APP.format(version=1))
    with supervised("service:app", cwd=tmp_path) as running:
        old = set(pids(running))
        with running.peer() as peer:
            peer.send(replace_frame(3, "kept"))
            assert peer.reply().code == 0
            assert peer.ask(0x30001).value == 1
        write_code(tmp_path, APP.format(version=2))
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("restarted$")
        assert not old & set(pids(running))
        for _ in range(8):
            with running.peer() as peer:
                assert peer.ask(0x30001).value == 2
                assert peer.read(3) == "kept"
        assert value(scrape(running), "iproto_requests_total", function="version", code="OK") == 9


def test_sighup_with_code_that_cannot_start_keeps_the_old_workers(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(APP.format(version=1))
    with supervised("service:app", cwd=tmp_path) as running:
        old = set(pids(running))
        write_code(tmp_path, "app = nothing\n")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("cannot start; the old ones stay")
        assert set(pids(running)) == old
        with running.peer() as peer:
            assert peer.ask(0x30001).value == 1


def test_sigusr2_upgrades_in_place_with_nothing_lost(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(APP.format(version=1))
    with supervised("service:app", cwd=tmp_path) as running:
        old = set(pids(running))
        with running.peer() as peer:
            peer.send(replace_frame(3, "kept"))
            assert peer.reply().code == 0
            assert peer.ask(0x30001).value == 1
            assert peer.ask(FuncID.ADM_STORAGE_SWITCH_READONLY).code == 0
        before = scrape(running)
        write_code(tmp_path, APP.format(version=2))
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for("upgrading$")
        again = running.wait_for(r"INFO.* serving (.*) \(dialect.*\), metrics on (\S+)/metrics")
        running.wait_for("restarted$")
        assert again[1].split(", ") == running.addresses
        running.metrics = again[2]
        assert running.process.poll() is None  # the same process all the time
        assert len(pids(running)) == 2
        assert not old & set(pids(running))
        with running.peer() as peer:
            assert peer.ask(0x30001).value == 2
            assert peer.read(3) == "kept"
            peer.send(replace_frame(3, "x"))
            assert peer.reply().code == ReturnCode.READ_ONLY
        after = scrape(running)
        for name in ("storage_writes_total", "iproto_connections_opened_total"):
            assert value(after, name) == value(before, name) + 1
        for name in ("iproto_worker_requests_total", "iproto_worker_cpu_seconds_total"):
            assert all(after[name][label] >= before[name][label] for label in before[name])
        assert value(after, "iproto_requests_total", function="version", code="OK") == 2
        # It is as much a supervisor as before.
        os.kill(pids(running)[0], signal.SIGKILL)
        running.wait_for("starting another")
        running.wait_for("is ready")
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0


def test_a_take_over_that_fails_leaves_the_workers_serving_and_is_tried_again(
    tmp_path: Path,
) -> None:
    with installed(tmp_path) as running:
        old = set(pids(running))
        supervisor = tmp_path / "iproto" / "workers" / "supervisor.py"
        text = supervisor.read_text()
        # The trial finds nothing: this fails after it only.
        supervisor.write_text(
            text.replace(
                "        try:\n            self._open_metrics()",
                "        try:\n            1 / 0\n            self._open_metrics()",
            )
        )
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for("the new version cannot take over: ZeroDivisionError")
        assert set(pids(running)) == old
        with running.peer() as peer:
            assert peer.read(0) == ""
        supervisor.write_text(text)
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("restarted$")
        assert len(pids(running)) == 2
        assert not old & set(pids(running))
        supervisor.write_text(text.replace("self._open_metrics()\n", "1 / 0\n"))
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for("the new version cannot take over: ZeroDivisionError")
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0


def test_the_metrics_endpoint_answers_all_through_an_upgrade() -> None:
    with supervised() as running:
        ended = threading.Event()
        failures: list[object] = []
        answers = 0

        def ask() -> None:
            nonlocal answers
            host, port = running.metrics.removeprefix("http://").split(":")
            while not ended.is_set():
                for path in ("/healthz", "/readyz", "/metrics"):
                    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
                    try:
                        connection.request("GET", path)
                        response = connection.getresponse()
                        response.read()
                        if response.status != 200:
                            failures.append((path, response.status))
                    except OSError as error:
                        failures.append((path, error))
                    finally:
                        connection.close()
                    answers += 1

        thread = threading.Thread(target=ask)
        thread.start()
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for("upgrading$")
        running.wait_for("restarted$")
        ended.set()
        thread.join()
        assert not failures
        assert answers > 10


NEW_VERSIONS = {
    "an import that fails": ("workers/supervisor.py", "import nothing_such\n", "nothing_such"),
    "a syntax error": ("workers/worker.py", "def\n", "invalid syntax"),
    "a start-up that raises": ("server/server.py", "1 / 0\n", "division by zero"),
    "a worker that ends": ("workers/worker.py", "import os\nos._exit(7)\n", "its worker|code"),
    "another layout of the storage": (
        "_fastframe.py",
        "raise SystemExit('the store has layout 1; this program knows 2')\n",
        "this program knows 2",
    ),
}


@pytest.mark.parametrize("what", NEW_VERSIONS)
def test_an_upgrade_to_a_version_that_cannot_start_is_refused(what: str, tmp_path: Path) -> None:
    file, addition, reason = NEW_VERSIONS[what]
    with installed(tmp_path) as running:
        old = set(pids(running))
        changed = tmp_path / "iproto" / file
        if changed.exists():
            text = changed.read_text()
            before, _, after = text.partition("from __future__ import annotations\n")
            changed.write_text(f"{before}from __future__ import annotations\n{addition}{after}")
        else:
            for compiled in changed.parent.glob(f"{changed.stem}.*.so"):
                compiled.unlink()
            changed.write_text(addition)
        running.process.send_signal(signal.SIGUSR2)
        said = running.wait_for("cannot upgrade, this version goes on: (.*)$")
        assert re.search(reason, said[1]), said[1]
        assert set(pids(running)) == old
        with running.peer() as peer:
            assert peer.read(0) == ""


def test_our_clients_see_nothing_of_restarts_and_upgrades(tmp_path: Path) -> None:
    report = restart_under_load(tmp_path, restarts=3, upgrades=1)
    print(report)
    assert report.wrong == []
    assert report.rounds > 100


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_restarts_under_load_lose_double_and_fail_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    executed = tmp_path / "executed"
    (tmp_path / "service.py").write_text(
        "import os, iproto\n"
        "app = iproto.App()\n"
        f"log = os.open({str(executed)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "@app.function(0x30001)\n"
        "def count() -> None:\n"
        "    os.write(log, b'x')\n"
    )
    with supervised("service:app", cwd=tmp_path) as running:
        stop = threading.Event()
        clients = [Resender(running, stop) for _ in range(6)]
        for client in clients:
            client.start()
        for _ in range(2):
            running.process.send_signal(number)
            running.wait_for("restarted$")
        stop.set()
        for client in clients:
            client.join(PATIENCE)
        assert [client.failures for client in clients] == [[]] * 6
        for client in clients:
            assert client.answers == dict.fromkeys(range(client.asked), 1)
        assert sum(client.reconnects for client in clients) >= 6
        # Each was executed once: nothing that was not answered had been.
        assert executed.stat().st_size == sum(client.asked for client in clients)
