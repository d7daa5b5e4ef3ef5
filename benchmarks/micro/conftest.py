"""What the micro-benchmarks share: a filled storage, the frames of a connection."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.gate.script import content_of
from iproto import Storage
from iproto._fastframe import ServerFrames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEIGHBOUR = Path(__file__).with_name("neighbour.py")


def fill(storage: Storage) -> None:
    for index in range(1000):
        storage.replace(index, content_of(index))


@pytest.fixture
def storage() -> Storage:
    """Slots of 0 to 256 bytes."""
    storage = Storage()
    fill(storage)
    return storage


@pytest.fixture
def frames(storage: Storage) -> ServerFrames:
    return ServerFrames(
        storage,
        mailru=False,
        max_body=1 << 20,
        max_calls=1000,
        functions={},
    )


@pytest.fixture
def beside() -> Iterator[Callable[[Path, str], None]]:
    """Starts another process that attaches the store in a file, and reads or writes it."""
    with contextlib.ExitStack() as running:

        def start(store: Path, work: str) -> None:
            process = running.enter_context(
                subprocess.Popen(
                    [sys.executable, str(NEIGHBOUR), str(store), work],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            # It ends when its standard input does, also if we die.
            assert process.stdin is not None
            assert process.stdout is not None
            running.callback(process.stdin.close)
            assert process.stdout.readline() == b"working\n"

        yield start
