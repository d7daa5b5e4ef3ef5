"""All attacks at once, beside a client that checks each of its answers."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from iproto import FuncID, State
from tests.helpers.harness import PATIENCE, frame, serving
from tests.hostile.zoo import ATTACKS

if TYPE_CHECKING:
    from iproto.address import Address
    from tests.hostile.zoo import Attack

SETTINGS: dict[str, Any] = {
    "bind": "127.0.0.1:0?rights=read+write+call",
    "admin_bind": "127.0.0.1:0",
    "max_connections": 60,
    "rate_limit": "20000:5000",
    "idle_timeout": 5.0,
    "max_body": 65536,
}

# Of another client: the attacks come from 127.0.0.1.
HONEST = "127.0.0.2"
CALLS = 400


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        assert chunk, f"the server closed an honest client's connection after {data!r}"
        data += chunk
    return data


def _ask(sock: socket.socket, func_id: int, body: bytes, number: int) -> bytes:
    sock.sendall(frame(func_id, body, number))
    func, length, request_id, code = struct.unpack("<IIII", _exactly(sock, 16))
    assert (func, request_id, code) == (func_id, number, 0)
    return _exactly(sock, length)


def _serve_honestly(address: Address) -> None:
    """Writes and reads its own slot, each answer what it must be."""
    with socket.create_connection(
        (address.host, address.port), timeout=PATIENCE, source_address=(HONEST, 0)
    ) as sock:
        for number in range(CALLS):
            text = f"value {number}"
            body = msgpack.packb(7) + msgpack.packb(text)
            assert _ask(sock, FuncID.STORAGE_REPLACE, body, 2 * number) == b"\xc0"
            found = _ask(sock, FuncID.STORAGE_READ, b"\x07", 2 * number + 1)
            assert msgpack.unpackb(found) == text


def test_an_honest_client_is_served_while_all_attacks_run_at_once(loop_name: str) -> None:
    stop = threading.Event()
    with serving(loop=loop_name, **SETTINGS) as served:
        address = served.server.addresses[0]
        place = (address.host, address.port)
        done: dict[str, int] = {}

        def run(attack: Attack) -> None:
            done[attack.__name__] = attack(place, stop)

        threads = [threading.Thread(target=run, args=(attack,)) for attack in ATTACKS]
        for thread in threads:
            thread.start()
        try:
            _serve_honestly(address)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert served.server.storage.state is State.READ_WRITE
        assert served.server.storage.read(7) == f"value {CALLS - 1}".encode()
        _serve_honestly(address)  # and afterwards, too
        assert served.server.connection_count <= SETTINGS["max_connections"]
    # Each attack was at work.
    assert sorted(done) == sorted(attack.__name__ for attack in ATTACKS)
    assert all(done.values()), done


pytestmark = pytest.mark.skipif(
    not hasattr(socket, "SO_PEERCRED"), reason="another address of loopback is Linux's"
)
