"""File descriptors that run out: newcomers are refused, and health is still answered."""

from __future__ import annotations

import contextlib
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from iproto import FuncID
from iproto.address import Address, parse_address
from tests.helpers.harness import PATIENCE, Peer, ServerProcess, serve_process, serving, wait_until
from tests.helpers.metrics import get, parse, value
from tests.helpers.tcp import keepalive_in, linux_only

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT = 128

HOG = """
import os
import iproto

app = iproto.App()

@app.function(0x30001)
def hog() -> int:
    taken = 0
    try:
        while True:
            os.open("/dev/null", os.O_RDONLY)
            taken += 1
    except OSError:
        return taken
"""


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that may have LIMIT descriptors, with a function that takes them all."""
    (tmp_path / "hog.py").write_text(HOG)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, hard))
    try:
        with serve_process("hog:app", cwd=tmp_path) as running:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            yield running
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def metrics_of(running: ServerProcess) -> Address:
    return parse_address(running.metrics.removeprefix("http://"))


def is_refused(sock: socket.socket) -> bool:
    """Whether a connection is ended without having been served."""
    with contextlib.suppress(ConnectionError):
        return sock.recv(1) == b""
    return True


def test_newcomers_are_refused_before_the_last_descriptors_are_used(
    limited: ServerProcess,
) -> None:
    address = parse_address(limited.addresses[0])
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(address)) for _ in range(LIMIT)]
        limited.wait_for("ERROR.* refused a connection: .*LimitNOFILE")
        refused = 0
        for peer in peers:
            try:
                peer.send(b"\0\xff\0\0" + bytes(8))
                assert peer.reply().func_id == FuncID.PING
            except (ConnectionError, EOFError, AssertionError):
                refused += 1
        assert LIMIT // 4 <= refused < LIMIT
        assert get(metrics_of(limited), "/healthz") == (200, "alive\n")
        samples = parse(get(metrics_of(limited), "/metrics")[1])
        assert value(samples, "iproto_connections_closed_total", reason="refused") == refused
        assert value(samples, "active_connections") == LIMIT - refused

    def is_served_again() -> bool:
        with Peer(address) as peer, contextlib.suppress(ConnectionError, EOFError, AssertionError):
            return peer.ask(FuncID.PING).func_id == FuncID.PING
        return False

    wait_until(is_served_again)


def test_newcomers_and_health_do_not_hang_when_a_function_has_used_all_up(
    limited: ServerProcess,
) -> None:
    address = parse_address(limited.addresses[0])
    with Peer(address) as peer:
        assert peer.ask(0x30001).value > 0
        for _ in range(3):
            with socket.create_connection((address.host, address.port), PATIENCE) as sock:
                assert is_refused(sock)
            assert get(metrics_of(limited), "/healthz") == (200, "alive\n")
        assert peer.ask(FuncID.PING).func_id == FuncID.PING


@linux_only
def test_a_client_that_vanished_is_asked_whether_it_is_there() -> None:
    with serving() as served, served.peer() as peer:
        assert peer.ask(FuncID.PING).func_id == FuncID.PING
        ours, theirs = peer.sock.getpeername()[1], peer.sock.getsockname()[1]
        assert 30 < keepalive_in(local=ours, remote=theirs) <= 60
