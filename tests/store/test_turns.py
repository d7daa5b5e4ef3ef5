"""Who has the store's lock next, and how long others wait for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from iproto import _fastframe as ff
from iproto.errors import OverloadedError
from tests.helpers.harness import PATIENCE, wait_until
from tests.helpers.lock_word import wait_until_stopped
from tests.helpers.store import (
    ACQUIRED_AT,
    HOLDS_IN_READER,
    PID_IN_READER,
    TURN_AT,
    WRITER_AT,
    patiently,
    readers_at,
    set_due,
    set_word,
    shared,
    word,
)
from tests.store.fairness import measure

if TYPE_CHECKING:
    from collections.abc import Callable


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_a_worker_that_waits_has_the_turn_next() -> None:
    memory = shared(3)
    storage = ff.Storage(memory, workers=3, worker=0)
    ff.Storage(memory, workers=3, worker=1)  # a holder that may go on
    set_word(memory, WRITER_AT, 2)
    waits = in_thread(lambda: patiently(storage.replace, 0, b"mine"))
    wait_until(lambda: word(memory, TURN_AT) == 1)
    set_word(memory, WRITER_AT, 0)
    waits.join(PATIENCE)
    assert storage.read(0) == b"mine"
    assert word(memory, TURN_AT) == 0


@pytest.mark.parametrize("for_write", [False, True])
def test_who_does_not_use_the_turn_loses_it(for_write: bool) -> None:
    memory = shared(2)
    storage = ff.Storage(memory, workers=2, worker=0)
    set_word(memory, TURN_AT, 2)
    began = time.monotonic()
    if for_write:
        patiently(storage.replace, 0, b"mine")
    else:
        assert patiently(storage.read, 0) == b""
    assert time.monotonic() - began >= 0.008
    assert word(memory, TURN_AT) == 0


def test_a_holder_gives_the_turn_to_the_worker_that_waits_for_longest() -> None:
    memory = shared(4)
    storage = ff.Storage(memory, workers=4, worker=0)
    for worker, due in ((1, 300), (2, 200), (3, 0)):
        set_due(memory, worker, due)
    while word(memory, TURN_AT) == 0:
        storage.replace(0, b"mine")
    assert word(memory, TURN_AT) == 3
    assert word(memory, readers_at(0) + HOLDS_IN_READER) % 256 == 0


def test_a_stopped_holder_is_not_waited_for_as_one_that_may_go_on() -> None:
    """Nobody else wants a CPU for 0.1 s where one try of many takes less."""
    memory = shared(2)
    storage = ff.Storage(memory, workers=2, worker=0)
    set_word(memory, WRITER_AT, 2)

    def wait_in_vain(pid: int) -> float:
        set_word(memory, readers_at(1) + PID_IN_READER, pid)
        set_word(memory, ACQUIRED_AT, word(memory, ACQUIRED_AT) + 1)  # wait once more
        began = time.monotonic()
        with pytest.raises(OverloadedError):
            storage.read(0)
        return time.monotonic() - began

    assert wait_in_vain(os.getpid()) >= 0.1
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        try:
            assert wait_in_vain(other.pid) >= 0.1  # it sleeps, but may be woken
            os.kill(other.pid, signal.SIGSTOP)
            wait_until_stopped(other.pid)
            wait_until(lambda: wait_in_vain(other.pid) < 0.1)
        finally:
            other.kill()
            other.wait()
    assert wait_in_vain(other.pid) >= 0.1  # dead: its parent frees what it held


def test_nobody_is_left_behind() -> None:
    """Each has the lock at times; how long it waits, ``make fairness`` tells."""
    for writers, readers in ((2, 0), (2, 2)):
        seen = measure(writers, readers, 0.3)
        assert all(waits.chunks > waits.refused for waits in seen)
