"""``Storage`` over a buffer: which buffers will do, and which contents are refused."""

from __future__ import annotations

import itertools
import mmap
import sys
from typing import TYPE_CHECKING

import pytest

from iproto import _fastframe as ff
from iproto.wire import State
from tests.helpers.store import (
    STATE_AT,
    STATE_WORDS,
    TURN_AT,
    WRITER_AT,
    put,
    put_in_slot,
    set_word,
    shared,
)

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable


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


@pytest.mark.parametrize("offset", [1, 2, 4, 8, 16, 32, 64, 127])
def test_a_misaligned_buffer_is_refused(offset: int) -> None:
    memory = mmap.mmap(-1, ff.Storage.size_for() + 128)
    with pytest.raises(ValueError, match="aligned to 128 bytes"):
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


def test_flushing_needs_whole_pages() -> None:
    ff.Storage(shared()).flush()
    memory = mmap.mmap(-1, ff.Storage.size_for() + 128)
    with pytest.raises(OSError, match="Invalid argument"):
        ff.Storage(memoryview(memory)[128:]).flush()


@pytest.mark.parametrize("workers", [-1, 1025, -(2**70), 2**70])
def test_a_size_is_told_for_possible_numbers_of_workers_alone(workers: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1024"):
        ff.Storage.size_for(workers)
