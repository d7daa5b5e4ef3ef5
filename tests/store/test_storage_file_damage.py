"""What of a storage file is checked at the start, and what refuses it."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import pytest

import iproto
from iproto import State
from iproto.storage.content import MAKING
from iproto.storage.file import open_storage
from tests.helpers.storage_files import (
    FILLED,
    check_refused,
    contents,
    filled,
    flip,
    patch,
    refused,
)
from tests.helpers.store import (
    READERS_AT,
    SLOTS_AT,
    STATE_AT,
    TURN_AT,
    WRITER_AT,
    current_words,
    slot_at,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    data = filled(path, workers=3).read_bytes()
    dice = random.Random(1)
    around = (READERS_AT - 1, READERS_AT, READERS_AT + 1)
    sizes = [8, 9, 4095, 4096, SLOTS_AT + 1, *around, len(data) - 1]
    for size in [*sizes, *(dice.randrange(8, len(data)) for _ in range(20))]:
        path.write_bytes(data[:size])
        check_refused(path, f"is cut off: it has {size} bytes of at least ")
    path.write_bytes(data[:READERS_AT])
    assert f"is cut off: it has {READERS_AT} bytes of at least {len(data)};" in refused(path)


def test_an_empty_file_is_a_new_one_and_an_unfinished_one_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    for begun in (b"", MAKING, MAKING + bytes(10_000)):
        path.write_bytes(begun)
        with open_storage(path) as file:
            assert file.storage.state is State.READ_WRITE
            assert file.storage.read(0) == b""
            file.storage.replace(0, b"kept")
        with open_storage(path) as file:
            assert file.storage.read(0) == b"kept"


@pytest.mark.parametrize(
    "data",
    [b"\x7fELF", b"{}\n", b"x" * 1_000_000, bytes(10), bytes(1_000_000), b"IPROTO02" * 100_000],
    ids=["ELF", "JSON", "long", "zeros", "many zeros", "another version's magic"],
)
def test_a_foreign_file_is_refused_and_left_as_it_is(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "storage"
    path.write_bytes(data)
    check_refused(path, "is no storage file of iproto, and is left as it is")
    if len(data) == 4:
        assert refused(path) == (
            f"iproto: storage file {path} is no storage file of iproto, and is left as it is; "
            "choose another path\n"
        )
        assert path.read_bytes() == data


@pytest.mark.skipif(sys.byteorder == "big", reason="the file is in the machine's byte order")
@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (8, 1, "layout version 1; this program knows version 2"),
        (12, 1001, "1001 slots of 256 bytes; expected 1000 of 256"),
        (16, 512, "1000 slots of 512 bytes"),
        (20, 2, "damaged: 2 workers and "),
        (20, 0, "damaged: 0 workers and "),
        (24, 0, "damaged: 1 workers and 0 bytes"),
        (32, 0, "keeps no hashes"),
        (32, 3, "damaged: its flag for hashes is 3"),
        (WRITER_AT, 2, "damaged: worker 1 holds its lock"),
        (TURN_AT, 2, "damaged: its lock waits for worker 1"),
        (STATE_AT, 0, "damaged: its state is 0x00000000"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, place: int, value: int, text: str) -> None:
    path = filled(tmp_path / "storage")
    patch(path, place, value.to_bytes(4, "little"))
    check_refused(path, text)


def test_every_flipped_byte_that_counts_is_noticed(tmp_path: Path) -> None:
    """In the header, and of each slot in `current`, its copy's length, hash and content."""
    path = filled(tmp_path / "storage")
    dice = random.Random(2)
    places = [*range(36), *range(STATE_AT, STATE_AT + 4)]
    for index in (0, 9, 10, 999):
        slot = slot_at(index)
        # Written twice, so the copy that is current is the first one again.
        places += [*range(slot, slot + 8), *range(slot + 12, slot + 16)]
        places += range(slot + 24, slot + 24 + len(b"second of 0") * (index < 10))
    for place in places:
        bits = dice.choice((1, 0x80, 0xFF))
        flip(path, place, bits)
        check_refused(path, "damaged|no storage|version|slots|hashes|cut off")
        flip(path, place, bits)
    assert contents(path) == FILLED
    flip(path, slot_at(9) + 24, 1)
    assert refused(path, 2) == (
        f"iproto: storage file {path} cannot be used: the store is damaged: slot 9 does not hold "
        "what was written; restore a copy of it, or remove it to begin with an empty storage, "
        f"or see 'iproto check {path}'\n"
    )


@pytest.mark.parametrize("word", [b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_a_slot_is_refused_whose_word_is_wiped_and_not_served_as_it_was_before(
    tmp_path: Path, word: bytes
) -> None:
    """Of all slots: the word says which content counts, and the older one is still there."""
    path = filled(tmp_path / "storage")
    whole = path.read_bytes()
    for index in range(iproto.wire.SLOT_COUNT):
        patch(path, slot_at(index), word)
        check_refused(path, f"slot {index} has an impossible head")
        patch(path, slot_at(index), whole[slot_at(index) :][:4])
    assert path.read_bytes() == whole
    # And another slot's word is not taken for this one's.
    patch(path, slot_at(3), current_words(4)[1].to_bytes(4, sys.byteorder))
    check_refused(path, "slot 3 has an impossible head")


def test_damage_to_what_does_not_count_is_no_error(tmp_path: Path) -> None:
    path = filled(tmp_path / "storage")
    for index in range(10):
        slot = slot_at(index)
        for place in (slot + 8, slot + 16, slot + 24 + 256, slot + 24 + 511):  # the other copy
            flip(path, place, 0xFF)
        flip(path, slot + 24 + len(b"second of 0"), 0xFF)  # behind the content
    for place in range(READERS_AT, READERS_AT + 100):
        flip(path, place, 0xFF)
    assert contents(path) == FILLED
