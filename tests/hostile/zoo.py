"""Attacks on a server: functions that can be pointed at one that runs.

Each takes where the server is and an event, works until that is set, and returns what it did in
numbers. None of them is a client that keeps the protocol.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from typing import TYPE_CHECKING

import msgpack

from iproto import FuncID

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    Attack = Callable[[tuple[str, int], threading.Event], int]

PAUSE = 0.01  # seconds between two rounds of an attack: they share a machine with the test


def _connect(address: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(address, timeout=1.0)
    sock.settimeout(0.05)
    return sock


def _frame(func_id: int, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<III", func_id, len(body) if length is None else length, 7) + body


def _rounds(stop: threading.Event, step: Callable[[], None]) -> int:
    for done in itertools.count():
        if stop.wait(PAUSE):
            return done
        with contextlib.suppress(OSError):
            step()
    raise AssertionError("an endless count has ended")


def floods_of_connections(address: tuple[str, int], stop: threading.Event) -> int:
    """Opens as many as it gets, and keeps them with PINGs."""
    held: list[socket.socket] = []

    def step() -> None:
        held.append(_connect(address))
        for sock in held[-20:]:
            with contextlib.suppress(OSError):
                sock.send(_frame(FuncID.PING))
        while len(held) > 100:
            held.pop(0).close()

    done = _rounds(stop, step)
    for sock in held:
        sock.close()
    return done


def resets(address: tuple[str, int], stop: threading.Event) -> int:
    """Sends requests, and resets the connection before it has read an answer."""

    def step() -> None:
        with _connect(address) as sock:
            sock.send(_frame(FuncID.STORAGE_READ, b"\x01") * 100)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return _rounds(stop, step)


def slow_bodies(address: tuple[str, int], stop: threading.Event) -> int:
    """Begins frames, and sends them a byte at a time."""
    held = []
    with contextlib.suppress(OSError):
        for _ in range(5):
            held.append(_connect(address))
            held[-1].send(_frame(FuncID.STORAGE_REPLACE, b"\x01", 60_000))

    def step() -> None:
        for sock in held:
            sock.send(b"x")

    done = _rounds(stop, step)
    for sock in held:
        sock.close()
    return done


def readers_of_nothing(address: tuple[str, int], stop: threading.Event) -> int:
    """Asks for as much as it can send, and reads none of it."""
    with _connect(address) as sock:

        def step() -> None:
            sock.send(_frame(FuncID.STORAGE_READ, b"\x01") * 1000)

        return _rounds(stop, step)


def lying_lengths(address: tuple[str, int], stop: threading.Event) -> int:
    """Claims bodies of gigabytes, and sends what is no frame at all."""
    kinds = itertools.cycle(
        (
            _frame(FuncID.STORAGE_READ, b"\x01", 0xFFFFFFFF),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00" + bytes(64),
            b"\xff" * 4096,
        )
    )

    def step() -> None:
        with _connect(address) as sock:
            sock.send(next(kinds))
            sock.recv(4096)

    return _rounds(stop, step)


def bombs(address: tuple[str, int], stop: threading.Event) -> int:
    """Bodies that are small, and would be large or deep objects."""
    bodies = itertools.cycle(
        (
            b"\x91" * 5000,
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff" + b"\x01\x01" * 1000,
            msgpack.packb(dict.fromkeys(range(3000))),
        )
    )

    def step() -> None:
        with _connect(address) as sock:
            for func_id in (0x00030001, FuncID.STORAGE_REPLACE):
                sock.send(_frame(func_id, next(bodies)))
            sock.recv(4096)

    return _rounds(stop, step)


def half_closed(address: tuple[str, int], stop: threading.Event) -> int:
    """Ends its side at once, and never reads what it asked for."""
    held: list[socket.socket] = []

    def step() -> None:
        held.append(_connect(address))
        held[-1].send(_frame(FuncID.STORAGE_READ, b"\x01") * 50)
        held[-1].shutdown(socket.SHUT_WR)
        while len(held) > 10:
            held.pop(0).close()

    done = _rounds(stop, step)
    for sock in held:
        sock.close()
    return done


def switches(address: tuple[str, int], stop: threading.Event) -> int:
    """Tries to stop all others, and floods the log with it."""
    with _connect(address) as sock:

        def step() -> None:
            sock.send(_frame(FuncID.ADM_STORAGE_SWITCH_MAINTENANCE, b"\xc0") * 20)
            sock.recv(65536)

        return _rounds(stop, step)


ATTACKS: tuple[Attack, ...] = (
    floods_of_connections,
    resets,
    slow_bodies,
    readers_of_nothing,
    lying_lengths,
    bombs,
    half_closed,
    switches,
)
