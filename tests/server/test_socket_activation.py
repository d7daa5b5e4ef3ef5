"""The server serves sockets that systemd listens on for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from typing import IO, TYPE_CHECKING

import pytest

from iproto.address import Address
from tests.helpers.harness import PATIENCE, Peer, ServerProcess, replace_frame, serving_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd runs on Linux")


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
