"""``Storage``: its rules and its numbers."""

from __future__ import annotations

import random
from typing import Any

import pytest

from iproto import _fastframe as ff
from iproto.errors import IllegalParamsError, LockedError, OutOfRangeError, ReadOnlyError
from iproto.wire import HEADER_BYTES, SLOT_BYTES, SLOT_COUNT, CloseReason, FuncID, ReturnCode, State
from tests.helpers.liar import Liar
from tests.helpers.oracle import Reply, packed_str, request
from tests.helpers.store import ask, frames_over, shared, state_of


def test_slots_are_empty_and_the_state_is_read_write_at_first() -> None:
    storage = ff.Storage()
    assert storage.state is State.READ_WRITE
    assert [storage.read(index) for index in range(SLOT_COUNT)] == [b""] * SLOT_COUNT


def test_every_slot_keeps_what_was_last_written_to_it() -> None:
    storage = ff.Storage()
    dice = random.Random(1)
    kept = [b""] * SLOT_COUNT
    for _ in range(5000):
        index = dice.randrange(SLOT_COUNT)
        kept[index] = dice.randbytes(dice.randrange(SLOT_BYTES + 1))
        storage.replace(index, kept[index])
    assert [storage.read(index) for index in range(SLOT_COUNT)] == kept


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, SLOT_BYTES])
def test_contents_of_every_length_are_kept_as_they_are(size: int) -> None:
    storage = ff.Storage()
    content = bytes(range(256))[::-1][:size]
    storage.replace(0, b"\xff" * SLOT_BYTES)
    storage.replace(0, content)
    assert storage.read(0) == content


def test_content_over_the_limit_is_refused_and_changes_nothing() -> None:
    storage = ff.Storage()
    storage.replace(5, b"kept")
    with pytest.raises(IllegalParamsError, match="string of 257 bytes is over the limit of 256"):
        storage.replace(5, b"x" * (SLOT_BYTES + 1))
    assert storage.read(5) == b"kept"
    assert storage.read(6) == b""


@pytest.mark.parametrize("index", [-1, SLOT_COUNT, SLOT_COUNT + 1, 2**31, 2**32, 2**64, -(2**64)])
def test_an_index_outside_is_refused(index: int) -> None:
    storage = ff.Storage()
    with pytest.raises(OutOfRangeError, match=r"outside 0\.\.999"):
        storage.read(index)
    with pytest.raises(OutOfRangeError, match=r"outside 0\.\.999"):
        storage.replace(index, b"lost")
    assert [storage.read(i) for i in range(SLOT_COUNT)] == [b""] * SLOT_COUNT


@pytest.mark.parametrize("content", ["text", None, 5, bytearray(b"x")])
def test_content_is_bytes_and_nothing_else(content: Any) -> None:
    storage = ff.Storage()
    with pytest.raises(TypeError):
        storage.replace(0, content)


@pytest.mark.parametrize("index", ["1", None, b"1"])
def test_an_index_is_a_number(index: Any) -> None:
    with pytest.raises(TypeError):
        ff.Storage().read(index)


def test_states_allow_what_they_should_and_keep_the_slots() -> None:
    storage = ff.Storage()
    storage.replace(7, b"seven")
    storage.switch(State.READ_ONLY)
    assert state_of(storage) is State.READ_ONLY
    assert storage.read(7) == b"seven"
    with pytest.raises(ReadOnlyError, match="READ_ONLY"):
        storage.replace(7, b"lost")
    storage.switch(State.MAINTENANCE)
    assert state_of(storage) is State.MAINTENANCE
    with pytest.raises(LockedError, match="MAINTENANCE"):
        storage.read(7)
    with pytest.raises(LockedError, match="MAINTENANCE"):
        storage.replace(7, b"lost")
    storage.switch(State.READ_WRITE)
    assert state_of(storage) is State.READ_WRITE
    assert storage.read(7) == b"seven"
    storage.replace(7, b"eight")
    assert storage.read(7) == b"eight"


@pytest.mark.parametrize("state", [3, -1, "READ_ONLY", None])
def test_what_is_no_state_is_refused(state: Any) -> None:
    storage = ff.Storage()
    storage.switch(State.READ_ONLY)
    with pytest.raises(ValueError, match="State"):
        storage.switch(state)
    assert storage.state is State.READ_ONLY


def test_connections_and_python_see_the_same_slots_and_state() -> None:
    storage = ff.Storage()
    frames = frames_over(storage)
    assert ask(frames, FuncID.STORAGE_REPLACE, b"\x07" + packed_str(b"wire")).return_code == 0
    assert storage.read(7) == b"wire"
    storage.replace(7, b"python")
    assert ask(frames_over(storage), FuncID.STORAGE_READ, b"\x07").body == b"python"
    ask(frames, FuncID.ADM_STORAGE_SWITCH_MAINTENANCE)
    assert storage.state is State.MAINTENANCE
    storage.switch(State.READ_ONLY)
    refused = ask(frames, FuncID.STORAGE_REPLACE, b"\x07\xa0")
    assert refused.return_code == ReturnCode.READ_ONLY


def test_the_extension_and_the_vocabulary_agree_on_numbers() -> None:
    assert tuple(FuncID) == ff.ROWS
    assert len(ff.ROWS) == ff.ROW_OF_UNKNOWN < ff.FIRST_USER_ROW < ff.ROW_COUNT
    assert tuple(ReturnCode) == ff.CODE_COLUMNS
    storage = ff.Storage()
    frames = frames_over(storage)
    storage.replace(SLOT_COUNT - 1, b"x" * SLOT_BYTES)
    assert len(frames.feed(request(FuncID.PING, b"", 1)) or b"") == HEADER_BYTES
    for func_id, state in [
        (FuncID.ADM_STORAGE_SWITCH_READONLY, State.READ_ONLY),
        (FuncID.ADM_STORAGE_SWITCH_MAINTENANCE, State.MAINTENANCE),
        (FuncID.ADM_STORAGE_SWITCH_READWRITE, State.READ_WRITE),
    ]:
        assert ask(frames, func_id) == Reply(func_id, 1, ReturnCode.OK)
        assert storage.state is state
    assert len(storage.counters()["closed"]) >= len(CloseReason)
    assert len(storage.counters()["requests"]) == ff.ROW_COUNT
    assert all(len(row) > len(ReturnCode) for row in storage.counters()["requests"])
    assert all(len(row) == len(ff.BUCKET_BOUNDS) + 1 for row in storage.counters()["buckets"])
    assert len(storage.counters()["lag_buckets"]) == len(ff.LAG_BUCKET_BOUNDS) + 1
    for bounds in (ff.BUCKET_BOUNDS, ff.LAG_BUCKET_BOUNDS):
        assert list(bounds) == sorted(bounds)


def test_opened_and_closed_connections_are_counted() -> None:
    storage = ff.Storage()
    for _ in range(3):
        storage.count_opened()
    for reason in CloseReason:
        for _ in range(reason + 1):
            storage.count_closed(reason)
    counters = storage.counters()
    assert counters["opened"] == 3
    assert counters["closed"][: len(CloseReason)] == [reason + 1 for reason in CloseReason]
    with pytest.raises(ValueError, match="CloseReason"):
        storage.count_closed(99)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [Liar(3000), Liar(-1)])
def test_an_index_is_looked_at_as_a_number(index: int) -> None:
    storage = ff.Storage()
    with pytest.raises(OutOfRangeError):
        storage.read(index)
    with pytest.raises(OutOfRangeError):
        storage.replace(index, b"lost")


def test_the_beats_of_a_loop_are_counted_by_their_lateness() -> None:
    storage = ff.Storage()
    for lag in (-1.0, 0.0, 0.000_004, 0.02, 1e6):
        storage.heartbeat(lag, 7)
    counters = storage.counters()
    assert sum(counters["lag_buckets"]) == 5
    assert counters["lag_buckets"][0] == 3
    assert counters["lag_buckets"][-1] == 1
    assert counters["tasks"] == 7


def test_names_get_rows_of_their_own_while_there_are_rows() -> None:
    storage = ff.Storage()
    rows = [storage.row_for(f"f{number}") for number in range(300)]
    assert rows == [storage.row_for(f"f{number}") for number in range(300)]
    assert rows[0] == ff.FIRST_USER_ROW
    assert max(rows) == ff.ROW_COUNT - 1
    own = ff.ROW_COUNT - 1 - ff.FIRST_USER_ROW
    assert len(set(rows[:own])) == own
    assert set(rows[own:]) == {ff.ROW_COUNT - 1}
    assert storage.row_names[ff.ROW_COUNT - 1] == "other"


def test_a_write_leaves_the_value_alone_that_is_read_until_it_is_done() -> None:
    """So a writer that dies on the way leaves the old value whole."""
    memory = shared()
    storage = ff.Storage(memory)
    storage.replace(5, b"the old value")
    storage.replace(5, b"the new value")
    assert b"the old value" in memory[:]
    assert storage.read(5) == b"the new value"
