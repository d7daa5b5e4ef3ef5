"""Workers over one storage: they share, they die, they are replaced."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from iproto import FuncID, ReturnCode
from tests.helpers.cli import run
from tests.helpers.harness import frame, read_frame, replace_frame, wait_until
from tests.helpers.lock_word import lock_words
from tests.helpers.metrics import value
from tests.helpers.workers import alive, pids, scrape, supervised

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc"
)


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


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system seals no memory")
def test_the_workers_memory_is_for_one_user_and_cannot_be_cut_off() -> None:
    with supervised(workers=1) as running:
        with lock_words(pids(running)[0]) as words:
            found = os.fstat(words.memory)
            assert found.st_mode & 0o777 == 0o600
            for size in (0, found.st_size - 1, found.st_size + 1):
                with pytest.raises(PermissionError):
                    os.ftruncate(words.memory, size)
        with running.peer() as peer:
            assert peer.read(0) == ""


def test_a_worker_that_dies_holding_the_lock_holds_up_nobody_for_long() -> None:
    with supervised() as running:
        victim, survivor = pids(running)
        peers = [running.peer() for _ in range(12)]
        for peer in peers:
            assert peer.read(0) == ""
        # The victim is stopped, and the lock claimed in its name: as if it had
        # been hit just behind the instruction that claims it.
        os.kill(victim, signal.SIGSTOP)
        with lock_words(victim) as words:
            words.claim()
        os.kill(victim, signal.SIGKILL)
        for peer in peers:
            with contextlib.suppress(ConnectionError):
                peer.send(replace_frame(1, "after"))
        codes = []
        for peer in peers:
            with contextlib.suppress(ConnectionError, EOFError):
                codes.append(peer.reply().code)
        assert codes
        # On a busy system the recovery may take longer than the lock is waited for.
        assert set(codes) <= {ReturnCode.OK, ReturnCode.OVERLOADED}
        running.wait_for("holding the storage's lock, which is freed")
        with running.peer() as peer:
            peer.send(replace_frame(1, "freed"))
            assert peer.reply().code == ReturnCode.OK
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


def test_an_app_that_cannot_start_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("app = 1 / 0\n")
    ended = run(
        *("serve", "broken:app", "--workers", "2"),
        *("--bind", "127.0.0.1:0", "--metrics-bind", "off", "--log-level", "ERROR"),
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "ZeroDivisionError" in ended.stderr


def test_two_supervisors_do_not_share_an_address() -> None:
    with supervised() as running:
        ended = run(
            *("serve", "--workers", "2"), *("--bind", running.addresses[0], "--metrics-bind", "off")
        )
        assert ended.returncode == 2
        assert "in use" in ended.stderr
