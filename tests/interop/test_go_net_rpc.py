"""Clients of Go's net/rpc against ``iproto serve --net-rpc-bind``."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iproto import FuncID
from tests.helpers import gob
from tests.helpers.go import BUILD_TIME, build_programs
from tests.helpers.harness import PATIENCE, serve_process, wait_until
from tests.helpers.markdown import DOCS
from tests.helpers.metrics import value
from tests.helpers.paths import ROOT
from tests.helpers.workers import APP, pids, scrape, supervised

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="workers are looked up in /proc"
)

NET_RPC = ("--net-rpc-bind", "127.0.0.1:0")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_programs(tmp_path_factory)


@pytest.fixture
def client(programs: Path) -> Callable[..., str]:
    """Runs the client in Go; what it printed."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [programs / "client", *arguments],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("workers", [None, 2])
def test_every_operation_state_and_error_is_as_the_original_has_it(
    workers: int | None, client: Callable[..., str]
) -> None:
    running = serve_process(*NET_RPC) if workers is None else supervised(*NET_RPC, workers=workers)
    with running as server:
        assert client(server.addresses[-1], "check") == "ok 31\n"


def test_the_server_that_is_compared_with_is_as_the_original_too(
    programs: Path, client: Callable[..., str]
) -> None:
    with subprocess.Popen(
        [programs / "server", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[1]
            assert client(address, "check") == "ok 31\n"
        finally:
            server.kill()


def test_a_unix_socket_serves_net_rpc_too(tmp_path: Path, client: Callable[..., str]) -> None:
    path = str(tmp_path / "rpc.sock")
    with serve_process("--net-rpc-bind", f"unix:{path}"):
        assert client(path, "check") == "ok 31\n"


def test_both_kinds_of_clients_see_one_storage_and_its_state(client: Callable[..., str]) -> None:
    with serve_process(*NET_RPC) as server, server.peer() as peer:
        address = server.addresses[-1]
        assert client(address, "call", "0x20001", "82a24944" + "07" + "a153a3616263").endswith(
            " 0 80\n"
        )
        assert peer.read(7) == "abc"
        assert peer.ask(FuncID.ADM_STORAGE_SWITCH_READONLY).code == 0
        text = b"can't replace at readOnly mode"
        assert client(address, "call", "0x20001", "82a24944" + "07" + "a153a16f") == (
            f"{{FuncID:131073 BodyLength:31 RequestID:77}} 1 be{text.hex()}\n"
        )


def test_a_listener_of_net_rpc_has_rights_as_any_other(client: Callable[..., str]) -> None:
    with serve_process("--net-rpc-bind", "127.0.0.1:0?rights=read") as server:
        address = server.addresses[-1]
        assert client(address, "call", "0x20002", "07").endswith(" 0 81a153a0\n")
        refused = client(address, "call", "0x20001", "07a161").split()
        assert refused[3] == "1"
        assert b"may not call this function" in bytes.fromhex(refused[4])
        server.wait_for("refused a call by .*: it has the rights read$")


def test_user_functions_have_their_body_and_answer_as_they_are(
    tmp_path: Path, client: Callable[..., str]
) -> None:
    (tmp_path / "service.py").write_text(APP.format(version=7))
    with supervised("service:app", *NET_RPC, cwd=tmp_path) as server:
        address = server.addresses[-1]
        header = "{FuncID:196609 BodyLength:1 RequestID:77}"
        assert client(address, "call", "0x30001", "") == f"{header} 0 07\n"
        refused = client(address, "call", "0x30001", "01")
        assert " 1 " in refused
        assert b"takes 0 arguments" in bytes.fromhex(refused.split()[-1])


@pytest.mark.slow
def test_calls_are_right_while_workers_die_and_restart_and_the_server_is_upgraded(
    tmp_path: Path, programs: Path
) -> None:
    (tmp_path / "service.py").write_text(APP.format(version=1))
    with supervised("service:app", *NET_RPC, cwd=tmp_path) as server:
        address = server.addresses[-1]
        load = subprocess.Popen(
            [programs / "client", address, "load", str(4 * PATIENCE), "4", "8"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            for number in (signal.SIGHUP, signal.SIGUSR2):
                before = set(pids(server))
                server.process.send_signal(number)
                server.wait_for("restarted$")
                assert not before & set(pids(server))
            victim = pids(server)[0]
            os.kill(victim, signal.SIGKILL)
            server.wait_for(f"{victim}.*killed|killed.*{victim}")
            wait_until(lambda: len(pids(server)) == 2)
            with server.peer() as peer:
                assert peer.ask(0x30001).value == 1
            load.terminate()
            output, errors = load.communicate(timeout=PATIENCE)
        finally:
            load.kill()
            load.wait()
        assert load.returncode == 0, errors
        words = output.split()
        assert int(words[1]) > 100
        assert int(words[-1]) >= 4, "each connection was lost with its worker at least once"
        reads = {"function": "STORAGE_READ", "code": "OK"}
        assert value(scrape(server), "iproto_requests_total", **reads) > 50


def open_connection(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def test_a_drain_answers_what_has_arrived_and_then_ends_the_stream() -> None:
    with serve_process(*NET_RPC) as server:
        with open_connection(server.addresses[-1]) as sock:
            sock.sendall(gob.DEFINITIONS + gob.call(1, FuncID.STORAGE_READ, b"\x01"))
            assert sock.recv(1 << 16)
            server.process.send_signal(signal.SIGTERM)
            assert sock.recv(1 << 16) == b""
        code, _log = server.end()
        assert code == 0


@pytest.mark.parametrize(
    ("number", "stream", "line"),
    [
        (
            1,
            struct.pack("<III", FuncID.STORAGE_READ, 1, 7) + b"\x01",
            r"it speaks plain iproto.*--bind",
        ),
        (
            0,
            gob.DEFINITIONS + gob.call(0, 1, b""),
            r"it is a client of Go's net/rpc.*--net-rpc-bind",
        ),
        (1, b"GET / HTTP/1.1\r\n\r\n", r"a type's number that no client sends"),
    ],
    ids=["iproto", "net/rpc", "http"],
)
def test_a_client_at_the_wrong_address_is_one_line_in_the_log(
    number: int, stream: bytes, line: str
) -> None:
    with serve_process(*NET_RPC) as server:
        for _ in range(3):
            with open_connection(server.addresses[number]) as sock:
                sock.sendall(stream)
                while sock.recv(1 << 16):
                    pass
        server.wait_for(line)
        server.process.send_signal(signal.SIGTERM)
        _code, log = server.end()
        assert len(re.findall(line, log)) == 2, "the line, and how many more there were"


def test_connections_that_sent_no_gob_are_counted() -> None:
    with serve_process(*NET_RPC) as server:
        with open_connection(server.addresses[-1]) as sock:
            sock.sendall(b"\0")
            assert sock.recv(1) == b""
        closed = "iproto_connections_closed_total"
        wait_until(lambda: value(scrape(server), closed, reason="bad_gob") == 1)


@pytest.mark.checkout
def test_the_example_does_what_its_page_says(programs: Path, tmp_path: Path) -> None:
    shown = re.search(r"```text\n(write: .*?)```", (DOCS / "interop.md").read_text(), re.DOTALL)
    assert shown is not None
    example = tmp_path / "example"
    source = ROOT / "examples" / "net_rpc_client.go"
    subprocess.run(["go", "build", "-o", example, source], check=True, timeout=BUILD_TIME)
    with serve_process(*NET_RPC) as server:
        done = subprocess.run(
            [example, server.addresses[-1]], capture_output=True, text=True, check=True
        )
    assert done.stdout == shown[1]
