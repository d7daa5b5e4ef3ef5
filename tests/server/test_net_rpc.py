"""A listener of net/rpc over sockets, without Go: recorded calls, functions, TLS, time-outs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import iproto
from iproto import FuncID
from tests.helpers import gob
from tests.helpers.harness import Peer, Served, serving
from tests.helpers.net_rpc import CallReply, ReplyReader
from tests.helpers.paths import ROOT
from tests.helpers.tls import Authority, SecurePeer

if TYPE_CHECKING:
    from pathlib import Path

PATH = ROOT / "tests" / "codec" / "vectors" / "net_rpc.json"
ORIGINAL: list[dict[str, str]] = json.loads(PATH.read_text(encoding="utf-8"))["connections"][0][
    "steps"
]


def net_rpc(app: iproto.App | None = None, **settings: Any) -> Any:
    """A server with one listener, which is of net/rpc."""
    return serving(app, bind=(), net_rpc_bind="127.0.0.1:0", **settings)


def exchange(peer: Peer, step: dict[str, str]) -> None:
    """Sends what a recorded client sent, and gets what it got."""
    expected = bytes.fromhex(step["reply"])
    peer.send(bytes.fromhex(step["request"]))
    assert peer._exactly(len(expected)) == expected


def test_the_originals_calls_have_their_recorded_answers(loop_name: str) -> None:
    with net_rpc(loop=loop_name) as served, served.peer() as peer:
        for step in ORIGINAL:
            exchange(peer, step)
        peer.finish_sending()
        assert peer.rest() == b""
        assert served.wait_closed() == {"CLIENT": 1}


def test_over_tls_they_have_the_same(tmp_path: Path, loop_name: str) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue()
    with (
        net_rpc(loop=loop_name, tls_cert=pair.cert, tls_key=pair.key) as served,
        SecurePeer(served.address, authority.context()) as peer,
    ):
        for step in ORIGINAL:
            exchange(peer, step)


def functions() -> iproto.App:
    app = iproto.App()

    @app.function(0x30001)
    async def double(number: int) -> int:
        return 2 * number

    @app.function(0x30002)
    def fail() -> None:
        raise iproto.Error(0x5102, "not today")

    return app


def ask(served: Served, *calls: bytes) -> list[CallReply]:
    """What the calls of one connection are answered with."""
    with served.peer() as peer:
        peer.send(gob.DEFINITIONS + b"".join(calls))
        peer.finish_sending()
        return ReplyReader().read(peer.rest())


def test_user_functions_answer_with_their_results_and_errors(loop_name: str) -> None:
    with net_rpc(functions(), loop=loop_name) as served:
        calls = [gob.call(seq, 0x30001, bytes([seq])) for seq in range(100)]
        replies = ask(served, *calls, gob.call(200, 0x30002, b""))
        assert sorted(replies) == [
            *(CallReply(seq, False, 0x30001, 0, False, bytes([2 * seq])) for seq in range(64)),
            *(
                CallReply(seq, False, 0x30001, 0, False, b"\xcc" + bytes([2 * seq]))
                for seq in range(64, 100)
            ),
            CallReply(200, False, 0x30002, 0, True, None),
        ]


def test_a_rate_and_limits_of_connections_hold_here_too() -> None:
    with net_rpc(rate_limit="0.01:3", max_connections_per_client=1) as served:
        calls = [gob.call(seq, FuncID.STORAGE_READ, b"\x07") for seq in range(5)]
        replies = ask(served, *calls)
        assert [(reply.seq, reply.is_error) for reply in replies] == [
            (seq, seq >= 3) for seq in range(5)
        ]
        served.wait_closed()
        with served.peer() as first, served.peer() as second:
            assert second.rest() == b""  # refused: the first one has the only place
            first.send(gob.DEFINITIONS + calls[0])
            first.finish_sending()
            assert [reply.is_error for reply in ReplyReader().read(first.rest())] == [True]


def test_a_client_that_does_not_read_holds_up_nobody(loop_name: str) -> None:
    calls = gob.call(1, FuncID.STORAGE_READ, b"\x01") * 20_000
    with net_rpc(loop=loop_name) as served, served.peer(receive_buffer=4096) as slow:
        slow.send(gob.DEFINITIONS)
        slow.sock.setblocking(False)
        sent = slow.sock.send(calls)
        assert sent > 0
        assert ask(served, gob.call(2, FuncID.PING, b"")) == [CallReply(2, False, FuncID.PING)]


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (b"", "IDLE"),
        (gob.DEFINITIONS + gob.begin_call(1), "IDLE"),
        (gob.DEFINITIONS + gob.call(1, FuncID.STORAGE_READ, b"\x01")[:-1], "INCOMPLETE_FRAME"),
    ],
    ids=["nothing", "half a call", "half a message"],
)
def test_a_client_that_goes_on_with_nothing_is_closed(begin: bytes, reason: str) -> None:
    with net_rpc(idle_timeout=0.1) as served, served.peer() as peer:
        peer.send(begin)
        assert peer.rest() == b""
        assert served.wait_closed() == {reason: 1}
