"""Load for grpc_server: the options and the JSON of `load`, closed loop only.

It is a Python client, for want of a C one without protoc, and costs about as much CPU as the
server it drives: look at `load_cpu` before calling a figure the server's limit.

    python -m benchmarks.peers.grpc_load --port PORT --connections 50 --depth 1 --mix read
"""

import argparse
import asyncio
import importlib
import json
import math
import random
import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import msgpack
from benchmarks.peers.grpc_server import SERVICE, SLOTS

LEVELS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
PREFILL_IN_FLIGHT = 50


def value_of(slot: int, size: int) -> str:
    filler = "".join(chr(ord("a") + (slot + i) % 26) for i in range(size))
    return (f"{slot:03}" + filler[3:])[:size]


@dataclass
class Result:
    measured_from: float
    measured_to: float
    latencies: list[float] = field(default_factory=list)
    wrong: int = 0
    errors: int = 0
    first_problem: str = ""


async def worker(channel: Any, mix: str, value_size: int, seed: int, result: Result) -> None:
    """Keep one request in flight on the channel until the measurement ends."""
    error: Any = importlib.import_module("grpc").RpcError
    read = channel.unary_unary(f"/{SERVICE}/Read")
    replace = channel.unary_unary(f"/{SERVICE}/Replace")
    choice = random.Random(seed)
    while (sent := time.perf_counter()) < result.measured_to:
        slot = choice.randrange(SLOTS)
        write = mix == "write" or (mix == "mixed" and choice.random() < 0.2)
        index, value = msgpack.packb(slot), msgpack.packb(value_of(slot, value_size))
        try:
            reply = await (replace(index + value) if write else read(index))
        except error as problem:
            result.errors += 1
            result.first_problem = result.first_problem or str(problem).replace("\n", " ")
            continue
        if reply != (b"\xc0" if write else value):
            result.wrong += 1
            continue
        now = time.perf_counter()
        if result.measured_from <= now < result.measured_to:
            result.latencies.append(now - sent)


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
        start = time.perf_counter() + options.warmup
        result = Result(measured_from=start, measured_to=start + options.duration)
        await asyncio.gather(
            *(
                worker(channel, options.mix, options.value_size, i * options.depth + j, result)
                for i, channel in enumerate(channels)
                for j in range(options.depth)
            )
        )
        return result
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--mix", choices=("read", "write", "mixed"), default="read")
    parser.add_argument("--value-size", type=int, default=64)
    parser.add_argument("--duration", type=float, default=5.0)
    parser.add_argument("--warmup", type=float, default=1.0)
    options = parser.parse_args()

    importlib.import_module("grpc.aio")  # takes long, and is none of the load's work
    started, cpu_before = time.perf_counter(), cpu_seconds()
    result = asyncio.run(run(options))
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu_before
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
        "replies": len(times),
        "requests_per_second": round(len(times) / options.duration, 1),
        "seconds": round(seconds, 3),
        "load_cpu": round(cpu / seconds, 3),
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
