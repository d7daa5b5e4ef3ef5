"""Servers over storage files, and files that a test fills, reads and damages."""

from __future__ import annotations

import fcntl
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from iproto import ConfigError, State
from iproto.storage.file import open_storage
from tests.helpers.harness import (
    PATIENCE,
    Peer,
    ServerProcess,
    replace_frame,
    serve_process,
    wait_until,
)

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable
    from pathlib import Path


def serving_file(
    path: Path, workers: int | None = None, *arguments: str
) -> contextlib.AbstractContextManager[ServerProcess]:
    many = () if workers is None else ("--workers", str(workers))
    return serve_process("--storage-file", str(path), *many, *arguments)


def write(peer: Peer, index: int, content: bytes | str) -> None:
    peer.send(replace_frame(index, content))
    assert peer.reply().code == 0


def stop(running: ServerProcess) -> None:
    running.process.send_signal(signal.SIGTERM)
    assert running.end()[0] == 0


def refused(
    path: Path,
    workers: int | None = None,
    *,
    through: tuple[str, ...] = (),
    preexec_fn: Callable[[], None] | None = None,
) -> str:
    """The one line with which `iproto serve` refuses a file."""
    many = () if workers is None else ("--workers", str(workers))
    options = ("--bind", "127.0.0.1:0", "--metrics-bind", "off", "--storage-file", str(path))
    done = subprocess.run(
        [*through, sys.executable, "-m", "iproto", "serve", *options, *many],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=preexec_fn,
    )
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(path) in done.stderr
    return done.stderr


def filled(path: Path, workers: int = 1) -> Path:
    """A file with slots 0..9, each written twice, and READ_ONLY."""
    with open_storage(path, workers) as file:
        for index in range(10):
            for turn in ("first", "second"):
                file.storage.replace(index, f"{turn} of {index}".encode())
        file.storage.switch(State.READ_ONLY)
    return path


def contents(path: Path) -> tuple[State, list[bytes]]:
    with open_storage(path) as file:
        storage = file.storage
        return storage.state, [storage.read(index) for index in range(10)]


FILLED = (State.READ_ONLY, [f"second of {index}".encode() for index in range(10)])


def wait_until_free(path: Path) -> None:
    """Until the system has done away with every killed process."""

    def is_free() -> bool:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    wait_until(is_free)


# What is checked.
def patch(path: Path, place: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(value)


def flip(path: Path, place: int, bits: int) -> None:
    with path.open("rb") as file:
        file.seek(place)
        (value,) = file.read(1)
    patch(path, place, bytes([value ^ bits]))


def check_refused(path: Path, text: str) -> None:
    """In one line with the path and what to do, and the file is left as it is."""
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=text) as caught:
        open_storage(path)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    assert re.search("restore a copy of it, or remove it|choose another path", said)
    assert path.read_bytes() == before
