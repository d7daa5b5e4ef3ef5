"""``ServerFrames``: calls of user functions, their order and their limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iproto import _fastframe as ff
from iproto.wire import CloseReason, FuncID, ReturnCode
from tests.helpers.callees import answer, callee, take_calls
from tests.helpers.liar import Liar
from tests.helpers.oracle import OracleServer, parse_responses, request
from tests.helpers.server_frames import MAX_BODY, USERS, last_bytes, server
from tests.helpers.streams import Frame, builtin_frames, codec, either_dialect, user_frames, wire

if TYPE_CHECKING:
    from collections.abc import Callable


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


@pytest.mark.parametrize("func_id", list(FuncID))
def test_a_built_in_function_is_no_user_function(func_id: FuncID) -> None:
    with pytest.raises(ValueError, match="is a built-in function"):
        callee(func_id)
