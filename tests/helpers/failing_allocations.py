"""Makes each allocation of a codec fail in turn: run by the tests in a process of its own.

    python -m tests.helpers.failing_allocations server|client NUMBER

``failing_malloc.c`` is preloaded, with PYTHONMALLOC=malloc: so Python's allocations fail
as well as those that the extension makes of libc. NUMBER fail in a row.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections import Counter
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgpack

from iproto import _fastframe as ff
from iproto.errors import LockedError
from iproto.wire import CloseReason, FuncID, ReturnCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

READ, REPLACE = FuncID.STORAGE_READ, FuncID.STORAGE_REPLACE
PLAIN, TASK = 0x00030001, 0x00030002

# The frames within the data of calls: slot and ids that no request has.
EVIL_SLOT, EVIL_ID = 7, 0xEE11
FULL = b"f" * 256

TURNS = 3


class Allocations:
    """Lets a stretch of allocations fail, within calls that are made through ``within``."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._on = ctypes.c_int.in_dll(library, "failing_on")
        self._before = ctypes.c_long.in_dll(library, "failing_before")
        self._left = ctypes.c_long.in_dll(library, "failing_left")
        self._failed = ctypes.c_long.in_dll(library, "failing_failed")

    def fail(self, before: int, count: int) -> None:
        self._before.value, self._left.value, self._failed.value = before, count, 0

    @property
    def failed(self) -> int:
        return self._failed.value

    def within(self, call: Callable[[], T]) -> T:
        self._on.value = 1
        try:
            return call()
        finally:
            self._on.value = 0


def frame(func_id: int, request_id: int, body: bytes) -> bytes:
    return struct.pack("<III", func_id, len(body), request_id) + body


def packed(*values: Any) -> bytes:
    return b"".join(msgpack.packb(value, use_bin_type=False) for value in values)


# Pieces of the stream end where one of these begins.
EVIL = frame(REPLACE, EVIL_ID, packed(EVIL_SLOT, "evil"))
EVIL += frame(READ, EVIL_ID, packed(EVIL_SLOT)) * 2


class Stream:
    """What a client sends, in pieces, and what may come back: by id, function and bodies."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.expected: dict[int, tuple[int, list[tuple[int, bytes]]]] = {}
        self.writes: dict[int, tuple[int, bytes]] = {}
        self._piece = b""
        next_id = iter(range(1, 1 << 30))
        internal = (ReturnCode.INTERNAL, b"\xc0")
        for turn in range(TURNS):
            for slot in (1, 2):
                content = b"%d in turn %d" % (slot, turn)
                number = next(next_id)
                self.writes[number] = (slot, content)
                self._add(REPLACE, number, packed(slot, content), [(0, b"\xc0")])
            for func_id in (PLAIN, TASK):
                data = b"\xc6" + struct.pack(">I", 40 * len(EVIL)) + EVIL * 40
                self._add(func_id, next(next_id), data, [(0, data), internal], cut=17 + len(EVIL))
            self._add(FuncID.PING, next(next_id), b"", [])
            for _ in range(40):
                self._add(READ, next(next_id), packed(999), [(0, packed(FULL))])
            self.pieces.append(self._piece[:-5])
            self._piece = self._piece[-5:]
        self.pieces.append(self._piece)

    def _add(
        self,
        func_id: int,
        number: int,
        body: bytes,
        answers: list[tuple[int, bytes]],
        cut: int = 0,
    ) -> None:
        self.expected[number] = (func_id, answers)
        whole = frame(func_id, number, body)
        if cut:
            self.pieces.append(self._piece + whole[:cut])
            self.pieces.append(whole[cut : cut + 3 * len(EVIL)])
            self._piece = whole[cut + 3 * len(EVIL) :]
        else:
            self._piece += whole


class Served:
    """One connection as the server handles it, between the two ends of a socket pair."""

    def __init__(self, stream: Stream, allocations: Allocations) -> None:
        self.stream = stream
        self.allocations = allocations
        self.called: list[int] = []
        self.running: list[tuple[ff.Call, bytes]] = []
        self.received = b""
        self.storage = ff.Storage()
        self.storage.replace(EVIL_SLOT, b"good")
        self.storage.replace(999, FULL)
        self.ours, self.peer = socket.socketpair()
        for end in (self.ours, self.peer):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        self.fd = self.ours.fileno()
        functions = {
            PLAIN: self._function(PLAIN, is_async=False),
            TASK: self._function(TASK, is_async=True),
        }
        self.frames = ff.ServerFrames(
            self.storage, mailru=False, max_body=1 << 20, max_calls=8, functions=functions
        )
        # Made here, so that what follows allocates as little as can be of its own.
        self._start = self._start_task

    def _function(self, func_id: int, *, is_async: bool) -> ff.UserFunction:
        """A function that returns its body."""
        return ff.UserFunction(
            func_id,
            ff.FIRST_USER_ROW + is_async,
            "echo",
            self._call,
            (lambda array: (array[3:],),) * 2,
            0,
            lambda error: error,
            lambda body: body,
            lambda error: (ReturnCode.INTERNAL, b"\xc0"),
            is_async=is_async,
            timeout=None,
            counted=0,
            max_objects=1000,
            max_depth=10,
        )

    def run(self, before: int, count: int) -> None:
        """Sends all pieces, with allocations failing; reads what comes back."""
        self.allocations.fail(before, count)
        for piece in self.stream.pieces:
            self._send(piece)
            self._try(lambda: self.frames.receive(self.fd))
            self._go_on()
            for call, body in self.running:
                self._try(partial(self.frames.answer, call, body))
            self.running.clear()
            self._go_on()
        self._try(self.frames.finish)
        self._try(lambda: self.frames.flush(self.fd))
        self._read()
        self.ours.close()
        self._read()
        self.peer.close()

    def _send(self, piece: bytes) -> None:
        sent = 0
        while sent < len(piece):
            try:
                sent += self.peer.send(piece[sent:])
            except BlockingIOError:
                # The frames took only a part, or are broken: then the rest is not read.
                self._try(lambda: self.frames.receive(self.fd))
                self._go_on()

    def _go_on(self) -> None:
        frames = self.frames
        for _ in range(1000):
            if frames.status & ff.HAS_CALLS:
                self._try(lambda: frames.start_calls(self._start))
            if frames.status & ff.HAS_UNSENT:
                self._read()
                self._try(lambda: frames.flush(self.fd))
            elif frames.status & ff.HAS_MORE and not frames.status & ff.IS_FULL:
                self._try(lambda: frames.resume(self.fd))
            elif not frames.status & ff.HAS_CALLS:
                break
        else:
            raise AssertionError(f"no end: {frames.status=}")
        self._try(lambda: frames.flush(self.fd))
        self._read()

    def _try(self, step: Callable[[], object]) -> None:
        """A step of the server's; after one that broke the stream the others do nothing."""
        was = self.frames.status
        try:
            self.allocations.within(step)
        except MemoryError:
            if self.frames.status & ff.IS_BROKEN:
                assert self.frames.close_reason is CloseReason.FAILED
            elif self.frames.status == was:
                step()  # it was not even called
        if was & ff.IS_BROKEN:
            assert self.frames.status & ~ff.HAS_ENDED == was & ~ff.HAS_ENDED

    def _read(self) -> None:
        while True:
            try:
                chunk = self.peer.recv(1 << 16)
            except (BlockingIOError, ConnectionResetError):
                return
            if not chunk:
                return
            self.received += chunk

    def _call(self, body: bytes) -> bytes:
        self.called.append(PLAIN)
        return body

    def _start_task(self, call: ff.Call, arguments: tuple[bytes]) -> None:
        self.running.append((call, arguments[0]))
        self.called.append(call.request_id)

    def check(self) -> None:
        replies = list(self._replies())
        twice = [number for number, times in Counter(replies).items() if times > 1]
        assert not twice, f"answered twice: {twice}"
        assert self.storage.read(EVIL_SLOT) == b"good", "data was executed"
        written = [self.stream.writes[n] for n in self.stream.writes]
        for slot in (1, 2):
            content = self.storage.read(slot)
            assert content == b"" or (slot, content) in written
        counters = self.storage.counters()
        executed = sum(counters["requests"][ff.ROWS.index(REPLACE)])
        answered = sum(number in self.stream.writes for number in replies)
        assert answered <= executed <= len(self.stream.writes), (answered, executed)
        started = Counter(self.called)
        assert started.pop(PLAIN, 0) <= TURNS, "a function was called twice"
        assert all(times == 1 for times in started.values()), "a task was started twice"
        if not self.allocations.failed:
            assert len(replies) == len(self.stream.expected)

    def _replies(self) -> Iterator[int]:
        """The ids of whole replies, in a stream that may end anywhere."""
        data, at = self.received, 0
        while len(data) - at >= 12:
            func_id, length, number = struct.unpack_from("<III", data, at)
            asked, answers = self.stream.expected[number]
            assert func_id == asked, (hex(func_id), number)
            at += 12
            if answers:
                if len(data) - at < 4 + length:
                    assert any(length == len(body) for _, body in answers)
                    return
                code = int.from_bytes(data[at : at + 4], "little")
                assert (code, data[at + 4 : at + 4 + length]) in answers, number
                at += 4 + length
            yield number


class Asked(NamedTuple):
    """A call of a client, as its waiter."""

    number: int


class Asking:
    """One connection as a client handles it: calls of each kind, and replies in pieces."""

    def __init__(self, allocations: Allocations) -> None:
        self.allocations = allocations
        self.frames = ff.ClientFrames(mailru=False, max_body=1 << 16)
        self.heard: Counter[int] = Counter()
        self.wrong: list[object] = []
        self.expected: list[Any] = []
        self.replies: list[bytes] = []
        for turn in range(4):
            text = f"slot in turn {turn} " * 12
            self._ask(self.frames.read(1, ff.AS_TEXT, self._waiter(text), inf), packed(text))
            self._ask(self.frames.replace(2, text, self._waiter(None), inf), b"\xc0", REPLACE)
            self._ask(
                self.frames.read_many([1, 2], ff.AS_BYTES, self._waiter([b"a", b"b"]), inf),
                packed(b"a"),
                READ,
                packed(b"b"),
            )
            body = bytes(3000)
            self._ask(
                self.frames.request(TASK, b"", ff.AS_BODY, self._waiter(body), inf), body, TASK
            )
            self._ask(
                self.frames.read(3, ff.AS_TEXT, self._waiter(LockedError), inf),
                packed("locked"),
                code=ReturnCode.LOCKED,
            )
        self.frames.take()

    def _waiter(self, expected: Any) -> Asked:
        self.expected.append(expected)
        return Asked(len(self.expected) - 1)

    def _ask(
        self, number: int, body: bytes, func_id: int = READ, *more: bytes, code: int = 0
    ) -> None:
        for place, reply in enumerate([body, *more]):
            self.replies.append(
                struct.pack("<IIII", func_id, len(reply), number + place, code) + reply
            )

    def run(self, before: int, count: int) -> None:
        stream = b"".join(self.replies)
        self.allocations.fail(before, count)
        step = 700
        for at in range(0, len(stream), step):
            piece = stream[at : at + step]
            try:
                outcomes = self.allocations.within(partial(self.frames.feed, piece))
            except MemoryError:
                # Unless it is broken, it was not even called.
                outcomes = self.frames.feed(piece) if self.frames.broken is None else []
            for waiter, error, result in outcomes:
                self.heard[waiter.number] += 1
                expected = self.expected[waiter.number]
                if result != expected and type(error) is not expected:
                    self.wrong.append((error, result, expected))

    def check(self) -> None:
        assert not self.wrong, self.wrong
        if self.frames.broken is None:
            assert sum(self.heard.values()) == len(self.expected)
        for waiter, may_have_executed, _ in self.frames.fail_all():
            assert may_have_executed
            self.heard[waiter.number] += 1
        for number in range(len(self.expected)):
            assert self.heard[number] == 1, f"call {number}: {self.heard[number]} outcomes"


def main(side: str, count: int) -> None:
    allocations = Allocations()
    broken = 0
    for before in range(1_000_000):
        subject = Served(Stream(), allocations) if side == "server" else Asking(allocations)
        subject.run(before, count)
        failed = allocations.failed
        try:
            subject.check()
        except AssertionError as error:
            raise AssertionError(
                f"allocation {before} and {count - 1} more failed: {error}"
            ) from error
        if isinstance(subject, Served):
            broken += bool(subject.frames.status & ff.IS_BROKEN)
        else:
            broken += subject.frames.broken is not None
        if not failed:
            break
    print(f"{before} allocations failed in turn, {broken} streams broke")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
