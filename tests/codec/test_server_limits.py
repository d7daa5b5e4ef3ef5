"""``ServerFrames``: bounds of output and bodies, and what ends a connection."""

from __future__ import annotations

import struct

import pytest

from iproto import _fastframe as ff
from iproto.wire import CloseReason, FuncID, ReturnCode
from tests.helpers.callees import answer, take_calls
from tests.helpers.oracle import HEADER, Reply, parse_responses, request
from tests.helpers.server_frames import MAX_BODY, USERS, feed_all, last_bytes, server
from tests.helpers.streams import dialects, forms_of_int


@dialects
def test_output_is_bounded_and_resumed_without_a_difference(mailru: bool) -> None:
    storage = ff.Storage()
    for index in range(1000):
        storage.replace(index, bytes([index % 256]) * (index % 257))
    sent = [
        request(FuncID.STORAGE_READ, forms_of_int(i % 1003)[-1], i)
        if i % 7
        else request(FuncID.PING, b"", i)
        for i in range(10_000)
    ]
    data = b"".join(sent)
    # Chunks so small that no bound is reached.
    unbounded = server(mailru=mailru, storage=storage)
    expected = []
    for at in range(0, len(sent), 100):
        expected.append(unbounded.feed(b"".join(sent[at : at + 100])) or b"")
        assert unbounded.status == 0
    frames = server(mailru=mailru, storage=storage)
    got = [frames.feed(data)]
    while frames.status & ff.HAS_MORE:
        got.append(frames.feed(b""))
    assert len(got) >= 4
    assert b"".join(part or b"" for part in got) == b"".join(expected)
    assert all(part is not None and len(part) <= 257 * 1024 for part in got)
    assert all(part is not None and len(part) >= 255 * 1024 for part in got[:-1])
    assert frames.status == 0


@dialects
def test_more_input_while_output_is_bounded_keeps_its_place(mailru: bool) -> None:
    data = request(FuncID.STORAGE_READ, b"\x00", 1) * 30_000
    last = request(FuncID.PING, b"", 9)
    frames = server(mailru=mailru)
    got = frames.feed(data) or b""
    assert frames.status & ff.HAS_MORE
    got += frames.feed(last[:5]) or b""
    got += frames.feed(last[5:]) or b""
    while frames.status & ff.HAS_MORE:
        got += frames.feed(b"") or b""
    replies = parse_responses(got, mailru=mailru)
    assert len(replies) == 30_001
    assert replies[-1] == Reply(FuncID.PING, 9, None)


@dialects
def test_the_widest_error_texts_fit_behind_the_output_bound(mailru: bool) -> None:
    """The longest replies, one after the other, over the bound."""
    longest = [
        request(FuncID.STORAGE_REPLACE, b"\xc0", 1),
        request(FuncID.STORAGE_READ, b"\xc0", 2),
        request(FuncID.STORAGE_REPLACE, b"\xd3\x80" + b"\x00" * 7 + b"\xa0", 3),
    ]
    for lead in range(3):
        data = b"".join(longest[lead:] + longest * 2000)
        frames = server(mailru=mailru)
        assert len(parse_responses(feed_all(frames, [data]), mailru=mailru)) == 6003 - lead


@dialects
def test_a_body_of_the_limit_is_taken_and_one_byte_more_closes(mailru: bool) -> None:
    frames = server(mailru=mailru, functions=USERS)
    body = b"\xc6" + struct.pack(">I", MAX_BODY - 5) + b"z" * (MAX_BODY - 5)
    assert frames.feed(request(0x00030001, body, 1)) is None
    assert [taken.body for taken in take_calls(frames)] == [body]
    header = HEADER.pack(FuncID.STORAGE_READ, MAX_BODY + 1, 2)
    replies = parse_responses(frames.feed(header) or b"", mailru=mailru)
    assert replies == [Reply(FuncID.STORAGE_READ, 2, ReturnCode.ILLEGAL_PARAMS)]
    assert frames.status & ff.IS_CLOSING
    assert frames.close_reason == CloseReason.BODY_TOO_LARGE
    assert last_bytes(frames) == b""


@dialects
@pytest.mark.parametrize("row", [ff.FIRST_USER_ROW, ff.FIRST_USER_ROW + 1, ff.ROW_COUNT - 1])
def test_an_oversize_body_of_a_users_function_is_refused_like_any_other(
    mailru: bool, row: int
) -> None:
    frames = server(mailru=mailru, functions={0x00030001: row})
    got = frames.feed(HEADER.pack(0x00030001, MAX_BODY + 1, 5)) or b""
    replies = parse_responses(got, mailru=mailru)
    assert replies == [Reply(0x00030001, 5, ReturnCode.ILLEGAL_PARAMS)]
    column = ff.CODE_COLUMNS.index(ReturnCode.ILLEGAL_PARAMS)
    assert frames.storage.counters()["requests"][row][column] == 1


@pytest.mark.parametrize("index", [-1, -32, -33, -129, -(2**15), -(2**31), -(2**63), 1000, 2**32])
def test_the_text_of_an_index_out_of_range_names_it_in_every_form(index: int) -> None:
    frames = server()
    for form in forms_of_int(index):
        got = frames.feed(request(FuncID.STORAGE_READ, form, 1)) or b""
        assert b"index %d is outside 0..999" % index in got


def test_the_text_of_an_oversize_body_names_the_limit() -> None:
    frames = server()
    got = frames.feed(HEADER.pack(FuncID.STORAGE_READ, 12345, 1)) or b""
    assert b"12345" in got
    assert str(MAX_BODY).encode() in got


def test_after_shutdown_nothing_is_executed_or_answered() -> None:
    frames = server(functions=USERS)
    write = request(FuncID.STORAGE_REPLACE, b"\x00\xa3abc", 2)
    shutdown = request(FuncID.SHUTDOWN, b"", 0x01020304)
    assert frames.feed(shutdown + write) is None
    assert last_bytes(frames) == shutdown
    assert frames.close_reason == CloseReason.SHUTDOWN
    assert frames.feed(write + request(0x00030001, b"", 3)) is None
    assert frames.feed(b"") is None
    assert take_calls(frames) == []
    assert frames.storage.read(0) == b""


def test_calls_that_run_at_a_shutdown_can_still_be_answered() -> None:
    frames = server(functions=USERS)
    frames.feed(request(0x00030001, b"x", 1) + request(FuncID.SHUTDOWN, b"", 2))
    (taken,) = take_calls(frames)
    assert frames.running == 1
    answer(frames, taken)
    assert parse_responses(frames.take(), mailru=False) == [Reply(0x00030001, 1, 0)]
    assert frames.running == 0


def test_close_drops_what_was_not_executed_and_what_comes() -> None:
    frames = server()
    write = request(FuncID.STORAGE_REPLACE, b"\x00\xa3abc", 2)
    frames.feed(write[:-1])
    frames.close(CloseReason.IDLE)
    assert frames.status & ff.IS_CLOSING
    assert frames.close_reason == CloseReason.IDLE
    assert frames.partial_seconds() == 0.0
    assert frames.feed(write[-1:]) is None
    assert frames.feed(write) is None
    assert frames.storage.read(0) == b""
    frames.close(CloseReason.DRAIN)
    assert frames.close_reason == CloseReason.IDLE
