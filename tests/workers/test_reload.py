"""Settings that change while worker processes run: SIGHUP and SIGUSR2 read them anew."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iproto import Config, FuncID, ReturnCode
from iproto.workers import upgrade
from iproto.workers.inheritance import Inheritance
from iproto.workers.place import Place
from tests.helpers.harness import PATIENCE, ServerProcess, children, frame, serve_process
from tests.helpers.workers import APP, Resender, pids, supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc"
)

RESTARTS = [signal.SIGHUP, signal.SIGUSR2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


@contextlib.contextmanager
def configured(file: Path, *arguments: str, **options: Any) -> Iterator[ServerProcess]:
    with supervised("--config", str(file), *arguments, **options) as running:
        yield running


def takes(running: ServerProcess, size: int) -> bool:
    """Whether a body of this many bytes is taken; if not, the connection ends."""
    with running.peer() as peer:
        # It is too long to mean anything, and so is refused in any case.
        peer.send(frame(FuncID.STORAGE_READ, bytes(size)))
        assert peer.reply().code == ReturnCode.ILLEGAL_PARAMS
        try:
            return bool(peer.ask(FuncID.PING))
        except (EOFError, ConnectionError):
            return False


@pytest.mark.parametrize("number", RESTARTS)
def test_new_settings_come_under_load_and_no_call_fails(
    file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "service.py").write_text(APP.format(version=1))
    file.write_text("max_body = 2048\nmax_calls_per_connection = 8\n")
    with configured(file, "service:app", cwd=tmp_path) as running:
        assert not takes(running, 3000)
        stop = threading.Event()
        clients = [Resender(running, stop) for _ in range(4)]
        for client in clients:
            client.start()
        file.write_text("max_body = 4096\nmax_calls_per_connection = 9\n")
        running.process.send_signal(number)
        running.wait_for(
            r"settings changed: max_body 4096 \(was 2048\), max_calls_per_connection 9"
        )
        running.wait_for("restarted$")
        assert all(takes(running, 3000) for _ in range(8))
        # Those that are started later have them, too.
        for pid in pids(running):
            os.kill(pid, signal.SIGTERM)
            running.wait_for("starting another")
            running.wait_for("is ready")
        assert all(takes(running, 3000) for _ in range(8))
        stop.set()
        for client in clients:
            client.join(PATIENCE)
        assert [client.failures for client in clients] == [[]] * 4
        for client in clients:
            assert client.answers == dict.fromkeys(range(client.asked), 1)


def test_a_signal_during_a_restart_is_not_lost(file: Path, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(APP.format(version=1))
    os.mkfifo(tmp_path / "gate")
    file.write_text("max_body = 2048\n")
    with configured(file, "service:app", cwd=tmp_path, workers=1) as running:
        # The next worker imports no further than this until it is let through.
        with open(tmp_path / "service.py", "a") as code:
            code.write(f"open({str(tmp_path / 'gate')!r}).close()\n")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("worker 0 started")
        with open(tmp_path / "gate", "w"):
            file.write_text("max_body = 4096\n")
            running.process.send_signal(signal.SIGHUP)
            running.wait_for("is under way; the next one comes after it")
        running.wait_for("restarted$")
        with open(tmp_path / "gate", "w"):
            running.wait_for("restarted$")
        assert takes(running, 4096)


def test_new_connections_speak_the_new_dialect(file: Path) -> None:
    file.write_text("dialect = 'vk'\n")
    with configured(file) as running:
        file.write_text("dialect = 'mailru'\n")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("restarted$")
        for _ in range(4):
            with running.peer() as peer:
                peer.mailru = True
                assert peer.read(0) == ""


def test_what_the_command_line_says_stays_whatever_the_file_says(file: Path) -> None:
    file.write_text("max_body = 2048\n")
    with configured(file, "--max-body", "1024") as running:
        file.write_text("max_body = 4096\n")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("restarted$")
        assert "settings changed" not in "".join(running.log)
        assert not takes(running, 1025)


@pytest.mark.parametrize("number", RESTARTS)
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max_body = ", "it is not TOML"),
        ("max_body = 'lots'", "max_body is 'lots'; it must be a whole number of bytes"),
        ("max_bodies = 1", "unknown key 'max_bodies'; it must be one of bind"),
        (None, "cannot read it: No such file"),
    ],
    ids=["syntax", "value", "key", "no file"],
)
def test_with_a_wrong_file_everything_goes_on(
    file: Path, number: signal.Signals, text: str | None, why: str
) -> None:
    file.write_text("max_body = 2048\n")
    with configured(file) as running:
        old = pids(running)
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        running.process.send_signal(number)
        line = running.wait_for(r"ERROR \S+ iproto.workers: (.*)")[1]
        if number == signal.SIGHUP:
            assert line.startswith("not restarted, workers and settings stay as they are: ")
        else:
            assert line.startswith("cannot upgrade, this version goes on: ")
        assert f"settings file {file}: {why}" in line
        assert pids(running) == old
        # One that is to be replaced gets the settings that are in force.
        os.kill(old[0], signal.SIGKILL)
        running.wait_for("is ready")
        assert all(takes(running, 2048) and not takes(running, 2049) for _ in range(4))
        file.write_text("max_body = 4096\n")
        running.process.send_signal(number)
        running.wait_for("restarted$")
        assert all(takes(running, 4096) for _ in range(4))


def test_settings_that_no_worker_starts_with_are_not_accepted(file: Path, tmp_path: Path) -> None:
    file.write_text("loop = 'asyncio'\nmax_body = 2048\n")
    with configured(file, env={"PYTHONPATH": str(tmp_path)}) as running:
        (tmp_path / "uvloop.py").write_text("raise ImportError\n")
        file.write_text("loop = 'uvloop'\nmax_body = 4096\n")
        old = pids(running)
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("loop is 'uvloop', which is not installed here")
        running.wait_for("the new worker 0 cannot start; the old ones stay$")
        assert pids(running) == old
        for pid in old:
            os.kill(pid, signal.SIGKILL)
            running.wait_for("is ready")
        assert all(takes(running, 2048) and not takes(running, 2049) for _ in range(4))


def fixed_settings(tmp_path: Path) -> dict[str, str]:
    return {
        "bind": "127.0.0.1:1",
        "admin_bind": "127.0.0.1:3",
        "metrics_bind": "127.0.0.1:2",
        "workers": "5",
        "storage_file": f"{tmp_path}/other",
        "backlog": "7",
    }


@pytest.mark.parametrize("number", RESTARTS)
def test_what_cannot_change_is_named_and_the_rest_changes(
    file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    wanted = fixed_settings(tmp_path)
    fixed = {f.name for f in dataclasses.fields(Config) if f.metadata.get("fixed")}
    assert wanted.keys() == fixed - {"listener", "net_rpc_bind"}  # those are like admin_bind
    running_with = {
        "bind": "127.0.0.1:0",
        "admin_bind": "none",
        "metrics_bind": "127.0.0.1:0",
        "workers": "2",
        "storage_file": "None",
        "backlog": "4096",
    }
    # From the environment, for the command line would win over the file.
    file.write_text('bind = "127.0.0.1:0"\nmetrics_bind = "127.0.0.1:0"\nworkers = 2\n')
    with from_file(file) as running:
        file.write_text(
            "".join(
                f"{name} = {value}\n" if value.isdecimal() else f"{name} = '{value}'\n"
                for name, value in wanted.items()
            )
            + "max_body = 4096\n"
        )
        running.process.send_signal(number)
        for name in running_with:
            said = running.wait_for(rf"WARNING \S+ iproto.workers: {name} is (.*)")[1]
            assert said == (
                f"{wanted[name]} in the settings now, and cannot change while the server runs: "
                f"{running_with[name]} stays until it is stopped and started"
            )
        running.wait_for(r"settings changed: max_body 4096 \(was 1048576\)$")
        running.wait_for("restarted$")
        assert len(pids(running)) == 2
        assert takes(running, 4096)
        assert not takes(running, 4097)


@contextlib.contextmanager
def from_file(file: Path, **options: Any) -> Iterator[ServerProcess]:
    """A server whose command line says nothing but where the file is."""
    with serve_process("--config", str(file), bare=True, **options) as running:
        yield running


@pytest.mark.parametrize("number", RESTARTS)
def test_a_file_that_asks_for_no_workers_any_more_leaves_them(
    file: Path, number: signal.Signals
) -> None:
    file.write_text('bind = "127.0.0.1:0"\nmetrics_bind = "off"\nworkers = 1\n')
    with from_file(file) as running:
        file.write_text('bind = "127.0.0.1:0"\nmetrics_bind = "off"\n')
        running.process.send_signal(number)
        running.wait_for("workers is None in the settings now, and cannot change")
        running.wait_for("restarted$")
        assert len(pids(running)) == 1
        with running.peer() as peer:
            assert peer.read(0) == ""


def test_log_level_and_flushing_change_in_the_supervisor(file: Path, tmp_path: Path) -> None:
    start = (
        'bind = "127.0.0.1:0"\nmetrics_bind = "off"\nworkers = 1\n'
        f"storage_file = '{tmp_path}/storage'\n"
    )
    file.write_text(start)
    with from_file(file) as running:
        file.write_text(f"{start}log_level = 'debug'\nstorage_sync = 0.01\n")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for(r"storage_sync 0.01 \(was 0.0\), log_level DEBUG \(was INFO\)")
        running.wait_for("restarted$")
        for _ in range(3):
            running.wait_for("DEBUG.*flushed the storage file")
        file.write_text(start)
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("settings changed: storage_sync 0.0")
        rest = running.wait_for("restarted$")
        running.process.send_signal(signal.SIGTERM)
        code, log = running.end()
        assert code == 0
        assert "DEBUG" not in log.partition(rest[0])[2].partition("restarted")[2]


def test_the_hang_limit_changes_in_the_supervisor(file: Path) -> None:
    file.write_text("worker_timeout = 3600\n")
    with configured(file, workers=1) as running:
        file.write_text("worker_timeout = 1\n")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("restarted$")
        (pid,) = pids(running)
        os.kill(pid, signal.SIGSTOP)
        running.wait_for(rf"pid {pid}\) gave no sign of life")


def test_workers_that_die_while_the_code_is_broken_are_replaced_once_it_is_mended(
    tmp_path: Path,
) -> None:
    (tmp_path / "service.py").write_text(APP.format(version=1))
    with supervised("service:app", cwd=tmp_path) as running:
        (tmp_path / "service.py").write_text("app = 1 / 0\n")
        for pid in pids(running):
            os.kill(pid, signal.SIGKILL)
        for _ in range(4):
            running.wait_for("ended with code 2 .*starting another")
        (tmp_path / "service.py").write_text(APP.format(version=22))
        running.wait_for("is ready")
        with running.peer() as peer:
            assert peer.ask(0x30001).value == 22


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits are Linux's")
def test_a_worker_for_which_the_system_has_no_room_is_started_when_it_has() -> None:
    import resource

    with supervised() as running:
        supervisor = running.process.pid
        before = resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, 1 << 10))
        os.kill(children(supervisor)[0], signal.SIGKILL)
        running.wait_for("cannot start worker [01]: Too many open files")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("the new worker 0 cannot start; the old ones stay")
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for("cannot upgrade, this version goes on: Too many open files")
        with running.peer() as peer:
            assert peer.read(0) == ""
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (512, min(before[1], 1 << 10)))
        running.wait_for("is ready")
        assert len(pids(running)) == 2


def test_a_worker_that_dies_with_an_order_unread_is_replaced_without_a_traceback() -> None:
    with supervised() as running:
        first, second = pids(running)
        os.kill(second, signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)
        running.wait_for("starting another")  # the other gets its listeners
        os.kill(second, signal.SIGKILL)
        for _ in range(2):
            running.wait_for("is ready")
        running.process.send_signal(signal.SIGTERM)
        code, log = running.end()
        assert code == 0
        assert "Traceback" not in log


@pytest.mark.skipif(sys.platform != "linux", reason="memfd_create is Linux's")
def test_a_program_that_cannot_be_started_leaves_the_old_one_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = os.memfd_create("storage")
    nothing = Inheritance(memory, memory, None, 1, [], False, None, [], [], {}, {})
    try:
        with pytest.raises(FileNotFoundError):
            upgrade.hand_over(nothing, Place(".", "/nowhere/python"))
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {*upgrade.HELD_SIGNALS}
    finally:
        os.close(memory)
