"""A service of systemd: what it says, the sockets that it is given; the files of ``deploy``."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from iproto.address import Address
from iproto.cli.main import parse
from iproto.server import systemd
from iproto.server.settings import read_settings
from tests.docs.test_docs import section
from tests.helpers.harness import (
    PATIENCE,
    Peer,
    ServerProcess,
    replace_frame,
    serve_process,
    serving_process,
)
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from iproto import Config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd runs on Linux")

UNITS = ROOT / "deploy" / "systemd"
DOCKER = ROOT / "deploy" / "docker"


class Manager:
    """The service manager's end of the notify socket."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(PATIENCE)
        self.sock.bind(name.replace("@", "\0"))
        self.variables = {"NOTIFY_SOCKET": name}

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def next(self) -> dict[str, str]:
        """The next message that is not the watchdog's."""
        while True:
            message = self.sock.recv(4096).decode()
            fields = dict(line.split("=", 1) for line in message.splitlines())
            if "WATCHDOG" not in fields:
                return fields


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@iproto-test-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/notify"
    with Manager(name) as manager:
        yield manager


# What a service says.


def test_a_service_says_when_it_serves_and_when_it_stops(manager: Manager) -> None:
    with serve_process(env=manager.variables) as running, running.peer() as peer:
        where = running.addresses[0]
        assert manager.next() == {"READY": "1", "STATUS": f"serving {where}"}
        running.process.send_signal(signal.SIGTERM)
        assert manager.next() == {"STOPPING": "1", "STATUS": "draining"}
        assert peer.rest() == b""
        peer.sock.close()
        assert running.end()[0] == 0


def test_a_supervisor_says_when_its_workers_serve_restart_and_stop(manager: Manager) -> None:
    with serve_process("--workers", "2", env=manager.variables) as running:
        where = running.addresses[0]
        ready = {"READY": "1", "STATUS": f"serving {where} with 2 workers"}
        assert manager.next() == ready
        with running.peer() as peer:
            assert peer.read(0) == ""
        before = time.monotonic_ns() // 1000
        running.process.send_signal(signal.SIGHUP)
        reloading = manager.next()
        assert reloading.pop("RELOADING") == "1"
        assert before <= int(reloading.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
        assert reloading == {}
        assert manager.next() == ready
        running.wait_for("restarted$")
        running.process.send_signal(signal.SIGUSR2)
        assert "RELOADING" in manager.next()
        assert manager.next() == ready  # of the new program, in the same process
        assert "RELOADING" in manager.next()
        assert manager.next() == ready
        running.process.send_signal(signal.SIGHUP)
        assert "RELOADING" in manager.next()
        running.process.send_signal(signal.SIGTERM)  # in the middle of it
        assert manager.next() == {"STOPPING": "1", "STATUS": "draining"}
        assert running.end()[0] == 0
    manager.sock.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.next()


def test_a_reload_that_is_refused_is_over_and_says_why(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("")
    with (
        Manager(f"{tmp_path}/notify") as manager,
        serve_process("--workers", "1", "--config", str(file), env=manager.variables) as running,
    ):
        ready = manager.next()
        file.write_text("max_body = 1")
        for number, outcome in (
            (signal.SIGHUP, "not restarted, workers and settings stay as they are"),
            (signal.SIGUSR2, "cannot upgrade, this version goes on"),
        ):
            running.process.send_signal(number)
            assert "RELOADING" in manager.next()
            said = manager.next()
            assert said.pop("STATUS").startswith(f"{outcome}: settings file {file}: max_body is 1")
            assert said == {"READY": "1"}
        file.write_text("max_body = 2048")
        running.process.send_signal(signal.SIGHUP)
        assert "RELOADING" in manager.next()
        assert manager.next() == ready


def test_nothing_is_said_to_serve_if_it_does_not(tmp_path: Path) -> None:
    with Manager(f"{tmp_path}/notify") as manager, serve_process("--workers", "1") as other:
        done = subprocess.run(
            [sys.executable, "-m", "iproto", "serve", "--bind", other.addresses[0]],
            env={**os.environ, **manager.variables},
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 2
        manager.sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            manager.next()


@pytest.mark.parametrize("workers", [(), ("--workers", "1")], ids=["alone", "workers"])
def test_the_watchdog_is_fed_twice_as_often_as_asked(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    with Manager(f"{tmp_path}/notify") as manager:
        variables = {**manager.variables, "WATCHDOG_USEC": "200000"}
        with serve_process(*workers, env=variables):
            manager.sock.settimeout(0)
            with contextlib.suppress(BlockingIOError):  # what came while it started
                while True:
                    manager.sock.recv(4096)
            manager.sock.settimeout(PATIENCE)
            begun = time.monotonic()
            fed = 0
            while fed < 5:  # READY may still come in between
                fed += manager.sock.recv(4096) == b"WATCHDOG=1"
            # Four times 0.1 s and more lie between the five; there may be a wait for the first.
            assert time.monotonic() - begun > 0.35


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "x"},
        {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"},
    ],
    ids=["nobody", "0", "no number", "another process"],
)
def test_no_watchdog_is_fed_that_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asyncio.run(asyncio.wait_for(systemd.feed_watchdog(), PATIENCE))


def test_a_manager_that_is_gone_costs_a_log_line_and_nothing_else(tmp_path: Path) -> None:
    with serve_process(env={"NOTIFY_SOCKET": f"{tmp_path}/gone"}) as running:
        running.process.send_signal(signal.SIGTERM)
        code, log = running.end()
    assert code == 0
    assert "cannot notify systemd: No such file or directory" in log


# The sockets that it is given.

# Makes the descriptors that its first argument lists 3, 4, ..., as systemd passes them.
EXEC = """
import os, sys
given, *rest = sys.argv[1:]
for position, fd in enumerate(map(int, given.split(","))):
    os.dup2(fd, 3 + position)
os.environ["LISTEN_PID"] = os.environ.get("LISTEN_PID", str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "iproto", "serve", *rest])
"""


def start_with(
    sockets: Sequence[socket.socket | IO[str]], *arguments: str, **variables: str
) -> subprocess.Popen[str]:
    # Out of the way of those that they become.
    high = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 100) for sock in sockets]
    try:
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                EXEC,
                ",".join(map(str, high)),
                "--metrics-bind=off",
                *arguments,
            ],
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=high,
            env={**os.environ, "LISTEN_FDS": str(len(sockets)), **variables},
        )
    finally:
        for fd in high:
            os.close(fd)


@contextlib.contextmanager
def activated(
    sockets: list[socket.socket], *arguments: str, **variables: str
) -> Iterator[ServerProcess]:
    with serving_process(start_with(sockets, *arguments, **variables)) as running:
        yield running


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[list[socket.socket]]:
    """A TCP and a unix socket, as a socket unit makes them."""
    tcp = socket.create_server(("127.0.0.1", 0))
    local = socket.socket(socket.AF_UNIX)
    local.bind(f"{tmp_path}/socket")
    local.listen()
    with tcp, local:
        yield [tcp, local]


def addresses_of(sockets: list[socket.socket]) -> list[Address]:
    tcp, local = sockets
    return [Address(*tcp.getsockname()), Address("", 0, local.getsockname())]


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_given_sockets_are_served_in_place_of_bind(
    listening: list[socket.socket], workers: tuple[str, ...]
) -> None:
    where = addresses_of(listening)
    options = ("--bind", "127.0.0.1:1", *workers)  # which could not be had
    with activated(listening, *options, LISTEN_FDNAMES="web:") as running:
        log = "".join(running.log)
        assert f"{where[0]} (web) comes from systemd; --bind is not used" in log
        assert f"{where[1]} (unnamed) comes from systemd; --bind is not used" in log
        assert running.addresses == [str(address) for address in where]
        for address in where:
            with Peer(address) as peer:
                assert peer.read(0) == ""
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0
    assert os.path.exists(where[1].path)  # for it is systemd's


def test_connections_wait_while_the_server_restarts(
    listening: list[socket.socket], tmp_path: Path
) -> None:
    where = addresses_of(listening)
    options = ("--workers", "1", "--storage-file", f"{tmp_path}/storage")
    with activated(listening, *options) as running:
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0
    peers = [Peer(address) for address in where]
    for index, peer in enumerate(peers):
        peer.send(replace_frame(index, "waited"))
    with activated(listening, *options) as running:
        for peer in peers:
            assert peer.reply().code == 0
            peer.sock.close()
        running.process.send_signal(signal.SIGUSR2)  # the new program has them, too
        running.wait_for("restarted$")
        for index, address in enumerate(where):
            with Peer(address) as peer:
                assert peer.read(index) == "waited"
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 0
    assert os.path.exists(where[1].path)


def test_sockets_for_another_process_are_left_alone(listening: list[socket.socket]) -> None:
    with activated(listening, "--bind", "127.0.0.1:0", LISTEN_PID="1") as running:
        assert running.addresses != [str(address) for address in addresses_of(listening)]


@pytest.mark.parametrize("workers", [(), ("--workers", "1")], ids=["alone", "workers"])
def test_what_is_no_listening_socket_is_refused_in_one_line(workers: tuple[str, ...]) -> None:
    with socket.socket() as idle:
        for variables, text in (
            (
                {"LISTEN_FDNAMES": "web"},
                "descriptor 3 (web), which systemd passed, does not listen",
            ),
            ({"LISTEN_FDS": "many"}, "LISTEN_FDS is 'many'; it must be a number"),
        ):
            process = start_with([idle], *workers, **variables)
            _, said = process.communicate(timeout=PATIENCE)
            assert process.returncode == 2
            assert f"iproto: {text}" in said.splitlines()[-1]
    with open(os.devnull) as file:
        process = start_with([file], *workers)
        assert "is no socket: Socket operation on non-socket" in process.communicate()[1]
        assert process.returncode == 2


# The files of deploy.


def unit(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def settings_of(arguments: list[str], environment: dict[str, str]) -> Config:
    return read_settings(vars(parse(arguments)), environment)


@pytest.fixture
def installed_units(tmp_path: Path) -> Path:
    """The units, with the `iproto` of this environment."""
    script = Path(sysconfig.get_path("scripts")) / "iproto"
    for file in UNITS.iterdir():
        text = file.read_text().replace("/opt/iproto/bin/iproto", str(script))
        (tmp_path / file.name).write_text(text)
    return tmp_path


def analyze(*arguments: str | Path) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("units: systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.checkout
def test_systemd_understands_the_units(installed_units: Path) -> None:
    units = [installed_units / "iproto.service", installed_units / "iproto.socket"]
    assert analyze("verify", "--man=no", *units) == ""


@pytest.mark.checkout
def test_the_unit_is_as_hardened_as_is_documented(installed_units: Path) -> None:
    documented = re.search(r"exposure\s+level of ([\d.]+)", section("deploy.md", "systemd"))
    assert documented is not None
    threshold = str(round(10 * float(documented[1])))
    unit = installed_units / "iproto.service"
    analyze("security", "--offline=true", f"--threshold={threshold}", unit)


@pytest.mark.checkout
def test_the_units_fit_the_server() -> None:
    service = unit("iproto.service")
    (command,) = service["ExecStart"]
    arguments = shlex.split(command.replace("%S", "/var/lib"))
    config = settings_of(arguments[1:], {})
    assert config.storage_file == f"/var/lib/{service['StateDirectory'][0]}/storage"
    assert int(service["TimeoutStopSec"][0]) > config.drain_timeout + 2
    assert unit("iproto.socket")["ListenStream"] == list(config.bind)
    assert int(unit("iproto.socket")["Backlog"][0]) == config.backlog


@pytest.mark.checkout
def test_the_repair_before_a_start_is_of_the_units_file() -> None:
    page = (ROOT / "docs" / "storage-file.md").read_text()
    (command,) = re.findall(r"^ExecStartPre=-(.*)$", page, re.MULTILINE)
    program, *arguments = shlex.split(command)
    options = parse(arguments)
    assert options.repair
    (serve,) = unit("iproto.service")["ExecStart"]
    assert serve.startswith(f"{program} serve ")
    assert f"--storage-file {options.path} " in serve


def dockerfile() -> str:
    return (DOCKER / "Dockerfile").read_text()


def variables_of(text: str) -> dict[str, str]:
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    return dict(item.split("=", 1) for item in block.replace("\\\n", " ").split())


@pytest.mark.checkout
def test_the_image_runs_the_server_where_it_can_be_reached() -> None:
    text = dockerfile()
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    command, *arguments = json.loads(entry)
    assert command == "iproto"
    config = settings_of(arguments, variables_of(text))
    assert config.bind == ("0.0.0.0:8080",)
    assert config.metrics_bind == "0.0.0.0:8088"
    assert re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE) == ["8080 8088"]
    users = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    assert users
    assert f"--uid {users[-1]} " in text


@pytest.mark.checkout
def test_the_image_is_built_from_what_the_context_has() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text()
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile(), re.MULTILINE)
    needed = {name for names in copied for name in names.split()}
    assert needed == set(re.findall(r"^!(.*)$", ignored, re.MULTILINE))
    assert all((ROOT / name).exists() for name in needed)


@pytest.mark.checkout
def test_the_health_check_tells_a_server_from_none() -> None:
    (check,) = re.findall(r"^ +CMD (\[.*\])$", dockerfile(), re.MULTILINE)
    command = json.loads(check)
    assert command[0] == "python"

    def healthy(address: str) -> bool:
        code = command[2].replace("127.0.0.1:8088", address)
        return not subprocess.run(
            [sys.executable, "-c", code], stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False
        ).returncode

    with serve_process() as running:
        address = running.metrics.removeprefix("http://")
        assert healthy(address)
        running.process.kill()
        running.process.wait()
        assert not healthy(address)


@pytest.mark.checkout
def test_compose_runs_the_server_and_prometheus_scrapes_it() -> None:
    yaml = pytest.importorskip("yaml", reason="compose: PyYAML is not installed")
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert compose["name"] == "iproto"  # else that of the directory: docker
    service = compose["services"]["iproto"]
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).samefile(
        DOCKER / "Dockerfile"
    )
    environment = variables_of(dockerfile()) | service["environment"] | {"LOG_LEVEL": "INFO"}
    config = settings_of(["serve"], environment)
    assert config.workers == "auto"
    (volume,) = service["volumes"]
    assert str(config.storage_file).startswith(volume.partition(":")[2])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert float(service["stop_grace_period"].rstrip("s")) > config.drain_timeout + 2
    for mounted in compose["services"]["prometheus"]["volumes"]:
        source = mounted.partition(":")[0]
        assert source in compose["volumes"] or (DOCKER / source).is_file()
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["job_name"] == "iproto"  # which the alerts of docs/metrics.md go by
    assert job["static_configs"] == [{"targets": ["iproto:8088"]}]
