"""Threads and processes that use one store at the same time, and its lock."""

from __future__ import annotations

import functools
import itertools
import mmap
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from iproto import _fastframe as ff
from iproto.errors import Error, OverloadedError
from iproto.wire import FuncID, ReturnCode, State
from tests.helpers.harness import PATIENCE
from tests.helpers.oracle import packed_str, parse_responses, request
from tests.helpers.store import (
    STATE_AT,
    STATE_WORDS,
    WRITER_AT,
    ask,
    frames_over,
    patiently,
    readers_at,
    set_word,
    shared,
    two_workers,
)

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator


def telling(number: int) -> bytes:
    """A content of which no part goes with a part of another."""
    return bytes([number % 251]) * (1 + number % 251)


def check_whole(content: bytes) -> None:
    assert content == b"" or content == telling(content[0]), f"torn: {content!r}"


def run_all(*targets: Callable[[], None]) -> None:
    """Runs these in threads, and raises what one of them raised."""
    failures: list[BaseException] = []

    def guarded(target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


@pytest.fixture
def _restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def overloaded(storage: ff.Storage, func_id: int, body: bytes) -> None:
    """The request is answered OVERLOADED: the lock could not be taken."""
    assert ask(frames_over(storage), func_id, body).return_code == ReturnCode.OVERLOADED


def expect_overloaded(call: Callable[[], object]) -> None:
    with pytest.raises(OverloadedError, match="lock"):
        call()


WRITES: list[Callable[[ff.Storage], None]] = [
    lambda storage: expect_overloaded(lambda: storage.replace(0, b"lost")),
    lambda storage: expect_overloaded(lambda: storage.switch(State.READ_ONLY)),
    lambda storage: overloaded(storage, FuncID.STORAGE_REPLACE, b"\x00\xa4lost"),
    lambda storage: overloaded(storage, FuncID.ADM_STORAGE_SWITCH_READONLY, b""),
]
READS: list[Callable[[ff.Storage], None]] = [
    lambda storage: expect_overloaded(lambda: storage.read(0)),
    lambda storage: overloaded(storage, FuncID.STORAGE_READ, b"\x00"),
]


def test_a_lock_that_another_worker_keeps_is_not_waited_for_without_end() -> None:
    """Its writer keeps all out, its reader keeps writers out; all wait at once."""
    calls: list[Callable[[], None]] = []
    held: list[tuple[mmap.mmap, ff.Storage, int]] = []
    for place, blocked in ((WRITER_AT, [*READS, *WRITES]), (readers_at(1), WRITES)):
        for block in blocked:
            memory = shared(2)
            storage = ff.Storage(memory, workers=2, worker=0)
            storage.replace(0, b"kept")
            set_word(memory, place, 2 if place == WRITER_AT else 1)
            held.append((memory, storage, place))
            calls.append(functools.partial(block, storage))
    run_all(*calls)
    for memory, storage, place in held:
        if place != WRITER_AT:
            assert storage.read(0) == b"kept"  # for readers share it
        set_word(memory, place, 0)
        assert storage.state is State.READ_WRITE
        assert storage.read(0) == b"kept"
        storage.replace(0, b"free")


@pytest.mark.parametrize("over_the_wire", [False, True])
@pytest.mark.parametrize("state", [State.READ_ONLY, State.MAINTENANCE])
def test_a_write_that_waited_for_the_lock_finds_the_state_of_now(
    state: State, over_the_wire: bool
) -> None:
    memory = shared(2)
    storage = ff.Storage(memory, workers=2, worker=0)
    started = threading.Event()
    codes = []

    def write() -> None:
        started.set()
        if over_the_wire:
            reply = ask(frames_over(storage), FuncID.STORAGE_REPLACE, b"\x00\xa4lost")
            codes.append(reply.return_code)
        else:
            try:
                storage.replace(0, b"lost")
                codes.append(ReturnCode.OK)
            except Error as error:
                codes.append(error.code)

    def switch() -> None:
        """As another process would, which lets the lock go only then."""
        started.wait(PATIENCE)
        end = time.monotonic() + 0.005
        while time.monotonic() < end:
            time.sleep(0)  # lets go of the GIL
        set_word(memory, STATE_AT, STATE_WORDS[state])
        set_word(memory, WRITER_AT, 0)

    set_word(memory, WRITER_AT, 2)
    run_all(write, switch)
    allowed = ReturnCode.READ_ONLY if state is State.READ_ONLY else ReturnCode.LOCKED
    assert codes[0] in (allowed, ReturnCode.OVERLOADED)
    storage.switch(State.READ_WRITE)
    assert storage.read(0) == b""


@pytest.mark.usefixtures("_restless")
def test_threads_never_read_a_torn_value() -> None:
    one, two = two_workers()
    rounds = 4000
    reads = [0, 0]

    def write(storage: ff.Storage, first: int) -> None:
        for number in range(first, rounds, 2):
            storage.replace(number % 3, telling(number))

    def read(storage: ff.Storage, reader: int) -> None:
        for number in range(rounds):
            check_whole(storage.read(number % 3))
            reads[reader] += 1

    run_all(
        lambda: write(one, 0),
        lambda: write(two, 1),
        lambda: read(one, 0),
        lambda: read(two, 1),
    )
    assert reads == [rounds, rounds]


@pytest.mark.usefixtures("_restless")
def test_connections_in_threads_answer_whole_values_and_count_each_request() -> None:
    one, two = two_workers()
    rounds, frames_a_chunk = 50, 100

    def serve(storage: ff.Storage, offset: int) -> None:
        frames = frames_over(storage)
        for turn in range(rounds):
            sent = []
            for i in range(frames_a_chunk):
                content = packed_str(telling(turn * frames_a_chunk + i + offset))
                sent.append(request(FuncID.STORAGE_REPLACE, b"\x05" + content, i))
                sent.append(request(FuncID.STORAGE_READ, b"\x05", i))
            replies = parse_responses(frames.feed(b"".join(sent)) or b"", mailru=False)
            assert len(replies) == len(sent)
            for reply in replies:
                assert reply.return_code == ReturnCode.OK
                check_whole(reply.body or b"")

    run_all(lambda: serve(one, 0), lambda: serve(two, 100))
    requests = one.counters()["requests"]
    assert sum(map(sum, requests)) == 2 * rounds * frames_a_chunk * 2


# A busy system may keep a holder of the lock off its CPU for longer than the lock is
# waited for: then it is tried again.
WRITER = """
import mmap, sys
from iproto import _fastframe as ff
from iproto.errors import OverloadedError, ReadOnlyError

def telling(number):
    return bytes([number % 251]) * (1 + number % 251)

def patiently(call, *arguments):
    while True:
        try:
            return call(*arguments)
        except OverloadedError:
            pass

with open(sys.argv[1], "r+b") as file:
    storage = ff.Storage(mmap.mmap(file.fileno(), 0), workers=2, worker=1)
done = refused = number = 0
while patiently(storage.read, 999) != b"stop":
    number += 1
    try:
        patiently(storage.replace, 0, telling(number))
        done += 1
    except ReadOnlyError:
        refused += 1
        storage.count_opened()  # for the other side to see
    if number <= 2000:
        got = patiently(storage.read, 1)
        assert got == b"" or got == telling(got[0]), got
print(done, refused)
"""


class OtherProcess:
    """A process that writes telling values to slot 0 until it is stopped by slot 999."""

    def __init__(self, path: pathlib.Path) -> None:
        path.write_bytes(bytes(ff.Storage.size_for(2)))
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        self.storage = ff.Storage(memory, workers=2, worker=0)
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> OtherProcess:
        self.wait_until(lambda: patiently(self.storage.read, 0) != b"")
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"the other process: {self.process.communicate()[1]}")

    def stop(self) -> tuple[int, int]:
        """Ends it; how many writes it was acknowledged and refused."""
        patiently(self.storage.replace, 999, b"stop")
        out, err = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, err
        done, refused = map(int, out.split())
        return done, refused


def test_two_processes_never_read_a_torn_value(tmp_path: pathlib.Path) -> None:
    with OtherProcess(tmp_path / "store") as other:
        seen = set()
        numbers = itertools.count()

        def go_on() -> bool:
            number = next(numbers)
            content = patiently(other.storage.read, 0)
            check_whole(content)
            seen.add(content)
            patiently(other.storage.replace, 1, telling(number))
            return number > 20_000 and len(seen) > 20

        other.wait_until(go_on)
        done, refused = other.stop()
    assert done >= len(seen)
    assert refused == 0


def test_nothing_is_written_once_a_switch_was_acknowledged(tmp_path: pathlib.Path) -> None:
    with OtherProcess(tmp_path / "store") as other:
        storage = other.storage
        frozen = b""

        def was_refused() -> bool:
            assert patiently(storage.read, 0) == frozen
            return storage.counters()["opened"] > before

        def was_written() -> bool:
            return patiently(storage.read, 0) != frozen

        for _ in range(100):
            patiently(storage.switch, State.READ_ONLY)
            frozen = patiently(storage.read, 0)
            before = storage.counters()["opened"]
            other.wait_until(was_refused)
            assert patiently(storage.read, 0) == frozen
            patiently(storage.switch, State.READ_WRITE)
            other.wait_until(was_written)
        done, refused = other.stop()
    assert done >= 100
    assert refused >= 100


def test_a_killed_process_leaves_a_store_that_goes_on(tmp_path: pathlib.Path) -> None:
    for turn in range(3):
        path = tmp_path / f"store{turn}"
        with OtherProcess(path) as other:
            other.process.kill()
            other.process.wait(PATIENCE)
            other.storage.recover(1)
            with path.open("r+b") as file:
                again = ff.Storage(mmap.mmap(file.fileno(), 0), workers=2, worker=1)
            again.replace(0, telling(77))
            assert other.storage.read(0) == telling(77)
            other.storage.switch(State.READ_ONLY)
            assert again.state is State.READ_ONLY
