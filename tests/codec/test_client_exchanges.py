"""Requests as they are built, and each reply's outcome, however the stream is cut."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iproto import _fastframe as ff
from iproto.wire import FuncID, Header, Response
from tests.helpers.oracle import packed_str, request

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

from tests.helpers.client_frames import (
    BAD_CONTENTS,
    BAD_INDEXES,
    EXCHANGES,
    NEVER,
    PING,
    READ,
    REPLACE,
    Sent,
    answer,
    ask,
    check_outcome,
    client,
    codec,
    dialects,
)

# --- Pieces and order -----------------------------------------------------------------------------


@dialects
@pytest.mark.parametrize("sent", EXCHANGES, ids=str)
def test_a_reply_cut_at_every_byte_gives_its_outcome_with_the_last_byte(
    sent: Sent, mailru: bool
) -> None:
    data = answer(sent, 1, mailru=mailru)
    for cut in range(len(data)):
        frames = client(mailru=mailru)
        assert ask(frames, sent, cut) == 1
        assert frames.feed(data[:cut]) == []
        assert frames.waiting == 1
        [(waiter, error, result)] = frames.feed(data[cut:])
        assert waiter == cut
        check_outcome(sent, error, result)
        assert frames.waiting == 0
        assert frames.broken is None


@dialects
def test_replies_fed_byte_by_byte_give_each_outcome_once(mailru: bool) -> None:
    frames = client(mailru=mailru)
    ids = [ask(frames, sent, sent) for sent in EXCHANGES]
    assert ids == list(range(1, len(EXCHANGES) + 1))
    data = b"".join(answer(s, i, mailru=mailru) for i, s in zip(ids, EXCHANGES, strict=True))
    outcomes = [out for i in range(len(data)) for out in frames.feed(data[i : i + 1])]
    assert [waiter for waiter, _, _ in outcomes] == EXCHANGES
    for sent, error, result in outcomes:
        check_outcome(sent, error, result)
    assert frames.broken is None


@given(
    mailru=st.booleans(),
    picked=st.lists(st.sampled_from(EXCHANGES), max_size=15),
    shuffle=st.randoms(use_true_random=False),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
)
@codec
def test_replies_in_any_order_and_pieces_reach_their_waiters(
    mailru: bool, picked: list[Sent], shuffle: random.Random, cuts: list[int]
) -> None:
    frames = client(mailru=mailru)
    asked = {ask(frames, sent, i): sent for i, sent in enumerate(picked, 1)}
    order = list(asked)
    shuffle.shuffle(order)
    data = b"".join(answer(asked[i], i, mailru=mailru) for i in order)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    outcomes = [outcome for piece in pieces for outcome in frames.feed(piece)]
    assert [waiter for waiter, _, _ in outcomes] == order
    for waiter, error, result in outcomes:
        check_outcome(asked[waiter], error, result)
    assert frames.waiting == 0
    assert frames.broken is None


@pytest.mark.parametrize("mailru", [False, True, None])
@pytest.mark.parametrize("func_id", [PING, FuncID.SHUTDOWN])
def test_ping_and_shutdown_are_answered_by_a_header_alone_in_every_dialect(
    func_id: int, mailru: bool | None
) -> None:
    frames = client(mailru=mailru)
    frames.request(func_id, b"", ff.AS_NOTHING, "nothing", NEVER)
    frames.request(func_id, b"", ff.AS_RESPONSE, "response", NEVER)
    data = request(func_id, b"", 1) + request(func_id, b"", 2)
    assert frames.feed(data[:11]) == []
    assert frames.feed(data[11:]) == [
        ("nothing", None, None),
        ("response", None, Response(Header(func_id, 0, 2), 0, b"")),
    ]
    assert frames.mailru is mailru


# --- Requests -------------------------------------------------------------------------------------

INTS = sorted(
    {
        value
        for power in (0, 5, 7, 8, 15, 16, 31, 32, 62)
        for sign in (1, -1)
        for value in (sign * 2**power - 1, sign * 2**power, sign * 2**power + 1)
    }
    | {0, 999, 1000, 2**63 - 1, -(2**63)}
)
SIZES = [0, 1, 31, 32, 255, 256, 257, 65535, 65536]


def test_indexes_of_all_widths_are_packed_as_msgpack_packs_them() -> None:
    frames = client()
    for request_id, value in enumerate(INTS, 1):
        assert frames.read(value, ff.AS_TEXT, None, NEVER) == request_id
        assert frames.take() == request(READ, msgpack.packb(value), request_id)


@given(value=st.integers(-(2**63), 2**63 - 1), content=st.one_of(st.text(), st.binary()))
@codec
def test_writes_are_packed_as_msgpack_packs_them(value: int, content: str | bytes) -> None:
    frames = client()
    frames.replace(value, content, None, NEVER)
    packed = packed_str(content.encode() if isinstance(content, str) else content)
    assert frames.take() == request(REPLACE, msgpack.packb(value) + packed, 1)


@pytest.mark.parametrize("size", SIZES)
def test_strings_of_all_head_sizes_are_packed_as_msgpack_packs_them(size: int) -> None:
    frames = client()
    frames.replace(5, "a" * size, None, NEVER)
    frames.replace(5, b"a" * size, None, NEVER)
    body = b"\x05" + msgpack.packb("a" * size)
    assert frames.take() == request(REPLACE, body, 1) + request(REPLACE, body, 2)


def test_requests_carry_their_function_body_and_the_next_id() -> None:
    frames = client()
    assert frames.request(0xFFFFFFFF, b"anything", ff.AS_BODY, None, NEVER) == 1
    assert frames.request(PING, b"", ff.AS_NOTHING, None, NEVER) == 2
    assert frames.take() == request(0xFFFFFFFF, b"anything", 1) + request(PING, b"", 2)
    assert frames.take() == b""


def test_bulks_are_plain_requests_in_a_row() -> None:
    frames = client()
    assert frames.read_many([1, 999, 1], ff.AS_TEXT, None, NEVER) == 1
    assert frames.replace_many([(7, "é"), (8, b"\xff")], None, NEVER) == 4
    assert frames.read(2, ff.AS_TEXT, None, NEVER) == 6
    assert frames.take() == b"".join(
        [
            request(READ, b"\x01", 1),
            request(READ, b"\xcd\x03\xe7", 2),
            request(READ, b"\x01", 3),
            request(REPLACE, b"\x07\xa2\xc3\xa9", 4),
            request(REPLACE, b"\x08\xa1\xff", 5),
            request(READ, b"\x02", 6),
        ]
    )


@pytest.mark.parametrize("index", BAD_INDEXES)
def test_what_is_no_index_is_refused_and_leaves_nothing_behind(index: Any) -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, None, NEVER)
    calls: list[Callable[[], int]] = [
        lambda: frames.read(index, ff.AS_TEXT, None, NEVER),
        lambda: frames.replace(index, "x", None, NEVER),
        lambda: frames.read_many([1, 2, index], ff.AS_TEXT, None, NEVER),
        lambda: frames.replace_many([(1, "x"), (index, "x")], None, NEVER),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError)):
            call()
    assert frames.waiting == 1
    assert frames.read(3, ff.AS_TEXT, None, NEVER) == 2
    assert frames.take() == request(READ, b"\x01", 1) + request(READ, b"\x03", 2)


@pytest.mark.parametrize("content", BAD_CONTENTS, ids=lambda content: type(content).__name__)
def test_what_is_no_content_is_refused_and_leaves_nothing_behind(content: Any) -> None:
    frames = client()
    frames.replace(1, "kept", None, NEVER)
    many: list[Any] = [(1, "x" * 1000), (2, content), (3, "y")]
    with pytest.raises((TypeError, ValueError)):
        frames.replace(1, content, None, NEVER)
    with pytest.raises((TypeError, ValueError)):
        frames.replace_many(many, None, NEVER)
    assert frames.waiting == 1
    assert frames.replace(2, "next", None, NEVER) == 2
    assert frames.take() == request(REPLACE, b"\x01\xa4kept", 1) + request(
        REPLACE, b"\x02\xa4next", 2
    )


@pytest.mark.parametrize("item", [(1,), (1, "x", "y"), 5, None])
def test_a_bulk_spoiled_by_the_shape_of_an_item_leaves_nothing_behind(item: Any) -> None:
    frames = client()
    with pytest.raises((TypeError, ValueError)):
        frames.replace_many([(1, "x"), item], None, NEVER)
    assert frames.waiting == 0
    assert frames.take() == b""
    assert frames.read(1, ff.AS_TEXT, None, NEVER) == 1


@pytest.mark.parametrize("outcome", [-1, 5, 99])
def test_an_outcome_is_one_of_the_known(outcome: int) -> None:
    frames = ff.ClientFrames(mailru=False, max_body=100)
    with pytest.raises(ValueError, match=f"outcome {outcome} is unknown"):
        frames.read(7, outcome, None, 0.0)
    with pytest.raises(ValueError, match=f"outcome {outcome} is unknown"):
        frames.read_many([7], outcome, None, 0.0)
    with pytest.raises(ValueError, match=f"outcome {outcome} is unknown"):
        frames.request(1, b"", outcome, None, 0.0)
    assert (frames.take(), frames.waiting) == (b"", 0)
