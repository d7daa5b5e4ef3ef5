"""The rules of the functions over the store stand once: Storage answers as the wire does."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, NamedTuple

import msgpack
import pytest

from iproto import _fastframe as ff
from iproto.errors import Error
from iproto.wire import SLOT_BYTES, SLOT_COUNT, FuncID, ReturnCode, State
from tests.helpers.oracle import packed_str, request
from tests.helpers.store import STATE_AT

if TYPE_CHECKING:
    from collections.abc import Callable

INDEXES = [0, 1, SLOT_COUNT - 1, SLOT_COUNT, -1, 2**31, 2**32, 2**63 - 1, -(2**63)]
LENGTHS = [0, 1, 31, 32, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1, 2**16]


class Answer(NamedTuple):
    """A return code, and what came with it: nil, the bytes of a slot, or an error's text."""

    code: int
    content: bytes | None


def of_storage(call: Callable[[], bytes | None]) -> Answer:
    try:
        return Answer(ReturnCode.OK, call())
    except Error as error:
        return Answer(error.code, error.text.encode())


def of_wire(storage: ff.Storage, func_id: FuncID, body: bytes) -> Answer:
    frames = ff.ServerFrames(storage, mailru=False, max_body=2**20, max_calls=1, functions={})
    reply = frames.feed(request(func_id, body, 1))
    assert reply is not None
    content = msgpack.unpackb(reply[16:], raw=True)
    return Answer(int.from_bytes(reply[12:16], "little"), content)


def stores(state: State) -> tuple[ff.Storage, ff.Storage]:
    """Two of the same content and state."""
    both = ff.Storage(), ff.Storage()
    for storage in both:
        storage.replace(1, b"one")
        storage.switch(state)
    return both


def contents(storage: ff.Storage) -> list[bytes]:
    storage.switch(State.READ_WRITE)
    return [storage.read(index) for index in range(SLOT_COUNT)]


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("index", INDEXES)
def test_a_read_is_answered_alike(state: State, index: int) -> None:
    one, other = stores(state)
    assert of_storage(lambda: one.read(index)) == of_wire(
        other, FuncID.STORAGE_READ, msgpack.packb(index)
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("index", INDEXES)
def test_a_write_is_answered_alike_and_does_the_same(state: State, index: int, length: int) -> None:
    one, other = stores(state)
    content = b"x" * length
    answer = of_storage(lambda: one.replace(index, content))
    body = msgpack.packb(index) + packed_str(content)
    assert answer == of_wire(other, FuncID.STORAGE_REPLACE, body)
    assert contents(one) == contents(other)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("func_id", "wanted"),
    [
        (FuncID.ADM_STORAGE_SWITCH_READWRITE, State.READ_WRITE),
        (FuncID.ADM_STORAGE_SWITCH_READONLY, State.READ_ONLY),
        (FuncID.ADM_STORAGE_SWITCH_MAINTENANCE, State.MAINTENANCE),
    ],
)
def test_a_switch_is_answered_alike_and_does_the_same(
    state: State, func_id: FuncID, wanted: State
) -> None:
    one, other = stores(state)
    assert of_storage(lambda: one.switch(wanted)) == of_wire(other, func_id, b"")
    assert one.state == other.state == wanted


# The order of the checks: the body, the state, the index.


@pytest.mark.parametrize(
    ("state", "index", "length", "code"),
    [
        (State.READ_WRITE, SLOT_COUNT, 1, ReturnCode.NUMBER_OUT_OF_RANGE),
        (State.READ_ONLY, SLOT_COUNT, 1, ReturnCode.READ_ONLY),
        (State.MAINTENANCE, SLOT_COUNT, 1, ReturnCode.LOCKED),
        (State.READ_ONLY, SLOT_COUNT, SLOT_BYTES + 1, ReturnCode.ILLEGAL_PARAMS),
        (State.MAINTENANCE, 0, SLOT_BYTES + 1, ReturnCode.ILLEGAL_PARAMS),
    ],
)
def test_a_write_tells_the_body_before_the_state_before_the_index(
    state: State, index: int, length: int, code: ReturnCode
) -> None:
    storage, _ = stores(state)
    assert of_storage(lambda: storage.replace(index, b"x" * length)).code == code


def test_a_read_tells_the_state_before_the_index() -> None:
    storage, _ = stores(State.MAINTENANCE)
    assert of_storage(lambda: storage.read(SLOT_COUNT)).code == ReturnCode.LOCKED


@pytest.mark.parametrize("index", [2**63, 2**64, 2**70])
def test_an_index_of_any_size_is_only_out_of_range(index: int) -> None:
    storage = ff.Storage()
    assert of_storage(lambda: storage.read(index)) == Answer(
        ReturnCode.NUMBER_OUT_OF_RANGE, b"index of 2^63-1 or more is outside 0..999"
    )
    assert of_storage(lambda: storage.replace(-index, b"")) == Answer(
        ReturnCode.NUMBER_OUT_OF_RANGE, b"index -9223372036854775808 is outside 0..999"
    )


# A state that is none.


def test_a_state_that_is_none_refuses_reads_and_writes_until_a_switch() -> None:
    memory = mmap.mmap(-1, ff.Storage.size_for(1))
    storage = ff.Storage(memory)
    storage.replace(0, b"kept")
    memory[STATE_AT] ^= 0x40
    for answer in (
        of_storage(lambda: storage.read(0)),
        of_storage(lambda: storage.replace(0, b"lost")),
        of_wire(storage, FuncID.STORAGE_READ, b"\x00"),
        of_wire(storage, FuncID.STORAGE_REPLACE, b"\x00\xa4lost"),
    ):
        assert answer.code == ReturnCode.INTERNAL
        assert answer.content is not None
        assert b"the storage is damaged: its state is 0x" in answer.content
    storage.switch(State.READ_WRITE)
    assert storage.read(0) == b"kept"
