"""What comes back for what was sent, over a real socket."""

from __future__ import annotations

import gc
import socket
import ssl
import struct
import threading
from typing import TYPE_CHECKING

import msgpack
import pytest

import iproto
from iproto import FuncID, ReturnCode
from tests.helpers.harness import Peer, frame, read_frame, replace_frame, serving

if TYPE_CHECKING:
    from pathlib import Path


def test_a_written_string_is_read_back(loop_name: str) -> None:
    with serving(loop=loop_name) as served, served.peer() as peer:
        peer.send(replace_frame(7, "hello", request_id=5))
        assert peer.reply() == (FuncID.STORAGE_REPLACE, 5, 0, b"\xc0")
        assert peer.read(7) == "hello"


def test_mailru_dialect_counts_the_return_code() -> None:
    with serving(dialect="mailru") as served, served.peer() as peer:
        peer.send(read_frame(0, request_id=9))
        assert peer.sock.recv(100) == struct.pack("<IIII", 0x20002, 5, 9, 0) + b"\xa0"


def test_a_stream_cut_into_single_bytes_is_answered(loop_name: str) -> None:
    stream = replace_frame(3, "abc") + read_frame(3) + frame(FuncID.PING)
    with serving(loop=loop_name) as served, served.peer() as peer:
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(stream)):
            peer.send(stream[i : i + 1])
        first, second, third = peer.replies(3)
        assert (first.code, second.value, third.func_id) == (0, "abc", FuncID.PING)


def test_a_pipeline_of_fifty_thousand_frames_is_answered_in_order(loop_name: str) -> None:
    count = 50_000
    with serving(loop=loop_name) as served, served.peer() as peer:
        for index in range(1000):
            peer.send(replace_frame(index, f"slot {index}"))
        assert all(reply.code == 0 for reply in peer.replies(1000))
        stream = b"".join(read_frame(i % 1000, request_id=i) for i in range(count))
        sender = _send_in_background(peer, stream)
        for i in range(count):
            reply = peer.reply()
            assert (reply.request_id, reply.value) == (i, f"slot {i % 1000}")
        sender.join()


def _send_in_background(peer: Peer, stream: bytes) -> threading.Thread:
    thread = threading.Thread(target=peer.send, args=(stream,), daemon=True)
    thread.start()
    return thread


def test_a_connection_serves_many_requests_one_after_the_other() -> None:
    with serving() as served, served.peer() as peer:
        assert [peer.ask(FuncID.PING, request_id=i).request_id for i in range(500)] == [*range(500)]


def test_ping_brings_the_twelve_bytes_back() -> None:
    with serving() as served, served.peer() as peer:
        peer.send(frame(FuncID.PING, request_id=0xFFFFFFFF))
        peer.finish_sending()
        assert peer.rest() == frame(FuncID.PING, request_id=0xFFFFFFFF)


def test_shutdown_is_echoed_after_every_earlier_reply_and_then_the_server_closes(
    loop_name: str,
) -> None:
    with serving(loop=loop_name) as served, served.peer() as peer:
        peer.send(read_frame(0) * 100 + frame(FuncID.SHUTDOWN, request_id=77) + read_frame(0))
        assert all(reply.func_id == FuncID.STORAGE_READ for reply in peer.replies(100))
        assert peer.reply() == (FuncID.SHUTDOWN, 77, None, b"")
        assert peer.rest() == b""
        peer.sock.close()
        assert served.wait_closed() == {"SHUTDOWN": 1}


def test_an_unknown_function_is_refused_and_the_connection_lives_on() -> None:
    with serving() as served, served.peer() as peer:
        reply = peer.ask(0x12345678)
        assert (reply.code, reply.value) == (
            ReturnCode.UNSUPPORTED_COMMAND,
            "no function 0x12345678 here",
        )
        assert peer.read(0) == ""


def test_a_switch_binds_every_connection() -> None:
    with serving() as served, served.peer() as one, served.peer() as other:
        assert one.ask(FuncID.ADM_STORAGE_SWITCH_READONLY, b"\xc0").code == 0
        other.send(replace_frame(1, "x") + read_frame(1))
        assert [r.code for r in other.replies(2)] == [ReturnCode.READ_ONLY, 0]
        assert one.ask(FuncID.ADM_STORAGE_SWITCH_MAINTENANCE, b"").code == 0
        other.send(replace_frame(1, "x") + read_frame(1))
        assert [r.code for r in other.replies(2)] == [ReturnCode.LOCKED, ReturnCode.LOCKED]
        assert other.ask(FuncID.ADM_STORAGE_SWITCH_READWRITE, b"\xc0").code == 0
        one.send(replace_frame(1, "x"))
        assert one.reply().code == 0


def test_contents_that_are_not_utf8_come_back_as_they_are() -> None:
    with serving() as served, served.peer() as peer:
        peer.send(replace_frame(0, b"\xff\x00\xfe") + read_frame(0))
        assert peer.replies(2)[1].body == b"\xa3\xff\x00\xfe"


@pytest.mark.parametrize("length", [1 << 20, (1 << 20) + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_over_the_limit_is_refused_with_the_limit_and_closed(
    length: int, loop_name: str
) -> None:
    with serving(loop=loop_name, max_body=1 << 19) as served, served.peer() as peer:
        peer.send(read_frame(0) + struct.pack("<III", FuncID.STORAGE_REPLACE, length, 42))
        assert peer.reply().code == 0
        reply = peer.reply()
        assert (reply.request_id, reply.code) == (42, ReturnCode.ILLEGAL_PARAMS)
        assert "524288" in reply.value
        assert str(length) in reply.value
        assert peer.rest() == b""
        peer.sock.close()
        assert served.wait_closed() == {"BODY_TOO_LARGE": 1}


def test_the_refusal_of_a_long_body_arrives_though_the_body_is_being_sent(loop_name: str) -> None:
    """A socket closed with unread bytes is reset, which would destroy the refusal."""
    body = bytes(4 << 20)
    with serving(loop=loop_name) as served, served.peer() as peer:
        peer.send(frame(FuncID.STORAGE_REPLACE, body, request_id=3))
        reply = peer.reply()
        assert (reply.request_id, reply.code) == (3, ReturnCode.ILLEGAL_PARAMS)
        assert peer.rest() == b""


def test_http_is_answered_like_any_broken_stream_and_disturbs_nobody() -> None:
    with serving() as served, served.peer() as other, served.peer() as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert peer.reply().code == ReturnCode.ILLEGAL_PARAMS
        assert peer.rest() == b""
        assert other.read(0) == ""


def test_tls_is_answered_like_any_broken_stream() -> None:
    context = ssl.create_default_context()
    with (
        serving() as served,
        served.peer() as peer,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(peer.sock, server_hostname="localhost")


def test_a_client_that_waits_for_a_greeting_ends_as_idle() -> None:
    with serving(idle_timeout=0.05) as served, served.peer() as peer:
        assert peer.rest() == b""
        assert served.wait_closed() == {"IDLE": 1}


def test_unix_and_tcp_listeners_serve_one_storage(tmp_path: Path) -> None:
    bind = ("127.0.0.1:0", f"unix:{tmp_path}/iproto.sock", "127.0.0.1:0")
    with serving(bind=bind) as served:
        addresses = served.server.addresses
        assert addresses[1].path == f"{tmp_path}/iproto.sock"
        with Peer(addresses[0]) as first, Peer(addresses[1]) as second, Peer(addresses[2]) as third:
            first.send(replace_frame(1, "one for all"))
            assert first.reply().code == 0
            assert second.read(1) == third.read(1) == "one for all"
    assert not (tmp_path / "iproto.sock").exists()


def test_ipv6_is_served() -> None:
    with serving(bind="[::1]:0") as served, served.peer() as peer:
        assert peer.read(0) == ""


def test_replies_leave_without_delay() -> None:
    with serving() as served, served.peer() as peer:
        assert peer.read(0) == ""
        name = peer.sock.getsockname()
        (accepted,) = [
            sock
            for sock in gc.get_objects()
            if isinstance(sock, socket.socket) and _peer_name(sock) == name
        ]
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def _peer_name(sock: socket.socket) -> object:
    try:
        return sock.getpeername()
    except OSError:
        return None


def test_a_storage_can_be_served_by_two_servers() -> None:
    storage = iproto.Storage()
    with serving(storage=storage) as one, serving(storage=storage) as two:
        with one.peer() as peer:
            peer.send(replace_frame(5, "shared"))
            assert peer.reply().code == 0
        with two.peer() as peer:
            assert peer.read(5) == "shared"
    assert storage.read(5) == b"shared"


def test_a_reply_to_a_bad_body_names_what_is_allowed() -> None:
    with serving() as served, served.peer() as peer:
        reply = peer.ask(FuncID.STORAGE_REPLACE, msgpack.packb([1, 2]))
        assert reply.code == ReturnCode.ILLEGAL_PARAMS
        assert "[int, str]" in reply.value
        reply = peer.ask(FuncID.STORAGE_READ, msgpack.packb(1000))
        assert (reply.code, reply.value) == (
            ReturnCode.NUMBER_OUT_OF_RANGE,
            "index 1000 is outside 0..999",
        )
