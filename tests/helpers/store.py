"""A store's layout, version 2, and stores over memory that a test may spoil."""

from __future__ import annotations

import contextlib
import mmap
import sys
from typing import TYPE_CHECKING, TypeVar

from iproto import _fastframe as ff
from iproto.errors import OverloadedError
from iproto.wire import State
from tests.helpers.oracle import Reply, parse_responses, request

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Places in version 2 of the layout.
WRITER_AT = 64
TURN_AT = 68
ACQUIRED_AT = 72
STATE_AT = 128
ENGINE_AT = 136  # two words of 64 bits: how far an engine has come
PAGE = 4096
SLOTS_AT = PAGE
SLOTS_A_PAGE = 7
SLOT_SIZE = 576
READERS_AT = SLOTS_AT + PAGE * 143
READER_SIZE = 128
PID_IN_READER = 16
HOLDS_IN_READER = 20
DUE_IN_READER = 24


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


def set_word(memory: mmap.mmap, place: int, value: int) -> None:
    """Writes a word of the layout, as another process would."""
    memory[place : place + 4] = value.to_bytes(4, sys.byteorder)


def readers_at(worker: int) -> int:
    """Where a worker's count of readers is."""
    return READERS_AT + READER_SIZE * worker


def word(memory: mmap.mmap, place: int) -> int:
    """A word of the layout."""
    return int.from_bytes(memory[place : place + 4], sys.byteorder)


def set_due(memory: mmap.mmap, worker: int, due: int) -> None:
    """As if the worker waited, and its turn were due at this time; 0: it does not wait."""
    place = readers_at(worker) + DUE_IN_READER
    memory[place : place + 8] = due.to_bytes(8, sys.byteorder)


def patiently(call: Callable[..., T], *arguments: object) -> T:
    """Calls again for as long as the lock cannot be taken."""
    while True:
        with contextlib.suppress(OverloadedError):
            return call(*arguments)


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


def two_workers() -> tuple[ff.Storage, ff.Storage]:
    memory = shared(2)
    return ff.Storage(memory, workers=2, worker=0), ff.Storage(memory, workers=2, worker=1)
