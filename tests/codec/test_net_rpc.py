"""Calls of Go's net/rpc: recorded ones, and streams that a second implementation reads too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iproto import _fastframe as ff
from iproto.wire import FuncID, ReturnCode, State
from tests.helpers import gob
from tests.helpers.callees import answer, take_calls
from tests.helpers.net_rpc import (
    NO_INDEX,
    NO_READ,
    NO_WRITE,
    READ_ONLY,
    TOO_LONG,
    CallReply,
    OracleNetRpc,
    ReplyReader,
)
from tests.helpers.oracle import packed_str
from tests.helpers.paths import ROOT
from tests.helpers.server_frames import USERS, feed_all, server, split
from tests.helpers.streams import codec

PATH = ROOT / "tests" / "codec" / "vectors" / "net_rpc.json"
CONNECTIONS: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))["connections"]

USER = min(USERS)
READ, REPLACE = FuncID.STORAGE_READ, FuncID.STORAGE_REPLACE
NIL = b"\xc0"
LONG_WRITE = b"\x01" + packed_str(b"x" * 257)


def net_rpc(**options: Any) -> ff.ServerFrames:
    """The server's side of a connection of net/rpc."""
    return server(net_rpc=True, **{"max_body": 1 << 20, **options})


def replies_to(frames: ff.ServerFrames, *chunks: bytes) -> list[CallReply]:
    """What the server answers to a connection's first bytes."""
    return ReplyReader().read(feed_all(frames, chunks))


@pytest.mark.parametrize("connection", CONNECTIONS, ids=lambda connection: connection["name"])
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_what_goes_own_client_sent_is_answered_as_goes_own_server_did(
    connection: dict[str, Any], size: int
) -> None:
    frames = net_rpc()
    recorded, ours = ReplyReader(), ReplyReader()
    oracle = OracleNetRpc()
    for step in connection["steps"]:
        sent, expected = bytes.fromhex(step["request"]), bytes.fromhex(step["reply"])
        replied = feed_all(frames, [sent[at : at + size] for at in range(0, len(sent), size)])
        if "services" not in connection["name"]:  # there the types have other numbers
            assert replied == expected
        assert ours.read(replied) == recorded.read(expected) == oracle.feed(sent)
    assert frames.status == 0


def test_the_recorded_calls_pipelined_are_answered_the_same() -> None:
    steps = CONNECTIONS[0]["steps"]
    replied = feed_all(net_rpc(), [bytes.fromhex("".join(step["request"] for step in steps))])
    assert replied.hex() == "".join(step["reply"] for step in steps)


# Calls as a stream may have them: bodies of every shape, good and bad.
BODIES = st.sampled_from(
    [
        b"",
        NIL,
        b"\x01",
        b"\x81\xa2ID\x01",
        b"\x81\xa3Idx\x01",
        b"\x82\xa2ID\x01\xa1S\xa3abc",
        b"\x82\xa3Idx\xcd\x03\xe7\xa3Str\xd9\x40" + b"y" * 64,
        b"\x82\xa2ID\x01\xa1S" + packed_str(b"z" * 256),
        b"\x82\xa2ID\xff\xa1S\xa1a",
        b"\x81\xa2ID\xcd\x03\xe8",
        LONG_WRITE,
        b"\x81\xa1S\x01",
        b"\x01" * 700,
    ]
)
FUNCTIONS = st.sampled_from([*FuncID, USER, 0, 0xFFFFFFFF])
CALLS = st.builds(
    gob.call,
    st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)),
    FUNCTIONS,
    BODIES,
    st.integers(0, 2**32 - 1),
)
OTHER_CALLS = st.builds(
    lambda method, body: gob.begin_call(9, method) + gob.argument(1, body), st.binary(), BODIES
)


@codec
@given(st.lists(st.one_of(CALLS, OTHER_CALLS)), st.lists(st.integers(0, 1 << 16), max_size=8))
def test_any_calls_are_answered_as_the_oracle_does(calls: list[bytes], cuts: list[int]) -> None:
    stream = gob.DEFINITIONS + b"".join(calls)
    frames = net_rpc(max_body=600, functions={USER: ff.FIRST_USER_ROW}, max_queue=1 << 30)
    oracle = OracleNetRpc(max_body=600, functions={USER})
    reader = ReplyReader()
    assert reader.read(feed_all(frames, split(stream, cuts))) == oracle.feed(stream)
    calls_taken = take_calls(frames)
    for call in reversed(calls_taken):
        answer(frames, call)
    assert [call[:3] for call in calls_taken] == [call[1:] for call in oracle.calls]
    assert reader.read(frames.take()) == [
        CallReply(seq, False, func_id, request_id, False, NIL)
        for seq, func_id, request_id, _ in reversed(oracle.calls)
    ]


@pytest.mark.parametrize(
    ("state", "func_id", "body", "text"),
    [
        (State.READ_ONLY, REPLACE, b"\x01\xa1a", READ_ONLY),
        (State.READ_ONLY, REPLACE, LONG_WRITE, READ_ONLY),
        (State.MAINTENANCE, REPLACE, b"\x01\xa1a", NO_WRITE),
        (State.MAINTENANCE, REPLACE, LONG_WRITE, NO_WRITE),
        (State.MAINTENANCE, READ, b"\xcd\x03\xe8", NO_READ),
        (State.READ_WRITE, REPLACE, LONG_WRITE, TOO_LONG),
        (State.READ_WRITE, REPLACE, b"\xcd\x03\xe8" + packed_str(b"x" * 257), TOO_LONG),
        (State.READ_WRITE, REPLACE, b"\xff\xa1a", NO_INDEX),
        (State.READ_WRITE, READ, b"\xcd\x03\xe8", NO_INDEX),
    ],
)
def test_refusals_that_the_original_knew_have_its_texts_and_its_order(
    state: State, func_id: FuncID, body: bytes, text: bytes
) -> None:
    storage = ff.Storage()
    storage.switch(state)
    frames = net_rpc(storage=storage)
    assert replies_to(frames, gob.DEFINITIONS + gob.call(5, func_id, body, 8)) == [
        CallReply(5, False, func_id, 8, True, text)
    ]


@pytest.mark.parametrize(
    ("func_id", "body", "text"),
    [
        (READ, b"\xa1a", b"STORAGE_READ takes"),
        (0x00090009, b"", b"no function 0x00090009 here"),
        (FuncID.SHUTDOWN, b"", b"no function 0x0000ff01 here"),
        (FuncID.PING, b"\x01", b"PING takes an empty body"),
        (READ, b"\x01" * 2000, b"body of 2000 bytes is over the limit of 1024"),
    ],
)
def test_other_refusals_have_a_text_of_ours(func_id: int, body: bytes, text: bytes) -> None:
    frames = net_rpc(max_body=1024)
    replied = feed_all(frames, [gob.DEFINITIONS + gob.call(0, func_id, body)])
    assert ReplyReader().read(replied) == [CallReply(0, False, func_id, 0, True, None)]
    assert text in replied
    assert frames.status == 0


def test_the_counters_have_the_return_codes_of_the_protocol() -> None:
    storage = ff.Storage()
    stream = gob.DEFINITIONS + b"".join(
        [
            gob.call(0, REPLACE, b"\x01\xa1a"),
            gob.call(1, READ, b"\x01"),
            gob.call(2, READ, b"\xcd\x03\xe8"),
            gob.call(3, FuncID.ADM_STORAGE_SWITCH_READONLY, NIL),
            gob.call(4, REPLACE, b"\x01\xa1a"),
            gob.call(5, REPLACE, LONG_WRITE),
            gob.begin_call(6, b"Other.Thing") + gob.argument(READ, b"\x01"),
        ]
    )
    replied = feed_all(net_rpc(storage=storage), [stream])
    counters = storage.counters()
    counted = {
        (row, code): counters["requests"][row][column]
        for row in range(ff.FIRST_USER_ROW)
        for column, code in enumerate(ff.CODE_COLUMNS)
        if counters["requests"][row][column]
    }
    row_of = {func_id: row for row, func_id in enumerate(ff.ROWS)}
    assert counted == {
        (row_of[REPLACE], ReturnCode.OK): 1,
        (row_of[READ], ReturnCode.OK): 1,
        (row_of[READ], ReturnCode.NUMBER_OUT_OF_RANGE): 1,
        (row_of[FuncID.ADM_STORAGE_SWITCH_READONLY], ReturnCode.OK): 1,
        (row_of[REPLACE], ReturnCode.READ_ONLY): 1,
        (row_of[REPLACE], ReturnCode.ILLEGAL_PARAMS): 1,
        (ff.ROW_OF_UNKNOWN, ReturnCode.UNSUPPORTED_COMMAND): 1,
    }
    assert counters["bytes_in"] == len(stream)
    assert counters["bytes_out"] == len(replied)


# Rights and rates.


def test_a_function_that_may_not_be_called_is_refused_and_changes_nothing() -> None:
    storage = ff.Storage()
    guard = ff.Guard(lambda func_id: func_id != REPLACE, {})
    frames = net_rpc(storage=storage, guard=guard)
    stream = gob.DEFINITIONS + gob.call(1, REPLACE, b"\x01\xa1a") + gob.call(2, READ, b"\x01")
    replied = feed_all(frames, [stream])
    assert ReplyReader().read(replied) == [
        CallReply(1, False, REPLACE, 0, True, None),
        CallReply(2, False, READ, 0, False, b"\x81\xa1S\xa0"),
    ]
    assert b"may not call this function" in replied
    assert storage.read(1) == b""


def test_calls_over_a_clients_rate_are_refused_and_then_wait() -> None:
    guard = ff.Guard(lambda _: True, {}, ff.RateLimit(0.001, 3))
    frames = net_rpc(guard=guard, account=ff.Clients().claim(1))
    calls = [gob.call(seq, READ, b"\x01") for seq in range(100)]
    replied = frames.feed(gob.DEFINITIONS + b"".join(calls)) or b""
    assert frames.status & ff.IS_PAUSED
    replies = ReplyReader().read(replied)
    assert [reply.seq for reply in replies] == [*range(len(replies))]
    assert 3 < len(replies) < 100
    assert [reply.is_error for reply in replies] == [False] * 3 + [True] * (len(replies) - 3)
    assert b"over this client's rate; not executed; retry after" in replied


# User functions.


def test_replies_of_user_functions_find_their_calls_by_seq() -> None:
    frames = net_rpc(functions={USER: ff.FIRST_USER_ROW})
    stream = b"".join(gob.call(seq, USER, b"\x01", 7) for seq in (300, 0, 2**64 - 1))
    assert feed_all(frames, [gob.DEFINITIONS + stream + gob.call(1, READ, b"\x01")]) != b""
    first, second, third = take_calls(frames)
    answer(frames, third, body=b"\x93\x01\x02\x03")
    answer(frames, first, code=0x00110002, body=packed_str(b"no"))
    answer(frames, second, body=b"")
    reader = ReplyReader()
    reader.read(feed_all(net_rpc(), [gob.DEFINITIONS + gob.call(1, READ, b"\x01")]))
    assert reader.read(frames.take()) == [
        CallReply(2**64 - 1, False, USER, 7, False, b"\x93\x01\x02\x03"),
        CallReply(300, False, USER, 7, True, None),
        CallReply(0, False, USER, 7, False, b""),
    ]


def test_a_call_whose_queue_is_full_is_read_once_more_and_executed_once() -> None:
    frames = net_rpc(functions={USER: ff.FIRST_USER_ROW}, max_calls=1, max_queue=1)
    frames.feed(gob.DEFINITIONS + gob.call(1, USER, b"\x01") + gob.call(2, USER, b"\x02"))
    assert frames.status & ff.IS_FULL
    bodies = []
    while taken := take_calls(frames):
        bodies += [call.body for call in taken]
        for call in taken:
            answer(frames, call)
        frames.feed(b"")
    assert bodies == [b"\x01", b"\x02"]
    assert [reply.seq for reply in ReplyReader().read(frames.take())] == [1, 2]


def test_replies_that_are_not_taken_are_bounded() -> None:
    frames = net_rpc(functions={USER: ff.FIRST_USER_ROW}, max_unsent=2000)
    frames.feed(gob.DEFINITIONS + gob.call(1, USER, b"\x01") + gob.call(2, USER, b"\x01"))
    first, second = take_calls(frames)
    answer(frames, first, body=packed_str(b"x" * 1500))
    answer(frames, second, body=packed_str(b"y" * 1500))
    assert frames.status & ff.HAS_OVERFLOWED
    assert [reply.seq for reply in ReplyReader().read(frames.take())] == [1]


# Limits, and what is no call.

SELF = gob.struct_type(70, [(b"Next", 70), (b"Seq", gob.UINT)])


def nested(depth: int) -> bytes:
    """A value of a type that contains itself, so many levels deep."""
    packed = gob.struct({})
    for _ in range(depth - 1):
        packed = gob.struct({0: packed})
    return gob.message(gob.signed(70) + packed)


FAULTS: list[tuple[str, bytes]] = [
    ("a number of more than 8 bytes", b"\xf7" + b"\x01" * 9),
    ("an empty message", b"\x00"),
    ("a type's number that no client sends", gob.message(gob.signed(2**31))),
    ("a type's number that no client sends", gob.message(gob.signed(-(2**40)))),
    ("a type's number that no client sends", gob.message(gob.signed(-5))),
    ("a type's number that no client sends", gob.struct_type(70, [(b"A", 2**31)])),
    ("a type is defined twice", gob.DEFINE_CALL * 2),
    ("a value of a type that was not defined", gob.begin_call(1)),
    ("an empty definition of a type", gob.message(gob.signed(-70) + b"\0")),
    (
        "more than 32 types or 128 fields are defined",
        b"".join(gob.struct_type(70 + i, []) for i in range(33)),
    ),
    ("more than 32 types or 128 fields are defined", gob.struct_type(70, [(b"A", 2)] * 129)),
    ("more than 8 structs within one another", SELF + nested(9)),
    (
        "a field that is no number, text or struct",
        gob.struct_type(70, [(b"List", 71), (b"Seq", gob.UINT)])
        + gob.message(gob.signed(-71) + gob.struct({gob.SLICE_T: b"\x00"}))
        + gob.value(70, {0: b"\x00"}),
    ),
    ("a field that the type does not have", SELF + gob.value(70, {2: b"\x01"})),
    ("a value runs beyond the end of its message", SELF + gob.message(gob.signed(70) + b"\x02")),
    ("bytes are left behind the value of a message", SELF + gob.message(gob.signed(70) + b"\0\0")),
    ("a call that is no rpc.Request", gob.message(gob.signed(gob.STRING) + b"\0\x01a")),
    (
        "a call that is no rpc.Request",
        gob.struct_type(70, [(b"Seq", gob.STRING)]) + gob.value(70, {0: b"\x01a"}),
    ),
    ("a method's name of more than 255 bytes", gob.DEFINE_CALL + gob.begin_call(1, b"x" * 256)),
]


@pytest.mark.parametrize(("text", "stream"), FAULTS)
def test_what_no_client_of_net_rpc_sends_ends_the_connection_and_says_why(
    text: str, stream: bytes
) -> None:
    frames = net_rpc()
    assert frames.feed(stream) is None
    assert frames.status & ff.IS_CLOSING
    assert frames.close_reason is not None
    assert frames.close_reason.name == "BAD_GOB"
    assert frames.close_text == text
    assert frames.feed(gob.DEFINITIONS + gob.call(1, READ, b"\x01")) is None


@pytest.mark.parametrize(
    "stream",
    [
        SELF + nested(8),
        gob.DEFINE_CALL + gob.begin_call(1, b"x" * 255),
        b"".join(gob.struct_type(70 + i, [(b"A", 2)] * 4) for i in range(32)),
    ],
    ids=["depth", "name", "types"],
)
def test_what_is_just_within_a_limit_is_taken(stream: bytes) -> None:
    frames = net_rpc()
    frames.feed(stream)
    assert frames.status == 0


@pytest.mark.parametrize("length", [2**20 + 4097, 2**30, 2**64 - 1])
def test_a_length_over_the_limit_ends_the_connection_before_memory_is_taken(length: int) -> None:
    frames = net_rpc()
    stream = gob.DEFINITIONS + gob.begin_call(3) + gob.uint(length)
    assert replies_to(frames, stream) == [CallReply(3, error=True)]
    assert frames.close_reason is not None
    assert frames.close_reason.name == "BODY_TOO_LARGE"
    frames = net_rpc()
    assert frames.feed(gob.uint(length)) is None
    assert frames.status & ff.IS_CLOSING


@pytest.mark.parametrize(
    "argument",
    [
        gob.message(gob.signed(gob.STRING) + b"\0" + gob.text(b"a string")),
        gob.value(gob.CALL_TYPE, {1: b"\x01"}),
        gob.value(gob.ARGUMENT_TYPE, {0: gob.struct({0: gob.uint(2**32)})}),
        gob.struct_type(70, [(b"Body", gob.STRING)]) + gob.value(70, {0: gob.text(b"a")}),
        gob.struct_type(70, [(b"Header", gob.UINT)]) + gob.value(70, {0: b"\x01"}),
    ],
    ids=["string", "call", "number", "body", "header"],
)
def test_an_argument_of_another_type_is_an_error_of_that_call_alone(argument: bytes) -> None:
    frames = net_rpc()
    stream = gob.DEFINITIONS + gob.begin_call(3) + argument + gob.call(4, READ, b"\x01")
    assert replies_to(frames, stream) == [
        CallReply(3, error=True),
        CallReply(4, False, READ, 0, False, b"\x81\xa1S\xa0"),
    ]


def test_the_header_counts_for_the_function_alone_and_its_length_is_not_believed() -> None:
    header = gob.struct({0: gob.uint(READ), 1: gob.uint(2**32 - 1)})
    stream = gob.begin_call(1) + gob.value(gob.ARGUMENT_TYPE, {0: header, 1: gob.text(b"\x01")})
    assert replies_to(net_rpc(), gob.DEFINITIONS + stream) == [
        CallReply(1, False, READ, 0, False, b"\x81\xa1S\xa0")
    ]


def test_a_call_without_a_method_is_answered_as_one_that_is_ill_formed() -> None:
    stream = gob.DEFINITIONS + gob.value(gob.CALL_TYPE, {1: b"\x05"}) + gob.argument(READ, b"\x01")
    assert replies_to(net_rpc(), stream) == [
        CallReply(5, b"rpc: service/method request ill-formed: ")
    ]


@pytest.mark.parametrize("count", [1, 20_000])
def test_a_turn_builds_bounded_replies_and_the_next_one_goes_on(count: int) -> None:
    frames = net_rpc()
    call = gob.begin_call(1, b"x" * 255) + gob.argument(READ, b"\x01")
    reader = ReplyReader()
    replied = frames.feed(gob.DEFINITIONS + call * count) or b""
    answered = reader.read(replied)
    while frames.status & ff.HAS_MORE:
        assert len(replied) <= 256 * 1024
        replied = frames.feed(b"") or b""
        answered += reader.read(replied)
    assert len(answered) == count


def test_the_longest_reply_fits_into_the_room_that_a_turn_leaves_for_it() -> None:
    frames = net_rpc()
    calls = [gob.begin_call(2**64 - 1, b"x" * 255), gob.argument(READ, b"\x01")]
    calls += [gob.call(2**64 - 1, READ, b"\xa1", 2**32 - 1)]
    calls += [gob.call(2**64 - 1, REPLACE, b"\x01" + packed_str(b"x" * 256))]
    calls += [gob.call(2**64 - 1, READ, b"\x01", 2**32 - 1)]
    sizes = [len(frames.feed(chunk) or b"") for chunk in [gob.DEFINITIONS, *calls]]
    assert max(sizes) < 1024


# Other protocols.


def test_a_client_of_plain_iproto_is_recognised() -> None:
    frames = net_rpc()
    assert frames.feed(b"\x02\x00\x02\x00\x01\x00\x00\x00\x07\x00\x00\x00\x01") is None
    assert frames.close_text is not None
    assert "it speaks plain iproto" in frames.close_text
    assert "--bind" in frames.close_text


@pytest.mark.parametrize("begin", [CONNECTIONS[0], CONNECTIONS[-1]], ids=["65", "145"])
@pytest.mark.parametrize("mailru", [False, True])
def test_a_client_of_net_rpc_is_recognised_on_a_plain_address(
    begin: dict[str, Any], mailru: bool
) -> None:
    frames = server(mailru=mailru, max_body=1 << 20)
    stream = bytes.fromhex(begin["steps"][0]["request"])
    replied = feed_all(frames, [stream])
    assert replied  # an ordinary refusal, which net/rpc cannot read
    assert frames.close_text is not None
    assert "it is a client of Go's net/rpc" in frames.close_text
    assert "--net-rpc-bind" in frames.close_text


@pytest.mark.parametrize(
    "stream",
    [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 40],
    ids=["http", "tls"],
)
def test_strangers_are_told_at_their_first_bytes(stream: bytes) -> None:
    frames = net_rpc()
    assert frames.feed(stream[:12]) is None
    assert frames.close_text == "a type's number that no client sends"


# Drain.


def test_a_drain_answers_whole_calls_and_sends_nothing_behind_them() -> None:
    frames = net_rpc()
    reader = ReplyReader()
    half = gob.begin_call(2)
    stream = gob.DEFINITIONS + gob.call(1, READ, b"\x01", 0xFF010000) + half
    frames.drain(len(stream))
    assert [reply.seq for reply in reader.read(feed_all(frames, [stream]))] == [1]
    assert frames.status & ff.IS_CLOSING
    assert frames.feed(gob.argument(READ, b"\x01")) is None
