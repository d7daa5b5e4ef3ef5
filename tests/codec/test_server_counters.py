"""``ServerFrames``: what is counted adds up to what was answered."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given

from iproto import _fastframe as ff
from iproto.wire import ReturnCode
from tests.helpers.callees import answer, take_calls
from tests.helpers.oracle import OracleServer, Reply, request
from tests.helpers.server_frames import MAX_BODY, USERS, feed_all, server, split
from tests.helpers.streams import Frame, codec, cuts, dialects, either_dialect, streams, wire

if TYPE_CHECKING:
    from collections.abc import Sequence


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
