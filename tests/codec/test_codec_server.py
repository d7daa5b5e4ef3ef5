"""``ServerFrames``: held against the oracle, and its promises of bounds and clocks."""

from __future__ import annotations

import pathlib
import struct
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from iproto import _fastframe as ff
from iproto.wire import CloseReason, FuncID, ReturnCode, State
from tests.helpers.callees import answer, bodies, callee, callees, take_calls
from tests.helpers.make_vectors import (
    BAD_READS,
    BAD_REPLACES,
    BAD_SWITCHES,
    OUT_OF_RANGE,
    READ_SHAPES,
    REPLACE_SHAPES,
)
from tests.helpers.oracle import (
    HEADER,
    OracleServer,
    Reply,
    packed_str,
    parse_responses,
    request,
    split_responses,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_BODY = 600

USERS = {0x00030001: ff.FIRST_USER_ROW, 0xDEADBEEF: ff.FIRST_USER_ROW + 3}

settings.register_profile(
    "codec",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
codec = settings(settings.get_profile("codec"))

dialects = pytest.mark.parametrize("mailru", [False, True], ids=["vk", "mailru"])
either_dialect = st.booleans()


def server(
    *,
    mailru: bool = False,
    storage: ff.Storage | None = None,
    max_body: int = MAX_BODY,
    max_calls: int = 1 << 20,
    functions: dict[int, int] | None = None,
    **options: Any,
) -> ff.ServerFrames:
    """The server's side of a connection."""
    return ff.ServerFrames(
        ff.Storage() if storage is None else storage,
        mailru=mailru,
        max_body=max_body,
        max_calls=max_calls,
        functions=callees({} if functions is None else functions),
        **options,
    )


def feed_all(frames: ff.ServerFrames, chunks: Sequence[bytes]) -> bytes:
    """All that the server answers to these chunks, resumed as often as it takes."""
    out = []
    for chunk in chunks:
        out.append(frames.feed(chunk) or b"")
        assert not frames.status & ff.IS_FULL
        while frames.status & ff.HAS_MORE:
            out.append(frames.feed(b"") or b"")
    return b"".join(out) + last_bytes(frames)


def last_bytes(frames: ff.ServerFrames) -> bytes:
    """What the server sends when everything is answered: the echo of a SHUTDOWN."""
    frames.finish()
    return frames.take()


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """The data in pieces, cut at these places (modulo its length)."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


# --- What is sent ---------------------------------------------------------------------------------

uint32s = st.one_of(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]), st.integers(0, 2**32 - 1))
indexes = st.one_of(st.integers(0, 3), st.sampled_from([127, 128, 255, 256, 998, 999]))
contents = st.one_of(
    st.binary(max_size=40),
    st.integers(250, 260).map(lambda size: b"x" * size),
)


def forms_of_int(value: int) -> list[bytes]:
    """An integer in every MsgPack form that can hold it."""
    forms = []
    if -32 <= value < 128:
        forms.append(value.to_bytes(1, "big", signed=True))
    for power in range(4):
        bits = 8 << power
        if 0 <= value < 2**bits:
            forms.append(bytes([0xCC + power]) + value.to_bytes(bits // 8, "big"))
        if -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            forms.append(bytes([0xD0 + power]) + value.to_bytes(bits // 8, "big", signed=True))
    return forms


def forms_of_str(content: bytes) -> list[bytes]:
    """A str in every MsgPack form that can hold it."""
    size = len(content)
    forms = [bytes([0xA0 | size]) + content] if size < 32 else []
    for power in range(3):
        if size < 2 ** (8 << power):
            forms.append(bytes([0xD9 + power]) + size.to_bytes(1 << power, "big") + content)
    return forms


edge_ints = st.sampled_from(
    [
        *(-1, -32, -33, -128, -129, -(2**15), -(2**31), -(2**63), -(2**63) + 5),
        *(1000, 1001, 2**15, 2**16 - 1, 2**16 + 1, 2**31, 2**32, 2**32 + 1),
        *(2**63 - 1, 2**63, 2**64 - 1),
    ]
)
any_indexes = st.one_of(indexes, indexes, edge_ints, st.integers(-(2**63), 2**64 - 1))
packed_indexes = any_indexes.flatmap(lambda value: st.sampled_from(forms_of_int(value)))
packed_contents = contents.flatmap(lambda content: st.sampled_from(forms_of_str(content)))


def heads(fix: int, wide: int, count: int) -> st.SearchStrategy[bytes]:
    """The head of an array or map of this many elements, in every form."""
    return st.sampled_from(
        [
            bytes([fix | count]),
            bytes([wide]) + count.to_bytes(2, "big"),
            bytes([wide + 1]) + count.to_bytes(4, "big"),
        ]
    )


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


# Of both pairs, and so mixed at times: then the body is refused.
keys_of_index = st.sampled_from(forms_of_str(b"ID") + forms_of_str(b"Idx"))
keys_of_content = st.sampled_from(forms_of_str(b"S") + forms_of_str(b"Str"))

read_bodies = st.one_of(
    packed_indexes,
    joined(heads(0x90, 0xDC, 1), packed_indexes),
    joined(heads(0x80, 0xDE, 1), keys_of_index, packed_indexes),
)
replace_bodies = st.one_of(
    joined(packed_indexes, packed_contents),
    joined(heads(0x90, 0xDC, 2), packed_indexes, packed_contents),
    joined(heads(0x80, 0xDE, 2), keys_of_index, packed_indexes, keys_of_content, packed_contents),
    joined(heads(0x80, 0xDE, 2), keys_of_content, packed_contents, keys_of_index, packed_indexes),
)


def from_hex(bodies: dict[str, str]) -> st.SearchStrategy[bytes]:
    return st.sampled_from([bytes.fromhex(body) for body in bodies.values()])


objects = st.one_of(
    packed_indexes,
    packed_contents,
    keys_of_index,
    keys_of_content,
    heads(0x90, 0xDC, 1),
    heads(0x90, 0xDC, 2),
    heads(0x80, 0xDE, 1),
    heads(0x80, 0xDE, 2),
    st.sampled_from([bytes.fromhex(x) for x in ("c0", "c1", "c2", "cb3ff0000000000000", "c40161")]),
    st.integers(0, 255).map(lambda byte: bytes([byte])),
)
soups = st.lists(objects, max_size=6).map(b"".join)
"""MsgPack objects and heads in any order: nearly right, mostly wrong."""

bodies_of = {
    FuncID.STORAGE_READ: st.one_of(read_bodies, from_hex(BAD_READS), soups),
    FuncID.STORAGE_REPLACE: st.one_of(replace_bodies, from_hex(BAD_REPLACES), soups),
}
switch_bodies = st.one_of(st.sampled_from([b"", b"\xc0"]), from_hex(BAD_SWITCHES))
other_bodies = st.one_of(st.just(b""), st.binary(max_size=20))


class Frame(NamedTuple):
    """A request to be."""

    func_id: int
    body: bytes
    request_id: int

    def wire(self) -> bytes:
        return request(self.func_id, self.body, self.request_id)


def frames_of(func_id: int) -> st.SearchStrategy[Frame]:
    if func_id in bodies_of:
        bodies = bodies_of[FuncID(func_id)]
    elif 0x00010001 <= func_id <= 0x00010003:
        bodies = switch_bodies
    else:
        bodies = other_bodies
    return st.builds(Frame, st.just(func_id), bodies, uint32s)


# Reads and writes most often; back to READ_WRITE more often than away from it.
often = [FuncID.STORAGE_READ, FuncID.STORAGE_REPLACE] * 6
seldom = [
    FuncID.ADM_STORAGE_SWITCH_READWRITE,
    FuncID.ADM_STORAGE_SWITCH_READWRITE,
    FuncID.ADM_STORAGE_SWITCH_READONLY,
    FuncID.ADM_STORAGE_SWITCH_MAINTENANCE,
    FuncID.PING,
]
builtin_frames = st.sampled_from([*often, *seldom]).flatmap(frames_of)
unknown_frames = st.builds(Frame, uint32s, other_bodies, uint32s)
user_bodies = st.binary(max_size=80).map(packed_str)
user_frames = st.builds(Frame, st.sampled_from(list(USERS)), user_bodies, uint32s)
shutdown_frames = frames_of(FuncID.SHUTDOWN)
oversize_frames = st.builds(Frame, uint32s, st.just(b"o" * (MAX_BODY + 1)), uint32s)

plain_streams = st.lists(st.one_of(builtin_frames, builtin_frames, unknown_frames), max_size=12)
streams = st.builds(
    lambda before, end, after: [*before, *end, *after],
    st.lists(
        st.one_of(builtin_frames, builtin_frames, builtin_frames, unknown_frames, user_frames),
        max_size=12,
    ),
    st.lists(st.one_of(shutdown_frames, oversize_frames), max_size=1),
    st.lists(builtin_frames, max_size=3),
)
cuts = st.lists(st.integers(0, 2**16), max_size=12)


def wire(frames: Sequence[Frame]) -> bytes:
    return b"".join(frame.wire() for frame in frames)


# --- The oracle and the split ---------------------------------------------------------------------


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


mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "insert", "delete", "truncate"]),
        st.integers(0, 2**16),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def mutate(data: bytes, changes: Sequence[tuple[str, int, int]]) -> bytes:
    mutated = bytearray(data)
    for change, anywhere, value in changes:
        if not mutated:
            break
        place = anywhere % len(mutated)
        if change == "flip":
            mutated[place] ^= 1 << value % 8
        elif change == "set":
            mutated[place] = value
        elif change == "insert":
            mutated.insert(place, value)
        elif change == "delete":
            del mutated[place]
        else:
            del mutated[place:]
    return bytes(mutated)


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


# --- Bounds ---------------------------------------------------------------------------------------


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


@given(
    mailru=either_dialect,
    sent=st.lists(st.one_of(user_frames, user_frames, builtin_frames), max_size=20),
)
@codec
def test_calls_start_in_order_up_to_the_limit_and_nothing_waits_behind_them(
    sent: list[Frame], mailru: bool
) -> None:
    limit = 3
    frames = server(mailru=mailru, max_calls=limit, functions=USERS)
    oracle = OracleServer(max_body=MAX_BODY, functions=USERS)
    expected = oracle.feed(wire(sent))
    got = frames.feed(wire(sent)) or b""
    users = [frame for frame in sent if frame.func_id in USERS]
    assert parse_responses(got, mailru=mailru) == expected
    assert bool(frames.status & ff.HAS_CALLS) == bool(users)
    assert not frames.status & (ff.HAS_MORE | ff.IS_FULL)
    running = take_calls(frames)
    assert len(running) == frames.running == min(limit, len(users))
    assert frames.unanswered == len(users)
    assert not frames.status & ff.HAS_CALLS
    seen = []
    while running:
        taken = running.pop(0)
        seen.append(taken[:3])
        answer(frames, taken, 0, taken.body)
        (reply,) = parse_responses(frames.take(), mailru=mailru)
        assert (reply.func_id, reply.request_id, reply.return_code) == (*taken[:2], 0)
        running += take_calls(frames)
        assert frames.running == len(running) == min(limit, len(users) - len(seen))
        assert frames.unanswered == len(users) - len(seen)
    assert seen == [(f.func_id, f.request_id, f.body) for f in users] == oracle.calls
    assert frames.status == 0


def test_a_full_queue_of_calls_stops_the_stream_until_one_has_started() -> None:
    frames = server(max_calls=1, max_queue=1024, functions=USERS)
    calls = b"".join(request(0x00030001, b"", number) for number in range(8))
    write = request(FuncID.STORAGE_REPLACE, b"\x00\xa3abc", 2)
    assert frames.feed(calls + write) is None
    assert frames.status == ff.HAS_CALLS | ff.HAS_MORE | ff.IS_FULL
    assert frames.unanswered == 4  # of 256 bytes each
    (first,) = take_calls(frames)
    assert frames.status == ff.HAS_MORE
    assert frames.feed(b"") is None
    assert frames.status == ff.HAS_MORE | ff.IS_FULL
    assert frames.storage.read(0) == b""
    seen = []
    running = [first]
    while running:
        (taken,) = running
        seen.append(taken.request_id)
        answer(frames, taken)
        running = take_calls(frames)
        frames.feed(b"")
    assert seen == [*range(8)]
    assert frames.storage.read(0) == b"abc"
    assert frames.status == 0


def test_a_call_that_waits_too_long_is_answered_overloaded_and_never_started() -> None:
    frames = server(max_calls=1, queue_timeout=0.001, functions=USERS)
    frames.feed(request(0x00030001, b"", 1) + request(0x00030001, b"", 2))
    (first,) = take_calls(frames)
    while frames.expire_calls():
        pass
    (reply,) = parse_responses(frames.take(), mailru=False)
    assert (reply.request_id, reply.return_code) == (2, ReturnCode.OVERLOADED)
    answer(frames, first)
    assert take_calls(frames) == []
    assert frames.unanswered == 0


def test_a_reply_over_the_bound_of_what_is_unsent_is_dropped() -> None:
    frames = server(max_unsent=2048, functions=USERS)
    frames.feed(b"".join(request(0x00030001, b"", number) for number in range(3)))
    first, second, third = take_calls(frames)
    answer(frames, first, 0, bytes(5000))  # alone it may be as long as it is
    assert not frames.status & ff.HAS_OVERFLOWED
    answer(frames, second, 0, bytes(100))
    assert frames.status & ff.HAS_OVERFLOWED
    frames.discard()
    answer(frames, third)
    assert frames.take() == b""
    assert frames.running == 0


@pytest.mark.parametrize("row", [-1, ff.FIRST_USER_ROW - 1, ff.ROW_COUNT])
def test_a_counter_row_that_is_not_the_users_is_refused(row: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        callee(0x00030001, row)


class Liar(int):
    """An int whose comparisons say that it is in any range."""

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __lt__


@pytest.mark.parametrize("row", [Liar(10**7), 2**70, -(2**70)])
def test_a_counter_row_is_looked_at_as_a_number(row: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        callee(0x00030001, row)


@pytest.mark.parametrize("func_id", [-1, 2**32, 2**70])
def test_a_func_id_that_no_frame_can_have_is_refused(func_id: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        callee(func_id)


@pytest.mark.parametrize(("func_id", "row"), [(1.5, 8), (1, 8.5), ("1", 8), (1, None)])
def test_what_is_no_int_is_refused_in_functions(func_id: Any, row: Any) -> None:
    with pytest.raises(TypeError):
        callee(func_id, row)


def test_a_second_answer_changes_nothing() -> None:
    storage = ff.Storage()
    frames = server(storage=storage, max_calls=1, functions=USERS)
    frames.feed(request(0x00030001, b"", 1))
    (taken,) = take_calls(frames)
    answer(frames, taken)
    assert frames.take() != b""
    answer(frames, taken)
    answer(frames, taken, ReturnCode.INTERNAL)
    assert frames.take() == b""
    assert frames.running == frames.unanswered == 0
    assert sum(storage.counters()["requests"][ff.FIRST_USER_ROW]) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda frames: frames.feed(b"z" * 100_000),
        lambda frames: frames.receive(-1),
        lambda frames: frames.resume(-1),
        lambda frames: frames.close(CloseReason.IDLE),
        lambda frames: frames.drain(0),
    ],
    ids=["feed", "receive", "resume", "close", "drain"],
)
def test_a_call_from_within_a_call_is_refused(
    call: Callable[[ff.ServerFrames], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a ``__del__``, when the collector runs while a chunk is executed."""
    frames = server()
    refused = []

    class Reasons:
        @property
        def SHUTDOWN(self) -> CloseReason:
            try:
                call(frames)
            except RuntimeError as error:
                refused.append(str(error))
            return CloseReason.SHUTDOWN

    data = request(FuncID.STORAGE_READ, b"\x01", 1) * 50 + request(FuncID.SHUTDOWN, b"", 2)
    assert frames.feed(data[:5]) is None  # the rest is executed from a buffer of its own
    monkeypatch.setattr(ff, "CloseReason", Reasons())
    replies = frames.feed(data[5:]) or b""
    monkeypatch.undo()
    assert len(refused) == 1
    assert "at work" in refused[0]
    assert len(parse_responses(replies, mailru=False)) == 50
    assert frames.close_reason is CloseReason.SHUTDOWN
    assert last_bytes(frames) == request(FuncID.SHUTDOWN, b"", 2)


def test_a_call_that_failed_does_not_forbid_the_next() -> None:
    frames = server()
    with pytest.raises(TypeError):
        frames.feed(None)  # type: ignore[arg-type]
    assert frames.receive(-1) & ff.IS_BROKEN
    assert frames.feed(request(FuncID.PING, b"", 5)) == request(FuncID.PING, b"", 5)
    frames.close(CloseReason.IDLE)


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


# --- Counters -------------------------------------------------------------------------------------


def rows_and_columns(storage: ff.Storage) -> Counter[tuple[int, int]]:
    """How often each (row, column) was counted, where it was."""
    return Counter(
        {
            (row, column): count
            for row, columns in enumerate(storage.counters()["requests"])
            for column, count in enumerate(columns)
            if count
        }
    )


def expected_counts(replies: Sequence[Reply]) -> Counter[tuple[int, int]]:
    """Where the oracle's replies ought to be counted."""
    rows = {int(func_id): row for row, func_id in enumerate(ff.ROWS)}
    return Counter(
        (
            rows.get(reply.func_id, ff.ROW_OF_UNKNOWN),
            ff.CODE_COLUMNS.index(ReturnCode(reply.return_code or 0)),
        )
        for reply in replies
    )


@given(mailru=either_dialect, sent=streams, cuts=cuts)
@codec
def test_counters_add_up(sent: list[Frame], cuts: list[int], mailru: bool) -> None:
    data = wire([frame for frame in sent if frame.func_id not in USERS])
    frames = server(mailru=mailru)
    replies = OracleServer(max_body=MAX_BODY).feed(data)
    out = feed_all(frames, split(data, cuts))
    counters = frames.storage.counters()
    assert rows_and_columns(frames.storage) == expected_counts(replies)
    assert counters["bytes_in"] == len(data)
    assert counters["bytes_out"] == len(out)
    for row in range(ff.ROW_COUNT):
        assert sum(counters["buckets"][row]) == sum(counters["requests"][row])
        assert (counters["nanoseconds"][row] > 0) == any(counters["requests"][row])


@dialects
def test_replies_of_users_functions_are_counted_by_row_and_code(mailru: bool) -> None:
    frames = server(mailru=mailru, functions=USERS)
    codes = [*ReturnCode, 0x5102, 0xFFFFFFFF]
    sizes = 0
    for code in codes:
        frames.feed(request(0xDEADBEEF, b"", 1))
        (taken,) = take_calls(frames)
        answer(frames, taken, code, b"\xa4text")
        sizes += len(frames.take())
    other = len(ff.CODE_COLUMNS)
    row = USERS[0xDEADBEEF]
    expected = Counter({(row, column): 1 for column in range(other)} | {(row, other): 2})
    counters = frames.storage.counters()
    assert rows_and_columns(frames.storage) == expected
    assert sum(counters["buckets"][row]) == len(codes)
    assert counters["bytes_out"] == sizes
    assert counters["bytes_in"] == len(codes) * len(request(0, b"", 0))


def test_a_users_call_is_timed_from_its_arrival() -> None:
    frames = server(functions=USERS)
    frames.feed(request(0x00030001, b"", 1))
    (taken,) = take_calls(frames)
    time.sleep(0.011)
    answer(frames, taken)
    buckets = frames.storage.counters()["buckets"][USERS[0x00030001]]
    ten_ms = ff.BUCKET_BOUNDS.index(0.01)
    assert sum(buckets[: ten_ms + 1]) == 0
    assert sum(buckets) == 1


# --- Partial frames and clocks --------------------------------------------------------------------


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


@pytest.mark.parametrize("func_id", list(FuncID))
def test_a_built_in_function_is_no_user_function(func_id: FuncID) -> None:
    with pytest.raises(ValueError, match="is a built-in function"):
        callee(func_id)
