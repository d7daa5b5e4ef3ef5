"""The server's way: chunks of frames in, replies out; users' calls; a scrape."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest

import iproto
from benchmarks.gate.script import (
    PING,
    READ,
    REPLACE,
    SWITCH_READWRITE,
    UNKNOWN_FUNCTION,
    USER_FUNCTION,
    call,
    chunks,
    frame,
    halved,
    mixed,
    read,
    write,
)
from iproto._fastframe import FIRST_USER_ROW
from iproto.metrics.collectors import StorageCollector, WatchedFile
from iproto.server.calls import callee_of
from iproto.server.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    from iproto import Storage
    from iproto._fastframe import ServerFrames

DEPTHS = (1, 16, 256)
BATCH = 16  # frames of one chunk, where the depth is not what is measured


@dataclass
class Source:
    """What the metrics are about, in place of a server."""

    storage: Storage
    ready: bool = True
    silent_seconds: float = 0.0
    file_watch: WatchedFile | None = None


TEN_BYTES = b"\xaa" + b"0123456789"
BODIES = {
    "read int": frame(READ, 1, b"\xcd\x01\xf4"),
    "read [int]": frame(READ, 1, b"\x91\xcd\x01\xf4"),
    "read {ID: int}": frame(READ, 1, b"\x81\xa2ID\xcd\x01\xf4"),
    "replace int str": frame(REPLACE, 1, b"\xcd\x01\xf4" + TEN_BYTES),
    "replace [int, str]": frame(REPLACE, 1, b"\x92\xcd\x01\xf4" + TEN_BYTES),
    "replace {ID: int, S: str}": frame(
        REPLACE, 1, b"\x82\xa2ID\xcd\x01\xf4" + b"\xa1S" + TEN_BYTES
    ),
    "switch, empty body": frame(SWITCH_READWRITE, 1, b""),
    "switch, nil": frame(SWITCH_READWRITE, 1, b"\xc0"),
    "ping": frame(PING, 1, b""),
    "refused: not MsgPack": frame(READ, 1, b"\xc1"),
    "refused: index": frame(READ, 1, b"\xcd\x03\xe8"),
    "refused: too long": frame(REPLACE, 1, b"\x01\xda\x01\x01" + b"x" * 257),
    "refused: no such function": frame(UNKNOWN_FUNCTION, 1, b"\xc0"),
}


def measured(benchmark: BenchmarkFixture, frames: int, work: Callable[[], object]) -> None:
    benchmark.extra_info["frames"] = frames
    benchmark(work)


@pytest.mark.benchmark(group="frames: feed")
@pytest.mark.parametrize("make", [read, write, mixed])
@pytest.mark.parametrize("depth", DEPTHS)
def test_feed(
    benchmark: BenchmarkFixture,
    frames: ServerFrames,
    make: Callable[[int], bytes],
    depth: int,
) -> None:
    (chunk,) = chunks(make, depth, 1)
    assert frames.feed(chunk)
    measured(benchmark, depth, lambda: frames.feed(chunk))


@pytest.mark.benchmark(group="frames: feed")
def test_feed_in_halves(benchmark: BenchmarkFixture, frames: ServerFrames) -> None:
    parts = halved(chunks(read, BATCH, 1))

    def work() -> None:
        for part in parts:
            frames.feed(part)

    measured(benchmark, BATCH, work)


@pytest.mark.benchmark(group="frames: receive, with the peer's send and recv")
@pytest.mark.parametrize("depth", DEPTHS)
def test_receive(benchmark: BenchmarkFixture, frames: ServerFrames, depth: int) -> None:
    (chunk,) = chunks(read, depth, 1)
    size = len(frames.feed(chunk) or b"")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = ours.fileno()

        def work() -> None:
            theirs.sendall(chunk)
            frames.receive(fd)
            assert len(theirs.recv(1 << 20)) == size

        measured(benchmark, depth, work)


@pytest.mark.benchmark(group="bodies, 16 to a chunk")
@pytest.mark.parametrize("name", BODIES)
def test_body(benchmark: BenchmarkFixture, frames: ServerFrames, name: str) -> None:
    chunk = BODIES[name] * BATCH
    replies = frames.feed(chunk)
    assert replies is not None
    if name != "ping":  # its reply is a header alone
        assert (replies[12:16] == bytes(4)) != name.startswith("refused")
    measured(benchmark, BATCH, lambda: frames.feed(chunk))


@pytest.mark.benchmark(group="calls of user functions, 16 to a chunk")
@pytest.mark.parametrize("kind", ["typed", "untyped"])
def test_plain_function(benchmark: BenchmarkFixture, storage: Storage, kind: str) -> None:
    """With its arguments read, the function run, its result written."""
    app = iproto.App()

    def typed(text: str) -> str:
        return text

    def untyped(text):  # type: ignore[no-untyped-def]
        return text

    app.function(USER_FUNCTION)(typed if kind == "typed" else untyped)
    callee = callee_of(
        app.functions[USER_FUNCTION], FIRST_USER_ROW, iproto.Config(), Repeats(logging.getLogger())
    )
    frames = iproto._fastframe.ServerFrames(
        storage, mailru=False, max_body=4096, max_calls=64, functions={USER_FUNCTION: callee}
    )
    (chunk,) = chunks(call, BATCH, 1)

    def work() -> bytes:
        frames.feed(chunk)
        frames.start_calls(None)  # type: ignore[arg-type]
        return frames.take()

    assert work()[12:16] == bytes(4)
    measured(benchmark, BATCH, work)


@pytest.mark.benchmark(group="metrics")
def test_counters(benchmark: BenchmarkFixture, storage: Storage) -> None:
    benchmark(storage.counters)


@pytest.mark.benchmark(group="metrics")
def test_scrape(benchmark: BenchmarkFixture, frames: ServerFrames) -> None:
    """The storage's metrics as text, without HTTP and without the yields in between."""
    for chunk in chunks(mixed, BATCH, 16):
        frames.feed(chunk)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StorageCollector(Source(frames.storage)))
    assert b"storage_reads_total" in generate_latest(registry)
    benchmark(generate_latest, registry)
