"""Load for grpc_server: the options and the JSON of `load`, closed loop and open loop.

It is a Python client, for want of a C one without protoc, and costs about as much CPU as the
server it drives: look at `load_cpu` before calling a figure the server's limit.

    python -m benchmarks.peers.load.grpc_load --port PORT --connections 50 --depth 1 --mix read
"""

import argparse
import asyncio
import importlib
import json
import math
import random
import selectors
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import msgpack

from benchmarks.peers.common import watch
from benchmarks.peers.own.grpc_server import SERVICE, SLOTS

LEVELS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
PREFILL_IN_FLIGHT = 50
LOOK_SECONDS = 0.05  # between looks at the time while as many as may be are in flight
BURST = 16  # requests sent without a look at replies


def value_of(slot: int, size: int) -> str:
    filler = "".join(chr(ord("a") + (slot + i) % 26) for i in range(size))
    return (f"{slot:03}" + filler[3:])[:size]


@dataclass
class Result:
    measured_from: float = math.inf  # until the warm-up is over
    measured_to: float = math.inf
    seconds: float = 0.0  # of the measured time; and what it took of CPU time
    load_cpu: float = 0.0
    server_cpu: float = 0.0
    server_memory: int = 0  # bytes, at its end
    replies: int = 0
    unsent: int = 0
    latencies: list[float] = field(default_factory=list)
    wrong: int = 0
    errors: int = 0
    first_problem: str = ""


class Caller:
    """Makes the calls on one channel."""

    def __init__(self, channel: Any, mix: str, value_size: int, seed: int, result: Result) -> None:
        self._read = channel.unary_unary(f"/{SERVICE}/Read")
        self._replace = channel.unary_unary(f"/{SERVICE}/Replace")
        self._error: Any = importlib.import_module("grpc").RpcError
        self._mix = mix
        self._value_size = value_size
        self._choice = random.Random(seed)
        self._result = result

    async def call(self, since: float, *, late_counts: bool = False) -> None:
        """Makes one call, whose latency counts from `since`.

        In the open loop (`late_counts`) the latency of what was due in time is recorded however
        late the reply is.
        """
        result = self._result
        slot = self._choice.randrange(SLOTS)
        write = self._mix == "write" or (self._mix == "mixed" and self._choice.random() < 0.2)
        index, value = msgpack.packb(slot), msgpack.packb(value_of(slot, self._value_size))
        try:
            reply = await (self._replace(index + value) if write else self._read(index))
        except self._error as problem:
            result.errors += 1
            result.first_problem = result.first_problem or str(problem).replace("\n", " ")
            return
        if reply != (b"\xc0" if write else value):
            result.wrong += 1
            return
        now = time.perf_counter()
        in_time = result.measured_from <= now < result.measured_to
        result.replies += in_time
        if (since >= result.measured_from) if late_counts else in_time:
            result.latencies.append(now - since)


async def closed_loop(caller: Caller, result: Result) -> None:
    """Keep one request in flight until the measurement ends."""
    while (sent := time.perf_counter()) < result.measured_to:
        await caller.call(sent)


async def open_loop(
    callers: list[Caller], rate: float, started: float, most: int, result: Result
) -> None:
    """Send each request when it is due, `most` in flight at most."""
    in_flight: set[asyncio.Task[None]] = set()
    number = 0
    while (now := time.perf_counter()) < result.measured_to:
        due = started + number / rate
        if due > now:
            await asyncio.sleep(due - now)
        elif len(in_flight) >= most:
            await asyncio.wait(in_flight, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        else:
            call = callers[number % len(callers)].call(due, late_counts=True)
            task = asyncio.ensure_future(call)
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
            number += 1
            if number % BURST == 0:
                await asyncio.sleep(0)  # replies have their turn, however late requests are
    if in_flight:
        await asyncio.wait(in_flight)
    # Those that were due and not sent have waited at least till now.
    now = time.perf_counter()
    while (due := started + number / rate) < result.measured_to:
        result.unsent += 1
        if due >= result.measured_from:
            result.latencies.append(now - due)
        number += 1


async def measure_cost(warmup: float, duration: float, watched: list[int], result: Result) -> None:
    """Begin and end the measured time, and find out what it costs.

    It begins when the warm-up is over for the event loop: 1000 calls to begin with keep it busy
    for longer.
    """
    await asyncio.sleep(warmup)
    load_before, server_before = time.process_time(), watch.cpu_seconds(watched)
    result.measured_from = time.perf_counter()
    result.measured_to = result.measured_from + duration
    await asyncio.sleep(duration)
    result.seconds = time.perf_counter() - result.measured_from
    result.load_cpu = time.process_time() - load_before
    result.server_cpu = watch.cpu_seconds(watched) - server_before
    result.server_memory = watch.memory_bytes(watched)


async def prefill(channel: Any, value_size: int) -> None:
    replace = channel.unary_unary(f"/{SERVICE}/Replace")
    for first in range(0, SLOTS, PREFILL_IN_FLIGHT):
        bodies = [
            msgpack.packb(slot) + msgpack.packb(value_of(slot, value_size))
            for slot in range(first, first + PREFILL_IN_FLIGHT)
        ]
        await asyncio.gather(*(replace(body) for body in bodies))


async def run(options: argparse.Namespace) -> Result:
    aio: Any = importlib.import_module("grpc.aio")
    # Channels to one address share a connection unless told not to.
    settings = [("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{options.port}"
    channels = [aio.insecure_channel(address, options=settings) for _ in range(options.connections)]
    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        await prefill(channels[0], options.value_size)
        started = time.perf_counter()
        result = Result()
        callers = [
            Caller(channel, options.mix, options.value_size, i, result)
            for i, channel in enumerate(channels)
        ]
        if options.rate:
            most = options.depth * options.connections
            loops = [open_loop(callers, options.rate, started, most, result)]
        else:
            loops = [
                closed_loop(caller, result) for caller in callers for _ in range(options.depth)
            ]
        cost = measure_cost(options.warmup, options.duration, options.watch, result)
        await asyncio.gather(cost, *loops)
        return result
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def list_of_pids(text: str) -> list[int]:
    return [int(pid) for pid in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--mix", choices=("read", "write", "mixed"), default="read")
    parser.add_argument("--value-size", type=int, default=64)
    parser.add_argument("--duration", type=float, default=5.0)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--watch", type=list_of_pids, default=[])
    options = parser.parse_args()

    importlib.import_module("grpc.aio")  # takes long, and is none of the load's work
    # asyncio's usual selector sleeps whole milliseconds: too coarse for a schedule.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector() if options.rate else None)
    asyncio.set_event_loop(loop)
    result = loop.run_until_complete(run(options))
    loop.close()
    times = sorted(result.latencies)
    latency_us = {
        name: round(times[math.ceil(len(times) * percent / 100) - 1] * 1e6, 1) if times else 0.0
        for name, percent in LEVELS.items()
    }
    report = {
        "protocol": "grpc",
        "connections": options.connections,
        "depth": options.depth,
        "mix": options.mix,
        "value_size": options.value_size,
        "duration": options.duration,
        "rate": options.rate,
        "replies": result.replies,
        "requests_per_second": round(result.replies / options.duration, 1),
        "seconds": round(result.seconds, 3),
        "load_cpu_seconds": round(result.load_cpu, 6),
        "server_cpu_seconds": round(result.server_cpu, 6),
        "server_memory_bytes": result.server_memory,
        "unsent": result.unsent,
        "wrong": result.wrong,
        "errors": result.errors,
        "latency_us": latency_us,
    }
    print(json.dumps(report))
    if result.first_problem:
        print(f"grpc_load: first problem: {result.first_problem}", file=sys.stderr)
    return 1 if result.wrong or result.errors else 0


if __name__ == "__main__":
    sys.exit(main())
