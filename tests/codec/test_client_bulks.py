"""Bulks, calls that are given up, and the end of all calls."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from iproto import _fastframe as ff
from iproto.errors import (
    Error,
    OutOfRangeError,
    OverloadedError,
    TextError,
)
from iproto.wire import ReturnCode
from tests.helpers.client_frames import NEVER, NIL, READ, REPLACE, Index, client, dialects, failed
from tests.helpers.oracle import packed_str, request, response

# --- Bulks ----------------------------------------------------------------------------------------


@dialects
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_results_of_a_bulk_are_in_the_order_of_its_items(
    order: tuple[int, ...], mailru: bool
) -> None:
    frames = client(mailru=mailru)
    first = frames.read_many([10, 11, 12, 13], ff.AS_TEXT, "bulk", NEVER)
    replies = [response(READ, first + i, 0, b"\xa1%d" % i, mailru=mailru) for i in range(4)]
    for position in order[:-1]:
        assert frames.feed(replies[position]) == []
        assert frames.waiting == 1
    assert frames.feed(replies[order[-1]]) == [("bulk", None, ["0", "1", "2", "3"])]
    assert frames.waiting == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_error_of_a_bulk_is_that_of_its_first_item_that_failed(order: tuple[int, ...]) -> None:
    frames = client()
    first = frames.read_many([1, 1000, 3], ff.AS_TEXT, "bulk", NEVER)
    replies = [
        response(READ, first, 0, b"\xa1x", mailru=False),
        response(READ, first + 1, ReturnCode.NUMBER_OUT_OF_RANGE, b"\xa5range", mailru=False),
        response(READ, first + 2, ReturnCode.OVERLOADED, b"\xa4busy", mailru=False),
    ]
    outcomes = [outcome for position in order for outcome in frames.feed(replies[position])]
    [(waiter, error, results)] = outcomes
    assert waiter == "bulk"
    assert isinstance(error, OutOfRangeError)
    assert error.item == 1
    assert "item 1" in str(error)
    assert results == ["x", None, None]


def test_text_that_is_not_utf8_in_a_bulk_names_its_item() -> None:
    frames = client()
    first = frames.read_many([1, 2], ff.AS_TEXT, "bulk", NEVER)
    good = response(READ, first, 0, b"\xa1x", mailru=False)
    bad = response(READ, first + 1, 0, b"\xa1\xff", mailru=False)
    [(_, error, results)] = frames.feed(good + bad)
    assert isinstance(error, TextError)
    assert vars(error)["item"] == 1
    assert results == ["x", None]


def test_bulks_and_single_calls_do_not_get_mixed_up() -> None:
    frames = client()
    a = frames.read_many([1, 2], ff.AS_TEXT, "a", NEVER)
    single = frames.read(3, ff.AS_BYTES, "single", NEVER)
    b = frames.replace_many([(4, "x"), (5, "y")], "b", NEVER)
    assert (a, single, b) == (1, 3, 4)
    assert frames.feed(response(REPLACE, b + 1, 0, NIL, mailru=False)) == []
    assert frames.feed(response(READ, a + 1, 0, b"\xa12", mailru=False)) == []
    assert frames.feed(response(READ, single, 0, b"\xa13", mailru=False)) == [
        ("single", None, b"3")
    ]
    assert frames.feed(response(REPLACE, b, 0, NIL, mailru=False)) == [("b", None, [None, None])]
    assert frames.feed(response(READ, a, 0, b"\xa11", mailru=False)) == [("a", None, ["1", "2"])]
    assert frames.waiting == 0


# --- Giving up ------------------------------------------------------------------------------------


def test_a_forgotten_call_hears_nothing_and_its_reply_is_dropped() -> None:
    frames = client()
    one = frames.read(1, ff.AS_TEXT, "one", NEVER)
    two = frames.read(2, ff.AS_TEXT, "two", NEVER)
    bulk = frames.read_many([3, 4], ff.AS_TEXT, "bulk", NEVER)
    assert frames.waiting == 3
    frames.take()
    frames.forget(one)
    frames.forget(bulk)
    frames.forget(12345)
    assert frames.waiting == 1
    replies = b"".join(
        response(READ, request_id, 0, b"\xa1x", mailru=False)
        for request_id in (one, bulk, bulk + 1, two)
    )
    assert frames.feed(replies) == [("two", None, "x")]
    assert frames.broken is None
    assert frames.fail_all() == []


def test_a_bulk_is_forgotten_by_its_first_id_only() -> None:
    frames = client()
    bulk = frames.read_many([3, 4], ff.AS_TEXT, "bulk", NEVER)
    frames.forget(bulk + 1)
    assert frames.waiting == 1


def test_expire_takes_out_what_is_late_and_tells_the_next_deadline() -> None:
    frames = client()
    assert frames.expire(0.0) == ([], math.inf)
    one = frames.read(1, ff.AS_TEXT, "one", 10.0)
    frames.read(2, ff.AS_TEXT, "two", 30.0)
    bulk = frames.read_many([3, 4], ff.AS_TEXT, "bulk", 20.0)
    frames.read(5, ff.AS_TEXT, "never", NEVER)
    frames.take()
    assert frames.expire(9.9) == ([], 10.0)
    assert frames.expire(10.0) == (["one"], 20.0)
    assert frames.expire(25.0) == (["bulk"], 30.0)
    assert frames.expire(1e9) == (["two"], math.inf)
    assert frames.waiting == 1
    late = b"".join(
        response(READ, request_id, 0, b"\xa1x", mailru=False)
        for request_id in (one, bulk, bulk + 1)
    )
    assert frames.feed(late) == []
    assert frames.broken is None


def test_fail_all_tells_what_may_have_been_executed() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "sent", NEVER)
    frames.read_many([2, 3], ff.AS_TEXT, "sent bulk", NEVER)
    frames.take()
    frames.read(4, ff.AS_TEXT, "unsent", NEVER)
    frames.replace_many([(5, "x"), (6, "y")], "unsent bulk", NEVER)
    assert sorted(failed(frames)) == [
        ("sent", True),
        ("sent bulk", True),
        ("unsent", False),
        ("unsent bulk", False),
    ]
    assert frames.fail_all() == []
    assert frames.waiting == 0


def test_fail_all_is_right_about_every_prefix_that_was_taken() -> None:
    for taken in range(6):
        frames = client()
        for i in range(5):
            if i == taken:
                frames.take()
            frames.read(i, ff.AS_TEXT, i, NEVER)
        if taken == 5:
            frames.take()
        assert failed(frames) == [(i, i < taken) for i in range(5)]


def test_a_spoiled_bulk_does_not_disturb_what_fail_all_tells() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "sent", NEVER)
    frames.take()
    bad: list[Any] = [1, 2, 3, "x"]
    with pytest.raises(TypeError):
        frames.read_many(bad, ff.AS_TEXT, "spoiled", NEVER)
    frames.read(1, ff.AS_TEXT, "unsent", NEVER)
    assert failed(frames) == [("sent", True), ("unsent", False)]


def test_the_list_of_a_bulk_may_change_while_it_is_built() -> None:
    frames = client()
    shrinking: list[Any] = [1, 2]
    shrinking += [Index(shrinking.clear), 3]
    growing: list[Any] = [Index(lambda: growing.extend([1] * 100))]
    pairs: list[Any] = []
    pairs += [(Index(pairs.clear), "a"), (2, "b")]
    assert frames.read_many(shrinking, ff.AS_BODY, "shrinking", NEVER) == 1
    assert frames.read_many(growing, ff.AS_BODY, "growing", NEVER) == 5
    assert frames.replace_many(pairs, "pairs", NEVER) == 6
    expected = [request(READ, bytes([index]), 1 + i) for i, index in enumerate([1, 2, 1, 3])]
    expected.append(request(READ, b"\x01", 5))
    expected.append(request(REPLACE, b"\x01\xa1a", 6))
    expected.append(request(REPLACE, b"\x02\xa1b", 7))
    assert frames.take() == b"".join(expected)
    replies = [response(READ, i, 0, NIL, mailru=False) for i in range(1, 6)]
    replies += [response(REPLACE, i, 0, NIL, mailru=False) for i in (6, 7)]
    assert frames.feed(b"".join(replies)) == [
        ("shrinking", None, [NIL] * 4),
        ("growing", None, [NIL]),
        ("pairs", None, [None] * 2),
    ]
    assert frames.waiting == 0


def test_a_chunk_that_comes_while_one_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a ``__del__``, when the collector runs while replies are matched."""
    frames = client()
    refused = []

    def feeding(code: int, text: str) -> Error:
        try:
            frames.feed(b"z" * 100_000)
        except RuntimeError as error:
            refused.append(str(error))
        return Error(code, text)

    monkeypatch.setattr(ff, "error_from_reply", feeding)
    ids = [frames.read(1, ff.AS_BODY, i, NEVER) for i in range(10)]
    data = b"".join(response(READ, i, 0x0401, packed_str(b"a" * 300), mailru=False) for i in ids)
    outcomes = frames.feed(data[:100]) + frames.feed(data[100:-1])
    monkeypatch.undo()
    outcomes += frames.feed(data[-1:])
    assert [waiter for waiter, _, _ in outcomes] == list(range(10))
    assert len(refused) == 9
    assert all("at work" in text for text in refused)
    assert frames.broken is None


def test_an_overloaded_reply_is_one_to_try_again() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    [(_, error, _)] = frames.feed(
        response(READ, 1, ReturnCode.OVERLOADED, packed_str(b"busy"), mailru=False)
    )
    assert isinstance(error, OverloadedError)
    assert error.retryable
