"""`iproto check`: what it says of a storage file, and what a repair leaves of it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from iproto import ConfigError, State
from iproto.storage.check import check_file
from iproto.storage.content import MAKING
from iproto.storage.file import open_storage
from iproto.wire import SLOT_BYTES
from tests.helpers.harness import PATIENCE
from tests.helpers.storage_files import FILLED, contents, filled, flip, patch
from tests.helpers.store import (
    PAGE,
    READERS_AT,
    SLOT_SIZE,
    SLOTS_A_PAGE,
    SLOTS_AT,
    STATE_AT,
    current_words,
    slot_at,
)

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iproto", "check", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def damage(path: Path, slot: int, *, both: bool = False) -> None:
    """To slots of `filled`: each was written twice, so its first copy is the current one."""
    content = slot_at(slot) + 24
    flip(path, content, 0xFF)
    if both:
        flip(path, content + SLOT_BYTES, 0xFF)


def test_a_whole_file_is_told_to_be_whole_and_is_only_read(tmp_path: Path) -> None:
    path = filled(tmp_path / "storage")
    before = path.read_bytes()
    path.chmod(0o400)
    for options in ((), ("--repair",)):
        if options and os.geteuid():  # it may not open the file for writing
            path.chmod(0o600)
        done = run(*options, path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{path} is whole; its state is READ_ONLY\n"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["storage"]


def test_what_is_damaged_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    path = filled(tmp_path / "storage")
    damage(path, 3)
    damage(path, 7, both=True)
    before = path.read_bytes()
    done = run(path)
    assert done.returncode == 2
    assert done.stdout == (
        "slot 3: damaged; can have its other content, 10 bytes\n"
        "slot 7: damaged, both contents; can have none\n"
    )
    assert done.stderr == (
        f"iproto: storage file {path} is damaged; restore a copy of it, or repair it: "
        f"iproto check --repair {path}\n"
    )
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["storage"]


def test_a_repair_keeps_all_that_is_whole_and_the_file_as_it_was(tmp_path: Path) -> None:
    path = filled(tmp_path / "storage", workers=3)
    kept = tmp_path / "storage.damaged-1"
    damage(path, 3)
    damage(path, 7, both=True)
    before = path.read_bytes()
    done = run("--repair", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "slot 3: damaged; has its other content, 10 bytes\n"
        "slot 7: damaged, both contents; has none\n"
        f"{path} is whole; its state is READ_ONLY; as it was, it is kept as {kept}\n"
    )
    assert kept.read_bytes() == before
    assert kept.stat().st_mode & 0o777 == 0o600
    state, slots = FILLED
    assert contents(path) == (
        state,
        [*slots[:3], b"first of 3", *slots[4:7], b"", *slots[8:]],
    )
    damage(path, 5)
    assert check_file(path, repair=True).kept == str(tmp_path / "storage.damaged-2")
    assert kept.read_bytes() == before


@pytest.mark.skipif(sys.byteorder == "big", reason="the file is in the machine's byte order")
@pytest.mark.parametrize(
    ("place", "value", "content"),
    [
        # The word that says which copy counts is near to that of one of them.
        (0, (current_words(4)[0] ^ 0x80000001).to_bytes(4, "little"), b"second of 4"),
        (0, (current_words(4)[1] ^ 0x00018000).to_bytes(4, "little"), b"first of 4"),
        (4, b"\xff\xff\xff\xff", b"first of 4"),  # a length over the limit
        (0, bytes(SLOT_SIZE), b""),
        (0, b"\xff" * SLOT_SIZE, b""),
    ],
)
def test_a_slot_whose_head_is_impossible_can_be_repaired(
    tmp_path: Path, place: int, value: bytes, content: bytes
) -> None:
    path = filled(tmp_path / "storage")
    patch(path, slot_at(4) + place, value)
    with pytest.raises(ConfigError, match=f"or see 'iproto check {path}'"):
        open_storage(path)
    ((slot, length),) = check_file(path, repair=True).damaged
    assert (slot, length) == (4, len(content) or None)
    expected = list(FILLED[1])
    expected[4] = content
    assert contents(path) == (FILLED[0], expected)
    with open_storage(path) as file:
        file.storage.switch(State.READ_WRITE)
        file.storage.replace(4, b"written again")
    assert contents(path)[1][4] == b"written again"


@pytest.mark.parametrize(
    "at", [*range(SLOTS_AT, SLOTS_AT + 4 * PAGE, PAGE), *range(SLOTS_AT, slot_at(20), 509)]
)
def test_two_moments_lose_no_slot_but_the_one_between_them(tmp_path: Path, at: int) -> None:
    """As after a power failure: what lies before a place is newer than what follows.

    Between two pages no slot is torn.
    """
    path = filled(tmp_path / "storage")
    older = path.read_bytes()
    with open_storage(path) as file:
        file.storage.switch(State.READ_WRITE)
        for turn in ("third", "fourth"):
            for index in range(20):
                file.storage.replace(index, f"{turn} of {index}".encode())
    path.write_bytes(path.read_bytes()[:at] + older[at:])
    page, place = divmod(at - SLOTS_AT, PAGE)
    torn = page * SLOTS_A_PAGE + min(place // SLOT_SIZE, SLOTS_A_PAGE)
    found = check_file(path, repair=True)
    assert {slot for slot, _ in found.damaged} <= ({torn} if place else set())
    with open_storage(path) as file:
        for index in range(10):
            known = {f"{turn} of {index}".encode() for turn in ("second", "third", "fourth")}
            if index < torn:
                assert file.storage.read(index) == f"fourth of {index}".encode()
            elif index > torn or not place:
                assert file.storage.read(index) == f"second of {index}".encode()
            else:
                assert file.storage.read(index) in known | {b""}


def test_what_cannot_be_repaired_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = filled(tmp_path / "storage")
    whole = path.read_bytes()
    foreign = (b"\x7fELF", "is no storage file of iproto")
    cut_off = (whole[: READERS_AT - 1], "is cut off")
    state = (
        whole[:STATE_AT] + b"\0\0\0\0" + whole[STATE_AT + 4 :],
        "cannot be repaired: the store is damaged: its state is 0x00000000; restore a copy of it",
    )
    unmade = (MAKING, "holds nothing yet")
    for data, text in (foreign, cut_off, state, (b"", "holds nothing yet"), unmade):
        path.write_bytes(data)
        for options in ((), ("--repair",)):
            done = run(*options, path)
            assert done.returncode == 2
            assert done.stderr.startswith(f"iproto: storage file {path} {text}")
            assert done.stderr.count("\n") == 1
            assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["storage"]


def test_a_file_that_is_served_or_is_not_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    done = run("--repair", path)
    assert done.returncode == 2
    assert done.stderr == f"iproto: cannot use storage file {path}: No such file or directory\n"
    assert not path.exists()
    with open_storage(path):
        for repair in (False, True):
            with pytest.raises(ConfigError, match="in use by another server"):
                check_file(path, repair=repair)
