"""The lock of a served storage, seen from outside: through a worker's own descriptor."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers.harness import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITER_AT = 64
"""Where the lock's writer word is in the store, layout version 2."""

READERS_AT = 4096 + 143 * 4096
READER_SIZE = 128


class LockWords:
    """What a worker, which is alive, has of the lock.

    Args:
        pid: the worker's.
    """

    def __init__(self, pid: int) -> None:
        variables = Path(f"/proc/{pid}/environ").read_bytes()
        found = re.search(rb"IPROTO_WORKER=([^\0]*)", variables)
        assert found is not None
        orders = json.loads(found[1])
        self.pid = pid
        self.mark = struct.pack("<I", 1 + orders["area"])
        self._readers_at = READERS_AT + READER_SIZE * orders["area"]
        self.memory = os.open(f"/proc/{pid}/fd/{orders['storage']}", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.memory)

    @property
    def writer(self) -> bytes:
        return os.pread(self.memory, 4, WRITER_AT)

    @property
    def writes(self) -> bool:
        """Whether the worker has the write lock."""
        return self.writer == self.mark

    @property
    def reads(self) -> bool:
        """Whether the worker has the read lock."""
        return os.pread(self.memory, 4, self._readers_at) != bytes(4)

    def claim(self) -> None:
        """Claims the write lock in the worker's name, when nobody has it.

        When somebody has: who leaves the lock would take our mark away.
        """
        while not self.writes:
            if self.writer == bytes(4):
                os.pwrite(self.memory, self.mark, WRITER_AT)


@contextlib.contextmanager
def lock_words(pid: int) -> Iterator[LockWords]:
    words = LockWords(pid)
    try:
        yield words
    finally:
        words.close()


def freeze_holding(words: LockWords, *, for_write: bool) -> None:
    """Stops a worker, which is under load, at a moment at which it holds the lock."""
    end = time.monotonic() + PATIENCE
    while True:
        os.kill(words.pid, signal.SIGSTOP)
        wait_until_stopped(words.pid)
        if words.writes if for_write else words.reads:
            return
        os.kill(words.pid, signal.SIGCONT)
        assert time.monotonic() < end, "the worker was never stopped with the lock"
        time.sleep(0.0005)


def wait_until_stopped(pid: int) -> None:
    """SIGSTOP takes its effect when the process is next about to run."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.0001)
