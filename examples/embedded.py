"""A server in a program's own event loop, beside the program's other work.

    python examples/embedded.py [HOST:PORT]

The storage is filled before anybody can connect. Then the program goes on
writing the time of day into slot 0; clients read it. Ctrl-C ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import signal
import sys

import iproto

GREETINGS = {1: "hello", 2: "привет", 3: "salut"}


def filled_storage() -> iproto.Storage:
    storage = iproto.Storage()
    for index, text in GREETINGS.items():
        storage.replace(index, text.encode())
    return storage


async def tell_the_time(storage: iproto.Storage) -> None:
    while True:
        now = datetime.datetime.now(datetime.timezone.utc)
        # A client may have switched the storage to READ_ONLY or MAINTENANCE.
        with contextlib.suppress(iproto.ReadOnlyError, iproto.LockedError):
            storage.replace(0, now.isoformat(timespec="seconds").encode())
        await asyncio.sleep(1)


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8080"
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    storage = filled_storage()
    async with iproto.Server(iproto.Config(bind=address), storage=storage) as server:
        clock = asyncio.create_task(tell_the_time(storage))
        print(f"serving {server.addresses[0]}", flush=True)
        await stop.wait()
        clock.cancel()
    # Here everything is answered and closed.
    print("stopped")


if __name__ == "__main__":
    asyncio.run(main())
