"""Replies that are wrong, doubled or too long: what breaks the stream, and who hears of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iproto import _fastframe as ff
from iproto.errors import (
    Error,
    LockedError,
    ProtocolError,
    TextError,
)
from iproto.wire import ReturnCode
from tests.helpers.client_frames import (
    NEVER,
    NIL,
    PING,
    READ,
    REPLACE,
    USER,
    check_broken,
    client,
    codec,
    dialects,
    failed,
)
from tests.helpers.oracle import packed_str, request, response


@dialects
@pytest.mark.parametrize("request_id", [0, 3, 0x80000000, 0xFFFFFFFF])
def test_a_reply_to_what_was_never_sent_breaks_the_stream(request_id: int, mailru: bool) -> None:
    frames = client(mailru=mailru)
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    frames.read(1, ff.AS_TEXT, "two", NEVER)
    assert frames.feed(response(READ, request_id, 0, b"\xa1x", mailru=mailru)) == []
    check_broken(frames, f"request_id {request_id}, which was never sent")
    assert frames.waiting == 2


def test_a_header_alone_to_what_was_never_sent_breaks_the_stream() -> None:
    frames = client()
    assert frames.feed(request(PING, b"", 1)) == []
    check_broken(frames, "never sent")


@dialects
def test_a_doubled_reply_is_dropped(mailru: bool) -> None:
    frames = client(mailru=mailru)
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    frames.read(1, ff.AS_TEXT, "two", NEVER)
    frames.take()
    one = response(READ, 1, 0, b"\xa3one", mailru=mailru)
    two = response(READ, 2, 0, b"\xa3two", mailru=mailru)
    assert frames.feed(one + one + two) == [("one", None, "one"), ("two", None, "two")]
    assert frames.feed(two + one) == []
    assert frames.broken is None


def test_a_doubled_reply_in_a_bulk_is_dropped_and_the_first_counts() -> None:
    frames = client()
    frames.read_many([1, 2], ff.AS_TEXT, "bulk", NEVER)
    frames.take()
    first = response(READ, 1, 0, b"\xa5first", mailru=False)
    again = response(READ, 1, 0, b"\xa5again", mailru=False)
    wrong = response(READ, 1, ReturnCode.LOCKED, b"\xa5again", mailru=False)
    second = response(READ, 2, 0, b"\xa6second", mailru=False)
    assert frames.feed(first + again + wrong + again) == []
    assert frames.waiting == 1
    assert frames.feed(second) == [("bulk", None, ["first", "second"])]
    assert frames.feed(second + again) == []
    assert frames.broken is None


def test_a_doubled_error_in_a_bulk_is_dropped_and_the_first_counts() -> None:
    frames = client()
    frames.read_many([1, 2], ff.AS_TEXT, "bulk", NEVER)
    frames.take()
    error = response(READ, 1, ReturnCode.LOCKED, b"\xa5first", mailru=False)
    good = response(READ, 1, 0, b"\xa5again", mailru=False)
    second = response(READ, 2, 0, b"\xa6second", mailru=False)
    assert frames.feed(error + good + good) == []
    [(waiter, raised, results)] = frames.feed(second)
    assert waiter == "bulk"
    assert isinstance(raised, LockedError)
    assert raised.text == "first"
    assert results == [None, "second"]


def test_replies_are_counted_once_by_what_they_were() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    frames.replace_many([(1, "a"), (2, "b"), (3, "c")], "bulk", NEVER)
    forgotten = frames.read(1, ff.AS_TEXT, "forgotten", NEVER)
    frames.forget(forgotten)
    frames.take()
    text = packed_str(b"text")
    replies = [
        (READ, 1, 0, text),
        (READ, 1, 0, text),
        (REPLACE, 2, 0, NIL),
        (REPLACE, 3, ReturnCode.READ_ONLY, text),
        (REPLACE, 3, ReturnCode.READ_ONLY, text),
        (REPLACE, 4, ReturnCode.LOCKED, text),
        (READ, forgotten, 0, text),
    ]
    for reply in replies:
        frames.feed(response(*reply, mailru=False))
    assert (frames.answered, frames.unexpected_replies) == (4, 3)
    assert frames.refusals == {ReturnCode.READ_ONLY: 1, ReturnCode.LOCKED: 1}


def test_codes_that_a_peer_invents_are_counted_together_beyond_some() -> None:
    frames = client()
    for request_id in range(1, 1001):
        frames.request(USER, b"", ff.AS_BODY, None, NEVER)
        frames.feed(response(USER, request_id, request_id, b"", mailru=False))
    assert frames.refusals[64] == 1
    assert frames.refusals[-1] == 1000 - 64
    assert len(frames.refusals) == 65


def test_a_reply_of_another_function_breaks_the_stream_and_its_waiter_hears() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    frames.read(1, ff.AS_TEXT, "two", NEVER)
    wrong = response(REPLACE, 1, 0, NIL, mailru=False)
    fine = response(READ, 2, 0, b"\xa1x", mailru=False)
    [(waiter, error, result)] = frames.feed(wrong + fine)
    assert waiter == "one"
    assert error is frames.broken
    assert result is None
    check_broken(frames, "asked was 0x20002")
    assert failed(frames) == [("two", False)]


def test_a_reply_of_another_function_in_a_bulk_breaks_the_stream() -> None:
    frames = client()
    frames.read_many([1, 2], ff.AS_TEXT, "bulk", NEVER)
    assert frames.feed(response(REPLACE, 1, 0, NIL, mailru=False)) == []
    check_broken(frames, "asked was 0x20002")
    assert failed(frames) == [("bulk", False)]


def test_replies_before_the_break_are_handed_out() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    good = response(READ, 1, 0, b"\xa1x", mailru=False)
    assert frames.feed(good + response(READ, 77, 0, b"\xa1x", mailru=False)) == [("one", None, "x")]
    check_broken(frames, "77")


@pytest.mark.parametrize("mailru", [False, True, None])
@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        bytes.fromhex("15030300020246") + bytes.fromhex("15030300020246"),
        b"Tarantool 2.11.0 (Binary) 01234567-89ab-cdef-0123-456789abcdef\n" + b" " * 64,
        b"-ERR unknown command\r\n",
        b"\xff" * 64,
        b"\x00" * 64,
    ],
    ids=["HTTP", "TLS", "Tarantool", "Redis", "ones", "zeros"],
)
def test_garbage_breaks_the_stream_at_once(garbage: bytes, mailru: bool | None) -> None:
    frames = client(mailru=mailru)
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    assert frames.feed(garbage) == []
    assert isinstance(frames.broken, ProtocolError)
    assert failed(frames) == [("one", False)]


@given(mailru=st.sampled_from([False, True, None]), pieces=st.lists(st.binary(max_size=40)))
@codec
def test_no_garbage_gives_a_waiter_more_than_one_outcome(
    mailru: bool | None, pieces: list[bytes]
) -> None:
    frames = client(mailru=mailru)
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    frames.read_many([1, 2], ff.AS_TEXT, "bulk", NEVER)
    frames.request(USER, b"", ff.AS_RESPONSE, "user", NEVER)
    heard = [waiter for piece in pieces for waiter, _, _ in frames.feed(piece)]
    heard += [waiter for waiter, _ in failed(frames)]
    assert sorted(heard) == ["bulk", "one", "user"]


@pytest.mark.parametrize(
    ("outcome", "body"),
    [
        (ff.AS_TEXT, b"\x01"),
        (ff.AS_TEXT, NIL),
        (ff.AS_TEXT, b""),
        (ff.AS_TEXT, b"\xa3abcd"),
        (ff.AS_TEXT, b"\xa3ab"),
        (ff.AS_TEXT, b"\xc4\x03abc"),
        (ff.AS_BYTES, b"\xc4\x03abc"),
        (ff.AS_BYTES, b"\xa1x\xc0"),
        (ff.AS_NOTHING, b""),
        (ff.AS_NOTHING, b"\x00"),
        (ff.AS_NOTHING, b"\xc0\xc0"),
        (ff.AS_NOTHING, b"\xa0"),
    ],
)
def test_a_body_of_another_type_breaks_the_stream_and_its_waiter_hears(
    outcome: int, body: bytes
) -> None:
    frames = client()
    frames.request(USER, b"", outcome, "one", NEVER)
    [(waiter, error, result)] = frames.feed(response(USER, 1, 0, body, mailru=False))
    assert waiter == "one"
    assert isinstance(error, ProtocolError)
    assert result is None
    check_broken(frames, f"{len(body)} bytes")


@dialects
@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\xa5wrong", "wrong"),
        (b"\xd9\x05wrong", "wrong"),
        (b"\xda\x00\x05wrong", "wrong"),
        (b"\xdb\x00\x00\x00\x05wrong", "wrong"),
        (b"\xa3\xff\xfea", "\\xff\\xfea"),
        (b"", "(no text)"),
        (b"\x01\x02", "2 other bytes"),
        (b"\xa5wr", "3 other bytes"),
        (packed_str(b"x" * 4096), "x" * 4096),
        (packed_str(b"x" * 4097), "x" * 4096 + "... (cut: 4097 bytes in all)"),
        (packed_str(b"x" * (15 << 20)), "x" * 4096 + "... (cut: 15728640 bytes in all)"),
        (packed_str("\u20ac".encode() * 1366), "\u20ac" * 1365 + "... (cut: 4098 bytes in all)"),
        (packed_str(b"\x80" * 4097), "... (cut: 4097 bytes in all)"),
    ],
    ids=lambda value: f"{value[:20]}-{len(value)}",
)
def test_an_error_has_a_text_whatever_the_peer_put_there(
    body: bytes, text: str, mailru: bool
) -> None:
    frames = client(mailru=mailru, max_body=16 << 20)
    frames.request(USER, b"", ff.AS_BODY, "one", NEVER)
    [(_, error, _)] = frames.feed(response(USER, 1, 0x5102, body, mailru=mailru))
    assert type(error) is Error
    assert error.code == 0x5102
    assert text in error.text
    assert len(error.text.encode()) <= 4 * 4096 + 64  # a byte that is not UTF-8 is shown as four
    assert frames.broken is None


def test_text_that_is_not_utf8_is_an_error_of_that_call_alone() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    frames.read(1, ff.AS_BYTES, "two", NEVER)
    bad = packed_str(b"ok\xff")
    [(_, error, result), second] = frames.feed(
        response(READ, 1, 0, bad, mailru=False) + response(READ, 2, 0, bad, mailru=False)
    )
    assert isinstance(error, TextError)
    assert isinstance(error, ValueError)
    assert "3 bytes are not UTF-8 (byte 2)" in str(error)
    assert result is None
    assert second == ("two", None, b"ok\xff")
    assert frames.broken is None
