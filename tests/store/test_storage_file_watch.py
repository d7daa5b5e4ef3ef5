"""A storage file that is deleted, replaced or changed while it is served."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from iproto import ConfigError, open_storage
from iproto.storage import lock, watch
from iproto.storage.check import check_file
from iproto.storage.watch import FileWatch
from tests.helpers.harness import PATIENCE, ServerProcess, frame, serve_process, wait_until
from tests.helpers.metrics import value
from tests.helpers.storage_files import refused, serving_file, write
from tests.helpers.workers import scrape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORKERS = pytest.mark.parametrize("workers", [None, 2])

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux can lock a path that leads nowhere"
)


def readiness(running: ServerProcess) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{running.metrics}/readyz", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode().strip()


def problems(running: ServerProcess) -> set[str]:
    """The kinds of problems that the metrics show."""
    samples = scrape(running)
    found = {
        kind
        for kind in FileWatch.KINDS
        if value(samples, "iproto_storage_file_problem", problem=kind) == 1
    }
    assert value(samples, "iproto_ready") == (readiness(running)[0] == 200)
    return found


def stopped(running: ServerProcess) -> tuple[int, str]:
    running.process.send_signal(signal.SIGTERM)
    return running.end()


def content_of(path: Path, *indices: int) -> list[bytes]:
    with open_storage(path) as file:
        return [file.storage.read(index) for index in indices]


def write_number(running: ServerProcess, index: int) -> None:
    with running.peer() as peer:
        write(peer, index, f"number {index}")


def numbers(*indices: int) -> list[bytes]:
    return [f"number {index}".encode() for index in indices]


def refused_everywhere(path: Path) -> None:
    """A second server, and a check, are refused, and leave nothing at the path."""
    there = path.exists()
    assert "is in use by another server" in refused(path)
    with pytest.raises(ConfigError, match="in use by another server"):
        check_file(path)
    assert path.exists() == there


@WORKERS
def test_a_deleted_file_is_noticed_never_shared_and_put_back_with_all_that_was_written(
    tmp_path: Path, workers: int | None
) -> None:
    path = tmp_path / "storage"
    with serving_file(path, workers) as running:
        write_number(running, 1)
        assert problems(running) == set()
        path.unlink()
        running.wait_for(
            rf"ERROR.*storage file {path}, which is being served, was deleted: stop the server "
            "with SIGTERM, and it puts the file back"
        )
        wait_until(lambda: readiness(running) == (503, "the storage file was deleted"))
        assert problems(running) == {"deleted"}
        refused_everywhere(path)
        write_number(running, 2)
        code, log = stopped(running)
        assert code == 0
        assert "was deleted while it was served; it is there again" in log
    assert path.stat().st_mode & 0o777 == 0o600
    assert content_of(path, 1, 2) == numbers(1, 2)


@WORKERS
def test_what_is_deleted_just_before_the_stop_is_put_back(
    tmp_path: Path, workers: int | None
) -> None:
    path = tmp_path / "storage"
    with serving_file(path, workers) as running:
        write_number(running, 1)
        path.unlink()
        assert stopped(running)[0] == 0
    assert content_of(path, 1) == numbers(1)


@WORKERS
def test_a_replaced_file_is_left_alone_and_what_was_written_is_put_beside_it(
    tmp_path: Path, workers: int | None
) -> None:
    path, restored = tmp_path / "storage", tmp_path / "restored"
    with open_storage(restored) as file:
        file.storage.replace(1, b"restored")
    with serving_file(path, workers) as running:
        write_number(running, 1)
        restored.replace(path)
        running.wait_for(rf"ERROR.*storage file {path}, .*, was replaced by another one: stop")
        wait_until(
            lambda: readiness(running) == (503, "the storage file was replaced by another one")
        )
        assert problems(running) == {"replaced"}
        refused_everywhere(path)
        write_number(running, 2)
        code, log = stopped(running)
        assert code == 1
        assert f"does not find what was written: it is in {path}.rescued-1" in log
    assert content_of(path, 1, 2) == [b"restored", b""]
    assert content_of(tmp_path / "storage.rescued-1", 1, 2) == numbers(1, 2)


@WORKERS
def test_a_directory_that_is_deleted_and_made_anew_is_not_shared_either(
    tmp_path: Path, workers: int | None
) -> None:
    path = tmp_path / "folder" / "storage"
    path.parent.mkdir()
    with serving_file(path, workers) as running:
        write_number(running, 1)
        shutil.rmtree(path.parent)
        running.wait_for("was deleted")
        path.parent.mkdir()
        refused_everywhere(path)
        assert stopped(running)[0] == 0
    assert content_of(path, 1) == numbers(1)


def test_without_its_directory_the_content_is_put_where_temporary_files_are(
    tmp_path: Path,
) -> None:
    path, temporary = tmp_path / "folder" / "storage", tmp_path / "temporary"
    path.parent.mkdir()
    temporary.mkdir()
    options = ("--storage-file", str(path))
    with serve_process(*options, env={"TMPDIR": str(temporary)}) as running:
        write_number(running, 1)
        shutil.rmtree(path.parent)
        code, log = stopped(running)
        assert code == 1
        assert "was deleted, and cannot be put back (No such file or directory)" in log
        assert f"it is in {temporary}/storage.rescued-1" in log
    assert content_of(temporary / "storage.rescued-1", 1) == numbers(1)


@WORKERS
def test_a_file_that_is_moved_and_moved_back_is_as_before(
    tmp_path: Path, workers: int | None
) -> None:
    path, elsewhere = tmp_path / "storage", tmp_path / "elsewhere"
    with serving_file(path, workers) as running:
        path.rename(elsewhere)
        running.wait_for("was moved, and nothing is at its path: move it back, or the next start")
        refused_everywhere(path)
        elsewhere.rename(path)
        running.wait_for(f"WARNING.*storage file {path} is in its place again")
        wait_until(lambda: readiness(running) == (200, "ready"))
        assert problems(running) == set()
        write_number(running, 1)
        assert stopped(running)[0] == 0
    assert content_of(path, 1) == numbers(1)


def test_a_file_that_stays_moved_is_left_where_it_is_and_the_code_says_so(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "storage", tmp_path / "elsewhere"
    with serving_file(path) as running:
        path.rename(elsewhere)
        write_number(running, 1)
        code, log = stopped(running)
        assert code == 1
        assert "was moved, and nothing is at its path; the next start at this path does not" in log
    assert sorted(os.listdir(tmp_path)) == ["elsewhere"]
    assert content_of(elsewhere, 1) == numbers(1)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (lambda path: os.link(path, f"{path}-2"), "linked", r"has 2 names \(hard links\) now"),
        (lambda path: path.chmod(0o666), "exposed", r"belongs to user \d+ with mode 0666 now"),
        (cut, "cut_off", r"was cut off, from \d+ bytes to \d+"),
    ],
)
def test_what_the_next_start_would_refuse_is_said_at_once(
    tmp_path: Path, change: Callable[[Path], None], kind: str, text: str
) -> None:
    path = tmp_path / "storage"
    with serving_file(path) as running:
        change(path)
        running.wait_for(f"ERROR.*{text}")
        wait_until(lambda: problems(running) == {kind})
        assert readiness(running)[0] == (503 if kind == "cut_off" else 200)
        assert stopped(running)[0] == (1 if kind == "cut_off" else 0)


def test_after_a_restart_and_an_upgrade_the_path_is_locked_and_watched_as_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "storage"
    with serving_file(path, 1) as running:
        for number in (signal.SIGHUP, signal.SIGUSR2):
            running.process.send_signal(number)
            running.wait_for(r"INFO.* restarted$")
        write_number(running, 1)
        path.unlink()
        running.wait_for("was deleted")
        refused_everywhere(path)
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for(r"INFO.* restarted$")
        refused_everywhere(path)
        write_number(running, 2)
        assert stopped(running)[0] == 0
    assert content_of(path, 1, 2) == numbers(1, 2)


@WORKERS
def test_a_killed_server_leaves_the_path_free(tmp_path: Path, workers: int | None) -> None:
    path = tmp_path / "storage"
    with serving_file(path, workers) as running:
        path.unlink()
        running.process.kill()
        running.process.wait()
        with serving_file(path, workers) as second:
            write_number(second, 1)
            assert stopped(second)[0] == 0
    assert content_of(path, 1) == numbers(1)


def test_a_server_that_leaves_a_blocked_loop_puts_the_file_back_too(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    (tmp_path / "blocking.py").write_text(
        "import time, iproto\n"
        "app = iproto.App()\n"
        "@app.function(0x30001)\n"
        "def block() -> None:\n"
        "    time.sleep(600)\n"
    )
    options = ("blocking:app", "--storage-file", str(path), "--drain-timeout", "0.2")
    with serve_process(*options, cwd=tmp_path) as running, running.peer() as peer:
        write(peer, 1, "number 1")
        peer.send(frame(0x30001, b"\x90"))
        path.unlink()
        code, log = stopped(running)
        assert code == 1
        assert "it is there again" in log
    assert content_of(path, 1) == numbers(1)


def test_a_file_system_that_does_not_answer_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "storage"
    answers = threading.Event()
    stat = os.stat

    def hang(name: Any, **options: Any) -> os.stat_result:
        if name == str(path):
            answers.wait(PATIENCE)
        return stat(name, **options)

    with open_storage(path) as file:
        looking = FileWatch(file.path, file.fd)
        monkeypatch.setattr(watch, "NO_ANSWER", 0.01)
        monkeypatch.setattr(watch, "_END_WAIT", 0.01)
        monkeypatch.setattr(os, "stat", hang)
        looking.start()
        wait_until(lambda: looking.problem is not None)
        assert looking.problem is not None
        assert looking.problem[:2] == ("unreachable", "gives no answer, for 0 s by now")
        assert not looking.close()
        answers.set()
    assert "gives no answer" in caplog.text


def test_a_problem_that_lasts_is_repeated_in_the_log_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "storage"
    monkeypatch.setattr(watch, "PERIOD", 0.001)
    with caplog.at_level(logging.WARNING), open_storage(path) as file:
        path.unlink()
        wait_until(lambda: file.watch.problem is not None)
        looks = [0]
        monkeypatch.setattr(os, "fstat", counting(os.fstat, looks))
        wait_until(lambda: looks[0] > 20)
        assert caplog.text.count("which is being served, was deleted") == 1
        monkeypatch.setattr(watch, "REMINDER", 0.0)
        wait_until(lambda: caplog.text.count("which is being served, was deleted") > 2)
        monkeypatch.undo()
    assert content_of(path, 0) == [b""]


def counting(
    function: Callable[[int], os.stat_result], count: list[int]
) -> Callable[[int], os.stat_result]:
    def counted(fd: int) -> os.stat_result:
        count[0] += 1
        return function(fd)

    return counted


HOLD = """
import os, socket, sys
os.setuid(12345)
sockets = []
for name in sys.argv[1:]:
    sockets.append(socket.socket(socket.AF_UNIX))
    sockets[-1].bind("\\0" + name)
    sockets[-1].listen()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_cannot_keep_a_server_from_its_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "storage"
    names = [name.removeprefix("\0") for name in lock._names_of(str(path))]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        with contextlib.closing(holder.stdin):
            assert holder.stdout.readline() == "held\n"
            with open_storage(path) as file:
                assert file.path_lock == []
    assert "user 12345, who has no right to storage file" in caplog.text
