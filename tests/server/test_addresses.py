"""Addresses that a server can not listen on: one line, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, NoReturn

import pytest

import iproto
from iproto import ConfigError
from iproto.address import parse_address
from iproto.server import listeners
from tests.helpers.cli import run
from tests.helpers.harness import Peer, serve_process, serving

if TYPE_CHECKING:
    from pathlib import Path


def test_an_address_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for option in ("--bind", "--metrics-bind"):
            ended = run(
                "serve", *("--bind", "127.0.0.1:0", "--metrics-bind", "off"), *(option, address)
            )
            assert ended.returncode == 2
            assert ended.stderr.count("\n") == 1
            assert ended.stderr.startswith(f"iproto: cannot listen on {address}")
            assert "in use" in ended.stderr


def test_a_failed_start_leaves_nothing_open(tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/s"

    async def start_twice() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            server = iproto.Server(iproto.Config(bind=(path, f"127.0.0.1:{port}")))
            with pytest.raises(ConfigError, match="in use"):
                await server.start()
        async with iproto.Server(iproto.Config(bind=path)) as server:
            with pytest.raises(RuntimeError, match="started before"):
                await server.start()

    asyncio.run(start_twice())


def test_the_socket_of_a_killed_server_is_replaced_and_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    path = f"unix:{tmp_path}/s"
    with serve_process("--bind", path) as running:
        running.process.kill()
        running.process.wait()
        assert (tmp_path / "s").exists()
    with serve_process("--bind", path), Peer(parse_address(path)) as peer:
        assert peer.read(0) == ""
        with pytest.raises(ConfigError, match="in use"), serving(bind=path):
            pass
        assert peer.read(0) == ""


def test_a_file_is_never_replaced_by_a_socket(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    with pytest.raises(ConfigError, match="no socket"), serving(bind=f"unix:{precious}"):
        pass
    assert precious.read_text() == "data"


@pytest.mark.parametrize("kind", ["file in the path", "no directory", "long path", "loop"])
def test_a_path_that_cannot_be_bound_is_one_line_and_exit_code_2(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    (tmp_path / "loop").symlink_to("loop")
    name, text = {
        "file in the path": ("file/s", "not a directory"),
        "no directory": ("none/s", "the directory does not exist"),
        "long path": ("x" * 300, ""),  # the settings refuse it
        "loop": ("loop/s", "symbolic links"),
    }[kind]
    path = f"unix:{tmp_path}/{name}"
    ended = run("serve", "--bind", path, "--metrics-bind", "off")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert path in ended.stderr
    assert text in ended.stderr


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("where", ["stat", "bind", "connect", "unlink"])
def test_refused_permission_is_told_by_the_kind_of_address(
    where: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever call it is that the system refuses; root, who may run this, is refused nothing."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    def refuse(*_args: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    class Refusing(socket.socket):
        pass

    def said_of(address: str) -> str:
        with monkeypatch.context() as patch:
            if where in ("bind", "connect"):
                patch.setattr(Refusing, where, refuse)
                patch.setattr(socket, "socket", Refusing)
            else:
                patch.setattr(os, where, refuse)
            try:
                listeners.listen(parse_address(address), 1)
            except ConfigError as error:
                return str(error)
        return "nothing"

    of_path = said_of(f"unix:{path}")
    assert "permission denied" in of_path
    assert "directories" in of_path
    assert "1024" not in of_path
    if where == "bind":
        assert "ports below 1024" in said_of("127.0.0.1:0")


def test_a_socket_that_cannot_be_made_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    for address in (f"unix:{tmp_path}/s", "127.0.0.1:0", "[::1]:0"):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", refuse)
            with pytest.raises(ConfigError, match=r"cannot listen on .*: Too many open files"):
                listeners.listen(parse_address(address), 1)


def test_a_start_beside_a_server_that_does_not_accept_does_not_hang(tmp_path: Path) -> None:
    """As one that is stopped: its backlog is full, and a connect would wait for it."""
    path = str(tmp_path / "s")
    with contextlib.ExitStack() as sockets:
        stopped = sockets.enter_context(socket.socket(socket.AF_UNIX))
        stopped.bind(path)
        stopped.listen(1)
        for _ in range(5):
            waiting = sockets.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(path)
        ended = run("serve", *("--bind", f"unix:{path}", "--metrics-bind", "off"))
    assert ended.returncode == 2
    assert "in use" in ended.stderr
    assert (tmp_path / "s").exists()
