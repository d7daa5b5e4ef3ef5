"""What the gate counts: fixed scenarios, driven through the extension.

    python benchmarks/gate/script.py SOURCE [SCENARIO ...]

``gate.py`` runs this under callgrind, which counts within the methods of
ServerFrames and ClientFrames only. Each scenario runs in two forked children,
with STEPS[0] and STEPS[1] repetitions of one step, so that what happens once
(first allocations, preparation) drops out of the difference. A line of JSON a
scenario tells the children's ids, and how many frames more the second one handled.

SOURCE is the directory that ``iproto`` is imported from.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import struct
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from iproto._fastframe import Call, ServerFrames, Storage, UserFunction

STEPS = (2, 10)

SWITCH_READWRITE, REPLACE, READ, PING = 0x00010002, 0x00020001, 0x00020002, 0x0000FF00
USER_FUNCTION, UNKNOWN_FUNCTION = 0x00030001, 0x00040001
HEADER = struct.Struct("<III")

# As of the extension, which is imported from SOURCE.
FIRST_USER_ROW, HAS_CALLS = 8, 1

Chunks = list[bytes]


class Scenario(NamedTuple):
    """``prepare`` returns a step, which handles this many frames each time it is called."""

    frames: int
    prepare: Callable[[], Callable[[], None]]


# Requests. Slots hold 0 to 256 bytes, as (37 * index) % 257 has it, and indexes
# are of one to three bytes on the wire: every length of a copy has its part.


def frame(func_id: int, number: int, body: bytes) -> bytes:
    return HEADER.pack(func_id, len(body), number) + body


def msgpack_int(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    return b"\xcc" + bytes([value]) if value < 0x100 else b"\xcd" + value.to_bytes(2, "big")


def msgpack_str(text: bytes) -> bytes:
    if len(text) < 32:
        return bytes([0xA0 | len(text)]) + text
    if len(text) < 0x100:
        return b"\xd9" + bytes([len(text)]) + text
    return b"\xda" + len(text).to_bytes(2, "big") + text


def index_of(number: int) -> int:
    return number * 61 % 1000


def content_of(index: int) -> bytes:
    return b"x" * (37 * index % 257)


def read(number: int) -> bytes:
    index = msgpack_int(index_of(number))
    shapes = (index, b"\x91" + index, b"\x81\xa2ID" + index)
    return frame(READ, number, shapes[0 if number % 4 else number % 3])


def write(number: int) -> bytes:
    index = index_of(number)
    both = (msgpack_int(index), msgpack_str(content_of(index)))
    shapes = (
        b"".join(both),
        b"\x92" + b"".join(both),
        b"\x82\xa2ID" + both[0] + b"\xa1S" + both[1],
    )
    return frame(REPLACE, number, shapes[0 if number % 4 else number % 3])


def mixed(number: int) -> bytes:
    """Of 16: 9 reads, 3 writes, a PING, a switch, and two that are refused."""
    kind = number % 16
    if kind in (2, 7, 12):
        return write(number)
    others = {
        4: frame(PING, number, b""),
        9: frame(SWITCH_READWRITE, number, b""),
        11: frame(READ, number, msgpack_int(1000)),
        14: frame(UNKNOWN_FUNCTION, number, b""),
    }
    return others.get(kind) or read(number)


def call(number: int) -> bytes:
    return frame(USER_FUNCTION, number, msgpack_str(b"y" * (number % 40)))


def chunks(make: Callable[[int], bytes], depth: int, count: int) -> Chunks:
    frames = [make(number) for number in range(depth * count)]
    return [b"".join(frames[at : at + depth]) for at in range(0, len(frames), depth)]


def halved(whole: Chunks) -> Chunks:
    """Each chunk as two, cut in the middle: most often within a frame."""
    return [part for c in whole for part in (c[: len(c) // 2], c[len(c) // 2 :])]


# Ways to drive them.


def new_storage(areas: int = 1, *, in_file: bool = False) -> Storage:
    """A store with areas for this many workers; the last one is ours.

    Args:
        areas: worker areas.
        in_file: whether it keeps hashes of its slots, as a store in a file does.
    """
    from iproto._fastframe import Storage

    storage = Storage(workers=areas, worker=areas - 1, checked=in_file)
    for index in range(1000):
        storage.replace(index, content_of(index))
    return storage


def echo(text: str) -> str:
    return text


def echo_of(*, is_async: bool) -> dict[int, UserFunction]:
    """The user function, as a server has it."""
    import logging

    import iproto
    from iproto.server.calls import callee_of
    from iproto.server.repeats import Repeats

    app = iproto.App()
    app.function(USER_FUNCTION)(echo)
    function = app.functions[USER_FUNCTION]
    function.is_async = is_async
    failures = Repeats(logging.getLogger("iproto.app"))
    return {USER_FUNCTION: callee_of(function, FIRST_USER_ROW, iproto.Config(), failures)}


def new_frames(
    areas: int = 1,
    *,
    is_async: bool = False,
    in_file: bool = False,
    limited: bool = False,
    net_rpc: bool = False,
) -> ServerFrames:
    from iproto._fastframe import ServerFrames

    functions = echo_of(is_async=is_async)
    # An older checkout may be counted too, which has no limits, and no net/rpc.
    limits = all_limits(functions) if limited else {"net_rpc": True} if net_rpc else {}
    return ServerFrames(
        new_storage(areas, in_file=in_file),
        mailru=False,
        max_body=1 << 20,
        max_calls=1000,
        functions=functions,
        **limits,
    )


def all_limits(functions: dict[int, UserFunction]) -> dict[str, Any]:
    """A client with rights, a rate and a number of calls that it never reaches."""
    from iproto._fastframe import Clients, Guard, RateLimit

    rate = RateLimit(1e9, 1_000_000)
    guard = Guard(lambda func_id: func_id != SWITCH_READWRITE, functions, rate, 60_000)
    return {"guard": guard, "account": Clients(areas=9, area=8).claim(1)}


def through_socket(
    what: Chunks, areas: int = 1, *, in_file: bool = False, limited: bool = False
) -> Callable[[], None]:
    frames = new_frames(areas, in_file=in_file, limited=limited)
    ours, theirs = socket.socketpair()
    theirs.settimeout(10.0)  # a scenario that waits for a reply in vain says so
    fd = ours.fileno()
    reference = new_frames()  # one for all: filling a store takes long under valgrind
    replies = [len(reference.feed(chunk) or b"") for chunk in what]

    def step(_ours: socket.socket = ours) -> None:
        for chunk, size in zip(what, replies, strict=True):
            theirs.sendall(chunk)
            assert frames.receive(fd) == 0
            got = 0
            while got < size:
                got += len(theirs.recv(size - got))

    return step


def through_feed(what: Chunks) -> Callable[[], None]:
    frames = new_frames()

    def step() -> None:
        for chunk in what:
            frames.feed(chunk)
            assert frames.status == 0

    return step


def read_by_net_rpc(number: int) -> bytes:
    """A read of a client of Go's net/rpc, which has defined its types."""
    body = b"\x81\xa2ID" + msgpack_int(index_of(number))
    size, seq = bytes([len(body)]), bytes([1 + number % 100])
    begin = b"\xff\x82\x01\x15MyService.MainHandler\x01" + seq + b"\0"
    header = b"\x01\xfd\x02\x00\x02\x01" + size + b"\x01" + seq + b"\0"
    argument = b"\xff\x84\x01" + header + b"\x01" + size + body + b"\0"
    return b"".join(bytes([len(part)]) + part for part in (begin, argument))


GOB_TYPES = (
    b"\x2f\xff\x81\x03\x01\x01\x07Request\x01\xff\x82\x00\x01\x02\x01\x0dServiceMethod\x01\x0c"
    b"\x00\x01\x03Seq\x01\x06\x00\x00\x00\x2a\xff\x83\x03\x01\x01\x07Request\x01\xff\x84\x00"
    b"\x01\x02\x01\x06Header\x01\xff\x86\x00\x01\x04Body\x01\x0a\x00\x00\x00\x3c\xff\x85\x03\x01"
    b"\x01\x06Header\x01\xff\x86\x00\x01\x03\x01\x06FuncID\x01\x06\x00\x01\x0aBodyLength\x01\x06"
    b"\x00\x01\x09RequestID\x01\x06\x00\x00\x00"
)


def through_net_rpc(what: Chunks) -> Callable[[], None]:
    """Frames as calls of Go's net/rpc."""
    frames = new_frames(net_rpc=True)
    frames.feed(GOB_TYPES)

    def step() -> None:
        for chunk in what:
            frames.feed(chunk)
            assert frames.status == 0

    return step


def through_calls(what: Chunks) -> Callable[[], None]:
    """Plain functions: run and answered within ``receive``."""
    frames = new_frames()
    ours, theirs = socket.socketpair()
    fd = ours.fileno()

    def step(_ours: socket.socket = ours) -> None:
        for chunk in what:
            theirs.sendall(chunk)
            status = frames.receive(fd)
            while status:
                assert status == HAS_CALLS
                frames.start_calls(None)  # type: ignore[arg-type]
                frames.flush(fd)
                status = frames.status
            assert theirs.recv(1 << 16)

    return step


def through_tasks(what: Chunks, *, limited: bool = False) -> Callable[[], None]:
    """Functions that run as tasks; who runs them is not counted."""
    frames = new_frames(is_async=True, limited=limited)
    started: list[tuple[Call, tuple[str]]] = []
    ours, theirs = socket.socketpair()
    fd = ours.fileno()

    def step(_ours: socket.socket = ours) -> None:
        for chunk in what:
            theirs.sendall(chunk)
            assert frames.receive(fd) == HAS_CALLS
            frames.start_calls(lambda *call: started.append(call))
            for call, arguments in started:
                frames.answer(call, *arguments)
            started.clear()
            frames.flush(fd)
            assert frames.status == 0
            assert theirs.recv(1 << 16)

    return step


def client_reads(count: int, bulk: int) -> Callable[[], None]:
    """Reads in bulks of this many: ``read_many``; or, if it is 1, one ``read`` after the other."""
    from iproto._fastframe import AS_TEXT, ClientFrames

    frames = ClientFrames(mailru=False, max_body=1 << 20)
    indexes = [index_of(number) for number in range(count)]
    bodies = [bytes(4) + msgpack_str(content_of(index)) for index in indexes]
    lengths = [len(body) - 4 for body in bodies]  # of dialect vk: without the return_code

    def replies(first: int, at: int) -> bytes:
        parts = []
        for number in range(bulk):
            parts.append(HEADER.pack(READ, lengths[at + number], first + number))
            parts.append(bodies[at + number])
        return b"".join(parts)

    def step() -> None:
        for at in range(0, count, bulk):
            if bulk == 1:
                first = frames.read(indexes[at], AS_TEXT, None, 0.0)
            else:
                first = frames.read_many(indexes[at : at + bulk], AS_TEXT, None, 0.0)
            frames.take()
            ((_, error, _result),) = frames.feed(replies(first, at))
            assert error is None

    return step


def scenario(
    drive: Callable[[Chunks], Callable[[], None]],
    make: Callable[[int], bytes],
    depth: int,
    count: int,
) -> Scenario:
    return Scenario(depth * count, lambda: drive(chunks(make, depth, count)))


AREAS_OF_FOUR_WORKERS = 9  # two each, and the supervisor's


def of_four_workers(make: Callable[[int], bytes], depth: int, count: int) -> Scenario:
    return Scenario(
        depth * count, lambda: through_socket(chunks(make, depth, count), AREAS_OF_FOUR_WORKERS)
    )


def into_file(make: Callable[[int], bytes], depth: int, count: int) -> Scenario:
    return Scenario(depth * count, lambda: through_socket(chunks(make, depth, count), in_file=True))


def limited(make: Callable[[int], bytes], depth: int, count: int) -> Scenario:
    return Scenario(depth * count, lambda: through_socket(chunks(make, depth, count), limited=True))


SCENARIOS = {
    "read, depth 1": scenario(through_socket, read, 1, 96),
    "read, depth 16": scenario(through_socket, read, 16, 6),
    "read, depth 256": scenario(through_socket, read, 256, 2),
    "write, depth 1": scenario(through_socket, write, 1, 96),
    "write, depth 16": scenario(through_socket, write, 16, 6),
    "mixed, depth 16": scenario(through_socket, mixed, 16, 6),
    "read, depth 16, 4 workers": of_four_workers(read, 16, 6),
    "write, depth 16, 4 workers": of_four_workers(write, 16, 6),
    "write, depth 16, in a file": into_file(write, 16, 6),
    "mixed, depth 16, in a file": into_file(mixed, 16, 6),
    "feed: read, depth 1": scenario(through_feed, read, 1, 96),
    "feed: read, depth 16": scenario(through_feed, read, 16, 6),
    "feed: read, depth 16, halved": Scenario(96, lambda: through_feed(halved(chunks(read, 16, 6)))),
    "feed: net/rpc read, depth 1": scenario(through_net_rpc, read_by_net_rpc, 1, 96),
    "feed: net/rpc read, depth 16": scenario(through_net_rpc, read_by_net_rpc, 16, 6),
    "plain def, depth 1": scenario(through_calls, call, 1, 96),
    "plain def, depth 16": scenario(through_calls, call, 16, 6),
    "async def, depth 16": scenario(through_tasks, call, 16, 6),
    "read, depth 1, all limits": limited(read, 1, 96),
    "read, depth 16, all limits": limited(read, 16, 6),
    "read, depth 256, all limits": limited(read, 256, 2),
    "write, depth 16, all limits": limited(write, 16, 6),
    "async def, depth 16, all limits": Scenario(
        96, lambda: through_tasks(chunks(call, 16, 6), limited=True)
    ),
    "client: read": Scenario(96, lambda: client_reads(96, 1)),
    "client: read_many of 1000": Scenario(1000, lambda: client_reads(1000, 1000)),
}


def run_child(steps: int, prepare: Callable[[], Callable[[], None]]) -> int:
    """Runs this many steps in a child; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            step = prepare()
            for _ in range(steps):
                step()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"a child ended with status {status}")
    return pid


def main() -> None:
    source, *names = sys.argv[1:]
    sys.path.insert(0, source)
    # Once, before the children are forked: seconds in each of them otherwise.
    import iproto._fastframe

    echo_of(is_async=False)

    gc.disable()
    assert iproto._fastframe.__file__.startswith(source), iproto._fastframe.__file__
    for name in names or SCENARIOS:
        frames, prepare = SCENARIOS[name]
        children = [run_child(steps, prepare) for steps in STEPS]
        ran = {"scenario": name, "children": children, "frames": frames * (STEPS[1] - STEPS[0])}
        print(json.dumps(ran), flush=True)


if __name__ == "__main__":
    main()
