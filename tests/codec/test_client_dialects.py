"""How the client finds out which dialect a server speaks, and that it is another one."""

from __future__ import annotations

import pytest

from iproto import _fastframe as ff
from iproto.errors import (
    DialectError,
    ProtocolError,
)
from tests.helpers.client_frames import (
    NEVER,
    READ,
    STORAGE_REPLIES,
    USER,
    Sent,
    answer,
    ask,
    broken_text,
    check_outcome,
    client,
    cuts_of,
    dialects,
    short,
)
from tests.helpers.oracle import HEADER, packed_str, response


@dialects
@pytest.mark.parametrize("sent", STORAGE_REPLIES, ids=short)
def test_the_first_storage_reply_tells_the_dialect_wherever_it_is_cut(
    sent: Sent, mailru: bool
) -> None:
    data = answer(sent, 1, mailru=mailru)
    for cut in cuts_of(data):
        frames = client(mailru=None)
        ask(frames, sent, "waiter")
        assert frames.feed(data[:cut]) == []
        assert frames.broken is None
        [(_, error, result)] = frames.feed(data[cut:])
        check_outcome(sent, error, result)
        assert frames.mailru is mailru


@dialects
def test_the_dialect_once_told_holds_for_what_follows(mailru: bool) -> None:
    frames = client(mailru=None)
    frames.read(1, ff.AS_TEXT, "first", NEVER)
    frames.request(USER, b"", ff.AS_BODY, "second", NEVER)
    first = response(READ, 1, 0, b"\xa1x", mailru=mailru)
    second = response(USER, 2, 0, b"\x01\x02\x03\x04\x05", mailru=mailru)
    assert frames.feed(first + second) == [
        ("first", None, "x"),
        ("second", None, b"\x01\x02\x03\x04\x05"),
    ]


@pytest.mark.parametrize("told", [False, True], ids=["told vk", "told mailru"])
@pytest.mark.parametrize("sent", STORAGE_REPLIES, ids=short)
def test_a_reply_in_the_other_dialect_is_found_out_wherever_it_is_cut(
    sent: Sent, told: bool
) -> None:
    data = answer(sent, 1, mailru=not told)
    for cut in cuts_of(data):
        frames = client(mailru=told)
        ask(frames, sent, "waiter")
        assert frames.feed(data[:cut]) == []
        assert frames.feed(data[cut:]) == []
        assert isinstance(frames.broken, DialectError), cut
        assert "vk" in broken_text(frames)
        assert "mailru" in broken_text(frames)


@pytest.mark.parametrize("told", [False, True], ids=["told vk", "told mailru"])
@pytest.mark.parametrize("sent", STORAGE_REPLIES, ids=short)
def test_a_pipeline_in_the_other_dialect_is_found_out_at_its_first_reply(
    sent: Sent, told: bool
) -> None:
    frames = client(mailru=told)
    for _ in range(400):
        ask(frames, sent, "waiter")
    data = answer(sent, 399, mailru=not told) + answer(sent, 400, mailru=not told)
    assert frames.feed(data) == []
    assert isinstance(frames.broken, DialectError)


@pytest.mark.parametrize("sent", STORAGE_REPLIES, ids=short)
@pytest.mark.parametrize("told", [False, True], ids=["told vk", "told mailru"])
def test_the_other_dialect_is_found_out_before_the_body_is_there(sent: Sent, told: bool) -> None:
    """The head of the body is enough: nothing waits for bytes that never come."""
    data = answer(sent, 1, mailru=not told)
    frames = client(mailru=told)
    ask(frames, sent, "waiter")
    assert frames.feed(data[: 16 + 5]) == []
    assert isinstance(frames.broken, DialectError)


def test_a_vk_reply_too_short_for_a_return_code_is_no_mailru_reply() -> None:
    frames = client(mailru=True)
    frames.request(USER, b"", ff.AS_BODY, "waiter", NEVER)
    assert frames.feed(response(USER, 1, 0, b"\x01", mailru=False)) == []
    assert isinstance(frames.broken, DialectError)


def test_a_users_function_cannot_tell_the_dialect() -> None:
    frames = client(mailru=None)
    frames.request(USER, b"", ff.AS_BODY, "waiter", NEVER)
    assert frames.feed(response(USER, 1, 0, b"\x01", mailru=False)) == []
    assert isinstance(frames.broken, DialectError)
    assert "dialect=" in broken_text(frames)


@pytest.mark.parametrize(
    "body",
    [b"\x01", b"\x93\x01\x02\x03", b"\xc4\x03abc", b"\xcb" + b"\x00" * 8],
    ids=["int", "array", "bin", "float"],
)
@dialects
def test_a_storage_reply_that_is_neither_str_nor_nil_is_no_hang(body: bytes, mailru: bool) -> None:
    frames = client(mailru=None)
    frames.read(1, ff.AS_TEXT, "waiter", NEVER)
    assert frames.feed(response(READ, 1, 0, body, mailru=mailru)) == []
    assert isinstance(frames.broken, DialectError)


@pytest.mark.parametrize("told", [False, True, None])
def test_a_storage_reply_of_length_0_is_no_hang(told: bool | None) -> None:
    frames = client(mailru=told)
    frames.read(1, ff.AS_TEXT, "waiter", NEVER)
    frames.feed(response(READ, 1, 0, b"", mailru=False))
    assert isinstance(frames.broken, ProtocolError)


@pytest.mark.parametrize("extra", [-1, 1, 2, 3, 5, 1000])
def test_a_length_that_fits_no_dialect_is_told(extra: int) -> None:
    frames = client(mailru=None)
    frames.read(1, ff.AS_TEXT, "waiter", NEVER)
    body = packed_str(b"abcdef")
    data = HEADER.pack(READ, len(body) + extra, 1) + bytes(4) + body
    assert frames.feed(data) == []
    assert isinstance(frames.broken, DialectError)
