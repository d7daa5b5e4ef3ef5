"""``ClientFrames``: replies in any pieces and order, the dialect, and who hears of what."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iproto import _fastframe as ff
from iproto.errors import (
    DialectError,
    Error,
    InternalError,
    LockedError,
    OutOfRangeError,
    OverloadedError,
    ProtocolError,
    ReadOnlyError,
    TextError,
)
from iproto.wire import FuncID, Header, Response, ReturnCode
from tests.helpers.oracle import HEADER, packed_str, request, response

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

MAX_BODY = 1 << 20

READ = FuncID.STORAGE_READ
REPLACE = FuncID.STORAGE_REPLACE
PING = FuncID.PING
USER = 0x00030001

NIL = b"\xc0"

NEVER = math.inf

codec = settings(derandomize=True, deadline=None, database=None, max_examples=200)

dialects = pytest.mark.parametrize("mailru", [False, True], ids=["vk", "mailru"])


def client(*, mailru: bool | None = False, max_body: int = MAX_BODY) -> ff.ClientFrames:
    """The client's side of a connection."""
    return ff.ClientFrames(mailru=mailru, max_body=max_body)


def broken_text(frames: ff.ClientFrames) -> str:
    """What the callers are told of a stream that is lost."""
    assert frames.broken is not None
    return str(frames.broken)


class Sent(NamedTuple):
    """A kind of request, and its reply with the outcome."""

    func_id: int
    outcome: int
    code: int
    body: bytes
    error: type[Error] | None
    result: Any


EXCHANGES = [
    Sent(READ, ff.AS_TEXT, 0, packed_str(b"abc"), None, "abc"),
    Sent(READ, ff.AS_TEXT, 0, packed_str(b""), None, ""),
    Sent(READ, ff.AS_BYTES, 0, packed_str(b"\xff\xfe" * 20), None, b"\xff\xfe" * 20),
    Sent(READ, ff.AS_BYTES, 0, packed_str(b"z" * 256), None, b"z" * 256),
    Sent(READ, ff.AS_BODY, 0, b"\xa1x", None, b"\xa1x"),
    Sent(REPLACE, ff.AS_NOTHING, 0, NIL, None, None),
    Sent(FuncID.ADM_STORAGE_SWITCH_READONLY, ff.AS_NOTHING, 0, NIL, None, None),
    Sent(READ, ff.AS_TEXT, ReturnCode.LOCKED, packed_str(b"closed"), LockedError, None),
    Sent(REPLACE, ff.AS_NOTHING, ReturnCode.READ_ONLY, packed_str(b"r" * 99), ReadOnlyError, None),
    Sent(USER, ff.AS_BODY, 0, b"\x93\x01\x02\x03", None, b"\x93\x01\x02\x03"),
    Sent(USER, ff.AS_BODY, 0, b"", None, b""),
    Sent(USER, ff.AS_BODY, ReturnCode.INTERNAL, packed_str(b"failed"), InternalError, None),
]


def ask(frames: ff.ClientFrames, sent: Sent, waiter: object) -> int:
    return frames.request(sent.func_id, b"", sent.outcome, waiter, NEVER)


def answer(sent: Sent, request_id: int, *, mailru: bool) -> bytes:
    return response(sent.func_id, request_id, sent.code, sent.body, mailru=mailru)


def check_outcome(sent: Sent, error: BaseException | None, result: Any) -> None:
    if sent.error is None:
        assert error is None
    else:
        assert type(error) is sent.error
        assert isinstance(error, Error)
        assert error.code == sent.code
        assert error.text.encode() == msgpack.unpackb(sent.body).encode()
        assert error.item is None
    assert result == sent.result
    assert type(result) is type(sent.result)


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


BAD_INDEXES: list[Any] = [2**63, -(2**63) - 1, 2**64, "1", 1.5, 1.0, None, b"1"]
BAD_CONTENTS: list[Any] = [None, 5, bytearray(b"x"), memoryview(b"x"), ["x"], "\ud800"]


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


# --- Which dialect --------------------------------------------------------------------------------

STORAGE_REPLIES = [
    Sent(REPLACE, ff.AS_NOTHING, 0, NIL, None, None),
    *(
        Sent(READ, ff.AS_BYTES, 0, packed_str(b"s" * size), None, b"s" * size)
        for size in (0, 1, 2, 3, 4, 5, 31, 32, 255, 256, 65535, 65536)
    ),
    *(
        Sent(READ, ff.AS_TEXT, ReturnCode.LOCKED, packed_str(b"e" * size), LockedError, None)
        for size in (1, 2, 3, 4, 40, 300)
    ),
    Sent(REPLACE, ff.AS_NOTHING, ReturnCode.READ_ONLY, packed_str(b"frozen"), ReadOnlyError, None),
]


def cuts_of(data: bytes) -> Sequence[int]:
    """Every place to cut these bytes; for long ones, those of the heads and of the end."""
    return range(len(data)) if len(data) < 400 else [*range(40), *range(len(data) - 20, len(data))]


def short(sent: Sent) -> str:
    return f"{sent.func_id:#x} code={sent.code:#x} body={len(sent.body)}"


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


# --- A peer that breaks the protocol --------------------------------------------------------------


def check_broken(frames: ff.ClientFrames, text: str) -> None:
    """The stream is lost, for this reason, and nothing more is taken from it."""
    assert isinstance(frames.broken, ProtocolError)
    assert text in broken_text(frames)
    assert frames.feed(response(READ, 1, 0, b"\xa1x", mailru=False)) == []


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
    one = response(READ, 1, 0, b"\xa3one", mailru=mailru)
    two = response(READ, 2, 0, b"\xa3two", mailru=mailru)
    assert frames.feed(one + one + two) == [("one", None, "one"), ("two", None, "two")]
    assert frames.feed(two + one) == []
    assert frames.broken is None


def test_a_doubled_reply_in_a_bulk_is_dropped_and_the_first_counts() -> None:
    frames = client()
    frames.read_many([1, 2], ff.AS_TEXT, "bulk", NEVER)
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
    assert frames.fail_all() == [("two", False)]


def test_a_reply_of_another_function_in_a_bulk_breaks_the_stream() -> None:
    frames = client()
    frames.read_many([1, 2], ff.AS_TEXT, "bulk", NEVER)
    assert frames.feed(response(REPLACE, 1, 0, NIL, mailru=False)) == []
    check_broken(frames, "asked was 0x20002")
    assert frames.fail_all() == [("bulk", False)]


def test_replies_before_the_break_are_handed_out() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    good = response(READ, 1, 0, b"\xa1x", mailru=False)
    assert frames.feed(good + response(READ, 77, 0, b"\xa1x", mailru=False)) == [("one", None, "x")]
    check_broken(frames, "77")


@dialects
def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_not(mailru: bool) -> None:
    body = b"\xc6" + b"x" * 99
    frames = client(mailru=mailru, max_body=len(body))
    frames.request(USER, b"", ff.AS_BODY, "one", NEVER)
    frames.request(USER, b"", ff.AS_BODY, "two", NEVER)
    assert frames.feed(response(USER, 1, 0, body, mailru=mailru)) == [("one", None, body)]
    claim = response(USER, 2, 0, body + b"x", mailru=mailru)[:16]
    assert frames.feed(claim) == []
    check_broken(frames, "reply body of 101 bytes is over the limit of 100")


@pytest.mark.parametrize("mailru", [False, True, None])
@pytest.mark.parametrize("length", [2**31, 2**32 - 5, 2**32 - 4, 2**32 - 1])
def test_a_huge_claim_breaks_the_stream_at_once(length: int, mailru: bool | None) -> None:
    frames = client(mailru=mailru)
    frames.read(1, ff.AS_TEXT, "one", NEVER)
    head = b"\xdb" + (length - 9 if mailru or mailru is None else length - 5).to_bytes(4, "big")
    assert frames.feed(HEADER.pack(READ, length, 1) + bytes(4) + head) == []
    check_broken(frames, "over the limit")


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
    assert frames.fail_all() == [("one", False)]


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
    heard += [waiter for waiter, _ in frames.fail_all()]
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
    assert sorted(frames.fail_all()) == [
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
        assert frames.fail_all() == [(i, i < taken) for i in range(5)]


def test_a_spoiled_bulk_does_not_disturb_what_fail_all_tells() -> None:
    frames = client()
    frames.read(1, ff.AS_TEXT, "sent", NEVER)
    frames.take()
    bad: list[Any] = [1, 2, 3, "x"]
    with pytest.raises(TypeError):
        frames.read_many(bad, ff.AS_TEXT, "spoiled", NEVER)
    frames.read(1, ff.AS_TEXT, "unsent", NEVER)
    assert frames.fail_all() == [("sent", True), ("unsent", False)]


class Index:
    """An index whose conversion to an int does something first."""

    def __init__(self, does: Callable[[], object]) -> None:
        self._does = does

    def __index__(self) -> int:
        self._does()
        return 1


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
def test_a_bulk_is_built_alone(call: Callable[[ff.ClientFrames], object]) -> None:
    """One of its items may be any object, whose code could take what is half built."""
    frames = client()
    frames.read(1, ff.AS_TEXT, "before", NEVER)
    item: Any = Index(lambda: call(frames))
    with pytest.raises(RuntimeError, match="at work"):
        frames.read_many([1, item, 2], ff.AS_TEXT, "spoiled", NEVER)
    with pytest.raises(RuntimeError, match="at work"):
        frames.replace_many([(1, "x"), (item, "x")], "spoiled", NEVER)
    frames.read(2, ff.AS_TEXT, "after", NEVER)
    assert frames.take() == request(READ, b"\x01", 1) + request(READ, b"\x02", 2)
    assert [waiter for waiter, _ in frames.fail_all()] == ["before", "after"]


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
