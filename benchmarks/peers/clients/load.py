"""One client under one kind of calls, in a process of its own: what `clients` starts.

It fills the 1000 slots, keeps some calls in flight until the time is up, and prints JSON: how many
values came, in how many seconds, and how much CPU time this process took. Every value is compared
with what was written. The asyncio clients all run on uvloop.

    python -m benchmarks.peers.clients.load --client redis-py --call get --in-flight 50 --port PORT
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.peers.load.grpc_load import value_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

SLOTS = 1000
SPACE = 512  # Tarantool's, as tarantool.lua makes it
STRIDE = 7  # slots between the first ones of two tasks


@dataclass(frozen=True)
class Call:
    """A way to get values with a client."""

    run: Callable[[Any], Any]
    """Takes one of the arguments; returns the reply, or what is awaited for it."""
    argument_of: Callable[[int], Any] = lambda slot: slot
    """What a call for a single value takes for a slot; calls for many take lists of them."""
    unpack: Callable[[Any], Any] | None = None
    """Takes the string, or the list of them, out of a reply that is something else."""


Calls = dict[str, Call]


@contextlib.asynccontextmanager
async def iproto_asyncio(port: int, values: list[str], _: int) -> AsyncIterator[Calls]:
    iproto: Any = importlib.import_module("iproto")
    async with iproto.AsyncClient(f"iproto://127.0.0.1:{port}") as client:
        await client.replace_many(dict(enumerate(values)))
        yield {"read": Call(client.read), "read_many": Call(client.read_many)}


@contextlib.contextmanager
def iproto_blocking(port: int, values: list[str], _: int) -> Iterator[Calls]:
    iproto: Any = importlib.import_module("iproto")
    with iproto.Client(f"iproto://127.0.0.1:{port}") as client:
        client.replace_many(dict(enumerate(values)))
        yield {"read": Call(client.read), "read_many": Call(client.read_many)}


@contextlib.asynccontextmanager
async def asynctnt(port: int, values: list[str], _: int) -> AsyncIterator[Calls]:
    asynctnt: Any = importlib.import_module("asynctnt")
    # Spaces by number, no schema, no pings, no time-outs: the least that it can do for a call.
    connection = asynctnt.Connection(
        host="127.0.0.1",
        port=port,
        fetch_schema=False,
        auto_refetch_schema=False,
        ping_timeout=0,
        reconnect_timeout=0,
    )
    await connection.connect()
    try:
        await asyncio.gather(*(connection.replace(SPACE, pair) for pair in enumerate(values)))
        select = partial(connection.select, SPACE)

        def gather(keys: list[list[int]]) -> Awaitable[Any]:
            return asyncio.gather(*map(select, keys))

        def key_of(slot: int) -> list[int]:
            return [slot]

        yield {
            "select": Call(select, key_of, lambda reply: reply.body[0][1]),
            "gather": Call(gather, key_of, lambda replies: [r.body[0][1] for r in replies]),
        }
    finally:
        await connection.disconnect()


@contextlib.asynccontextmanager
async def redis_asyncio(port: int, values: list[str], in_flight: int) -> AsyncIterator[Calls]:
    redis: Any = importlib.import_module("redis.asyncio")
    # A connection for each call in flight, which is how it does things at once; and no time-out
    # on the socket, for that is a timer of asyncio around every reply.
    client = redis.Redis(
        host="127.0.0.1",
        port=port,
        decode_responses=True,
        max_connections=in_flight,
        socket_timeout=None,
    )
    async with client:
        await client.mset(dict(enumerate(values)))

        async def pipeline(slots: list[int]) -> Any:
            async with client.pipeline(transaction=False) as pipe:
                for slot in slots:
                    pipe.get(slot)
                return await pipe.execute()

        yield {"get": Call(client.get), "pipeline": Call(pipeline), "mget": Call(client.mget)}


@contextlib.contextmanager
def redis_blocking(port: int, values: list[str], _: int) -> Iterator[Calls]:
    redis: Any = importlib.import_module("redis")
    with redis.Redis(host="127.0.0.1", port=port, decode_responses=True) as client:
        client.mset(dict(enumerate(values)))

        def pipeline(slots: list[int]) -> Any:
            with client.pipeline(transaction=False) as pipe:
                for slot in slots:
                    pipe.get(slot)
                return pipe.execute()

        yield {"get": Call(client.get), "pipeline": Call(pipeline), "mget": Call(client.mget)}


@contextlib.asynccontextmanager
async def coredis(port: int, values: list[str], _: int) -> AsyncIterator[Calls]:
    coredis: Any = importlib.import_module("coredis")
    # All calls over one connection: it takes less of its CPU time than its usual pool.
    settings = {"decode_responses": True, "verify_version": False, "max_connections": 1}
    async with coredis.Redis("127.0.0.1", port, **settings) as client:
        await client.mset(dict(enumerate(values)))

        async def pipeline(slots: list[int]) -> Any:
            async with client.pipeline(transaction=False) as pipe:
                for slot in slots:
                    pipe.get(slot)
            return list(pipe.results)

        async def mget(slots: list[int]) -> Any:
            return list(await client.mget(slots))

        yield {"get": Call(client.get), "pipeline": Call(pipeline), "mget": Call(mget)}


ASYNCIO = {
    "iproto": iproto_asyncio,
    "asynctnt": asynctnt,
    "redis-py": redis_asyncio,
    "coredis": coredis,
}
BLOCKING = {"iproto-blocking": iproto_blocking, "redis-py-blocking": redis_blocking}


class Work:
    """What the tasks or threads go round, and whether they are to go on."""

    def __init__(self, call: Call, size: int, values: list[str]) -> None:
        self.call = call
        self.size = size
        # Slots in another order than they were written in, each in one call of a whole round.
        slots = [slot * STRIDE % SLOTS for slot in range(SLOTS)]
        self.arguments: list[Any] = [call.argument_of(slot) for slot in slots]
        self.expected: list[Any] = [values[slot] for slot in slots]
        if size > 1:
            starts = range(0, SLOTS - size + 1, size)
            self.arguments = [self.arguments[start : start + size] for start in starts]
            self.expected = [self.expected[start : start + size] for start in starts]
        self.going = True

    def check(self, place: int, reply: Any) -> None:
        if reply != self.expected[place]:
            raise ValueError(f"another reply than was written: {str(reply)[:80]!r}")

    async def in_task(self, number: int) -> int:
        """Call once, and until it is over; return the number of values that came."""
        run, unpack, arguments = self.call.run, self.call.unpack, self.arguments
        calls, place = 0, number % len(arguments)
        while self.going or not calls:
            reply = await run(arguments[place])
            self.check(place, reply if unpack is None else unpack(reply))
            calls += 1
            place = (place + 1) % len(arguments)
        return calls * self.size

    def in_thread(self, number: int) -> int:
        """The same, blocking."""
        run, arguments = self.call.run, self.arguments
        calls, place = 0, number % len(arguments)
        while self.going or not calls:
            self.check(place, run(arguments[place]))
            calls += 1
            place = (place + 1) % len(arguments)
        return calls * self.size

    def end(self) -> None:
        self.going = False


@dataclass(frozen=True)
class Result:
    values: int
    seconds: float
    cpu_seconds: float


async def in_tasks(options: argparse.Namespace, values: list[str]) -> Result:
    open_client = ASYNCIO[options.client]
    async with open_client(options.port, values, options.in_flight) as calls:
        for duration in (options.warmup, options.duration):
            work = Work(calls[options.call], options.size, values)
            asyncio.get_running_loop().call_later(duration, work.end)
            started, cpu_before = time.perf_counter(), time.process_time()
            counts = await asyncio.gather(*(work.in_task(i) for i in range(options.in_flight)))
            result = Result(
                sum(counts), time.perf_counter() - started, time.process_time() - cpu_before
            )
    return result


def in_threads(options: argparse.Namespace, values: list[str]) -> Result:
    with (
        BLOCKING[options.client](options.port, values, options.in_flight) as calls,
        ThreadPoolExecutor(options.in_flight) as pool,
    ):
        for duration in (options.warmup, options.duration):
            work = Work(calls[options.call], options.size, values)
            timer = threading.Timer(duration, work.end)
            started, cpu_before = time.perf_counter(), time.process_time()
            timer.start()
            try:
                counts = list(pool.map(work.in_thread, range(options.in_flight)))
            finally:
                timer.cancel()
                work.end()  # for the others, if one failed
            result = Result(
                sum(counts), time.perf_counter() - started, time.process_time() - cpu_before
            )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--client", choices=(*ASYNCIO, *BLOCKING), required=True)
    parser.add_argument("--call", required=True, help="read, get, pipeline ... as the client has")
    parser.add_argument("--size", type=int, default=1, metavar="N", help="values a call (1)")
    parser.add_argument("--in-flight", type=int, default=1, metavar="N", help="tasks, threads (1)")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--value-size", type=int, default=64, metavar="BYTES")
    parser.add_argument("--duration", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--warmup", type=float, default=0.2, metavar="SECONDS")
    options = parser.parse_args()

    values = [value_of(slot, options.value_size) for slot in range(SLOTS)]
    if options.client in BLOCKING:
        result = in_threads(options, values)
    else:
        result = importlib.import_module("uvloop").run(in_tasks(options, values))
    print(json.dumps(result.__dict__))
    return 0


if __name__ == "__main__":
    sys.exit(main())
