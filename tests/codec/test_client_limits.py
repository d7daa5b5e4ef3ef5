"""The client's side of the codec: limits, ids, a peer's announced end, calls within calls."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest

from iproto import _fastframe as ff
from iproto.errors import Error, IllegalParamsError, LockedError, ReplyTooLongError
from iproto.wire import FuncID, ReturnCode
from tests.helpers.client_frames import (
    NEVER,
    NIL,
    PING,
    READ,
    REPLACE,
    USER,
    Index,
    check_broken,
    client,
    dialects,
    failed,
)
from tests.helpers.oracle import HEADER, packed_str, request, response

if TYPE_CHECKING:
    from collections.abc import Callable


@dialects
@pytest.mark.parametrize("cut", [1, 16, 17, 100, 116, 117])
def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_skipped(cut: int, mailru: bool) -> None:
    body = b"\xc6" + b"x" * 99
    frames = client(mailru=mailru, max_body=len(body))
    for waiter in ("one", "two", "three"):
        frames.request(USER, b"", ff.AS_BODY, waiter, NEVER)
    bulk = frames.read_many([1, 2], ff.AS_BODY, "bulk", NEVER)
    assert frames.feed(response(USER, 1, 0, body, mailru=mailru)) == [("one", None, body)]
    rest = response(USER, 2, 0, body + b"x", mailru=mailru)
    rest += response(READ, bulk, 0, packed_str(b"x" * 200), mailru=mailru)
    rest += response(READ, bulk + 1, 0, NIL, mailru=mailru)
    rest += response(USER, 3, 0, body, mailru=mailru)
    outcomes = frames.feed(rest[:cut]) + frames.feed(rest[cut:])
    (_, too_long, _), (_, in_bulk, results), three = outcomes
    assert isinstance(too_long, ReplyTooLongError)
    assert too_long.may_have_executed
    assert "body of 101 bytes is over the client's limit of 100" in str(too_long)
    assert isinstance(in_bulk, ReplyTooLongError)
    assert (in_bulk.item, results) == (0, [None, NIL])
    assert three == ("three", None, body)
    assert frames.broken is None


@pytest.mark.parametrize("mailru", [False, True, None])
@pytest.mark.parametrize("length", [2**31, 2**32 - 5, 2**32 - 4, 2**32 - 1])
def test_a_huge_claim_fails_its_own_call_at_once(length: int, mailru: bool | None) -> None:
    frames = client(mailru=mailru)
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    frames.read(1, ff.AS_TEXT, "two", NEVER)
    head = b"\xdb" + (length - 9 if mailru or mailru is None else length - 5).to_bytes(4, "big")
    [(waiter, error, _)] = frames.feed(HEADER.pack(READ, length, 1) + bytes(4) + head)
    assert waiter == "one"
    assert isinstance(error, ReplyTooLongError)
    assert 2**31 - 9 <= frames.bytes_missing < 2**32
    assert frames.feed(bytes(1 << 20)) == []
    assert frames.waiting == 1


def test_replies_without_end_to_what_was_answered_break_the_stream() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    frames.forget(frames.read_many([1] * 500, ff.AS_TEXT, "forgotten", NEVER))
    frames.take()
    replies = b"".join(response(READ, 1 + i, 0, b"\xa1x", mailru=False) for i in range(501))
    assert len(frames.feed(replies)) == 1
    again = response(READ, 1, 0, b"\xa1x", mailru=False)
    assert frames.feed(again * 1000) == []
    assert frames.broken is None
    assert frames.feed(again) == []
    check_broken(frames, "over 1000 replies to requests that were answered already")


def test_ids_begin_with_the_mark_and_at_random() -> None:
    firsts = {
        ff.ClientFrames(mailru=False, max_body=1).read(1, ff.AS_TEXT, None, NEVER)
        for _ in range(100)
    }
    assert all(0xFF010000 <= first <= 0xFF01FFFF for first in firsts)
    assert len(firsts) > 90


def test_no_request_has_the_id_zero() -> None:
    for count in (1, 2, 3):
        frames = client()
        frames._set_ids(2**32 - 2)
        ids = [frames.read(1, ff.AS_TEXT, None, NEVER) for _ in range(3)]
        assert ids == [2**32 - 2, 2**32 - 1, 1]
        frames = client()
        frames._set_ids(2**32 - 2)
        bulk = frames.read_many([1] * count, ff.AS_TEXT, "bulk", NEVER)
        assert bulk == (1 if count == 3 else 2**32 - 2)
        frames.take()
        reply = b"".join(response(READ, bulk + i, 0, b"\xa1x", mailru=False) for i in range(count))
        assert frames.feed(reply)[-1] == ("bulk", None, ["x"] * count)


SHUTDOWN_UNASKED = HEADER.pack(FuncID.SHUTDOWN, 0, 0)


def test_what_is_unanswered_at_an_unasked_shutdown_was_not_executed() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "answered", NEVER)
    frames.replace(2, "x", "open", NEVER)
    bulk = frames.read_many([1, 2, 3], ff.AS_TEXT, "bulk", NEVER)
    frames.take()
    replies = response(READ, 1, 0, b"\xa1x", mailru=False)
    replies += response(READ, bulk + 1, ReturnCode.LOCKED, b"\xa1x", mailru=False)
    for byte in replies + SHUTDOWN_UNASKED[:-1]:
        frames.feed(bytes([byte]))
    assert not frames.shut_down
    assert frames.feed(SHUTDOWN_UNASKED[-1:] + b"what is never read") == []
    assert frames.shut_down
    assert frames.broken is None
    single, many = frames.fail_all()
    assert single == ("open", False, None)
    waiter, may_have_executed, partial = many
    assert (waiter, may_have_executed) == ("bulk", False)
    assert partial is not None
    results, error = partial
    assert results == [ff.UNANSWERED, None, ff.UNANSWERED]
    assert isinstance(error, LockedError)
    assert error.item == 1


def test_an_asked_shutdown_is_a_reply_after_which_no_call_fits() -> None:
    frames = client()
    first = frames.request(FuncID.SHUTDOWN, b"", ff.AS_NOTHING, "asked", NEVER)
    assert frames.feed(request(FuncID.SHUTDOWN, b"", first)) == [("asked", None, None)]
    assert (frames.shut_down, frames.retired) == (False, True)


@pytest.mark.parametrize(("size", "retired"), [(1024, False), (1025, True)])
def test_no_call_fits_after_a_long_body_was_refused(size: int, retired: bool) -> None:
    adds: tuple[Callable[[ff.ClientFrames], int], ...] = (
        lambda frames: frames.request(USER, bytes(size), ff.AS_BODY, "one", NEVER),
        lambda frames: frames.replace(1, bytes(size), "one", NEVER),
        lambda frames: frames.replace_many([(1, ""), (1, bytes(size))], "one", NEVER) + 1,
    )
    for add in adds:
        frames = client()
        refused = add(frames)
        func_id = USER if b"\x01\x00\x03\x00" in frames.take()[:4] else REPLACE
        frames.feed(response(func_id, refused, 0x0202, packed_str(b"too long"), mailru=False))
        assert frames.retired is retired


def test_a_request_over_the_limit_is_refused_and_nothing_is_built() -> None:
    frames = ff.ClientFrames(mailru=False, max_body=100, max_request=40)
    frames.request(USER, bytes(40), ff.AS_BODY, "fits", NEVER)
    frames.replace(999, bytes(35), "fits", NEVER)
    frames.take()
    with pytest.raises(IllegalParamsError, match=r"41 bytes is over .* 40 \(max_request\)"):
        frames.request(USER, bytes(41), ff.AS_BODY, "one", NEVER)
    with pytest.raises(IllegalParamsError, match="body of 41 bytes"):
        frames.replace(999, bytes(36), "one", NEVER)
    with pytest.raises(IllegalParamsError, match="max_request") as caught:
        frames.replace_many([(1, "x"), (999, bytes(36))], "bulk", NEVER)
    assert caught.value.item == 1
    assert frames.take() == b""
    assert frames.waiting == 2


def _keep(
    results: list[Any], call: Callable[[ff.ClientFrames], object], frames: ff.ClientFrames
) -> None:
    results.append(call(frames))


@pytest.mark.parametrize(
    "call",
    [
        lambda frames: frames.take(),
        lambda frames: frames.read(1, ff.AS_TEXT, "inner", NEVER),
        lambda frames: frames.replace(1, "x", "inner", NEVER),
        lambda frames: frames.request(PING, b"", ff.AS_NOTHING, "inner", NEVER),
        lambda frames: frames.read_many([1], ff.AS_TEXT, "inner", NEVER),
        lambda frames: frames.replace_many([(1, "x")], "inner", NEVER),
    ],
    ids=["take", "read", "replace", "request", "read_many", "replace_many"],
)
def test_a_call_within_a_call_gets_ids_of_its_own(
    call: Callable[[ff.ClientFrames], object],
) -> None:
    """An item may be any object, whose code may come back to this very connection."""
    outers: tuple[Callable[[ff.ClientFrames, Any], int], ...] = (
        lambda frames, item: frames.read(item, ff.AS_TEXT, "outer", NEVER),
        lambda frames, item: frames.replace(item, "x", "outer", NEVER),
        lambda frames, item: frames.read_many([1, item, 2], ff.AS_TEXT, "outer", NEVER),
        lambda frames, item: frames.replace_many([(1, "x"), (item, "x")], "outer", NEVER),
    )
    for outer in outers:
        frames = client()
        before = frames.read(1, ff.AS_TEXT, "before", NEVER)
        taken: list[Any] = []
        outer(frames, Index(functools.partial(_keep, taken, call, frames)))
        sent = (taken[0] if isinstance(taken[0], bytes) else b"") + frames.take()
        ids, at = [], 0
        while at < len(sent):
            _, length, request_id = HEADER.unpack_from(sent, at)
            ids.append(request_id)
            at += 12 + length
        assert ids == list(range(before, before + len(ids)))
        assert {waiter for waiter, _ in failed(frames)} >= {"before", "outer"}


@pytest.mark.parametrize("fail", [False, True], ids=["forget", "fail_all"])
def test_what_a_destructor_does_in_the_midst_of_matching_loses_no_other_reply(
    fail: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a ``__del__``: while a reply's objects are made, its bulk and others go."""
    frames = client()
    bulk = frames.read_many([1], ff.AS_BODY, "bulk", NEVER)
    other = frames.read(1, ff.AS_BODY, "other", NEVER)
    last = frames.read(1, ff.AS_BODY, "last", NEVER)
    frames.take()

    def meddling(code: int, text: str) -> Error:
        if fail:
            frames.fail_all()
        else:
            frames.forget(bulk)
            frames.forget(other)
        frames.read(1, ff.AS_BODY, "new", NEVER)
        return Error(code, text)

    monkeypatch.setattr(ff, "error_from_reply", meddling)
    outcomes = frames.feed(
        response(READ, bulk, 0x0401, b"\xa1x", mailru=False)
        + response(READ, other, 0, b"\xa1x", mailru=False)
        + response(READ, last, 0, b"\xa1x", mailru=False)
    )
    assert outcomes == ([] if fail else [("last", None, b"\xa1x")])
    assert frames.broken is None
    assert failed(frames) == [("new", False)]
