"""``Storage(checked=True)``: damage is found, and named by its slot."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import pytest

from iproto import _fastframe as ff
from iproto.wire import SLOT_BYTES, SLOT_COUNT, FuncID, ReturnCode, State
from tests.helpers.oracle import packed_str
from tests.helpers.store import (
    READERS_AT,
    SLOT_SIZE,
    ask,
    frames_over,
    shared,
    slot_at,
    which_counts,
)

if TYPE_CHECKING:
    from collections.abc import Callable


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
