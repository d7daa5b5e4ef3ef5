"""What a server inherits from whoever starts it, and must not rely on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iproto import FuncID
from iproto.storage.file import open_storage
from iproto.workers.cpus import cgroup_quota
from iproto.workers.memory import shared_memory
from tests.helpers.harness import PATIENCE, children, replace_frame, serve_process, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are seen in /proc")

MODES = {"one process": (), "workers": ("--workers", "2")}
SERVE = (sys.executable, "-m", "iproto", "serve", "--bind", "127.0.0.1:0", "--metrics-bind", "off")


@pytest.mark.parametrize("mode", MODES)
def test_signals_that_the_parent_blocked_or_ignored_end_the_server(mode: str) -> None:
    numbers = "signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD"
    start = (
        "import os, signal, sys\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{numbers}])\n"
        f"for number in ({numbers}): signal.signal(number, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    arguments = [sys.executable, "-c", start, *SERVE[1:], *MODES[mode]]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "serving" in line:
                break
        if mode == "workers":  # whose ends must be noticed, and which must be ended
            old = children(process.pid)
            os.kill(old[0], signal.SIGTERM)
            wait_until(lambda: old[0] not in children(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("mode", MODES)
def test_standard_streams_that_are_closed_are_not_taken_by_sockets(mode: str) -> None:
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *SERVE, *MODES[mode]], start_new_session=True
    )
    try:
        wait_until(lambda: b"_fastframe" in Path(f"/proc/{process.pid}/maps").read_bytes())
        wait_until(lambda: any(link.startswith("socket:") for link in links(process.pid)))
        assert links(process.pid, 3) == ["/dev/null"] * 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def links(pid: int, count: int = 20) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(folder / str(fd)) for fd in range(count) if (folder / str(fd)).is_symlink()]


def test_sigterm_during_the_import_of_an_app_ends_the_first_process_of_a_container(
    tmp_path: Path,
) -> None:
    unshare = ("unshare", "--pid", "--fork", "--kill-child")
    if shutil.which("unshare") is None or subprocess.call([*unshare, "true"]):
        pytest.skip("no process namespaces can be made here")
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(600)\n"
    )
    process = subprocess.Popen([*unshare, *SERVE, "slow:app"], cwd=tmp_path)
    try:
        wait_until((tmp_path / "importing").exists)
        os.kill(children(process.pid)[0], signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_without_workers_a_restart_is_refused_and_nothing_lost(number: signal.Signals) -> None:
    with serve_process() as running, running.peer() as peer:
        peer.send(replace_frame(1, "kept"))
        assert peer.reply().code == 0
        running.process.send_signal(number)
        running.wait_for(f"{number.name}: nothing is restarted")
        assert peer.read(1) == "kept"


VERSION = """
import iproto
app = iproto.App()

@app.function(0x30001)
def version() -> int:
    return {version}
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_release_directory_that_is_turned_and_removed(
    number: signal.Signals, tmp_path: Path
) -> None:
    current = tmp_path / "current"
    for version in (1, 2):
        (tmp_path / f"release-{version}").mkdir()
        (tmp_path / f"release-{version}" / "service.py").write_text(VERSION.format(version=version))
    current.symlink_to("release-1")
    with serve_process(
        *("service:app", "--workers", "1", "--log-level", "DEBUG"),
        cwd=current,
        env={"PWD": str(current)},
    ) as running:
        with running.peer() as peer:
            assert peer.ask(0x30001).value == 1
        (tmp_path / "next").symlink_to("release-2")
        (tmp_path / "next").replace(current)
        shutil.rmtree(tmp_path / "release-1")
        running.process.send_signal(number)
        running.wait_for("restarted$")
        with running.peer() as peer:
            assert peer.ask(0x30001).value == 2
        # What dies now is replaced with the new code, too.
        os.kill(children(running.process.pid)[0], signal.SIGKILL)
        running.wait_for("is ready")
        with running.peer() as peer:
            assert peer.ask(0x30001).value == 2


def test_what_a_sandbox_refuses_is_done_in_another_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    fd = shared_memory(1 << 20)
    assert os.fstat(fd).st_size == 1 << 20
    os.close(fd)
    with open_storage(tmp_path / "storage") as file:
        file.storage.replace(1, b"there")
    with open_storage(tmp_path / "storage") as file:
        assert file.storage.read(1) == b"there"


def test_all_quotas_around_a_process_count(tmp_path: Path) -> None:
    def write(folder: str, **files: str) -> None:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / folder / name.replace("_", ".", 1)).write_text(text)

    second = "0::/system.slice/iproto.service\n"
    assert cgroup_quota(tmp_path, second) is None
    write("system.slice/iproto.service", cpu_max="max 100000\n")
    assert cgroup_quota(tmp_path, second) is None
    write("system.slice", cpu_max="150000 100000\n")
    assert cgroup_quota(tmp_path, second) == 1.5
    write("system.slice/iproto.service", cpu_max="70000 100000\n")
    assert cgroup_quota(tmp_path, second) == 0.7
    write("system.slice/other.service", cpu_max="10000 100000\n")
    assert cgroup_quota(tmp_path, second) == 0.7
    assert cgroup_quota(tmp_path, "0::/\n") is None
    first = "5:cpu,cpuacct:/docker/a\n4:memory:/docker/b\n"
    assert cgroup_quota(tmp_path, first) is None
    write("cpu,cpuacct/docker/a", cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    assert cgroup_quota(tmp_path, first) is None
    write("cpu,cpuacct/docker", cpu_cfs_quota_us="200000\n", cpu_cfs_period_us="100000\n")
    assert cgroup_quota(tmp_path, first) == 2.0
    write("memory/docker/b", cpu_cfs_quota_us="1000\n", cpu_cfs_period_us="100000\n")
    assert cgroup_quota(tmp_path, first) == 2.0
    # Within a container the root is its own cgroup, and its path leads nowhere.
    write(".", cpu_max="50000 100000\n")
    assert cgroup_quota(tmp_path, "0::/../elsewhere\n") == 0.5


def test_a_c_locale_serves_and_logs(tmp_path: Path) -> None:
    folder = tmp_path / "dienst"
    folder.mkdir()
    (folder / "service.py").write_text(VERSION.format(version=1) + "# grüße\n", encoding="utf-8")
    environment = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with serve_process("service:app", "--workers", "1", cwd=folder, env=environment) as running:
        with running.peer() as peer:
            assert peer.ask(0x30001).value == 1
            assert peer.ask(FuncID.PING).func_id == FuncID.PING
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0
