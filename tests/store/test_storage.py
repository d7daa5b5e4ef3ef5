"""``Storage``: rules, buffers, and what two of them over one buffer see of each other."""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import random
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from iproto import _fastframe as ff
from iproto.errors import (
    Error,
    IllegalParamsError,
    LockedError,
    OutOfRangeError,
    OverloadedError,
    ReadOnlyError,
)
from iproto.wire import (
    HEADER_BYTES,
    SLOT_BYTES,
    SLOT_COUNT,
    CloseReason,
    FuncID,
    ReturnCode,
    State,
)
from tests.helpers.oracle import Reply, packed_str, parse_responses, request

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

# Places in version 2 of the layout.
WRITER_AT = 64
TURN_AT = 68
CLAIMS_AT = 72
STATE_AT = 128
PAGE = 4096
SLOTS_AT = PAGE
SLOTS_A_PAGE = 7
SLOT_SIZE = 576
READERS_AT = SLOTS_AT + PAGE * 143
READER_SIZE = 128


def slot_at(index: int) -> int:
    """Where a slot is in the store."""
    return SLOTS_AT + PAGE * (index // SLOTS_A_PAGE) + SLOT_SIZE * (index % SLOTS_A_PAGE)


def current_words(index: int) -> tuple[int, int]:
    """What a slot's first word is when its first copy counts, and its second one."""
    word = (index * 0xFFED1A3D + 0xC9E26AF4) & 0xFFFFFFFF
    return word, word ^ 0xFFFFFFFF


def which_counts(memory: mmap.mmap, index: int) -> int:
    """Which copy of a slot counts."""
    place = slot_at(index)
    word = int.from_bytes(memory[place : place + 4], sys.byteorder)
    return current_words(index).index(word)


STATE_WORDS = {
    State.READ_WRITE: 0x57530D65,
    State.READ_ONLY: 0x2C0EBF8C,
    State.MAINTENANCE: 0x0978703B,
}

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds after which a wait for another thread or process is a failure."""


def shared(workers: int = 1) -> mmap.mmap:
    """Fresh memory for a store."""
    return mmap.mmap(-1, ff.Storage.size_for(workers))


def frames_over(storage: ff.Storage) -> ff.ServerFrames:
    return ff.ServerFrames(storage, mailru=False, max_body=1000, max_calls=1, functions={})


def state_of(storage: ff.Storage) -> State:
    """For asserting twice what mypy takes for the same."""
    return storage.state


def ask(frames: ff.ServerFrames, func_id: int, body: bytes = b"") -> Reply:
    """The reply to one request."""
    [reply] = parse_responses(frames.feed(request(func_id, body, 1)) or b"", mailru=False)
    return reply


# --- Rules ----------------------------------------------------------------------------------------


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


# --- The vocabulary -------------------------------------------------------------------------------


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


# --- Buffers --------------------------------------------------------------------------------------


def test_a_store_over_an_mmap_outlives_its_object() -> None:
    memory = shared()
    storage = ff.Storage(memory)
    storage.replace(3, b"three")
    storage.switch(State.READ_ONLY)
    del storage
    again = ff.Storage(memory)
    assert again.read(3) == b"three"
    assert again.state is State.READ_ONLY


def test_a_store_in_a_file_is_found_again(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(bytes(ff.Storage.size_for()))
    for content in (b"", b"first", b"second"):
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            storage = ff.Storage(memory)
            assert storage.read(999) == content
            storage.replace(999, b"first" if content == b"" else b"second")
            del storage  # which holds on to the memory


def test_the_buffer_is_held_while_the_store_is_used() -> None:
    memory = shared()
    storage = ff.Storage(memory)
    with pytest.raises(BufferError):
        memory.close()
    del storage
    memory.close()


def test_stores_without_a_buffer_are_apart() -> None:
    one, two = ff.Storage(), ff.Storage()
    one.replace(1, b"one")
    one.switch(State.MAINTENANCE)
    assert two.read(1) == b""
    assert two.state is State.READ_WRITE


def test_a_larger_buffer_will_do() -> None:
    storage = ff.Storage(mmap.mmap(-1, ff.Storage.size_for() + mmap.PAGESIZE))
    storage.replace(999, b"last")
    assert storage.read(999) == b"last"


def test_a_buffer_that_is_too_small_is_refused() -> None:
    size = ff.Storage.size_for(2)
    assert size > ff.Storage.size_for(1)
    with pytest.raises(ValueError, match=f"takes {size} bytes; the buffer has {size - 1}"):
        ff.Storage(memoryview(shared(2))[: size - 1], workers=2)


@pytest.mark.parametrize("offset", [1, 2, 4, 8, 16, 32, 63])
def test_a_misaligned_buffer_is_refused(offset: int) -> None:
    memory = mmap.mmap(-1, ff.Storage.size_for() + 64)
    with pytest.raises(ValueError, match="aligned to 64 bytes"):
        ff.Storage(memoryview(memory)[offset:])


def test_a_buffer_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(BufferError):
        ff.Storage(bytes(ff.Storage.size_for()))


def test_what_is_no_buffer_is_refused() -> None:
    with pytest.raises(TypeError):
        ff.Storage(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("workers", "worker"), [(0, 0), (-1, 0), (1025, 0), (1, 1), (2, -1)])
def test_impossible_workers_are_refused(workers: int, worker: int) -> None:
    with pytest.raises(ValueError, match="it must be"):
        ff.Storage(workers=workers, worker=worker)


def set_word(memory: mmap.mmap, place: int, value: int) -> None:
    """Writes a word of the layout, as another process would."""
    memory[place : place + 4] = value.to_bytes(4, sys.byteorder)


def readers_at(worker: int) -> int:
    """Where a worker's count of readers is."""
    return READERS_AT + READER_SIZE * worker


def put(place: int, value: bytes) -> Callable[[mmap.mmap], None]:
    """Writes bytes into a store, behind its back."""

    def spoil(memory: mmap.mmap) -> None:
        memory[place : place + len(value)] = value

    return spoil


def put_in_slot(index: int, place: int, value: bytes) -> Callable[[mmap.mmap], None]:

    def spoil(memory: mmap.mmap) -> None:
        at = slot_at(index) + place
        memory[at : at + len(value)] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (put(0, b"\x89PNG\r\n\x1a\n"), "not an iproto store"),
        (put(0, b"IPROTO02"), "not an iproto store"),
        (put(8, b"\x01\x00\x00\x00"), "layout version 1; this program knows version 2"),
        (put(8, b"\x00\x00\x00\x00"), "layout version 0"),
        (put(12, b"\xe9\x03\x00\x00"), "1001 slots"),
        (put(16, b"\x00\x02\x00\x00"), "512 bytes"),
        (put(20, b"\x02\x00\x00\x00"), "damaged: 2 workers and "),
        (put(32, b"\x02"), "damaged: its flag for hashes is 2"),
        (put(WRITER_AT, b"\x02"), "damaged: worker 1 holds its lock"),
        (put(TURN_AT, b"\x02"), "damaged: its lock waits for worker 1"),
        (put_in_slot(0, 0, b"\x02\x00\x00\x00"), "damaged: slot 0 "),
        (put_in_slot(999, 0, b"\xff\xff\xff\x7f"), "damaged: slot 999 "),
        (put_in_slot(500, 0, b"\x01\x00\x00\x00"), "damaged: slot 500 "),
        (put_in_slot(500, 4, b"\x01\x01\x00\x00"), "damaged: slot 500 "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_store_that_is_not_ours_or_damaged_is_refused(
    spoil: Callable[[mmap.mmap], None], text: str
) -> None:
    if sys.byteorder == "big":
        pytest.skip("the layout is in the machine's byte order")
    memory = shared()
    ff.Storage(memory).replace(1, b"one")
    spoil(memory)
    before = memory[:]
    with pytest.raises(ValueError, match=text):
        ff.Storage(memory)
    assert memory[:] == before


def test_a_state_that_does_not_exist_is_refused() -> None:
    memory = shared()
    ff.Storage(memory)
    for value in (0, 1, 2, 0xFFFFFFFF):
        set_word(memory, STATE_AT, value)
        with pytest.raises(ValueError, match=f"damaged: its state is {value:#010x}"):
            ff.Storage(memory)


def test_no_few_flipped_bits_make_one_state_of_another() -> None:
    words = [*STATE_WORDS.values(), 0, 0xFFFFFFFF]
    assert min((a ^ b).bit_count() for a, b in itertools.combinations(words, 2)) == 14
    assert min((a ^ b).bit_count() for a, b in itertools.combinations(words[:3], 2)) == 20
    memory = shared()
    storage = ff.Storage(memory)
    for state, word in STATE_WORDS.items():
        storage.switch(state)
        assert memory[STATE_AT : STATE_AT + 4] == word.to_bytes(4, sys.byteorder)
        assert ff.Storage(memory).state is state


def test_a_store_for_other_workers_is_refused() -> None:
    memory = shared(3)
    ff.Storage(memory, workers=3)
    with pytest.raises(ValueError, match="made for 3 workers; expected 2"):
        ff.Storage(memory, workers=2)


# --- Checked stores -------------------------------------------------------------------------------


def checked_store() -> tuple[mmap.mmap, ff.Storage]:
    memory = shared()
    return memory, ff.Storage(memory, checked=True)


def flipped(memory: mmap.mmap, place: int, bits: int = 1) -> Callable[[], None]:
    """Flips bits of a byte; gives what flips them back."""

    def flip() -> None:
        memory[place] ^= bits

    flip()
    return flip


def test_a_checked_store_tells_damage_by_the_slot() -> None:
    memory, storage = checked_store()
    contents = {0: b"", 1: b"x", 7: bytes(range(256)), 999: b"12345678"}
    for index, content in contents.items():
        for _ in range(1 + index % 2):  # so that either copy is current in some
            storage.replace(index, content)
    assert ff.Storage.check(memory) == (1, State.READ_WRITE)
    for index, content in contents.items():
        slot = slot_at(index)
        current = which_counts(memory, index)
        copy = slot + 24 + SLOT_BYTES * current
        # `current`; the copy's length and hash; its bytes
        heads = [slot, slot + 3, slot + 4 + 4 * current, slot + 12 + 4 * current]
        for place in (*heads, *range(copy, copy + len(content))):
            for bits in (1, 0x80, 0xFF):
                flip_back = flipped(memory, place, bits)
                with pytest.raises(ValueError, match=f"damaged: slot {index} "):
                    ff.Storage.check(memory)
                flip_back()
        other = current ^ 1
        old_copy = slot + 24 + SLOT_BYTES * other
        for place in (slot + 4 + 4 * other, slot + 12 + 4 * other, old_copy, old_copy + 255):
            flip_back = flipped(memory, place, 0xFF)
            assert ff.Storage.check(memory) == (1, State.READ_WRITE)
            flip_back()
    assert {index: storage.read(index) for index in contents} == contents


def test_a_slot_that_was_wiped_or_is_in_anothers_place_is_damage() -> None:
    memory, storage = checked_store()
    for index in range(SLOT_COUNT):
        slot = slot_at(index)
        kept = memory[slot : slot + SLOT_SIZE]
        memory[slot : slot + SLOT_SIZE] = bytes(SLOT_SIZE)
        with pytest.raises(ValueError, match=f"damaged: slot {index} "):
            ff.Storage.check(memory)
        memory[slot : slot + SLOT_SIZE] = kept
    storage.replace(1, b"one")
    first, second = slot_at(1), slot_at(2)
    memory[second : second + SLOT_SIZE] = memory[first : first + SLOT_SIZE]
    with pytest.raises(ValueError, match="damaged: slot 2 "):
        ff.Storage.check(memory)


def test_what_is_written_over_the_wire_is_checked_too() -> None:
    memory, storage = checked_store()
    frames = frames_over(storage)
    for number in range(3):
        content = b"wire %d" % number
        assert (
            ask(frames, FuncID.STORAGE_REPLACE, b"\x07" + packed_str(content)).return_code
            == ReturnCode.OK
        )
        assert ff.Storage.check(memory) == (1, State.READ_WRITE)
        assert storage.read(7) == content


def test_the_areas_may_be_missing_from_what_is_checked() -> None:
    memory = shared(3)
    ff.Storage(memory, workers=3, checked=True).switch(State.READ_ONLY)
    head = mmap.mmap(-1, READERS_AT)
    head[:] = memory[:READERS_AT]
    assert ff.Storage.size_for(0) == READERS_AT
    assert ff.Storage.check(head) == (3, State.READ_ONLY)
    with pytest.raises(ValueError, match=f"at least {READERS_AT} bytes"):
        ff.Storage.check(memoryview(head)[: READERS_AT - 1])


def test_a_store_without_hashes_cannot_be_checked() -> None:
    memory = shared()
    ff.Storage(memory)
    with pytest.raises(ValueError, match="keeps no hashes"):
        ff.Storage.check(memory)


def test_flushing_needs_whole_pages() -> None:
    ff.Storage(shared()).flush()
    memory = mmap.mmap(-1, ff.Storage.size_for() + 64)
    with pytest.raises(OSError, match="Invalid argument"):
        ff.Storage(memoryview(memory)[64:]).flush()


# --- Two over one buffer --------------------------------------------------------------------------


def two_workers() -> tuple[ff.Storage, ff.Storage]:
    memory = shared(2)
    return ff.Storage(memory, workers=2, worker=0), ff.Storage(memory, workers=2, worker=1)


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


class Liar(int):
    """An int whose comparisons say that it is in any range."""

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __lt__


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


# --- Threads --------------------------------------------------------------------------------------


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
    """Its writer keeps all out, its reader keeps writers out; all wait at once, for a second."""
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


# --- Processes ------------------------------------------------------------------------------------

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


def patiently(call: Callable[..., T], *arguments: object) -> T:
    """Calls again for as long as the lock cannot be taken."""
    while True:
        with contextlib.suppress(OverloadedError):
            return call(*arguments)


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


@pytest.mark.parametrize("workers", [-1, 1025, -(2**70), 2**70])
def test_a_size_is_told_for_possible_numbers_of_workers_alone(workers: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1024"):
        ff.Storage.size_for(workers)
