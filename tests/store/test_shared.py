"""Workers' ``Storage`` objects over one buffer: what each sees, counters, recovery."""

from __future__ import annotations

from typing import Any

import pytest

from iproto import _fastframe as ff
from iproto.errors import ReadOnlyError
from iproto.wire import CloseReason, FuncID, ReturnCode, State
from tests.helpers.liar import Liar
from tests.helpers.store import (
    WRITER_AT,
    ask,
    frames_over,
    readers_at,
    set_word,
    shared,
    two_workers,
)


def test_two_workers_see_each_others_writes_and_states() -> None:
    one, two = two_workers()
    one.replace(1, b"from one")
    two.replace(999, b"from two")
    assert (two.read(1), one.read(999)) == (b"from one", b"from two")
    for state in (State.READ_ONLY, State.MAINTENANCE, State.READ_WRITE):
        one.switch(state)
        assert two.state is state
        two.switch(State.READ_WRITE)
        assert one.state is State.READ_WRITE
    one.switch(State.READ_ONLY)
    with pytest.raises(ReadOnlyError):
        two.replace(1, b"lost")
    refused = ask(frames_over(two), FuncID.STORAGE_REPLACE, b"\x01\xa0")
    assert refused.return_code == ReturnCode.READ_ONLY
    assert one.read(1) == b"from one"


def test_counters_of_all_workers_are_summed() -> None:
    one, two = two_workers()
    row = ff.ROWS.index(FuncID.STORAGE_READ)
    column = ff.CODE_COLUMNS.index(ReturnCode.OK)
    for storage, count in ((one, 2), (two, 3)):
        frames = frames_over(storage)
        storage.count_opened()
        storage.count_closed(CloseReason.IDLE)
        for _ in range(count):
            assert ask(frames, FuncID.STORAGE_READ, b"\x01").body == b""
    assert one.counters() == two.counters()
    counters = one.counters()
    assert counters["opened"] == 2
    assert counters["closed"][CloseReason.IDLE] == 2
    assert counters["requests"][row][column] == 5
    assert sum(map(sum, counters["requests"])) == 5
    assert counters["bytes_in"] == 5 * 13
    assert counters["bytes_out"] == 5 * 17


def test_counters_stay_when_a_worker_comes_back() -> None:
    memory = shared(2)
    storage = ff.Storage(memory, workers=2, worker=1)
    ask(frames_over(storage), FuncID.PING)
    del storage
    again = ff.Storage(memory, workers=2, worker=1)
    assert again.counters()["requests"][ff.ROWS.index(FuncID.PING)][0] == 1


@pytest.mark.parametrize(
    ("place", "value"), [(readers_at(0), 1), (WRITER_AT, 1)], ids=["reading", "writing"]
)
def test_recovery_frees_what_a_dead_worker_held(place: int, value: int) -> None:
    memory = shared(2)
    other = ff.Storage(memory, workers=2, worker=1)
    assert not other.recover(0)
    set_word(memory, place, value)
    assert other.recover(0)
    assert memory[place : place + 4] == bytes(4)
    other.replace(0, b"free")
    assert ff.Storage(memory, workers=2, worker=0).read(0) == b"free"


def test_recovery_leaves_what_others_hold() -> None:
    memory = shared(2)
    storage = ff.Storage(memory, workers=2, worker=0)
    for place, value in ((readers_at(1), 1), (WRITER_AT, 2)):
        set_word(memory, place, value)
        assert not storage.recover(0)
        assert memory[place] == value
        set_word(memory, place, 0)


def test_recovery_closes_the_books_of_a_dead_workers_connections() -> None:
    memory = shared(2)
    dead = ff.Storage(memory, workers=2, worker=1)
    for _ in range(3):
        dead.count_opened()
    dead.count_closed(CloseReason.IDLE)
    dead.heartbeat(0.0, 5)
    storage = ff.Storage(memory, workers=2, worker=0)
    assert storage.silent_seconds(1) > 0
    storage.recover(1)
    storage.recover(1)  # finds nothing more to do
    counters = storage.counters()
    assert counters["opened"] == sum(counters["closed"]) == 3
    assert counters["closed"][CloseReason.KILLED] == 2
    assert counters["tasks"] == 0
    assert storage.silent_seconds(1) == 0.0


def test_the_counters_of_one_worker_can_be_told_from_the_sum() -> None:
    memory = shared(2)
    one = ff.Storage(memory, workers=2, worker=0)
    two = ff.Storage(memory, workers=2, worker=1)
    one.count_opened()
    two.count_opened()
    two.count_opened()
    assert [one.counters(worker)["opened"] for worker in (0, 1, None)] == [1, 2, 3]
    for worker in (-1, 2):
        for ask_of in (one.counters, one.recover, one.silent_seconds):
            with pytest.raises(ValueError, match=r"must be 0\.\.1"):
                ask_of(worker)


@pytest.mark.parametrize("worker", [Liar(40_000), Liar(-1), 2**40, 2**70, -(2**70)])
def test_a_worker_is_looked_at_as_a_number(worker: int) -> None:
    storage = ff.Storage()
    for ask_of in (storage.counters, storage.recover, storage.silent_seconds):
        with pytest.raises(ValueError, match=r"must be 0\.\.0"):
            ask_of(worker)
    assert storage.counters(Liar(0))["opened"] == 0


@pytest.mark.parametrize("worker", [0.0, 0.5, "0"])
def test_a_worker_is_an_int(worker: Any) -> None:
    storage = ff.Storage()
    for ask_of in (storage.counters, storage.recover, storage.silent_seconds):
        with pytest.raises(TypeError):
            ask_of(worker)
