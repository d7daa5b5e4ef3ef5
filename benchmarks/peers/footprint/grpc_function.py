"""The greeting over grpc.aio: its server, and a load for it.

Strings go as UTF-8 bytes without protobuf, so what is measured is gRPC itself. The load prints
what `load` prints, and checks every reply; it costs about as much CPU time as the server. Both
run on uvloop, which made the server some 20 % faster than asyncio's own loop.

    python -m benchmarks.peers.footprint.grpc_function serve --port PORT
    python -m benchmarks.peers.footprint.grpc_function load --port PORT --connections 50 --depth 16
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
import time
from typing import Any

import uvloop

from benchmarks.peers.footprint.greeting import GREETING, NAME, greet

SERVICE = "iproto.Greeter"


async def serve(port: int) -> None:
    grpc: Any = importlib.import_module("grpc")
    aio: Any = importlib.import_module("grpc.aio")

    async def handler(name: bytes, _: Any) -> bytes:
        return (await greet(name.decode())).encode()

    server = aio.server()
    method = grpc.unary_unary_rpc_method_handler(handler)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Greet": method}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


class Load:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.replies = 0

    async def run(self) -> None:
        aio: Any = importlib.import_module("grpc.aio")
        # Channels to one address share a connection unless told not to.
        settings = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            aio.insecure_channel(f"127.0.0.1:{self.options.port}", options=settings)
            for _ in range(self.options.connections)
        ]
        try:
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
            self.measured_from = time.perf_counter() + self.options.warmup
            self.measured_to = self.measured_from + self.options.duration
            await asyncio.gather(
                *(self.worker(channel) for channel in channels for _ in range(self.options.depth))
            )
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))

    async def worker(self, channel: Any) -> None:
        """Keep one call in flight on the channel until the measurement ends."""
        call = channel.unary_unary(f"/{SERVICE}/Greet")
        while time.perf_counter() < self.measured_to:
            reply = (await call(NAME.encode())).decode()
            if reply != GREETING:
                raise ValueError(f"another reply than {GREETING!r}: {reply!r}")
            if self.measured_from <= time.perf_counter() < self.measured_to:
                self.replies += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("serve", "load"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--duration", type=float, default=5.0)
    parser.add_argument("--warmup", type=float, default=1.0)
    options = parser.parse_args()
    importlib.import_module("grpc.aio")  # takes long, and is none of the load's work
    if options.what == "serve":
        uvloop.run(serve(options.port))
        return 0
    load = Load(options)
    started, cpu_before = time.perf_counter(), time.process_time()
    uvloop.run(load.run())
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_before
    report = {
        "requests_per_second": load.replies / options.duration,
        "seconds": seconds,
        "load_cpu": cpu / seconds,
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
