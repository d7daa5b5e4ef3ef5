"""One turn of the event loop does so much work, however many connections send without end.

Counted in frames, not in time: clients and server are in one thread, so that nothing is
executed but by the turns between a request of the honest client and its reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING

import uvloop

import iproto
from iproto import FuncID
from tests.helpers.harness import PATIENCE, frame

if TYPE_CHECKING:
    from collections.abc import Coroutine

GREEDY = 40
ROUNDS = 8
CALL = 0x00030001
PING = frame(FuncID.PING, b"", request_id=1)

# A request, its execution, and the reply's way through the client's side of the loop.
TURNS = 4


def run(loop_name: str, main: Coroutine[None, None, None]) -> None:
    loop = uvloop.new_event_loop() if loop_name == "uvloop" else asyncio.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(main, PATIENCE))
    finally:
        loop.close()


def connect(server: iproto.Server) -> socket.socket:
    address = server.addresses[0]
    sock = socket.create_connection((address.host, address.port))
    sock.setblocking(False)
    return sock


def fill(sock: socket.socket, data: bytes) -> None:
    """Sends until nothing more is taken."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(data)


def answered(server: iproto.Server) -> int:
    return sum(sum(codes) for codes in server.storage.counters()["requests"])


async def most_between(server: iproto.Server, honest: socket.socket) -> int:
    """The most frames that the server answered while the honest client waited for one."""
    loop = asyncio.get_running_loop()
    most = 0
    for _ in range(ROUNDS):
        before = answered(server)
        honest.send(PING)
        reply = b""
        while len(reply) < len(PING):
            reply += await loop.sock_recv(honest, len(PING) - len(reply))
        most = max(most, answered(server) - before)
    return most


def test_few_frames_of_greedy_connections_come_before_that_of_an_honest_one(
    loop_name: str,
) -> None:
    # Requests and replies of a turn: its budget, and one large share over it.
    frames_a_turn = (512 + 2 * 256) * 1024 // (2 * len(PING))
    # The small shares of those that are ready at once, the first time.
    at_once = GREEDY * 16 * 1024 // len(PING)

    async def main() -> None:
        async with iproto.Server(iproto.Config(bind="127.0.0.1:0")) as server:
            with contextlib.ExitStack() as stack:
                honest = stack.enter_context(connect(server))
                greedy = [stack.enter_context(connect(server)) for _ in range(GREEDY)]
                while server.connection_count <= GREEDY:
                    await asyncio.sleep(0)
                for sock in greedy:
                    fill(sock, PING * 4096)
                most = await most_between(server, honest)
                assert answered(server) > GREEDY * 1000, "the greedy ones are not served"
                assert most < TURNS * frames_a_turn + at_once, f"{most} frames"
            await server.close()

    run(loop_name, main())


def test_few_calls_of_greedy_connections_come_before_the_frame_of_an_honest_one(
    loop_name: str,
) -> None:
    app = iproto.App()

    @app.function(CALL)
    def work() -> None:
        end = time.perf_counter() + 100e-6
        while time.perf_counter() < end:
            pass

    # A millisecond of them, and another one of the connection that went over it; of each
    # that is ready some 100 us twice: when it is read, and before it waits for a turn.
    calls_a_turn = 2 * 10 + 2
    at_once = GREEDY * 2 * 3

    async def main() -> None:
        config = iproto.Config(bind="127.0.0.1:0", queue_timeout=3600.0)
        async with iproto.Server(config, app) as server:
            with contextlib.ExitStack() as stack:
                honest = stack.enter_context(connect(server))
                greedy = [stack.enter_context(connect(server)) for _ in range(GREEDY)]
                while server.connection_count <= GREEDY:
                    await asyncio.sleep(0)
                for sock in greedy:
                    sock.send(frame(CALL, b"\x90", request_id=1) * 500)
                most = await most_between(server, honest)
                assert answered(server) > GREEDY, "the greedy ones are not served"
                assert most < TURNS * calls_a_turn + at_once, f"{most} calls"
            await server.close()

    run(loop_name, main())
