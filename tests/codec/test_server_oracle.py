"""``ServerFrames`` answers as the oracle does, however the stream is cut."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iproto import _fastframe as ff
from iproto.wire import FuncID, State
from tests.helpers.callees import bodies, take_calls
from tests.helpers.oracle import OracleServer, parse_responses, request, split_responses
from tests.helpers.server_frames import MAX_BODY, USERS, feed_all, server, split
from tests.helpers.streams import (
    Frame,
    builtin_frames,
    codec,
    cuts,
    dialects,
    either_dialect,
    mutate,
    mutations,
    plain_streams,
    streams,
    wire,
)
from tests.helpers.vector_bodies import (
    BAD_READS,
    BAD_REPLACES,
    OUT_OF_RANGE,
    READ_SHAPES,
    REPLACE_SHAPES,
)


def check_against_oracle(data: bytes, *, mailru: bool) -> None:
    """The extension answers this stream as the oracle does, and ends up with the same slots."""
    oracle = OracleServer(max_body=MAX_BODY)
    frames = server(mailru=mailru)
    expected = oracle.feed(data)
    assert parse_responses(feed_all(frames, [data]), mailru=mailru) == expected
    assert bool(frames.status & ff.IS_CLOSING) == oracle.closed
    assert frames.storage.state == oracle.state
    frames.storage.switch(State.READ_WRITE)  # for reading the slots
    assert [frames.storage.read(index) for index in range(1000)] == oracle.slots


@given(mailru=either_dialect, sent=streams)
@codec
def test_valid_and_refused_frames_are_answered_as_by_the_oracle(
    sent: list[Frame], mailru: bool
) -> None:
    check_against_oracle(wire([f for f in sent if f.func_id not in USERS]), mailru=mailru)


@given(mailru=either_dialect, sent=plain_streams, changes=mutations)
@codec
def test_mutated_streams_are_answered_as_by_the_oracle(
    sent: list[Frame], changes: list[tuple[str, int, int]], mailru: bool
) -> None:
    check_against_oracle(mutate(wire(sent), changes), mailru=mailru)


@given(mailru=either_dialect, frame=builtin_frames, changes=mutations)
@codec
def test_mutated_bodies_are_answered_as_by_the_oracle(
    frame: Frame, changes: list[tuple[str, int, int]], mailru: bool
) -> None:
    mutated = frame._replace(body=mutate(frame.body, changes))
    check = Frame(FuncID.STORAGE_READ, b"\x00", 0)
    check_against_oracle(wire([frame, mutated, check]), mailru=mailru)


@given(mailru=either_dialect, noise=st.binary(max_size=100))
@example(mailru=False, noise=b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
@example(mailru=True, noise=bytes.fromhex("16030100a5010000a10303") + b"\x00" * 30)
@codec
def test_noise_is_answered_as_by_the_oracle(noise: bytes, mailru: bool) -> None:
    check_against_oracle(noise, mailru=mailru)


@dialects
@pytest.mark.parametrize(
    ("func_id", "bodies"),
    [
        (FuncID.STORAGE_READ, [*READ_SHAPES.values(), *BAD_READS.values()]),
        (FuncID.STORAGE_REPLACE, [*REPLACE_SHAPES.values(), *BAD_REPLACES.values()]),
        (FuncID.STORAGE_READ, [packed.hex() for packed in OUT_OF_RANGE.values()]),
    ],
    ids=["reads", "replaces", "indexes"],
)
def test_bodies_with_each_byte_changed_are_answered_as_by_the_oracle(
    func_id: FuncID, bodies: list[str], mailru: bool
) -> None:
    oracle = OracleServer(max_body=MAX_BODY)
    frames = server(mailru=mailru)
    for body in map(bytes.fromhex, bodies):
        for place in range(len(body)):
            for value in (*range(0, 256, 5), 0x90, 0x92, 0xA4, 0xCD, 0xCE, 0xD1, 0xD9, 0xDC, 0xDE):
                changed = body[:place] + bytes([value]) + body[place + 1 :]
                data = request(func_id, changed, value)
                reply = parse_responses(frames.feed(data) or b"", mailru=mailru)
                assert reply == oracle.feed(data), changed.hex()
    assert [frames.storage.read(index) for index in range(1000)] == oracle.slots


@given(mailru=either_dialect, sent=streams, cuts=cuts)
@codec
def test_any_split_gives_the_same_replies_and_calls(
    sent: list[Frame], cuts: list[int], mailru: bool
) -> None:
    data = wire(sent)
    whole = server(mailru=mailru, functions=USERS)
    pieces = server(mailru=mailru, functions=USERS)
    assert feed_all(pieces, split(data, cuts)) == feed_all(whole, [data])
    assert pieces.status == whole.status
    assert pieces.close_reason == whole.close_reason
    assert bodies(take_calls(pieces)) == bodies(take_calls(whole))


@dialects
def test_a_stream_cut_at_every_byte_gives_the_same_replies(mailru: bool) -> None:
    sent = [
        Frame(FuncID.STORAGE_REPLACE, b"\x01\xa3abc", 1),
        Frame(FuncID.PING, b"", 2),
        Frame(0x00030001, b"user", 3),
        Frame(FuncID.STORAGE_READ, b"\x91\x01", 4),
        Frame(0x00050005, b"", 5),
        Frame(FuncID.STORAGE_READ, b"\xcd\x03\xe8", 6),
        Frame(FuncID.SHUTDOWN, b"", 7),
        Frame(FuncID.STORAGE_READ, b"\x01", 8),
    ]
    data = wire(sent)
    expected = feed_all(server(mailru=mailru, functions=USERS), [data])
    assert len(split_responses(expected, mailru=mailru)[0]) == 6
    for cut in range(len(data) + 1):
        frames = server(mailru=mailru, functions=USERS)
        assert feed_all(frames, [data[:cut], data[cut:]]) == expected
        assert bodies(take_calls(frames)) == [(0x00030001, 3, b"user")]
    frames = server(mailru=mailru, functions=USERS)
    assert feed_all(frames, [data[i : i + 1] for i in range(len(data))]) == expected


@dialects
def test_feed_returns_none_where_there_is_nothing_to_send(mailru: bool) -> None:
    frames = server(mailru=mailru, functions=USERS)
    data = request(FuncID.STORAGE_READ, b"\x01", 1)
    assert frames.feed(b"") is None
    assert frames.feed(data[:-1]) is None
    assert frames.feed(b"") is None
    assert frames.feed(data[-1:]) is not None
    assert frames.feed(b"") is None
    assert frames.feed(request(0x00030001, b"", 2)) is None
