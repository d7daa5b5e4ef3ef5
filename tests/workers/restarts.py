"""Restarts and upgrades under load, as the clients of this package see them: not at all.

``make restarts RESTARTS=20 UPGRADES=10`` for the long run; test_restarts.py makes a short one.
Every writer counts up by one: its calls of a user function leave lines in a file, and its
writes of a slot are counted by the server. What was executed twice, or was executed and is
not answered, shows there.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from iproto import AsyncClient, Client, FuncID
from tests.helpers.harness import PATIENCE, Peer, ServerProcess, frame, read_frame
from tests.helpers.metrics import value
from tests.helpers.workers import scrape, supervised

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNT = 0x30001
SERVICE = f"""
import os
import iproto

app = iproto.App()
executed = os.open("executed", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@app.function({COUNT:#x})
def count(writer: int, number: int) -> None:
    os.write(executed, f"{{writer}} {{number}}\\n".encode())
"""

BULK = 20
"""Slots of a bulk."""

PAUSE = 0.02
"""Seconds between two rounds of a writer that is mostly idle."""


class Report(NamedTuple):
    """What the clients saw, and what the server did.

    Args:
        rounds: of all writers; each is a call, a write and a read, or two bulks.
        connections: that the server accepted.
        older: connections of the older client that ended.
        wrong: what must not be; empty if all is well.
    """

    rounds: int
    connections: int
    older: int
    wrong: list[str]

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds of calls over {self.connections} connections, {self.older} "
            f"ends of an older client's, {len(self.wrong)} wrong"
        )


class Writer:
    """Counts up by one, in its own slots and its own lines of the file."""

    def __init__(self, number: int, load: Load) -> None:
        self.number = number
        self.load = load
        self.count = 0
        self.writes = 0
        slots = range(number * BULK, number * BULK + BULK)
        self.slots = slots
        self.is_bulk = number % 4 == 3

    async def run(self, client: AsyncClient, pause: float) -> None:
        while not self.load.stop.is_set():
            await self.round(client)
            await asyncio.sleep(pause)

    async def run_newcomers(self, url: str) -> None:
        """A client for each round: a drain meets connections that have brought nothing yet."""
        while not self.load.stop.is_set():
            async with AsyncClient(url) as client:
                await client.connect()
                await asyncio.sleep(random.uniform(0, 0.002))
                await self.round(client)

    async def round(self, client: AsyncClient) -> None:
        self.count += 1
        try:
            if self.is_bulk:
                await client.replace_many(dict.fromkeys(self.slots, str(self.count)))
                self.check(await client.read_many(self.slots))
            else:
                await client.call(COUNT, self.number, self.count)
                await client.replace(self.slots[0], str(self.count))
                self.check([await client.read(self.slots[0])])
        except Exception as error:
            self.load.fail(self, error)

    def run_blocking(self, client: Client) -> None:
        while not self.load.stop.is_set():
            self.count += 1
            try:
                if self.is_bulk:
                    client.replace_many(dict.fromkeys(self.slots, str(self.count)))
                    self.check(client.read_many(self.slots))
                else:
                    client.call(COUNT, self.number, self.count)
                    client.replace(self.slots[0], str(self.count))
                    self.check([client.read(self.slots[0])])
            except Exception as error:
                self.load.fail(self, error)

    def check(self, contents: Sequence[str]) -> None:
        """What was just written is read, by whichever worker."""
        self.writes += len(contents)
        if set(contents) != {str(self.count)}:
            self.load.wrong.append(f"writer {self.number}: {contents} after {self.count}")


class Load:
    """The clients: four of asyncio, one mostly idle, a pool of the blocking one, an older one.

    Args:
        running: the server.
    """

    def __init__(self, running: ServerProcess) -> None:
        self.running = running
        self.url = f"iproto://{running.addresses[0]}?timeout={PATIENCE:g}"
        self.stop = threading.Event()
        self.wrong: list[str] = []
        self.older_ends = 0
        self.writers = [Writer(number, self) for number in range(28)]
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._run_async, self._run_blocking, self._run_older)
        ]

    def fail(self, writer: Writer, error: Exception) -> None:
        self.wrong.append(f"writer {writer.number}, round {writer.count}: {error!r}")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _run_async(self) -> None:
        async def run_client(writers: Sequence[Writer], pause: float) -> None:
            async with AsyncClient(self.url) as client:
                await asyncio.gather(*(writer.run(client, pause) for writer in writers))

        async def run_all() -> None:
            await asyncio.gather(
                *(
                    run_client(self.writers[first : first + 4], 0 if first else PAUSE)
                    for first in range(0, 16, 4)
                ),
                *(writer.run_newcomers(self.url) for writer in self.writers[24:]),
            )

        asyncio.run(run_all())

    def _run_blocking(self) -> None:
        with Client(self.url) as client:
            threads = [
                threading.Thread(target=writer.run_blocking, args=[client], daemon=True)
                for writer in self.writers[16:24]
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)

    def _run_older(self) -> None:
        """A client of older Tarantools: pings first, and takes any reply that it did not ask for
        as an error."""
        asked = frame(FuncID.PING, b"", 0) + read_frame(0, 1)
        while not self.stop.is_set():
            with self.running.peer() as peer:
                self._talk(peer, asked)

    def _talk(self, peer: Peer, asked: bytes) -> None:
        try:
            while not self.stop.wait(PAUSE):
                peer.send(asked)
                for func_id, request_id in ((FuncID.PING, 0), (FuncID.STORAGE_READ, 1)):
                    reply = peer.reply()
                    if (reply.func_id, reply.request_id) != (func_id, request_id):
                        self.wrong.append(f"the older client got {reply}")
        except (EOFError, ConnectionError):
            self.older_ends += 1

    def check_executed(self, folder: Path, writes: float) -> None:
        """Compares what was executed with what the writers know to be answered."""
        counts = {writer.number: 0 for writer in self.writers}
        for line in (folder / "executed").read_text().splitlines():
            number, count = map(int, line.split())
            counts[number] += 1
            if counts[number] != count:
                self.wrong.append(f"writer {number}: {count} came as number {counts[number]}")
                counts[number] = count
        for writer in self.writers:
            if not writer.is_bulk and counts[writer.number] != writer.count:
                self.wrong.append(
                    f"writer {writer.number}: {counts[writer.number]} of {writer.count} executed"
                )
        answered = sum(writer.writes for writer in self.writers)
        if writes != answered:
            self.wrong.append(f"{writes:g} writes were executed, {answered} answered")


def restart_under_load(folder: Path, restarts: int, upgrades: int, workers: int = 2) -> Report:
    """Restarts and upgrades a server whose clients count.

    Args:
        folder: an empty one, for the service and its file.
        restarts: how many.
        upgrades: how many, after the restarts.
        workers: processes of the server.
    """
    (folder / "service.py").write_text(SERVICE)
    with supervised("service:app", cwd=folder, workers=workers) as running:
        with Load(running) as load:
            for number in [signal.SIGHUP] * restarts + [signal.SIGUSR2] * upgrades:
                before = load.older_ends
                running.process.send_signal(number)
                running.wait_for("restarted$")
                if load.older_ends == before:
                    load.wrong.append(f"{number.name} ended no connection of the older client")
        samples = scrape(running)
    load.check_executed(folder, value(samples, "storage_successful_writes_total"))
    return Report(
        sum(writer.count for writer in load.writers),
        int(value(samples, "iproto_connections_opened_total")),
        load.older_ends,
        load.wrong,
    )


def main() -> int:
    """Runs it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--upgrades", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = restart_under_load(
            Path(folder), options.restarts, options.upgrades, options.workers
        )
    print(report)
    for text in report.wrong[:20]:
        print(text)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
