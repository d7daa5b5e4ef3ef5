"""The clients' way: calls to requests, replies to results. No sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.gate.script import USER_FUNCTION, frame, index_of
from iproto._fastframe import AS_BODY, AS_BYTES, AS_TEXT, ClientFrames
from iproto.client.arguments import pack_args, unpack_result

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from iproto._fastframe import ServerFrames

COUNT = 1000
INDEXES = [index_of(number) for number in range(COUNT)]
LATER = 1e9  # a deadline
ARGUMENTS = ("some text", 17, [1, 2, 3], {"key": "value"})


def new_client() -> ClientFrames:
    frames = ClientFrames(mailru=False, max_body=1 << 20)
    frames._set_ids(1)
    return frames


@pytest.mark.benchmark(group="client: 1000 reads")
def test_read_many_encode(benchmark: BenchmarkFixture) -> None:
    def work() -> bytes:
        client = new_client()
        client.read_many(INDEXES, AS_TEXT, None, LATER)
        return client.take()

    benchmark(work)


@pytest.mark.benchmark(group="client: 1000 reads")
@pytest.mark.parametrize("outcome", [AS_TEXT, AS_BYTES], ids=["text", "bytes"])
def test_read_many_both_ways(
    benchmark: BenchmarkFixture, frames: ServerFrames, outcome: int
) -> None:
    """Less the encoding above, the decoding."""
    client = new_client()
    client.read_many(INDEXES, outcome, None, LATER)
    replies = frames.feed(client.take())  # the same each time: a new client's ids begin at 1
    assert replies is not None

    def work() -> list[object]:
        client = new_client()
        client.read_many(INDEXES, outcome, None, LATER)
        client.take()
        ((_, error, results),) = client.feed(replies)
        assert error is None
        return results  # type: ignore[no-any-return]

    assert len(work()) == COUNT
    benchmark(work)


@pytest.mark.benchmark(group="client: 1000 reads")
def test_reads_one_by_one(benchmark: BenchmarkFixture, frames: ServerFrames) -> None:
    """As many tasks of one AsyncClient do: one request each, sent together."""
    client = new_client()
    for index in INDEXES:
        client.read(index, AS_TEXT, None, LATER)
    replies = frames.feed(client.take())
    assert replies is not None

    def work() -> int:
        client = new_client()
        for index in INDEXES:
            client.read(index, AS_TEXT, None, LATER)
        client.take()
        return len(client.feed(replies))

    assert work() == COUNT
    benchmark(work)


@pytest.mark.benchmark(group="client: a call")
def test_call_encode(benchmark: BenchmarkFixture) -> None:
    def work() -> bytes:
        client = new_client()
        client.request(USER_FUNCTION, pack_args(ARGUMENTS), AS_BODY, None, LATER)
        return client.take()

    benchmark(work)


@pytest.mark.benchmark(group="client: a call")
def test_call_both_ways(benchmark: BenchmarkFixture) -> None:
    # A response of dialect vk: the return_code, then a body of the length in the header.
    reply = frame(USER_FUNCTION, 1, pack_args(ARGUMENTS))
    reply = reply[:12] + bytes(4) + reply[12:]

    def work() -> object:
        client = new_client()
        client.request(USER_FUNCTION, pack_args(ARGUMENTS), AS_BODY, None, LATER)
        client.take()
        ((_, error, body),) = client.feed(reply)
        assert error is None
        return unpack_result(USER_FUNCTION, body)

    assert work() == list(ARGUMENTS)
    benchmark(work)
