"""The blocking client beside another checkout's, with one thread and with many.

    python benchmarks/threads.py DIR [--rounds 9] [--calls 6000]

DIR is another built checkout. One server, of this checkout, serves both. In each
round each client makes the same calls (a read and a replace in turn), in a process of
its own, one directly after the other, the first of which changes with the round; a
figure is the median of the rounds, a ratio that of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
THREADS = (1, 4, 16)


class Figures(NamedTuple):
    """Of one run: calls a second, and microseconds of CPU time a call."""

    rate: float
    cpu: float


def run_here(url: str, threads: int, calls: int) -> None:
    """Makes the calls with the client that this process imports; prints the figures."""
    import iproto

    client = iproto.Client(url)
    each = calls // threads

    def work(slot: int) -> None:
        for _ in range(each // 2):
            client.replace(slot, "some text")
            client.read(slot)

    work(0)  # connected, imported, warm
    workers = [threading.Thread(target=work, args=(slot,)) for slot in range(threads)]
    begun, cpu = perf_counter(), process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done = each // 2 * 2 * threads
    print(json.dumps([done / (perf_counter() - begun), (process_time() - cpu) / done * 1e6]))
    client.close()


def run(checkout: Path, url: str, threads: int, calls: int) -> Figures:
    """Makes the calls with a checkout's client, in a process of its own."""
    program = [str(checkout / ".venv/bin/python"), __file__, "--here", url]
    done = subprocess.run(
        [*program, "--threads", str(threads), "--calls", str(calls)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return Figures(*json.loads(done.stdout))


def compare(other: Path, url: str, rounds: int, calls: int) -> None:
    """Prints a table, a row for each number of threads."""
    print("| threads | calls/s, DIR | calls/s, here | ratio | µs of CPU, DIR | here | ratio |")
    print("|---|---|---|---|---|---|---|")
    for threads in THREADS:
        pairs: list[tuple[Figures, Figures]] = []
        for number in range(rounds):
            order = (other, ROOT) if number % 2 else (ROOT, other)
            first, second = (run(checkout, url, threads, calls) for checkout in order)
            pairs.append((first, second) if number % 2 else (second, first))
        cells = []
        for field in range(2):
            theirs, ours = ([pair[side][field] for pair in pairs] for side in range(2))
            ratio = median(b / a for a, b in zip(theirs, ours, strict=True))
            cells += [f"{median(theirs):.0f}", f"{median(ours):.0f}", f"{ratio:.2f}"]
        print(f"| {threads} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=6000)
    parser.add_argument("--here", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        run_here(options.here, options.threads, options.calls)
        return
    if options.other is None:
        parser.error("name the other checkout: DIR")
    serve = [sys.executable, "-m", "iproto", "serve", "--bind", "127.0.0.1:0"]
    with subprocess.Popen(
        [*serve, "--metrics-bind", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            match = re.search(r"serving (\S+) ", server.stderr.readline())
            assert match is not None, "the server did not start"
            compare(options.other.resolve(), f"iproto://{match[1]}", options.rounds, options.calls)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
