"""``ServerFrames``: the clocks of partial frames and of silence."""

from __future__ import annotations

import pathlib
import time

import pytest

from iproto import _fastframe as ff
from iproto.wire import FuncID
from tests.helpers.oracle import HEADER, request
from tests.helpers.server_frames import server


def virtual_bytes() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * 4096


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs /proc")
def test_nothing_is_allocated_for_a_length_that_is_merely_claimed() -> None:
    storage = ff.Storage()
    count, claim = 2000, 64 << 20
    before = virtual_bytes()
    connections = []
    for i in range(count):
        frames = server(storage=storage, max_body=claim)
        frames.feed(HEADER.pack(FuncID.STORAGE_REPLACE, claim, i) + b"\x01")
        frames.feed(b"\xdb\x03\xff\xff\xff")
        connections.append(frames)
    assert virtual_bytes() - before < 4096 * count
    assert all(frames.partial_seconds() > 0.0 for frames in connections)


def grows(frames: ff.ServerFrames) -> bool:
    """Whether partial_seconds() gets over 0 (the clock may tick coarsely)."""
    return any(frames.partial_seconds() > 0.0 for _ in range(1_000_000))


def spin() -> None:
    """Lets the clock get ahead by more than a few calls take."""
    end = time.monotonic_ns() + 2_000_000
    while time.monotonic_ns() < end:
        pass


def test_partial_seconds_run_from_the_first_byte_to_the_last_of_a_frame() -> None:
    frames = server()
    data = request(FuncID.STORAGE_READ, b"\x01", 1)
    assert frames.partial_seconds() == 0.0
    for place in range(len(data) - 1):
        frames.feed(data[place : place + 1])
        assert grows(frames)
    frames.feed(data[-1:])
    assert frames.partial_seconds() == 0.0
    frames.feed(data)
    assert frames.partial_seconds() == 0.0
    frames.feed(data + data[:3])
    assert grows(frames)


def test_more_bytes_of_a_partial_frame_do_not_restart_its_clock() -> None:
    frames = server()
    data = request(FuncID.STORAGE_READ, b"\x01", 1)
    frames.feed(data[:2])
    begun = time.monotonic_ns()
    spin()
    frames.feed(data[2:5])
    elapsed = (time.monotonic_ns() - begun) / 1e9
    assert frames.partial_seconds() > elapsed
    assert frames.quiet_seconds() < frames.partial_seconds()


def test_a_new_partial_frame_restarts_the_clock() -> None:
    frames = server()
    data = request(FuncID.STORAGE_READ, b"\x01", 1)
    frames.feed(data[:2])
    spin()
    begun = time.monotonic_ns()
    frames.feed(data[2:] + data[:2])
    seconds = frames.partial_seconds()
    assert seconds <= (time.monotonic_ns() - begun) / 1e9
    assert grows(frames)


def test_frames_that_wait_for_their_turn_are_not_partial() -> None:
    data = request(FuncID.STORAGE_READ, b"\x00", 1) * 20_000
    frames = server()
    frames.feed(data + data[:7])
    assert frames.status & ff.HAS_MORE
    assert frames.partial_seconds() == 0.0
    while frames.status & ff.HAS_MORE:
        frames.feed(b"")
    assert grows(frames)


def test_touch_restarts_the_clocks_and_begins_no_frame() -> None:
    frames = server()
    spin()
    begun = time.monotonic_ns()
    frames.touch()
    assert frames.quiet_seconds() <= (time.monotonic_ns() - begun) / 1e9
    assert frames.partial_seconds() == 0.0
    frames.feed(b"\x01")
    spin()
    begun = time.monotonic_ns()
    frames.touch()
    assert frames.partial_seconds() <= (time.monotonic_ns() - begun) / 1e9
    assert grows(frames)


def test_quiet_seconds_run_since_bytes_last_came() -> None:
    frames = server()
    made = time.monotonic_ns()
    spin()
    assert frames.quiet_seconds() >= (time.monotonic_ns() - made) / 1e9 - 0.001
    begun = time.monotonic_ns()
    frames.feed(request(FuncID.PING, b"", 1))
    assert frames.quiet_seconds() <= (time.monotonic_ns() - begun) / 1e9
