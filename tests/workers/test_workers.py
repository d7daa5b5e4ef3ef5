"""Worker processes: one storage, even spread, and what happens when they die or are replaced."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import iproto
from iproto import FuncID, ReturnCode
from iproto.address import parse_address
from tests.helpers.harness import (
    PATIENCE,
    Peer,
    ServerProcess,
    children,
    frame,
    read_frame,
    replace_frame,
    serve_process,
    wait_until,
)
from tests.metrics.test_metrics import Samples, parse, value

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc"
)


@contextlib.contextmanager
def supervised(*arguments: str, workers: int = 2, **options: object) -> Iterator[ServerProcess]:
    level = () if "--log-level" in arguments else ("--log-level", "DEBUG")
    with serve_process("--workers", str(workers), *level, *arguments, **options) as running:  # type: ignore[arg-type]
        yield running


def pids(running: ServerProcess) -> list[int]:
    """The live workers of a supervisor."""
    return children(running.process.pid)


def scrape(running: ServerProcess) -> Samples:
    host, port = running.metrics.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics")
        return parse(connection.getresponse().read().decode())
    finally:
        connection.close()


def test_workers_share_one_storage() -> None:
    with supervised() as running:
        peers = [running.peer() for _ in range(20)]
        for index, peer in enumerate(peers):
            peer.send(replace_frame(index, f"from {index}"))
            assert peer.reply().code == 0
        for peer in peers:
            assert [peer.read(index) for index in range(20)] == [f"from {i}" for i in range(20)]
        connections = scrape(running)["iproto_worker_connections"]
        assert sum(connections.values()) == 20
        assert len(connections) == 2
        for peer in peers:
            peer.sock.close()


def test_a_switch_through_one_worker_binds_all_at_once() -> None:
    with supervised() as running:
        peers = [running.peer() for _ in range(16)]
        for func_id, code in (
            (FuncID.ADM_STORAGE_SWITCH_READONLY, ReturnCode.READ_ONLY),
            (FuncID.ADM_STORAGE_SWITCH_MAINTENANCE, ReturnCode.LOCKED),
            (FuncID.ADM_STORAGE_SWITCH_READWRITE, ReturnCode.OK),
        ):
            assert peers[0].ask(func_id).code == 0
            for peer in peers:
                peer.send(replace_frame(0, "x"))
                assert peer.reply().code == code
        for peer in peers:
            peer.sock.close()


def test_a_thousand_connections_spread_evenly() -> None:
    with supervised("--log-level", "INFO", workers=4) as running:
        peers = [running.peer() for _ in range(1000)]
        for peer in peers:
            peer.send(frame(FuncID.PING))
        for peer in peers:
            peer.reply()
        counts = scrape(running)["iproto_worker_connections"].values()
        assert sum(counts) == 1000
        assert max(counts) <= 1.3 * min(counts)
        for peer in peers:
            peer.sock.close()


def test_a_killed_worker_is_replaced_and_its_counters_stay() -> None:
    with supervised() as running:
        peers = [running.peer() for _ in range(10)]
        for peer in peers:
            peer.send(replace_frame(1, "kept") + read_frame(1))
            assert [reply.code for reply in peer.replies(2)] == [0, 0]
        before = scrape(running)
        old = set(pids(running))
        victim = min(old)
        os.kill(victim, signal.SIGKILL)
        running.wait_for(rf"pid {victim}\) was killed by SIGKILL")
        running.wait_for("is ready")
        after = scrape(running)
        assert value(after, "storage_writes_total") == 10
        assert value(after, "storage_reads_total") == 10
        killed = value(after, "iproto_connections_closed_total", reason="killed")
        assert value(after, "active_connections") == 10 - killed
        assert sum(after["iproto_worker_restarts_total"].values()) == 1
        for name in ("iproto_worker_requests_total", "iproto_worker_cpu_seconds_total"):
            assert after[name].keys() == before[name].keys()
            assert all(after[name][label] >= before[name][label] for label in before[name])
        assert len(pids(running)) == 2
        with running.peer() as peer:
            assert peer.read(1) == "kept"
        for peer in peers:
            peer.sock.close()


WRITER_AT = 64
"""Where the lock's writer word is in the store, layout version 1."""


def test_a_worker_that_dies_holding_the_lock_holds_up_nobody_for_long() -> None:
    with supervised() as running:
        victim, survivor = pids(running)
        peers = [running.peer() for _ in range(12)]
        for peer in peers:
            assert peer.read(0) == ""
        # The victim is stopped, and the lock claimed in its name: as if it had
        # been hit just behind the instruction that claims it.
        os.kill(victim, signal.SIGSTOP)
        orders = json.loads(
            re.search(rb"IPROTO_WORKER=([^\0]*)", Path(f"/proc/{victim}/environ").read_bytes())[1]  # type: ignore[index]
        )
        with open(f"/proc/{victim}/fd/{orders['storage']}", "r+b", buffering=0) as memory:
            memory.seek(WRITER_AT)
            memory.write(struct.pack("<I", 1 + orders["area"]))
        begun = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        for peer in peers:
            with contextlib.suppress(ConnectionError):
                peer.send(replace_frame(1, "after"))
        codes = []
        for peer in peers:
            with contextlib.suppress(ConnectionError, EOFError):
                codes.append(peer.reply().code)
        took = time.monotonic() - begun
        assert codes
        assert set(codes) == {0}
        assert took < 0.9, "the survivors waited for the lock's time limit, not for the recovery"
        running.wait_for("holding the storage's lock, which is freed")
        assert alive(survivor)
        for peer in peers:
            peer.sock.close()


def test_connections_in_a_dead_workers_queue_are_served_by_the_next() -> None:
    with supervised() as running:
        workers = pids(running)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        peers = [running.peer() for _ in range(20)]
        for peer in peers:
            peer.send(replace_frame(1, "x", request_id=4))
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        for peer in peers:
            assert peer.reply() == (FuncID.STORAGE_REPLACE, 4, 0, b"\xc0")
            peer.sock.close()


def test_a_worker_that_hangs_is_replaced() -> None:
    with supervised("--worker-timeout", "1") as running:
        victim = min(pids(running))
        os.kill(victim, signal.SIGSTOP)
        running.wait_for(rf"pid {victim}\) gave no sign of life")
        running.wait_for(rf"pid {victim}\) was killed by SIGKILL")
        running.wait_for("is ready")
        assert victim not in pids(running)
        with running.peer() as peer:
            assert peer.read(0) == ""


def test_workers_that_die_young_are_started_again_with_a_growing_delay() -> None:
    with supervised(workers=1) as running:
        delays = []
        for _ in range(4):
            os.kill(pids(running)[0], signal.SIGKILL)
            said = running.wait_for(r"starting another(?: in ([\d.]+) s)?$")
            delays.append(float(said[1] or 0))
            running.wait_for("is ready")
        assert delays == [0, 0.1, 0.2, 0.4]


def test_sigterm_drains_all_workers() -> None:
    count = 5000
    with supervised() as running:
        workers = pids(running)
        peers = [running.peer() for _ in range(8)]
        for peer in peers:
            assert peer.read(0) == ""
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        for peer in peers:
            peer.send(b"".join(read_frame(0, request_id=i) for i in range(count)))
        running.process.send_signal(signal.SIGTERM)
        running.wait_for("draining")
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        for peer in peers:
            assert [reply.request_id for reply in peer.replies(count)] == [*range(count)]
            assert peer.rest() == b""
            peer.sock.close()
        assert running.end()[0] == 0


def test_a_second_signal_kills_the_workers() -> None:
    with supervised() as running:
        workers = pids(running)
        os.kill(workers[0], signal.SIGSTOP)
        running.process.send_signal(signal.SIGINT)
        running.wait_for("SIGINT: draining")
        running.process.send_signal(signal.SIGINT)
        assert running.end()[0] == 128 + signal.SIGINT
        for pid in workers:
            assert not Path(f"/proc/{pid}").exists()


def test_workers_whose_supervisor_is_killed_drain_and_end() -> None:
    with supervised() as running:
        workers = pids(running)
        with running.peer() as peer:
            assert peer.read(0) == ""
            running.process.kill()
            assert peer.rest() == b""
        wait_until(lambda: not any(alive(pid) for pid in workers))


def test_workers_whose_supervisor_dies_before_it_hears_them_end_too() -> None:
    """What a worker said is unread then, which makes its end of the line a reset."""
    with supervised() as running:
        first = set(pids(running))
        os.kill(running.process.pid, signal.SIGSTOP)
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        os.kill(running.process.pid, signal.SIGCONT)
        wait_until(lambda: bool(set(pids(running)) - first))
        os.kill(running.process.pid, signal.SIGSTOP)
        started = set(pids(running)) - first
        wait_until(lambda: all(b"_fastframe" in maps(pid) for pid in started))
        running.process.kill()
        wait_until(lambda: not any(alive(pid) for pid in started))


def maps(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/maps").read_bytes()
    return b"_fastframe"


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def test_an_app_that_cannot_start_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("app = 1 / 0\n")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "iproto", "serve", "broken:app", "--workers", "2"),
            *("--bind", "127.0.0.1:0", "--metrics-bind", "off", "--log-level", "ERROR"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "ZeroDivisionError" in ended.stderr


def test_two_supervisors_do_not_share_an_address() -> None:
    with supervised() as running:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "iproto", "serve", "--workers", "2"),
                *("--bind", running.addresses[0], "--metrics-bind", "off"),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == 2
        assert "in use" in ended.stderr


APP = """
import iproto

app = iproto.App()

@app.function(0x30001)
def version() -> int:
    return {version}
"""


def test_sighup_brings_new_code_in_one_worker_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(APP.format(version=1))
    with supervised("service:app", cwd=tmp_path) as running:
        old = set(pids(running))
        with running.peer() as peer:
            peer.send(replace_frame(3, "kept"))
            assert peer.reply().code == 0
            assert peer.ask(0x30001).value == 1
        _new_code(tmp_path, APP.format(version=2))
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
        _new_code(tmp_path, "app = nothing\n")
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
        _new_code(tmp_path, APP.format(version=2))
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


@contextlib.contextmanager
def installed(folder: Path, *arguments: str, **options: Any) -> Iterator[ServerProcess]:
    """A server of a copy of the package, which the test may change while it runs."""
    shutil.copytree(Path(iproto.__file__).parent, folder / "iproto")
    environment = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    with supervised(*arguments, env=environment, **options) as running:
        yield running


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


class Resender(threading.Thread):
    """A client that pipelines, and on an orderly close sends again what was not answered.

    A server that drains answers all that it executed before it closes, so what
    is not answered was not executed.
    """

    def __init__(self, running: ServerProcess, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.running = running
        self.stop = stop
        self.answers: dict[int, int] = {}  # request_id → how many replies came
        self.asked = 0
        self.reconnects = -1
        self.failures: list[str] = []

    def run(self) -> None:
        waiting: list[int] = []
        while not self.stop.is_set() or waiting:
            self.reconnects += 1
            try:
                with self.running.peer() as peer:
                    waiting = self.talk(peer, waiting)
            except OSError as error:
                self.failures.append(repr(error))
                return

    def talk(self, peer: Peer, waiting: list[int]) -> list[int]:
        """Until the server closes: what has no answer then."""
        try:
            while waiting or not self.stop.is_set():
                if not waiting:
                    waiting = [*range(self.asked, self.asked + 30)]
                    self.asked += 30
                with contextlib.suppress(BrokenPipeError):
                    peer.send(b"".join(frame(0x30001, b"", i) for i in waiting))
                while waiting:
                    reply = peer.reply()
                    if reply.code != 0:
                        self.failures.append(str(reply))
                    self.answers[reply.request_id] = self.answers.get(reply.request_id, 0) + 1
                    waiting.remove(reply.request_id)
        except EOFError:
            pass
        return waiting


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


def _new_code(folder: Path, text: str) -> None:
    """Another size and time than before, for the compiled copy goes by these."""
    path = folder / "service.py"
    path.write_text(text + f"# {time.time_ns()}\n")


def test_unix_sockets_are_shared_by_all_workers(tmp_path: Path) -> None:
    with supervised("--bind", f"unix:{tmp_path}/s") as running:
        address = parse_address(running.addresses[0])
        peers = [Peer(address) for _ in range(10)]
        for peer in peers:
            assert peer.read(0) == ""
        for pid in pids(running)[:1]:
            os.kill(pid, signal.SIGKILL)
        running.wait_for("is ready")
        with Peer(address) as peer:
            assert peer.read(0) == ""
        for peer in peers:
            peer.sock.close()
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0
    assert not (tmp_path / "s").exists()


def test_writers_under_load_lose_nothing_acknowledged_while_workers_are_killed() -> None:
    """Each writer has slots of its own, so that it knows what must be there."""
    with supervised() as running:
        stop = threading.Event()
        failures: list[str] = []
        acknowledged: list[dict[int, int]] = [{} for _ in range(4)]

        def write(number: int) -> None:
            counter = 0
            known = acknowledged[number]
            while not stop.is_set():
                with contextlib.suppress(OSError, EOFError), running.peer() as peer:
                    while not stop.is_set():
                        batch = range(counter, counter + 20)
                        counter += 20
                        for i in batch:
                            peer.send(replace_frame(slot(number, i), content(i), i))
                        for i in batch:
                            reply = peer.reply()
                            if (reply.request_id, reply.code) != (i, 0):
                                failures.append(f"{i}: {reply}")
                            known[slot(number, i)] = i
                        for i in batch:
                            peer.send(read_frame(slot(number, i), i))
                        for i in batch:
                            got = peer.reply().value
                            if not re.fullmatch(r"(\d+)(;\1)*", got):
                                failures.append(f"torn: {got!r}")
                            elif int(got.split(";")[0]) < i:
                                failures.append(f"slot {slot(number, i)}: {got} after {i}")

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            time.sleep(0.1)
            if found := pids(running):
                os.kill(found[_ % len(found)], signal.SIGKILL)
        wait_until(lambda: len(pids(running)) == 2)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert failures == []
        assert all(acknowledged)
        with running.peer() as peer:
            for known in acknowledged:
                for index, least in known.items():
                    assert int(peer.read(index).split(";")[0]) >= least


def slot(number: int, i: int) -> int:
    return number * 10 + i % 10


def content(i: int) -> str:
    """Repeats itself, so that a torn one is seen."""
    return ";".join([str(i)] * (240 // (len(str(i)) + 1)))
